"""Roots that are URLs: the same images as in a folder, and the same files count as unchanged next time."""

import os
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from encoders.base import MissingDependency, NothingToIndex
from indexer import remote
from indexer.build import build
from indexer.remote import read_stamp
from indexer.roots import is_url
from indexer.sources import open_source
from indexer.table import EmbeddingTable
from tests.conftest import FakeEncoder
from tests.pictures import draw_bytes, read_all

FILES = {
    "a.png": draw_bytes(),
    "below/b.JPG": draw_bytes("JPEG"),
    "below/deep/ö [1].png": draw_bytes(),
    "below/notes.txt": b"no image",
    ".hidden/c.png": draw_bytes(),
    "trash/d.png": draw_bytes(),
    "empty.png": b"",
    "bad.jpg": b"no picture",
}


@pytest.fixture
def memory() -> Iterator[str]:
    """A URL in memory that holds FILES."""
    url = f"memory://{uuid4().hex}/photos"
    write_files(url)
    yield url
    fsspec.filesystem("memory").rm(url.rpartition("/")[0], recursive=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A URL on a local S3 server that holds FILES."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        write_files("s3://bucket/photos")
        yield "s3://bucket/photos"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "bucket"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def write_files(url: str) -> None:
    for name, content in FILES.items():
        with fsspec.open(f"{url}/{name}", "wb") as stream:
            stream.write(content)


def test_a_url_holds_the_images_that_its_folder_would(url: str, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    there, here = read_all(url), read_all(tmp_path)
    assert list(there) == list(here) and len(there) == 6
    for path, photo in there.items():
        assert photo._replace(image=None, file=here[path].file) == here[path]._replace(image=None)
        assert photo.file.size == here[path].file.size
        if photo.image is not None:
            assert photo.image.tobytes() == here[path].image.tobytes()
    assert [path for path, photo in there.items() if photo.error] == ["bad.jpg", "empty.png"]


def test_a_url_is_indexed_like_a_folder_and_only_once(url: str, tmp_path: Path, encoder: FakeEncoder) -> None:
    report = build(url, tmp_path / "index", encoder)
    assert (report.indexed + report.copied, report.skipped) == (4, 2)
    paths = ["a.png", "below/b.JPG", "below/deep/ö [1].png", "trash/d.png"]
    assert sorted(EmbeddingTable.open(tmp_path / "index").paths) == paths
    before = encoder.embedded
    assert build(url, tmp_path / "index", encoder).reused == 4 and encoder.embedded == before


def test_exclusion_prunes_what_is_listed(url: str) -> None:
    paths = [file.path for file in open_source(url).find(["trash", "below/deep", "*.JPG", "b*.jpg"]).files]
    assert paths == ["a.png", "empty.png"]


def test_only_what_was_written_again_has_another_stamp(url: str) -> None:
    before = list(open_source(url).find().files)
    assert list(open_source(url).find().files) == before
    with fsspec.open(f"{url}/a.png", "wb") as stream:
        stream.write(FILES["a.png"][:-1] + b"?")  # the same size, and within the same second
    after = list(open_source(url).find().files)
    assert [file.path for file, old in zip(after, before, strict=True) if file != old] == ["a.png"]
    with fsspec.open(f"{url}/a.png", "wb") as stream:
        stream.write(FILES["a.png"])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A URL on a local web server that holds two photos and an empty file."""
    pytest.importorskip("aiohttp")
    for name in ("a.png", "below/b.JPG", "empty.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(FILES[name])
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/photos/"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_files_whose_listing_tells_no_size_are_asked_for_it(
    web: str, tmp_path: Path, encoder: FakeEncoder
) -> None:
    files = {file.path: file for file in open_source(web).find().files}
    assert {path: file.size for path, file in files.items()} == {
        name: len(FILES[name]) for name in ("a.png", "below/b.JPG", "empty.png")
    }
    report = build(web, tmp_path / "index", encoder)
    assert (report.indexed, report.skipped) == (2, 1)
    (tmp_path / "photos/a.png").write_bytes(FILES["a.png"])
    os.utime(tmp_path / "photos/a.png", (10**9, 10**9))
    report = build(web, tmp_path / "index", encoder)
    assert (report.copied, report.reused, report.skipped) == (1, 1, 1)


def test_a_page_that_leads_elsewhere_or_round_in_circles_is_not_followed(web: str, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(FILES["a.png"])
    up, folder = ("..", "%2E%2E", "below/../.."), tmp_path / "photos/below"
    links = [*(f"{name}/outside.png" for name in up), "./", "../", "%2e/", "deep/b.JPG", "b.JPG", "./b.JPG"]
    (folder / "index.html").write_text("".join(f'<a href="{link}">x</a>' for link in links))
    assert [file.path for file in open_source(web).find().files] == ["a.png", "below/b.JPG", "empty.png"]
    (folder / "index.html").unlink()
    (folder / "back").symlink_to(folder)
    found = open_source(web).find()
    assert len(found.files) == 2 + 40
    assert [reason for _, reason in found.unreadable] == [
        "it lies below 40 folders, as if a link led back up"
    ]


def test_files_are_asked_about_side_by_side(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, together = fsspec.get_filesystem_class("memory"), threading.Barrier(3, timeout=20)
    listed, info = files.ls, files.info
    for name in ("one.png", "two.png", "three.png"):
        with fsspec.open(f"{memory}/trash/{name}", "wb") as stream:
            stream.write(FILES["a.png"])

    def ask(self: object, path: str, **options: object) -> object:
        together.wait()  # for the other two requests
        return info(self, path, **options)

    monkeypatch.setattr(
        files, "ls", lambda *given, **options: [entry | {"size": None} for entry in listed(*given, **options)]
    )
    monkeypatch.setattr(files, "info", ask)
    found = open_source(f"{memory}/trash").find(["d.png"])
    assert [file.size for file in found.files] == [len(FILES["a.png"])] * 3


def test_a_file_whose_size_nobody_tells_is_read(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").rm(f"{memory}/empty.png")
    before, files = read_all(memory), fsspec.get_filesystem_class("memory")
    listed, info = files.ls, files.info

    def forget(entry: dict[str, object]) -> dict[str, object]:
        return entry | {"size": None}

    monkeypatch.setattr(files, "ls", lambda *given, **options: list(map(forget, listed(*given, **options))))
    monkeypatch.setattr(files, "info", lambda *given, **options: forget(info(*given, **options)))
    after = read_all(memory)
    assert {file.size for file in open_source(memory).find().files} == {-1}
    assert [(photo.error, photo.digest) for photo in after.values()] == [
        (photo.error, photo.digest) for photo in before.values()
    ]


def test_archives_behind_a_url_are_named_in_one_line(memory: str) -> None:
    for name in ("z.tar", "below/shard.ZIP", ".hidden/c.zip", "trash/d.zip"):
        with fsspec.open(f"{memory}/{name}", "wb") as stream:
            stream.write(b"x")
    reason = "an archive behind a URL is not read, nor are 1 more: unpack it there"
    assert open_source(memory).find(["trash"]).refused == [("below/shard.ZIP", reason)]
    assert open_source(memory).find(["trash", "*.ZIP", "*.tar"]).refused == []


def test_what_is_gone_is_tried_again(url: str) -> None:
    with pytest.raises(FileNotFoundError):
        open_source(url).open("gone.png")


def test_an_absent_place_has_its_own_sentence(url: str) -> None:
    with pytest.raises(NothingToIndex, match=r"absent cannot be listed \(.*\): check the URL"):
        open_source(f"{url}/absent").find()


def test_a_stamp_changes_with_the_time_or_with_the_mark() -> None:
    noon = datetime(2024, 5, 6, 12, tzinfo=UTC)
    stamp = read_stamp({"LastModified": noon, "ETag": '"a"'})
    assert stamp // 10**9 == noon.timestamp()
    assert stamp == read_stamp({"mtime": noon.timestamp(), "etag": '"a"'})
    assert stamp == read_stamp({"updated": "2024-05-06T12:00:00Z", "etag": '"a"'})
    assert stamp != read_stamp({"LastModified": noon, "ETag": '"b"'})
    assert stamp != read_stamp({"LastModified": noon.replace(minute=1), "ETag": '"a"'})
    assert read_stamp({"created": 1.5}) == 1_500_000_000
    assert read_stamp({}) == 0


@pytest.mark.parametrize("time", ["yesterday", float("nan"), float("inf"), "", [], 10**400])
def test_a_time_that_is_none_stops_nothing(time: object) -> None:
    assert read_stamp({"mtime": time}) == 0


def test_a_file_larger_than_its_listing_says_is_refused(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 50)
    with pytest.raises(ValueError, match="over the limit"):
        open_source(memory).open("a.png")


def test_a_server_that_fails_is_not_blamed_on_the_bytes(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failure(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise Failure("no answer")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", fail)
    with pytest.raises(OSError, match="no answer"):
        open_source(memory).open("a.png")
    assert all(photo.unread for photo in read_all(memory).values() if photo.file.size)


def test_a_folder_that_cannot_be_listed_is_a_line(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_files = fsspec.get_filesystem_class("memory")
    listed = memory_files.ls

    def refuse(self: object, path: str, **options: bool) -> object:
        if path.endswith("below"):
            raise PermissionError(13, os.strerror(13))
        return listed(self, path, **options)

    monkeypatch.setattr(memory_files, "ls", refuse)
    found = open_source(memory).find(["trash", "bad.*", "empty.*"])
    assert [file.path for file in found.files] == ["a.png"]
    assert found.unreadable == [("below", "Permission denied")]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependency, match=r'gs://b/c .*: pip install "fwd2bot\[gcs\]"'):
        open_source("gs://b/c")


def test_an_unknown_protocol_has_its_own_sentence() -> None:
    with pytest.raises(NothingToIndex, match="Protocol not known: carrier-pigeon"):
        open_source("carrier-pigeon://b/c")


def test_a_url_is_told_from_a_folder() -> None:
    assert is_url("s3://bucket/photos") and is_url("memory://x")
    assert not is_url("photos") and not is_url("C:/photos") and not is_url(Path("s3:/bucket"))
