"""The command in a separate process: signals, closed pipes, and what it imports."""

import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from indexer.build import BuildSettings
from retrieval import upkeep
from tests.conftest import FakeEncoder, run

Install = Callable[[FakeEncoder], None]
Type = Callable[..., Result]
ROOT = Path(__file__).parents[1]


COMMAND = """
import signal, sys, types, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
sys.path.insert(0, {root!r})
from tests.conftest import FakeEncoder
class Encoder(FakeEncoder):
    def encode_images(self, images):
        time.sleep({delay})
        return super().encode_images(images)
module = types.ModuleType("encoders.load")
module.load_encoder = module.load_reader = lambda name, device="auto": Encoder()
sys.modules["encoders.load"] = module
from retrieval.cli import main
main()
"""


def start(folder: Path, *arguments: str, delay: float = 0.0) -> "subprocess.Popen[bytes]":
    script = COMMAND.format(root=str(ROOT), delay=delay)
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def answer(folder: Path, lines: bytes, *options: str) -> bytes:
    """What a search prints for these lines of stdin."""
    process = start(folder, "search", "-", *options)
    out, err = process.communicate(lines)
    assert (process.returncode, err) == (0, b"")
    return out


def test_a_reader_that_leaves_early_is_no_error(indexed: Path) -> None:
    process = start(indexed, "search", "red")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_each_line_of_stdin_is_answered_before_the_next_is_read(indexed: Path) -> None:
    process = start(indexed, "search", "-", "-k", "2", "--paths")
    assert process.stdin is not None and process.stdout is not None
    for colour in ("red", "blue", "red"):
        process.stdin.write(f"{colour}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().decode() == f"{colour}.png\n"
        assert (process.stdout.readline() != b"\n", process.stdout.readline()) == (True, b"\n")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize("form", [(), ("--paths",), ("-0",)])
def test_an_answer_is_what_a_search_prints_and_an_empty_record(indexed: Path, form: tuple[str, ...]) -> None:
    end = b"\0" if form == ("-0",) else b"\n"
    lines = b"red\n\n  blue  dog\r\n\xff cyan"  # one is empty, one is not UTF-8 and unterminated
    alone = [run("search", *form, words).stdout_bytes + end for words in ("red", "blue dog", "cyan")]
    assert answer(indexed, lines, *form) == b"".join((alone[0], end, *alone[1:]))
    assert answer(indexed, b"", *form) == b""


def test_in_json_an_answer_is_an_object_with_its_query(indexed: Path) -> None:
    said = answer(indexed, b"red\n\nblue dog\n", "--json", "-k", "3", "--min-score", "0.2")
    answers = [json.loads(line) for line in said.splitlines()]
    assert [each["query"] for each in answers] == ["red", "", "blue dog"]
    for each in (answers[0], answers[2]):
        alone = run("search", each["query"], "--json", "-k", "3", "--min-score", "0.2").stdout.splitlines()
        assert each["hits"] == [json.loads(line) for line in alone] != []
    assert answers[1]["hits"] == []


def test_a_closed_stdin_is_one_line(indexed: Path) -> None:
    script = COMMAND.format(root=str(ROOT), delay=0)
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", script, "search", "-"]
    done = subprocess.run(command, cwd=indexed, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("fwd2bot: stdin is closed")


def test_a_closed_stdout_is_one_line(indexed: Path) -> None:
    script = COMMAND.format(root=str(ROOT), delay=0)
    for arguments in (("info",), ("search", "red")):
        command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, cwd=indexed, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("fwd2bot: stdout is closed")


def test_what_is_said_into_a_closed_stderr_ends_nowhere(here: Path) -> None:
    (here / "bad.png").write_bytes(b"")
    script = COMMAND.format(root=str(ROOT), delay=0)
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", script, "index", ".", "--json"]
    done = subprocess.run(command, cwd=here, capture_output=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["skipped"] == 1
    assert run("verify").exit_code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("end", ["2>/dev/full", "2>&1 | true"])
def test_a_run_goes_on_where_its_messages_cannot_be_written(here: Path, end: str) -> None:
    (here / "bad.png").write_bytes(b"")
    script = COMMAND.format(root=str(ROOT), delay=0)
    command = ["sh", "-c", f'"$@" {end}', "sh", sys.executable, "-c", script, "index", "."]
    assert subprocess.run(command, cwd=here, check=False).returncode == 0
    assert run("search", "red", "-k", "1", "--paths").output == "red.png\n"
    assert run("verify").exit_code == 0


def test_an_interrupted_run_ends_quietly_and_can_be_taken_up(here: Path) -> None:
    process = start(here, "index", ".", "--batch-size", "1", delay=3)  # the signal cuts the delay short
    while not (here / ".fwd2bot/lock-holder.json").exists():
        time.sleep(0.02)
    second = start(here, "index", ".")
    _, complaint = second.communicate()
    assert (
        second.returncode == 1 and b"is being written by process" in complaint and complaint.count(b"\n") == 1
    )
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == b"stopped: what was read is kept, and the same command goes on from there\n"
    assert run("index", ".").exit_code == 0
    assert len(run("search", "red").stdout.splitlines()) == 8


def test_an_interruption_of_the_first_import_is_quiet(here: Path) -> None:
    script = (
        "import sys; from retrieval.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(*_): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_a_search_imports_nothing_heavy_but_the_model(indexed: Path) -> None:
    script = COMMAND.format(root=str(ROOT), delay=0).replace(
        "main()\n",
        "import atexit\natexit.register(lambda: print({'torch', 'tqdm', 'pandas'} & set(sys.modules)))\n"
        "main()\n",
    )
    command = [sys.executable, "-c", script, "search", "red", "-k", "1"]
    result = subprocess.run(command, cwd=indexed, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["set()"]


def test_the_command_takes_what_the_library_does_where_nothing_is_said() -> None:
    # The command repeats these defaults, so that `--help` need not load the library.
    typed = inspect.signature(upkeep.index).parameters
    for name, value in vars(BuildSettings()).items():
        if name not in ("workers", "exclude"):  # None in the command, resolved to these later
            assert typed[name].default == value, name
