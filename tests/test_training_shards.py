"""WebDataset shards and the pictures in them: what is paired, what is refused, and the messages."""

import io
import json
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from benchmarks.embedding import decode_picture
from encoders.base import DatasetError
from tests.training_data import SHARDS, encode_picture, open_one, write_shard
from training.sources.pictures import open_picture


def test_shards_pair_pictures_with_the_captions_beside_them(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "00000.tar",
        ("000000000.jpg", encode_picture("red", "JPEG")),
        ("000000000.json", json.dumps({"caption": "not this"}).encode()),
        ("000000000.txt", b" a red wall \n"),
        ("000000001.json", b'{"caption": "no picture"}'),
        ("000000002.jpg", encode_picture("green", "JPEG")),
        ("000000003.png", encode_picture("blue")),
        ("000000003.json", '{"caption": "bläu"}'.encode()),
    )
    write_shard(
        tmp_path / "00001.tar",
        ("deep.er/a.webp", encode_picture("white", "WEBP")),
        ("deep.er/a.txt", b"snow"),
    )
    source = open_one(SHARDS, tmp_path)
    assert [source.read_captions(row) for row in range(len(source))] == [["a red wall"], ["bläu"], ["snow"]]
    colours = [source.load_picture(row, 0).getpixel((0, 0)) for row in range(len(source))]
    assert colours == [(254, 0, 0), (0, 0, 255), (255, 255, 255)]
    assert "00001.tar" in source.describe_row(2)


def test_links_and_devices_in_a_shard_are_no_pictures_and_nothing_is_extracted(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(encode_picture("red", "JPEG"))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, target in (
            (tarfile.SYMTYPE, "secret.jpg"),
            (tarfile.LNKTYPE, "secret.jpg"),
            (tarfile.CHRTYPE, ""),
        ):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, target
            archive.addfile(info)
            text = tarfile.TarInfo(f"{kind.decode()}.txt")
            text.size = 1
            archive.addfile(text, io.BytesIO(b"a"))
    with pytest.raises(DatasetError, match="No shard"):
        open_one(SHARDS, tmp_path)
    write_shard(tmp_path / "b.tar", ("../up.png", encode_picture("red")), ("../up.txt", b"up"))
    assert open_one(SHARDS, tmp_path).read_captions(0) == ["up"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar", "secret.jpg"]


def test_a_shard_that_breaks_off_keeps_what_came_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [
        (f"{n}.{kind}", data)
        for n in range(3)
        for kind, data in (("png", encode_picture("red")), ("txt", b"a"))
    ]
    write_shard(tmp_path / "a.tar", *pictures)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: 4 * 1024 + 700])  # two samples of 2 KiB, and a third cut short
    (tmp_path / "b.tar").write_bytes(b"no archive" * 100)
    source = open_one(SHARDS, tmp_path)
    assert len(source) == 2
    assert "b.tar: the rest of this shard is passed over" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("0.txt", b" ", "no caption with words"),
        ("0.txt", b"\xff\xfe", "cannot be read"),
        ("0.json", b"{", "cannot be read"),
        ("0.json", b"[]", "cannot be read"),
        ("0.json", b"{}", "no caption with words"),
        ("0.txt", b"a" * (2**20 + 1), "over the limit"),
    ],
)
def test_a_member_that_is_no_caption_is_one_broken_row(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    write_shard(tmp_path / "a.tar", ("0.png", encode_picture("red")), (name, data))
    with pytest.raises(DatasetError, match=message):
        open_one(SHARDS, tmp_path).draw_sample(0, Random(0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be decoded"),
        (encode_picture("red")[:-30], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be decoded"),
        (encode_picture("red", size=(505, 5)), "more than 100 times as long as wide"),
        (
            encode_picture("red", "BMP", (1, 1)).replace(
                b"\x01\x00\x00\x00\x01\x00\x00\x00", b"\x00\x40\x00\x00" * 2
            ),
            "exceeds limit",
        ),
    ],
)
def test_bytes_that_are_no_picture_say_why(tmp_path: Path, data: bytes, message: str) -> None:
    write_shard(tmp_path / "a.tar", ("0.jpg", data), ("0.txt", b"a"))
    with pytest.raises(DatasetError, match=message):
        open_one(SHARDS, tmp_path).load_picture(0, 0)


def test_a_picture_is_turned_upright_and_a_large_jpeg_shrunk_on_the_way(tmp_path: Path) -> None:
    picture = Image.new("RGB", (800, 400), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    picture.save(stream, "JPEG", exif=exif)
    write_shard(tmp_path / "a.tar", ("0.jpg", stream.getvalue()), ("0.txt", b"a"))
    source = open_one(SHARDS, tmp_path)
    assert source.load_picture(0, 0).size == (400, 800)
    assert source.load_picture(0, 50).size == (50, 100)


def test_training_sees_what_the_index_sees(tmp_path: Path) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20))
    pictures = deep, Image.new("RGBA", (20, 20), (255, 0, 0, 0)), Image.new("RGB", (90, 60), "blue")
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        picture.save(path)
        for side in (0, 16):
            seen, indexed = open_picture(path, side), decode_picture(path, side or 1000)
            assert seen.mode == "RGB" and seen.tobytes() == indexed.tobytes()
