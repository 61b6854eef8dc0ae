"""What every benchmark command refuses before it starts work, and the messages."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import ann, compositionality, contact_sheet, fuzz, mteb_adapter, scale, scenes, text_to_image
from benchmarks.command import refuse_overwriting, run_command
from benchmarks.peers import race
from encoders.base import DatasetError, Fwd2BotError
from tests.conftest import FakeEncoder

Main = Callable[[Sequence[str]], int]


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (ann.main, ["--rows", "5"]),
        (ann.main, ["--dim", "0"]),
        (compositionality.main, ["--count", "0"]),
        (compositionality.main, ["--count", "-3"]),
        (contact_sheet.main, ["--dataset", "d.json", "--out", "o.html", "--count", "-1"]),
        (fuzz.main, ["--count", "0"]),
        (race.main, ["--place", "p", "--rounds", "0"]),
        (race.main, ["--place", "p", "--count", "32"]),
        (scale.main, ["--rows", "many"]),
        (scenes.main, ["--out", "o", "--seed", "-1"]),
        (text_to_image.main, ["--dataset", "d.json", "--folds", "1"]),
    ],
)
def test_a_count_that_is_too_small_is_refused_by_the_option_it_stands_behind(
    main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    option, value = arguments[-2:]
    assert f"argument {option}: '{value}' is not a whole number of " in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(tmp_path.mkdir) == 1
    assert capsys.readouterr().err == f"{tmp_path}: File exists\n"
    (tmp_path / "file").touch()
    assert scenes.main(["--out", str(tmp_path / "file"), "--count", "1"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_result_without_a_place_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "out.json", tmp_path / "file" / "new" / "out.json"):
        with pytest.raises(Fwd2BotError, match="in the way"):
            refuse_overwriting(path, force=True)
    refuse_overwriting(tmp_path / "new" / "new" / "out.json", force=False)  # missing folders are made
    refuse_overwriting(tmp_path / "file", force=True)


def test_an_index_that_is_there_is_not_replaced_by_a_drawn_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text("precious")
    assert scale.main(["--rows", "10", "--dim", "4", "--work", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "index" / "manifest.json").read_text() == "precious"


class ConnectError(Exception):
    """Stands in for httpx.ConnectError, which is not an OSError."""

    __module__ = "httpx"


@pytest.mark.parametrize(
    "error", [ConnectError("no route\nto the hub"), ConnectionError("no route to the hub")]
)
def test_a_task_whose_data_cannot_be_fetched_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def evaluate(*_: object) -> None:
        raise error

    package = SimpleNamespace(get_task=lambda name: name, evaluate=evaluate)
    monkeypatch.setitem(sys.modules, "mteb", package)  # type: ignore[arg-type]
    monkeypatch.setattr(mteb_adapter, "MtebEncoder", lambda encoder: encoder)
    with pytest.raises(DatasetError, match=r"could not fetch or keep Colours \(no route to the hub\)"):
        mteb_adapter.evaluate_tasks(FakeEncoder(), ["Colours"])
    error = ValueError("a fault of ours")
    with pytest.raises(ValueError, match="ours"):
        mteb_adapter.evaluate_tasks(FakeEncoder(), ["Colours"])
