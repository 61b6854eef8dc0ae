"""The command as a user types it: what it prints and where, and its exit code."""

import errno
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from encoders.base import QueryError
from indexer import build
from tests.conftest import FakeEncoder, paint, run, run_main

Install = Callable[[FakeEncoder], None]
Type = Callable[..., Result]
ROOT = Path(__file__).parents[1]


def test_index_ends_with_its_numbers_on_stderr(here: Path) -> None:
    (here / "bad\nname.png").write_bytes(b"")
    result = run("index", ".")
    assert result.exit_code == 0 and result.stdout == ""
    assert "skipped bad\\x0aname.png: the file is empty\n" in result.stderr
    assert result.stderr.endswith("indexed 8, copied 0, reused 0, removed 0, skipped 1\n")
    result = run("index", ".", "--json")
    assert json.loads(result.stdout) == {"indexed": 0, "copied": 0, "reused": 8, "removed": 0, "skipped": 1}


def test_a_dry_run_lists_steps_and_changes_nothing(here: Path) -> None:
    result = run("index", ".", "--dry-run")
    assert result.stdout.splitlines()[0] == "index\tbelow/black.png"
    assert result.stderr == "would index 8, reuse 0, remove 0, leave 0 skipped\n"
    assert not (here / ".fwd2bot").exists()
    run("index", ".")
    (here / "red.png").unlink()
    result = run("index", ".", "--dry-run", "--json")
    assert json.loads(result.stdout) == {"action": "remove", "path": "red.png"}


def test_a_dry_run_refuses_and_names_what_the_run_would(
    indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "others/red.png", "red")
    (tmp_path / "others/bad.zip").write_bytes(b"no archive")
    for folder, *options in (("../others", "--index", ".fwd2bot"), (".", "--tokens", "float16"), ("gone",)):
        ended = run_main(monkeypatch, capsys, "index", folder, *options)
        assert (
            ended[0] == 1 and run_main(monkeypatch, capsys, "index", folder, *options, "--dry-run") == ended
        )
    assert "skipped bad.zip" in run("index", "../others", "--dry-run").stderr


