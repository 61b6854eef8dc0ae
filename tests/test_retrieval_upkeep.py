"""The commands that maintain an index: what they print and repair, and their exit codes."""

import json
from pathlib import Path

import pytest

from retrieval.terminal import Progress
from tests.conftest import run, run_main


def test_info_and_verify_speak_of_a_whole_index(indexed: Path) -> None:
    lines = run("info").stdout.splitlines()
    assert "images: 8" in lines and "model: tiny" in lines
    result = run("verify")
    assert result.exit_code == 0 and "is whole" in result.stdout


def test_info_says_what_there_is_not(here: Path) -> None:
    for image in here.rglob("*.png"):
        image.write_bytes(b"")
    run("index", ".")
    result = run("info")
    assert {"bytes per image: none", "faiss: current"} <= set(result.stdout.splitlines())
    path = here / ".fwd2bot/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"faiss": None, "digest": None}))
    result = run("info", "--json")
    facts = json.loads(result.stdout)
    assert (facts["bytes_per_image"], facts["faiss"]) == (None, "behind")
    assert "a search is slow until" in result.stderr


def test_words_of_an_index_from_elsewhere_forge_no_line_and_rule_no_terminal(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = indexed / ".fwd2bot/manifest.json"
    evil = "x\nimages: 9\x1b]0;title\x07\x9b2J\u2028"
    data = json.loads(path.read_text())
    data["encoder"]["name"] = data["updated"] = evil
    path.write_text(json.dumps(data | {"root": f"/{evil}", "parts": [], "faiss": None, "digest": None}))
    lines = run("info").stdout.splitlines()
    assert (
        "images: 0" in lines
        and "images: 9" not in lines
        and "\\x0aimages: 9\\x1b]0;title\\x07" in "".join(lines)
    )
    _, _, complaint = run_main(monkeypatch, capsys, "index", ".")
    assert "is the index of" in complaint
    assert all(word.isprintable() for line in (*lines, complaint.removesuffix("\n")) for word in line)


def test_verify_names_each_damage_and_fails(indexed: Path) -> None:
    for pattern in ("*.faiss", "parts/*"):
        (path,) = (indexed / ".fwd2bot").glob(pattern)
        path.write_bytes(path.read_bytes()[:-1])
    result = run("verify")
    assert result.exit_code == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 2


def test_verify_repairs_what_it_can(indexed: Path) -> None:
    (path,) = (indexed / ".fwd2bot").glob("*.faiss")
    path.unlink()
    result = run("verify", "--repair")
    assert result.exit_code == 0 and result.stdout.endswith("is whole again\n")
    (path,) = (indexed / ".fwd2bot/parts").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    result = run("verify", "--repair")
    assert result.exit_code == 0 and "dropped 8 rows: run `fwd2bot index`" in result.stderr
    assert run("index", ".").stderr.startswith("indexed 8, ")
    assert run("verify").exit_code == 0


def test_compact_and_merge_end_with_their_numbers(indexed: Path) -> None:
    (indexed / "red.png").unlink()
    run("index", ".")
    assert json.loads(run("compact", "--json").stdout)["dropped"] == 2
    run("index", "below")
    assert run("merge", ".", "below").stderr == "added 0, known 4\n"
    result = run("merge", "below", ".", "--out", "both")
    assert result.stderr == "added 4, known 0\nadded 3, known 4\n"
    assert len(run("search", "--index", "both", "red").stdout.splitlines()) == 7


def test_a_dry_run_says_that_the_index_is_of_another_model(indexed: Path) -> None:
    for model in (
        [],
        ["--model", "tiny"],
        ["--model", "other", "--rebuild"],
        ["--model", "other", "--index", "new"],
    ):
        assert run("index", ".", "--dry-run", *model).stderr.startswith("would index ")
        assert run("index", ".", "--dry-run", *model).stderr.count("\n") == 1
    result = run("index", ".", "--dry-run", "--model", "other")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "made by tiny: the run refuses other, unless it is the same model\n" in result.stderr


@pytest.mark.parametrize(("done", "anew"), [(0, ""), (3, " without --rebuild")])
def test_a_stopped_rebuild_says_which_command_goes_on(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: int, anew: str
) -> None:
    def stop(root: object, place: object, encoder: object, settings: object, observer: Progress) -> None:
        observer.begin("reading", 8)
        observer.advance(done)
        raise KeyboardInterrupt

    monkeypatch.setattr("indexer.build.build", stop)
    code, _, err = run_main(monkeypatch, capsys, "index", ".", "--rebuild")
    assert code == 130 and f"the same command{anew} goes on from there" in err
