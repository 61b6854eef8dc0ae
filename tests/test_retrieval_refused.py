"""What the command does with a folder, a locale or options that it cannot work with."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from encoders.base import EncoderNotFound
from encoders.load import load_encoder
from indexer import build
from tests.conftest import run, run_main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def nowhere(indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index, with a current folder that was removed."""
    (tmp_path / "removed").mkdir()
    monkeypatch.chdir(tmp_path / "removed")
    (tmp_path / "removed").rmdir()
    return indexed


def test_an_index_with_its_whole_path_is_searched_from_a_folder_that_was_removed(nowhere: Path) -> None:
    place = ("--index", str(nowhere))
    assert run("search", "red", "-k", "1", "--paths", *place).stdout == f"{nowhere}/red.png\n"
    assert run("caption", "0", *place).stdout.startswith("something ")


@pytest.mark.parametrize("arguments", [("search", "red"), ("caption", "red.png"), ("index", ".")])
def test_a_current_folder_that_was_removed_is_named(
    nowhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert (code, out) == (1, "") and err.startswith("fwd2bot: the current folder was removed: go to another")


def test_no_model_is_loaded_where_the_current_folder_was_removed(nowhere: Path) -> None:
    for name in ("tiny", "lvlm:someone/something"):
        with pytest.raises(EncoderNotFound, match="the current folder was removed: go to another one"):
            load_encoder(name)


@pytest.mark.parametrize(
    ("error", "start", "remedy"),
    [
        (MemoryError(), "there is too little memory", "raise the limits"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "there is", "`ulimit -v`"),
        (RuntimeError("can't start new thread"), "there is too little memory, or too few", "`ulimit -u`"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "there is",
            "--workers 1",
        ),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "there is too little memory", "raise the limits"),
        (OSError(errno.EMFILE, "Too many", "a.png"), "too many open files (a.png)", "`ulimit -n`"),
        (PermissionError(errno.EACCES, "Permission denied", "lock"), "Permission denied (lock)", "owner"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_its_remedy(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    start: str,
    remedy: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "build", fail)
    code, out, err = run_main(monkeypatch, capsys, "index", ".")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"fwd2bot: {start}") and remedy in err


def test_a_locale_that_reads_names_as_other_letters_is_refused(indexed: Path) -> None:
    (indexed / "red.png").rename(indexed / "röt.png")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "retrieval.cli", "caption", "./röt.png"]
    done = subprocess.run(
        command, cwd=indexed, env=os.environ | locale, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "reads them as ascii: set PYTHONUTF8=1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("search", "-0", "--json", "red"), "--json is a form of its own"),
        (("search", "--paths", "--json", "red"), "--json is a form of its own"),
        (("search", "--min-score", "nan", "red"), "--min-score is not a number"),
        (("index", ".", "--watch", "--dry-run"), "leave out one of them"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(
    indexed: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr and sentence in result.stderr


def test_a_search_of_no_images_says_so(here: Path) -> None:
    for image in here.rglob("*.png"):
        image.write_bytes(b"")
    run("index", ".")
    result = run("search", "red")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"the index of {here} holds no images: see `fwd2bot info`\n"
