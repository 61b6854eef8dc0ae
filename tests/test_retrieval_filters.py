"""A search among some of the images: those below a folder, or taken within a period."""

import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.base import QueryError
from indexer.table import EmbeddingTable
from retrieval.filters import Filter, make_filter, parse_date
from retrieval.gallery import Gallery
from retrieval.search import Searcher
from tests.conftest import paint, run

DAYS = ("2018-12-31 23:59:59", "2019-01-01 00:00:00", "2019-06-30 12:00:00", "2019-07-01 00:00:00")


@pytest.fixture
def dated(here: Path) -> Path:
    """The gallery, four dated photos in `trip/day`, one in the similarly named `trips`, and an archive."""
    for number, day in enumerate(DAYS):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = day.replace("-", ":")
        (here / "trip/day").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200 + number, 0, 0)).save(here / f"trip/day/{number}.jpg", exif=exif)
    paint(here / "trips/other.png", "red", size=(9, 9))
    with zipfile.ZipFile(here / "old.zip", "w") as archive:
        archive.write(here / "red.png", "in/red.png")
    assert run("index", ".").exit_code == 0
    return here


def list_found(*options: str) -> list[str]:
    return sorted(run("search", "--paths", "-k", "99", *options, "red").stdout.splitlines())


def test_below_a_folder_is_what_its_path_begins_with(dated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = list_found()
    assert len(everything) == 14
    for name, prefix in (("trip", "trip/"), ("trip/day/", "trip/day/"), ("./trips", "trips/"), (".", "")):
        assert list_found("--under", name) == [path for path in everything if path.startswith(prefix)]
    assert list_found("--under", str(dated / "below")) == [f"below/{name}" for name in list_names("below")]
    assert list_found("--under", "old.zip") == ["old.zip/in/red.png"]
    monkeypatch.chdir(dated / "trip")
    assert list_found("--under", "day") == [f"day/{number}.jpg" for number in range(4)]
    assert list_found("--under", "..") == list_found()
    assert len(list_found("--under", "trips")) == 1  # there is none here, but one below the root


def list_names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.usefixtures("dated")
@pytest.mark.parametrize(
    ("since", "until", "numbers"),
    [
        ("2019", None, [1, 2, 3]),
        ("2019", "2019", [1, 2, 3]),
        (None, "2018-12", [0]),
        ("2019-06-30", "2019-06-30", [2]),
        ("2019-01", "2019-06", [1, 2]),
        ("2019-06-15", "2019-07-01", [2, 3]),
        ("2020", None, []),
        ("2019-07", "2019-06", []),
    ],
)
def test_dates_are_from_the_first_of_the_one_to_the_last_of_the_other(
    since: str | None, until: str | None, numbers: list[int]
) -> None:
    options = [word for pair in (("--since", since), ("--until", until)) if pair[1] for word in pair]
    assert list_found(*map(str, options)) == [f"trip/day/{number}.jpg" for number in numbers]
    if numbers:
        assert list_found(*map(str, options), "--under", "trip") == list_found(*map(str, options))


@pytest.mark.parametrize(
    "text", ["2020-02", "2019-02", "2019-12", "2020", "2019", "2019-12-31", "2020-02-29"]
)
def test_a_date_lasts_as_long_as_its_days_begin_with_it(text: str) -> None:
    days = [datetime(2018, 1, 1) + timedelta(days=number) for number in range(1500)]
    begin, end = parse_date(text)
    assert [day for day in days if begin <= day < end] == [
        day for day in days if day.date().isoformat().startswith(text)
    ]


@pytest.mark.parametrize(
    "text", ["", "soon", "2019-13", "2019-02-30", "19", "2019-6", "9999", "0000", "2019-06-", "\uff12019"]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    for since, until in ((text, None), (None, text)):
        with pytest.raises(QueryError, match="is not a date: give a year"):
            make_filter(None, since, until)


def test_some_images_are_searched_as_an_index_of_them_would_be(dated: Path) -> None:
    table, wanted = EmbeddingTable.open(dated / ".fwd2bot"), Filter(under=Path("trip"))
    rows = [place for place, path in enumerate(table.paths) if path.startswith("trip/")]
    vectors = table.vectors[rows].astype(np.float32)
    searcher = Searcher.open(dated, wanted)
    assert len(searcher) == len(Gallery.open(dated, wanted)) == len(rows)
    query = searcher.encoder.encode_texts(["red"])[0]
    expected = [table.paths[rows[place]] for place in np.argsort(-(vectors @ query), kind="stable")]
    assert [hit.path for hit in searcher.search("red", 99)] == expected
    assert [hit.path for hit in searcher.search("red", 99, rerank=2)][2:] == expected[2:]


def test_the_images_like_another_may_be_looked_for_in_some_place(dated: Path) -> None:
    lines = run("similar", "red.png", "--under", "trip", "--paths", "-k", "2").stdout.splitlines()
    assert lines == ["trip/day/3.jpg", "trip/day/2.jpg"]
    assert len(run("similar", "trip/day/0.jpg", "--under", "trip", "--paths").stdout.splitlines()) == 3


def test_a_place_or_a_time_without_images_is_said(dated: Path) -> None:
    for name in ("nowhere", "red.png", "/etc", "tri"):
        with pytest.raises(QueryError, match=f"no image below {name}: name a folder or an archive of it"):
            run("search", "--under", name, "red")
    (dated / "trips/other.png").write_bytes(b"")  # a row is left, which is no image any more
    assert run("index", ".").exit_code == 0
    with pytest.raises(QueryError, match="no image below trips"):
        run("search", "--under", "trips", "red")
    with pytest.raises(QueryError, match="the folder to search is empty"):
        run("search", "--under", "", "red")
    result = run("search", "--since", "2021", "red")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(f"no image of {dated} was taken then")
