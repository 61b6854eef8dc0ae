"""Read files in worker threads ahead of their consumer, in order; a read that hangs is abandoned.

The threads are daemons and not an executor's: neither stopping nor process exit waits for a decoder.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Job(Generic[Item, Result]):
    """An item, the future of its result, and when a thread began to read it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.future: Future[Result] = Future()
        self.begun: float | None = None


class _Workers(Generic[Item, Result]):
    """Threads that read queued items until they are stopped."""

    def __init__(self, read: Callable[[Item], Result], count: int) -> None:
        self._read = read
        self._jobs: SimpleQueue[_Job[Item, Result] | None] = SimpleQueue()
        self._count = count
        for _ in range(count):
            self._start_one()

    def submit(self, item: Item) -> _Job[Item, Result]:
        """Queue an item for the next free thread."""
        job = _Job[Item, Result](item)
        self._jobs.put(job)
        return job

    def abandon(self, job: _Job[Item, Result], outcome: Result) -> None:
        """Settle a job whose thread is stuck, and start another thread in its place."""
        if _settle(lambda: job.future.set_result(outcome)):  # false if it has finished just now
            self._start_one()

    def stop(self) -> None:
        """Let each thread exit after its current job."""
        with suppress(Empty):  # a thread may take the last job at this moment
            while True:
                self._jobs.get_nowait()
        for _ in range(self._count):
            self._jobs.put(None)

    def _start_one(self) -> None:
        Thread(target=self._work, name="fwd2bot-read", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._read_one(job):
                return  # it took too long, and another thread has replaced this one

    def _read_one(self, job: _Job[Item, Result]) -> bool:
        job.begun = time.monotonic()
        try:
            result = self._read(job.item)
        except BaseException as error:
            failure = error
            return _settle(lambda: job.future.set_exception(failure))
        return _settle(lambda: job.future.set_result(result))


def read_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Result],
    give_up: Callable[[Item], Result],
    *,
    ahead: int,
    workers: int,
    seconds: float,
) -> Generator[Result, None, None]:
    """Read items in threads, at most `ahead` beyond the one in use, and yield the results in order.

    An item that takes more than `seconds` yields the result of `give_up` instead. Exceptions of `read` are
    raised here.
    """
    remaining = iter(items)
    threads = _Workers(read, workers)
    try:
        jobs = deque(threads.submit(item) for item in islice(remaining, ahead))
        while jobs:
            job = jobs.popleft()
            while not _wait(job, seconds):
                threads.abandon(job, give_up(job.item))
            jobs.extend(threads.submit(item) for item in islice(remaining, 1))
            yield job.future.result()
    finally:
        threads.stop()


def _wait(job: _Job[Item, Result], seconds: float) -> bool:
    """Wait for a job to finish; false if it has run for more than `seconds`."""
    while not job.future.done():
        left = seconds if job.begun is None else job.begun + seconds - time.monotonic()
        if left <= 0:
            return False
        with suppress(TimeoutError):
            job.future.exception(timeout=left)
    return True


def _settle(settle: Callable[[], None]) -> bool:
    """Settle a future; false if it was settled already."""
    try:
        settle()
    except InvalidStateError:
        return False
    return True
