"""Mutated image files and archives through the indexer's reader: no crash, no hang, no unbounded memory.

    python -m benchmarks.fuzz --count 20000 --seed 1

Mutant n of a seed is always the same file. A child process reads one mutant after another under a memory
limit; if it dies or hangs, its parent records that and starts another child after that mutant. The exit code
is 1 if there was any fault. POSIX only.
"""

import argparse
import multiprocessing
import os
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.command import at_least, describe_run, refuse_overwriting, run_command, write_result
from benchmarks.fuzz_files import make_files
from encoders.base import Fwd2BotError, ImageEmbeddings
from indexer.columns import encode_rows
from indexer.decode import quiet_pillow, read_photo
from indexer.images import Photo
from indexer.manifest import EncoderRecord, Manifest
from indexer.metadata import LONGEST_TEXT
from indexer.recorder import describe_photo
from indexer.sources import open_source

_MODULE = "benchmarks.fuzz"
_ENCODER = EncoderRecord("none", "none", 1, None)
_IMAGE_SIZE = 64
_MAX_MEGAPIXELS = 20.0
_SECONDS = 20.0  # limit for one mutant; an intact file takes milliseconds
_MEMORY = 1536 << 20  # bytes of address space, beyond what the child has when it starts
_TELLING_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Reading(NamedTuple):
    """The outcome of one mutant: images decoded and rejected, seconds, and the reader's fault, or ""."""

    decoded: int
    refused: int
    seconds: float
    fault: str


Reader = Callable[[int], Reading]


@dataclass(frozen=True)
class FuzzResult:
    """The results of a run. memory: the largest resident set of a child, in MiB. faults: a line for each."""

    count: int
    seed: int
    decoded: int
    refused: int
    slowest: float
    memory: float
    faults: list[str]


