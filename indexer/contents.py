"""What the index has embedded, by digest: the same bytes under another name are not embedded again."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoders.base import IndexDamaged

from .manifest import Manifest
from .parts import REPAIR_REMEDY, read_columns

RECENT_LIMIT = 1 << 13
DIGEST_LENGTH = 32  # of xxh3-128, in hexadecimal


class KnownContents:
    """Maps digests to the ids of the rows that hold their embeddings, using 24 bytes per digest.

    Decoding threads ask `digest in contents`. The first to ask for new bytes claims them and must read them;
    for all others they count as known from then on, though `find` returns an id only once a row has been
    added.
    """

    def __init__(self, digests: NDArray[np.uint64], ids: NDArray[np.int64]) -> None:
        """Take digests as (n, 2) pairs of high and low halves; of equal digests, the highest id wins."""
        self._digests, self._ids = _sort_digests(digests, ids)
        self._recent: dict[str, int] = {}
        self._claimed: set[str] = set()
        self._hopeless: set[str] = set()
        self._lock = Lock()

    @classmethod
    def read(cls, index_dir: Path, manifest: Manifest) -> "KnownContents":
        """Read the digests of all rows that have an embedding, also those of changed or deleted files."""
        digests, ids = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)]
        for table in read_columns(index_dir, manifest, ["id", "digest", "status"]):
            rows = table.filter(pc.equal(table["status"], "ok"))
            digests.append(_parse_digests(index_dir, rows["digest"]))
            ids.append(rows["id"].to_numpy())
        return cls(np.concatenate(digests), np.concatenate(ids))

    def __contains__(self, digest: object) -> bool:
        """Whether these bytes are known or claimed by another thread; if not, the caller now claims them."""
        assert isinstance(digest, str)
        with self._lock:
            if digest in self._hopeless:
                return False
            if digest in self._claimed or self._find(digest) is not None:
                return True
            self._claimed.add(digest)
            return False

    def find(self, digest: str) -> int | None:
        """The id of a row with the embedding of these bytes, or None if there is none yet."""
        with self._lock:
            return self._find(digest)

    def add(self, rows: Mapping[str, int]) -> None:
        """Remember digests with the ids of the rows that now hold their embeddings."""
        with self._lock:
            self._recent.update(rows)
            self._claimed.difference_update(rows)
            if len(self._recent) > max(RECENT_LIMIT, len(self._ids) // 4):
                digests_added = _split_digests("".join(self._recent))
                ids = np.array(list(self._recent.values()), np.int64)
                self._digests, self._ids = _sort_digests(
                    np.concatenate([self._digests, digests_added]), np.concatenate([self._ids, ids])
                )
                self._recent = {}

    def give_up(self, digests: Iterable[str]) -> None:
        """Let nobody wait for bytes that cannot be embedded: each file that has them fails on its own."""
        with self._lock:
            self._hopeless.update(digests)

    def _find(self, digest: str) -> int | None:
        if digest in self._recent:
            return self._recent[digest]
        high, low = _split_digests(digest)[0]
        place = int(np.searchsorted(self._digests[:, 0], high))
        while place < len(self._ids) and self._digests[place, 0] == high:
            if self._digests[place, 1] == low:
                return int(self._ids[place])
            place += 1
        return None


def _sort_digests(
    digests: NDArray[np.uint64], ids: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    order = np.lexsort((-ids, digests[:, 0]))  # of equal digests the newest row comes first and is found
    return np.asfortranarray(digests[order]), ids[order]


def _parse_digests(index_dir: Path, column: pa.ChunkedArray) -> NDArray[np.uint64]:
    digests = column.to_pylist()
    try:
        if any(len(digest) != DIGEST_LENGTH for digest in digests):
            raise ValueError("a digest of another length")
        halves = _split_digests("".join(digests))
        if len(halves) != len(digests):
            raise ValueError("a digest that is not a hexadecimal number")
        return halves
    except ValueError as error:
        raise IndexDamaged(f"{index_dir} is damaged ({error}): {REPAIR_REMEDY}") from None


def _split_digests(digests: str) -> NDArray[np.uint64]:
    """Split concatenated hexadecimal digests into their halves, uint64 (n, 2)."""
    return np.frombuffer(bytes.fromhex(digests), ">u8").reshape(-1, 2).astype(np.uint64)
