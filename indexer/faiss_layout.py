"""Check the sizes stated in a FAISS file before faiss reads it.

faiss trusts them: a crafted file makes it allocate without bound or read past the end. Each kind of index
that fwd2bot writes has one layout, in which all sizes follow from a few.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

INNER_PRODUCT = 0
EIGHT_BITS, HALF_FLOATS = 0, 4  # faiss.ScalarQuantizer.QT_8bit and QT_fp16
MOST_LISTS = 1 << 24


def check_layout(path: Path, rows: int, dim: int, exact: bool) -> None:
    """Raise ValueError unless the file is laid out as faiss_recipe.py's index of `rows` vectors."""
    with path.open("rb") as stream:
        fields = _Fields(stream, path.stat().st_size)
        check: Callable[[_Fields, int, int], None] = _check_exact if exact else _check_lists
        check(fields, rows, dim)
        fields.require_end()


class _Fields:
    """Reads a file field by field, and refuses unexpected values."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.left = size

    def read(self, code: str) -> int:
        """Read one little-endian value of this `struct` format code."""
        return int(struct.unpack(f"<{code}", self.read_bytes(struct.calcsize(f"<{code}")))[0])

    def read_bytes(self, count: int) -> bytes:
        """Read exactly `count` bytes; ValueError if there are fewer."""
        self._take(count)
        content = self.stream.read(count)
        if len(content) < count:
            raise ValueError("it ends too early")
        return content

    def skip(self, count: int) -> None:
        """Skip bytes that may have any value."""
        self._take(count)
        self.stream.seek(count, 1)

    def require(self, what: str, code: str, due: int) -> None:
        """Read one value, which must equal `due`."""
        found = self.read(code)
        if found != due:
            raise ValueError(f"{what} is {found} where {due} is expected")

    def require_kind(self, *kinds: bytes) -> bytes:
        """Read the four-character code that begins a section, which must be one of `kinds`."""
        found = self.read_bytes(4)
        if found not in kinds:
            raise ValueError(f"a piece of kind {found!r} where {kinds[0]!r} is expected")
        return found

    def skip_vector(self, what: str, count: int, width: int) -> None:
        """Skip a stored vector, which must have `count` values, of `width` bytes each."""
        self.require(what, "Q", count)
        self.skip(count * width)

    def require_end(self) -> None:
        """Raise ValueError if anything follows."""
        if self.left:
            raise ValueError(f"{self.left} bytes follow its end")

    def _take(self, count: int) -> None:
        if count > self.left:
            raise ValueError(f"it promises {count - self.left} bytes more than it has")
        self.left -= count


def _check_exact(fields: _Fields, rows: int, dim: int) -> None:
    fields.require_kind(b"IxM2")
    _check_header(fields, rows, dim)
    fields.require_kind(b"IxSQ")
    _check_header(fields, rows, dim)
    _check_quantizer(fields, HALF_FLOATS, dim, bytes_of_vector=2 * dim, trained=0)
    fields.skip_vector("bytes of vectors", 2 * dim * rows, 1)
    fields.skip_vector("number of ids", rows, 8)


def _check_lists(fields: _Fields, rows: int, dim: int) -> None:
    fields.require_kind(b"IwSq")
    _check_header(fields, rows, dim)
    lists = fields.read("Q")
    if not 0 < lists <= MOST_LISTS:
        raise ValueError(f"impossible number of lists {lists}")
    fields.skip(8)  # nprobe, the number of them that a plain search probes
    fields.require_kind(b"IxFI")
    _check_header(fields, lists, dim)
    fields.skip_vector("values of centres", lists * dim, 4)
    fields.require("kind of map", "B", 0)
    fields.skip_vector("length of the map", 0, 8)
    _check_quantizer(fields, EIGHT_BITS, dim, bytes_of_vector=dim, trained=2 * dim)
    fields.require("bytes of a vector", "Q", dim)
    fields.require("use of residuals", "B", 1)
    fields.require_kind(b"ilar")
    fields.require("number of lists", "Q", lists)
    fields.require("bytes of a vector", "Q", dim)
    sizes = _read_list_sizes(fields, lists)
    if (sizes > rows).any() or sizes.sum() != rows:
        raise ValueError(f"its lists do not hold {rows} vectors together")
    fields.skip(rows * (dim + 8))


def _check_header(fields: _Fields, rows: int, dim: int) -> None:
    fields.require("dimension", "i", dim)
    fields.require("number of vectors", "q", rows)
    fields.skip(16)  # unused
    fields.require("being trained", "B", 1)
    fields.require("metric", "i", INNER_PRODUCT)


def _check_quantizer(fields: _Fields, kind: int, dim: int, bytes_of_vector: int, trained: int) -> None:
    fields.require("type of vectors", "i", kind)
    fields.skip(8)  # how the ranges were found
    fields.require("dimension", "Q", dim)
    fields.require("bytes of a vector", "Q", bytes_of_vector)
    fields.skip_vector("number of ranges", trained, 4)


def _read_list_sizes(fields: _Fields, lists: int) -> NDArray[np.uint64]:
    """Vectors in each list; if most are empty, faiss stores only (list number, size) pairs of the others."""
    if fields.require_kind(b"full", b"sprs") == b"full":
        fields.require("number of sizes", "Q", lists)
        return np.frombuffer(fields.read_bytes(8 * lists), np.uint64)
    count = fields.read("Q")
    if count > 2 * lists:
        raise ValueError(f"{count} values for the sizes of {lists} lists")
    pairs = np.frombuffer(fields.read_bytes(8 * count), np.uint64).reshape(-1, 2)
    if (pairs[:, 0] >= lists).any() or (np.diff(pairs[:, 0].astype(np.int64)) <= 0).any():
        raise ValueError("its list numbers do not grow")
    return pairs[:, 1]
