"""RAW files: the preview if it is large enough, else a development; upright either way."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz_files import make_dng
from indexer.raw import open_view
from tests.pictures import read, read_pixels


@pytest.mark.parametrize("preview", [0, 96])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_raw_file_is_turned_upright(tmp_path: Path, preview: int, orientation: int, turns: int) -> None:
    pytest.importorskip("rawpy")
    (tmp_path / "plain.dng").write_bytes(make_dng(preview=preview))
    (tmp_path / "turned.dng").write_bytes(make_dng(orientation=orientation, preview=preview))
    plain, turned = read_pixels(tmp_path / "plain.dng"), read_pixels(tmp_path / "turned.dng")
    assert np.abs(np.rot90(plain, turns) - turned).mean() < 3


@pytest.mark.parametrize(("preview", "width"), [(64, 64), (48, 48), (16, 96)])
def test_a_raw_file_is_developed_where_its_preview_is_too_small(
    tmp_path: Path, preview: int, width: int
) -> None:
    rawpy = pytest.importorskip("rawpy")
    (tmp_path / "photo.dng").write_bytes(make_dng(side=192, preview=preview))
    with rawpy.imread(str(tmp_path / "photo.dng")) as raw:
        assert open_view(raw, 40).width == width


def test_a_broken_preview_does_not_lose_the_photo(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    whole = make_dng(preview=96)
    (tmp_path / "photo.dng").write_bytes(whole[:-1000])
    photo = read(tmp_path / "photo.dng")
    assert photo.error == "" and photo.image is not None