def mutate(content: bytes, other: bytes, random: Random) -> bytes:
    """Damage a file in one to four ways; `other` is a file to splice pieces from."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        random.choice(_MUTATIONS)(data, other, random)
    return bytes(data)


def _flip_bits(data: bytearray, other: bytes, random: Random) -> None:
    for _ in range(random.randint(1, 16) if data else 0):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _truncate(data: bytearray, other: bytes, random: Random) -> None:
    del data[random.randrange(len(data) + 1) :]


def _write_number(data: bytearray, other: bytes, random: Random) -> None:
    """Write an edge-case number where a header is likely to have one."""
    width = random.choice((1, 2, 4))
    number = random.choice(_TELLING_NUMBERS) & (1 << 8 * width) - 1
    place = random.randrange(min(len(data), random.choice((64, 512, 4096))) + 1)
    data[place : place + width] = number.to_bytes(width, random.choice(("little", "big")))


def _claim_size(data: bytearray, other: bytes, random: Random) -> None:
    """Give a PNG a false size with a valid checksum; in any other file, write a number."""
    if data[12:16] != b"IHDR" or len(data) < 33:
        return _write_number(data, other, random)
    struct.pack_into(">I", data, random.choice((16, 20)), random.choice(_TELLING_NUMBERS))
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))


def _splice(data: bytearray, other: bytes, random: Random) -> None:
    """Insert a piece of this or the other file, or overwrite as many bytes with it."""
    source = random.choice((bytes(data), other))
    start, place = random.randrange(len(source) + 1), random.randrange(len(data) + 1)
    piece = source[start : start + random.choice((4, 64, 1024))]
    data[place : place + random.choice((0, len(piece)))] = piece


def _blank(data: bytearray, other: bytes, random: Random) -> None:
    place = random.randrange(len(data) + 1)
    length = min(random.choice((1, 16, 256)), len(data) - place)
    data[place : place + length] = random.choice((b"\0", b"\xff", random.randbytes(1))) * length


_MUTATIONS = (_flip_bits, _flip_bits, _write_number, _claim_size, _truncate, _splice, _blank)


@cache
def _list_files() -> list[tuple[str, bytes]]:
    return list(make_files().items())


def make_mutant(seed: int, number: int) -> tuple[str, bytes]:
    """The file name and bytes of a mutant."""
    files, random = _list_files(), Random(f"{seed} {number}")
    name, content = files[number % len(files)]
    return name, mutate(content, random.choice(files)[1], random)


def read_mutant(folder: Path, seed: int, number: int) -> Reading:
    """Write a mutant into a folder, read it as the indexer does, and delete it."""
    name, content = make_mutant(seed, number)
    path, begun = folder / name, time.perf_counter()
    path.write_bytes(content)
    photos: list[Photo] = []
    try:
        source = open_source(folder)
        photos += (read_photo(source, file, _IMAGE_SIZE, _MAX_MEGAPIXELS) for file in source.find().files)
        fault = next(filter(None, map(find_fault, photos)), "")
    except Exception as error:  # any exception that escapes the reader is a fault
        fault = f"raised {error!r}"
    finally:
        path.unlink()
    decoded = sum(photo.image is not None for photo in photos)
    seconds = time.perf_counter() - begun
    return Reading(decoded, len(photos) - decoded, seconds, fault)


def find_fault(photo: Photo) -> str:
    """The invariant that a photo violates, or ""; the invariants hold whatever the file contains."""
    if (photo.image is None) != bool(photo.error):
        return "an image and an error, or neither"
    if len(photo.error.splitlines()) > 1:
        return "an error of several lines"
    if "MemoryError" in photo.error:
        return "it takes more memory than there is"
    if photo.image is not None and (photo.image.mode != "RGB" or max(photo.image.size) > 16 * _IMAGE_SIZE):
        return f"an image of {photo.image.mode} {photo.image.size}"
    taken_at, camera, lens, latitude, longitude, orientation = photo.metadata
    sound = (
        (taken_at is None or isinstance(taken_at, datetime))
        and all(len(text) <= LONGEST_TEXT and (text.isprintable() or not text) for text in (camera, lens))
        and (latitude is None) == (longitude is None)
        and -90 <= (latitude or 0) <= 90
        and -180 <= (longitude or 0) <= 180
        and orientation in range(1, 9)
    )
    return _find_unstorable(photo) if sound else f"metadata {photo.metadata}"


def _find_unstorable(photo: Photo) -> str:
    """Why a part cannot hold the row of a photo, or ""; such a row would stop this and every later run."""
    row = describe_photo(photo)
    embeddings = ImageEmbeddings(np.ones((int(row.status == "ok"), _ENCODER.dim), np.float32), None)
    try:
        encode_rows(Manifest("..", _ENCODER, "none", "", ""), 0, [row], embeddings)
    except Exception as error:  # pyarrow raises many classes
        return f"a row that no part can hold: {error!r}"
    return ""


def watch_readings(read: Reader, count: int, seconds: float = _SECONDS) -> Iterator[Reading]:
    """Read mutants 0 to count - 1 in a child process, and start a new child whenever one dies or hangs."""
    number = 0
    while number < count:
        for reading in _watch_child(read, number, count, seconds):
            yield reading
            number += 1


def _watch_child(read: Reader, start: int, count: int, seconds: float) -> Iterator[Reading]:
    """Readings of one child from `start` on; if it dies or hangs, the last reading says so."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_read_on, args=(read, start, count, theirs))
    child.start()
    theirs.close()
    try:
        for _ in range(start, count):
            if not ours.poll(seconds):
                yield Reading(0, 0, seconds, f"the reader took longer than {seconds:g} s")
                return
            yield ours.recv()
    except EOFError:
        child.join()
        yield Reading(0, 0, 0.0, f"the reader died with exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()
        ours.close()


def _read_on(read: Reader, start: int, count: int, results: Connection) -> None:
    """Read mutants from `start` on, under a memory limit; discards what decoders print."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    limit = _MEMORY + _measure_addresses()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with quiet_pillow():
        for number in range(start, count):
            results.send(read(number))


def _measure_addresses() -> int:
    """This process's address space in bytes; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def fuzz_reader(count: int, seed: int) -> FuzzResult:
    """Read `count` mutants and summarise."""
    sums, slowest, faults = Counter[str](), 0.0, list[str]()
    _list_files()  # before forking, so that children share them
    with TemporaryDirectory(prefix="fwd2bot-fuzz-") as folder:
        readings = watch_readings(partial(read_mutant, Path(folder), seed), count)
        for number, reading in enumerate(tqdm(readings, total=count, unit="mutant", disable=None)):
            sums.update(decoded=reading.decoded, refused=reading.refused)
            slowest = max(slowest, reading.seconds)
            if reading.fault:
                faults.append(
                    f"mutant {number} of seed {seed}, {make_mutant(seed, number)[0]}: {reading.fault}"
                )
    scale = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * scale / 2**20
    return FuzzResult(count, seed, sums["decoded"], sums["refused"], slowest, memory, faults)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--count", type=at_least(1), default=20_000, help="mutants to read (default: %(default)s)"
    )
    parser.add_argument("--seed", type=at_least(0), default=1, help="which mutants (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here as well")
    parser.add_argument("--force", action="store_true", help="replace a result file that is already there")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options, arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str] | None) -> None:
    refuse_overwriting(options.json, options.force)
    result = fuzz_reader(options.count, options.seed)
    write_result(options.json, describe_run(_MODULE, arguments, None, options.seed), result)
    print(*result.faults, sep="\n", end="\n" if result.faults else "", file=sys.stderr)
    print(
        f"{result.count} mutants: {result.decoded} images decoded, {result.refused} refused, "
        f"slowest {result.slowest:.2f} s, peak memory {result.memory:.0f} MiB, faults {len(result.faults)}"
    )
    if result.faults:
        raise Fwd2BotError(f"{len(result.faults)} mutants were too much for the reader: see above.")


if __name__ == "__main__":
    sys.exit(main())
