"""Progress of a run: a JSON line for each step, a line on stderr every few seconds, and TensorBoard."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from encoders.base import Fwd2BotError, first_line
from training.trainer import StepReport

LOG_FILE = "log.jsonl"
_SECONDS = 10


class Scalars(Protocol):
    """The part of TensorBoard's SummaryWriter that is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add one point to a plot."""

    def flush(self) -> None:
        """Write buffered points."""


class RunLog:
    """The log of one run; a resumed run drops the lines written after its saved state."""

    def __init__(self, run: Path, step: int, total: int) -> None:
        """step: the last one to keep, that of the saved state. total: steps of the whole run."""
        self.path, self.total = run / LOG_FILE, total
        _drop_lines_after(self.path, step)
        self.scalars = _open_tensorboard(run, step)
        self._start()

    def add(self, step: int, report: StepReport) -> None:
        """Log one step; every few seconds, show the mean over the steps since the last such line."""
        values = {**report.losses, "temperature": report.temperature, "rate": report.rate}
        self._write(step, {**values, "images": report.images, "tokens": report.tokens})
        self._reports.append(report)
        seconds = time.monotonic() - self._since
        if seconds >= _SECONDS or step == self.total:
            self._show(step, seconds)
            self._start()

    def note(self, step: int, measures: dict[str, float]) -> None:
        """Log and show the results of a validation."""
        self._write(step, measures)
        tell(_phrase({"step": step, **measures}))
        self._start()  # validation time must not count as step time

    def _write(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self.scalars:
            for name, value in values.items():
                self.scalars.add_scalar(name, value, step)

    def _show(self, step: int, seconds: float) -> None:
        steps = len(self._reports)
        names = dict.fromkeys(name for report in self._reports for name in report.losses)
        means = {name: _mean([r.losses[name] for r in self._reports if name in r.losses]) for name in names}
        speed = {
            "temperature": self._reports[-1].temperature,
            "rate": self._reports[-1].rate,
            "images/s": sum(report.images for report in self._reports) / seconds,
            "tokens/s": sum(report.tokens for report in self._reports) / seconds,
            "minutes left": (self.total - step) * seconds / steps / 60,
        }
        tell(_phrase({"step": step, **means, **speed}))
        if self.scalars:
            self.scalars.add_scalar("images/s", speed["images/s"], step)
            self.scalars.add_scalar("tokens/s", speed["tokens/s"], step)
            self.scalars.flush()

    def _start(self) -> None:
        self._reports: list[StepReport] = []
        self._since = time.monotonic()


def run_command(command: Callable[[], None]) -> int:
    """Run a command of this folder and return its exit code: a foreseen error prints one line and returns 1.

    Ctrl-C also prints one line, and returns 130 as shells do.
    """
    try:
        command()
    except Fwd2BotError as error:
        tell(f"error: {error}")
        return 1
    except OSError as error:  # mostly a full disk: logs, tables and results are written in many places
        tell(f"error: {first_line(error)}: mend this and start again, what was written before is whole")
        return 1
    except KeyboardInterrupt:
        tell("interrupted: what was written is whole, and a run goes on from it when it is started again")
        return 130
    return 0


def tell(line: str) -> None:
    """Print one line to stderr and flush it."""
    print(line, file=sys.stderr, flush=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _phrase(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in values.items())


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop steps logged after the saved state, half-written lines, and any other damage to the log."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if _is_step_up_to(step, line)]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def _is_step_up_to(step: int, line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (KeyError, RecursionError, TypeError, ValueError):  # not a line that RunLog wrote
        return False


def _open_tensorboard(run: Path, step: int) -> Scalars | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # optional: part of the [train] extra
        return None
    writer: Scalars = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
    return writer
