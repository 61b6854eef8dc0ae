"""A watched index follows its folder."""

import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from watchfiles import Change

from encoders.base import IndexFailure, IndexLocked, NothingToIndex
from indexer import watch
from indexer.build import BuildReport, BuildSettings
from indexer.watch import watch_folder
from tests.conftest import FakeEncoder, Witness, open_table, paint
from tests.test_retrieval_process import start

DONE = BuildReport(0, 0, 8, 0, 0)


def test_a_watched_folder_is_followed_until_ctrl_c(here: Path) -> None:
    (here / ".fwd2bot/x").parent.mkdir()  # is watched too, and must not trigger a run
    process = start(here, "index", ".", "--watch", "--json")
    assert isinstance(process.stdout, io.BufferedReader)
    reports = iter(json.loads(line) for line in process.stdout)
    assert next(reports)["indexed"] == 8
    paint(here / "new/red.png", "red", size=(9, 9))
    assert next(reports) == {"indexed": 1, "copied": 0, "reused": 8, "removed": 0, "skipped": 0}
    (here / "new").rename(here / "newer")
    (here / "blue.png").unlink()
    report = next(reports)
    while report["reused"] < 7:  # a rename may be reported in two halves
        report = next(reports)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 0 and b"Traceback" not in err
    paths = open_table(here).paths
    assert "newer/red.png" in paths and len(paths) == 8


def watch_for(
    monkeypatch: pytest.MonkeyPatch, changes: int, gallery: Path, **patches: object
) -> list[BuildReport]:
    """Watch for this many changes, then press Ctrl-C."""

    def await_changes(*_: object):  # type: ignore[no-untyped-def]
        yield from [None] * changes
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "_await_changes", await_changes)
    for name, value in patches.items():
        monkeypatch.setattr(watch, name, value)
    reports: list[BuildReport] = []
    settings, witness = BuildSettings(rebuild=True), Witness()
    watch_folder(str(gallery), f"{gallery}/.fwd2bot", FakeEncoder(), settings, witness, reports.append)
    return reports


def test_a_rebuild_is_made_once(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [report.indexed for report in watch_for(monkeypatch, 3, gallery)] == [8, 0, 0]


@pytest.mark.parametrize("error", [IndexLocked("busy"), NothingToIndex("no image")])
def test_a_run_that_cannot_be_is_tried_again_but_for_the_first(
    gallery: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert watch_for(monkeypatch, 3, gallery, build=play(DONE, error, DONE)) == [DONE, DONE]
    with pytest.raises(type(error)):
        watch_for(monkeypatch, 1, gallery, build=play(error))


def test_ctrl_c_is_a_failure_of_the_first_run_alone(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_for(monkeypatch, 3, gallery, build=play(DONE, KeyboardInterrupt())) == [DONE]
    with pytest.raises(KeyboardInterrupt):
        watch_for(monkeypatch, 1, gallery, build=play(KeyboardInterrupt()))


def play(*outcomes: BuildReport | BaseException) -> Callable[..., BuildReport]:
    """A build that has these outcomes in turn."""
    rest = list(outcomes)

    def build(*_: object) -> BuildReport:
        outcome = rest.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return build


def replace(folder: Path) -> None:
    move(folder)
    folder.mkdir()


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


@pytest.mark.parametrize("part", [shutil.rmtree, move, replace])
def test_a_folder_that_is_gone_or_another_is_watched_no_longer(
    tmp_path: Path, part: Callable[[Path], None]
) -> None:
    (tmp_path / "photos").mkdir()
    changes = watch._await_changes(tmp_path / "photos", tmp_path / "index")
    next(changes)
    part(tmp_path / "photos")
    with pytest.raises(NothingToIndex, match="photos was removed or replaced and is watched no longer"):
        next(changes)


def test_a_folder_removed_and_made_anew_at_once_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happens = [set(), {(Change.deleted, str(tmp_path))}]  # and the new folder gets the same inode
    monkeypatch.setattr("watchfiles.watch", lambda *_, **__: iter(happens))
    changes = watch._await_changes(tmp_path, tmp_path / "index")
    next(changes)
    with pytest.raises(NothingToIndex, match="removed or replaced"):
        next(changes)


def test_only_what_may_be_an_image_sets_off_a_run(tmp_path: Path) -> None:
    index = tmp_path / "index"
    concerns = [
        watch._concerns_images(tmp_path / name, tmp_path, index)
        for name in ("a.jpg", "folder", "folder/a.jpg", ".fwd2bot/lock", ".hidden/a.jpg", "index/parts")
    ]
    assert concerns == [True, True, True, False, False, False]


def test_a_url_cannot_be_watched() -> None:
    with pytest.raises(IndexFailure, match="cannot be watched"):
        watch_folder("s3://b/c", Path("i"), FakeEncoder(), BuildSettings(), Witness(), print)
