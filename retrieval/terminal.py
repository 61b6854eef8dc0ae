"""Everything that the `fwd2bot` command prints: results to stdout, all else to stderr."""

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import typer

from indexer.paths import show_line, show_path, unescape_path

if TYPE_CHECKING:
    from indexer.plan import BuildPlan


class Progress:
    """An Observer that shows on stderr how far a run has come.

    On a terminal there is a bar for each task that takes over a second; each skipped file has a line. `read`
    counts the files that were read.
    """

    def __init__(self) -> None:
        self.read = 0
        self._task = ""
        self._bar: Any = None

    def begin(self, task: str, total: int) -> None:
        """See Observer."""
        from tqdm import tqdm

        self.close()
        self._task = task
        if sys.stderr is not None:
            self._bar = tqdm(desc=task, total=total or None, unit=" images", delay=1, disable=None)

    def advance(self, count: int) -> None:
        """See Observer."""
        self.read += count if self._task == "reading" else 0
        if self._bar is not None:
            self._bar.update(count)

    def skip(self, path: str, reason: str) -> None:
        """See Observer."""
        from tqdm import tqdm

        tqdm.write(f"skipped {show_path(unescape_path(path))}: {show_line(reason)}", file=sys.stderr)

    def close(self) -> None:
        """Close the bar and leave it as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def print_plan(plan: "BuildPlan", as_json: bool) -> None:
    """Print what a run would do: one step per line, and the counts on stderr."""
    from retrieval.listing import format_step

    steps = [("index", file.path) for file in plan.fresh] + [("remove", path) for path in plan.removed]
    print_results(format_step(action, path, as_json) for action, path in steps)
    counts = f"would index {len(plan.fresh):,}, reuse {plan.reused:,}, remove {len(plan.removed):,}"
    typer.echo(f"{counts}, leave {plan.skipped_before:,} skipped", err=True)


def print_report(report: NamedTuple, as_json: bool) -> None:
    """Print the counts of a run on stderr and, with `as_json`, also on stdout."""
    if as_json:
        print_results([json.dumps(report._asdict()) + "\n"])
    typer.echo(", ".join(f"{name} {count:,}" for name, count in report._asdict().items()), err=True)


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """Print facts, one per line or as JSON, escaped: text from a foreign index cannot forge a line."""
    lines = (f"{name.replace('_', ' ')}: {'none' if fact is None else fact}" for name, fact in facts.items())
    print_results(f"{show_line(line)}\n" for line in ([json.dumps(facts)] if as_json else lines))


def print_answer(answer: str) -> None:
    """Print a model's answer line by line, escaped: any model's output must not control the terminal."""
    print_results(f"{show_line(line)}\n" for line in answer.split("\n"))


def print_results(pieces: Iterable[str], at_once: bool = False) -> None:
    """Write results to stdout as bytes, so that names that are not valid UTF-8 come out unchanged.

    at_once: flush each piece before the next is computed.
    """
    if sys.stdout is None:  # closed by the caller: `>&-`
        raise OSError(errno.EBADF, "stdout is closed: leave it open, or use >/dev/null")
    stdout = sys.stdout.buffer
    try:
        for piece in pieces:
            stdout.write(piece.encode("utf-8", "surrogateescape"))
            if at_once:
                stdout.flush()
        stdout.flush()
    except BrokenPipeError:  # `| head` has exited; the flush at exit must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_lines(prompt: str) -> Iterator[str]:
    """The lines of stdin as they arrive, with a prompt on stderr if stdin is a terminal."""
    if sys.stdin is None:  # closed by the caller: `<&-`
        raise OSError(errno.EBADF, "stdin is closed: pipe lines into it, or type them")
    return _read_lines(sys.stdin.buffer, prompt if sys.stdin.isatty() else "")


def _read_lines(stream: BinaryIO, prompt: str) -> Iterator[str]:
    while True:
        typer.echo(prompt, nl=False, err=True)
        line = stream.readline()
        if not line:
            break
        yield line.decode("utf-8", "replace")
    if prompt:  # Ctrl-D leaves the cursor after the prompt
        typer.echo(err=True)


class _Heedless(FileIO):
    """A file that loses what cannot be written to it, and never fails."""

    def write(self, data: Any) -> int:
        """Write what can be written, and say that all was."""
        try:
            return super().write(data) or len(data)  # None, where a terminal would have to be waited for
        except OSError:
            return len(data)


def keep_talking() -> None:
    """Let no message stop a run because stderr is closed, on a full disk, or a pipe that nobody reads."""
    if sys.stderr is None:  # by `2>&-`: the next file opened would get its descriptor, and our messages
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - stays open until exit
        return
    encoding, errors = sys.stderr.encoding, sys.stderr.errors
    if os.name == "posix" and sys.stderr is sys.__stderr__:  # a console of Windows is no file
        stream = BufferedWriter(_Heedless(2, "w", closefd=False))
        sys.stderr = TextIOWrapper(stream, encoding, errors, line_buffering=True)


def print_note(sentence: str) -> None:
    """Print a note on stderr."""
    typer.echo(show_line(sentence), err=True)


def complain(sentence: str) -> None:
    """Print on stderr, in one line, what has failed."""
    typer.echo(f"fwd2bot: {show_line(' '.join(sentence.split()))}", err=True)