def test_index_options_reach_the_index(here: Path, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    options = [
        "--index",
        str(place),
        *["--tokens", "none", "--exclude", "below", "--exclude", "w*", "--workers", "1"],
    ]
    assert run("index", ".", *options, "--batch-size", "2", "--max-megapixels", "1").exit_code == 0
    facts = json.loads(run("info", "--index", str(place), "--json").stdout)
    assert facts["images"] == 3 and facts["tokens"] == "none" and facts["root"] == str(here)
    assert run("search", "red", "--index", str(place), "--paths").stdout.splitlines()[0] == "red.png"


def test_the_index_names_the_model_of_the_next_run(
    here: Path, installed_encoder: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    installed_encoder(FakeEncoder(name="special"))
    module = sys.modules["encoders.load"]
    for loader in ("load_encoder", "load_reader"):
        load = getattr(module, loader)
        setattr(module, loader, lambda name, other="", load=load: asked.append(name) or load(name, other))
    run("index", ".", "--model", "special")
    paint(here / "new.png", "red")
    run("index", ".")
    run("search", "red")
    assert asked == ["special", "special", "special"]
    asked.clear()
    (here / "below/checkpoint").mkdir()
    monkeypatch.chdir(here / "below")
    run("index", "..", "--rebuild", "--model", "checkpoint")
    assert asked == [str(here / "below/checkpoint")]


def test_search_prints_scores_and_paths_best_first(indexed: Path) -> None:
    lines = run("search", "red").stdout.splitlines()
    score, path = lines[0].split("\t")
    assert path == "red.png" and len(score.split(".")[1]) == 4
    scores = [float(line.split("\t")[0]) for line in lines]
    assert len(lines) == 8 and scores == sorted(scores, reverse=True)


def test_search_forms_agree(indexed: Path) -> None:
    paths = run("search", "-k", "3", "blue", "--paths").stdout.splitlines()
    assert paths[0] == "blue.png" and len(paths) == 3
    assert run("search", "-k", "3", "-0", "blue").stdout_bytes == b"".join(p.encode() + b"\0" for p in paths)
    objects = [json.loads(line) for line in run("search", "-k", "3", "--json", "blue").stdout.splitlines()]
    assert [item["path"] for item in objects] == paths
    assert [item["rank"] for item in objects] == [1, 2, 3]
    assert list(objects[0]) == ["rank", "score", "path", "id", "width", "height"]
    assert (objects[0]["width"], objects[0]["height"]) == (48, 40)


def test_min_score_leaves_out_what_fits_less(indexed: Path) -> None:
    assert len(run("search", "--min-score", "0.9", "red").stdout.splitlines()) == 1
    result = run("search", "--min-score", "1.5", "red")
    assert result.stdout == "" and result.exit_code == 0


def test_paths_open_from_where_one_stands(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(indexed / "below")
    for path in run("search", "--paths", "green").stdout.splitlines():
        assert Path(path).is_file()
    assert run("search", "--paths", "green").stdout.splitlines()[0] == "green.png"


def test_a_path_is_never_taken_for_an_option_nor_breaks_a_line(here: Path) -> None:
    paint(here / "x.png", "red").rename(here / "-rf.png")
    paint(here / "x.png", "red").rename(here / "new\nline.png")
    paint(here / "x.png", "red").rename(here / os.fsdecode(b"\xff.png"))
    run("index", ".")
    shown = run("search", "-k", "4", "--paths", "red").stdout.splitlines()
    assert sorted(shown) == ["./-rf.png", "\\xff.png", "new\\x0aline.png", "red.png"]
    raw = run("search", "-k", "4", "-0", "red").stdout_bytes.split(b"\0")
    assert sorted(raw) == [b"", b"./-rf.png", b"new\nline.png", b"red.png", b"\xff.png"]
    for line in run("search", "-k", "4", "--json", "red").stdout.splitlines():
        assert Path(json.loads(line)["path"]).is_file()
    assert run("caption", "\\xff.png").stdout == run("caption", os.fsdecode(b"\xff.png")).stdout


def test_every_path_that_search_prints_names_its_image(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "outside/far.png", "red", size=(9, 9))
    (here / "link").symlink_to(tmp_path / "outside")
    paint(here / "below/x.png", "red").rename(here / "below/new\nline.png")
    paint(here / "below/x.png", "red").rename(here / "below/\\x0a.png")
    run("index", ".", "--follow-links")
    for folder in (here, here / "below", tmp_path):
        monkeypatch.chdir(folder)
        place = ("--index", str(here))
        for path in run("search", "-k", "4", "--paths", "red", *place).stdout.splitlines():
            assert run("caption", path, *place).stdout == "something red\n"
    monkeypatch.chdir(here / "below")
    for name in ("../link/far.png", "new\nline.png", "new\\x0aline.png", "\\x0a.png"):
        assert run("caption", name).stdout == "something red\n"
    with pytest.raises(QueryError, match="has no image"):
        run("caption", "\\x00.png")


def test_caption_and_ask_answer_when_the_file_is_gone(indexed: Path) -> None:
    (indexed / "red.png").unlink()
    assert run("caption", "red.png").stdout == "something red\n"
    assert run("ask", "red.png", "which colour?").stdout == "which colour? red\n"


def test_what_a_model_says_keeps_its_lines_and_commands_no_terminal(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEncoder, "caption", lambda *_: ["a dog\n\x1b]0;title\x07 and\ta cat"])
    assert run("caption", "red.png").stdout == "a dog\n\\x1b]0;title\\x07 and\\x09a cat\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("index", "s3://bucket/photos"), "give `--index PATH`"),
        (("merge", "below", "."), "no index at below"),
        (("index", "absent"), "is not a folder"),
        (("index", ".", "--model", "other"), "embed all images anew"),
        (("index", ".", "--model", "other"), "`--index PATH` to keep both"),
        (("index", ".", "--tokens", "float16"), "keeps tokens as int8"),
        (("search", " "), "the query has no words"),
        (("index", ""), "the name of the folder is empty"),
        (("search", "red", "--index", ""), "the path of the index is empty"),
        (("index", ".", "--index", ""), "the path of the index is empty"),
        (("merge", "", "."), "the path of the index is empty"),
        (("search", "red", "--index", "below"), "no index at below: make one with `fwd2bot index below`"),
        (("search", "red", "--index", "gone"), "no index at gone: make one with `fwd2bot index DIR --index"),
        (("caption", "nothing.png"), "has no image nothing.png"),
        (("ask", "red.png", ""), "the question has no words"),
    ],
)
def test_each_failure_is_one_line_and_exit_code_1(
    indexed: Path,
    installed_encoder: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    if "other" in arguments:
        installed_encoder(FakeEncoder(name="other", fingerprint="fake-2"))
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 1 and out == ""
    assert sentence in err and err.startswith("fwd2bot: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("reason", "start", "remedy"),
    [
        (errno.ENOSPC, "no space left on the disk", "make room and run it again, what is done is kept"),
        (errno.EFBIG, "over the limit on file size", "raise it (`ulimit -f`) and run it again"),
    ],
)
def test_a_file_that_cannot_grow_is_one_line_with_its_name(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: int,
    start: str,
    remedy: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fsync", fail)
    code, _, err = run_main(monkeypatch, capsys, "index", ".")
    place = ".fwd2bot/parts/part-000001.parquet"
    assert (code, err) == (1, f"fwd2bot: {start} ({place}): {remedy}\n")


def test_a_full_gpu_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(build, "build", fail)
    code, _, err = run_main(monkeypatch, capsys, "index", ".")
    assert code == 1 and err.count("\n") == 1 and "the GPU's memory is full" in err


def test_a_damaged_manifest_is_one_line_and_says_what_mends_it(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for remedy in (("verify", "--repair"), ("index", ".", "--rebuild")):
        (indexed / ".fwd2bot/manifest.json").write_text("{")
        for arguments in (("index", "."), ("search", "red"), ("info",), ("verify",)):
            code, _, err = run_main(monkeypatch, capsys, *arguments)
            assert code == 1 and "manifest.json is damaged" in err and "verify --repair" in err
        assert run_main(monkeypatch, capsys, *remedy)[0] == 0
        assert run("verify").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("search",),
        ("index",),
        ("index", ".", "--tokens", "int4"),
        ("index", ".", "--max-megapixels", "0"),
        ("index", ".", "--max-megapixels", "nan"),
        ("search", "-k", "0", "red"),
        ("nonsense",),
        ("ask", "a"),
    ],
)
def test_wrong_usage_is_exit_code_2(here: Path, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and "Usage: " in result.stderr


@pytest.mark.parametrize(
    "command", ["index", "search", "caption", "ask", "info", "verify", "compact", "merge"]
)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and "Examples:" in result.stdout and f"fwd2bot {command}" in result.stdout


def test_the_version_is_that_of_the_project_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run("--version").stdout in (f"fwd2bot {project['version']}\n", "fwd2bot unknown\n")
    monkeypatch.setattr("sys.path", [])
    assert run("--version").stdout == "fwd2bot unknown\n"


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['fwd2bot', '--help']\n"
        "from retrieval import cli\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'faiss', 'numpy', 'PIL', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "search" in result.stdout
