"""WebDataset shards, and photos in archives: read in place, or refused with a plain message."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.datasets import keep_present, parse_dataset, read_karpathy
from benchmarks.embedding import decode_pictures
from benchmarks.readers.base import is_there
from encoders.base import DatasetError


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
    return path


def draw_png(colour: str) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def test_shards_give_photos_that_are_read_where_they_are(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "1.tar",
        {
            "0.png": draw_png("red"),
            "0.json": b'{"caption": "Red."}',
            "1.json": b'{"url": "", "width": 8}',
            "1.txt": b"Blue.\nA blue one.\n",
            "1.png": draw_png("blue"),
            "lonely.png": draw_png("green"),
        },
    )
    write_shard(tmp_path / "2.tar", {"0.cls": b"1", "0.png": draw_png("lime"), "0.txt": b"Lime."})
    images = parse_dataset(tmp_path, tmp_path, None)
    assert [(image.path, image.captions) for image in images] == [
        (tmp_path / "1.tar" / "0.png", ("Red.",)),
        (tmp_path / "1.tar" / "1.png", ("Blue.", "A blue one.")),
        (tmp_path / "2.tar" / "0.png", ("Lime.",)),
    ]
    assert keep_present(images, tmp_path, allow_missing=False) == images
    pictures = decode_pictures([image.path for image in images], 8)
    assert [picture.getpixel((0, 0)) for picture in pictures] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert parse_dataset(tmp_path / "2.tar", tmp_path, None) == images[2:]
    assert not is_there(tmp_path / "1.tar" / "9.png")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": b"", "0.json": b'{"url": ""}'}, "is not of the form"),
        ({"0.png": b"", "0.json": b"{"}, "is not JSON"),
        ({"0.png": b"", "0.txt": b"\xff"}, "is not text"),
        ({"0.png": b"", "0.txt": b" \n"}, "no caption with words"),
        ({"0.png": b""}, "a picture beside its caption"),
    ],
)
def test_a_shard_of_another_form_is_one_plain_error(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        parse_dataset(write_shard(tmp_path / "s.tar", members), tmp_path, None)


def test_a_shard_that_ends_too_early_is_refused_and_not_scored_in_part(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "s.tar", {"0.txt": b"A.", "0.png": draw_png("red")})
    shard.write_bytes(b"\1" * 512 + shard.read_bytes()[512:])
    with pytest.raises(DatasetError, match="damaged"):
        parse_dataset(shard, tmp_path, None)
    with pytest.raises(DatasetError, match=r"no \.tar shard"):
        parse_dataset(tmp_path / "none.tar", tmp_path, None)


def test_a_photo_of_karpathys_form_may_lie_in_an_archive(tmp_path: Path) -> None:
    write_shard(tmp_path / "photos.tar", {"a.png": draw_png("red")})
    records = [
        {"filename": name, "split": "test", "sentences": [{"raw": "A."}]} for name in ("a.png", "b.png")
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": records}))
    images = read_karpathy(path, tmp_path / "photos.tar", ["test"], allow_missing=True)
    assert [image.path.name for image in images] == ["a.png"]
