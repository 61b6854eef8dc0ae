"""Embeddings cached between runs, keyed by what they depend on: encoder, device, dtype and input bytes."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import describe_arithmetic
from benchmarks.readers.base import open_photo
from encoders.base import DatasetError, Encoder, FloatArray
from indexer.durable import digest_stream, replace_durably
from indexer.images import describe_error

_NAME = "vectors"
_DIGEST = "digest"


def find_user_cache() -> Path:
    """The folder for cached embeddings, in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "fwd2bot" / "embeddings"


def digest_photos(images: Sequence[CaptionedImage]) -> str:
    """A digest of the photos' bytes, in their order."""
    return _digest_all(_digest_photo(image.path).encode() for image in images)


def digest_texts(texts: Sequence[str]) -> str:
    """A digest of texts, in their order."""
    return _digest_all(text.encode() for text in texts)


def _digest_all(pieces: Iterable[bytes]) -> str:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _digest_photo(path: Path) -> str:
    try:
        with open_photo(path) as stream:
            return digest_stream(stream)
    except Exception as error:  # reading an archive member can raise anything
        raise DatasetError(
            f"{path} cannot be read ({describe_error(error)}): put a sound file in its place."
        ) from error


class EmbeddingCache:
    """A folder of safetensors files, one for each encoder and set of photos or texts."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._folder = folder
        self._encoder = encoder

    def load_or_make(self, kind: str, digest: str, count: int, make: Callable[[], FloatArray]) -> FloatArray:
        """The vectors (count, dim) for a digest; computed and stored if they are missing or damaged."""
        computed = map(str, describe_arithmetic(self._encoder).values())
        parts = (self._encoder.name, self._encoder.fingerprint, *computed, digest)
        key = _digest_all(part.encode() for part in parts)
        path = self._folder / f"{kind}-{key}.safetensors"
        try:
            return _load_vectors(path, (count, self._encoder.dim))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, SafetensorError) as error:
            print(f"{path} is damaged ({describe_error(error)}): it is made anew", file=sys.stderr)
        vectors = make()
        _save_vectors(path, vectors)
        return vectors


def _save_vectors(path: Path, vectors: FloatArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = np.ascontiguousarray(vectors)
    with replace_durably(path) as stream:
        stream.write(save({_NAME: vectors}, {_DIGEST: _digest_all([vectors.tobytes()])}))


def _load_vectors(path: Path, shape: tuple[int, int]) -> FloatArray:
    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(path, framework="numpy") as file:
        vectors: FloatArray = file.get_tensor(_NAME)
        written = (file.metadata() or {}).get(_DIGEST)
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ValueError(f"it holds {vectors.dtype} {vectors.shape} and not float32 {shape}")
    if written != _digest_all([vectors.tobytes()]):
        raise ValueError("its bytes are not those that were written")
    return vectors
