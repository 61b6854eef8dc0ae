"""Batches as large as the memory of the device holds, and one in hand for each part of the machine."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.base import Encoder, EncoderError, FloatArray, ImageEmbeddings, PreparedImage
from encoders.memory import keep_memory

# On a CPU a larger batch only leaves the cache: a tiny model took 12.7 ms an image of 8, 14.7 of 64.
CPU_BATCH = 16
_FIRST_GPU_BATCH, _LARGEST_GPU_BATCH = 8, 512
# While one batch of a GPU computes, the next is stacked and copied.
_LANES_A_GPU = 2
# Each lane needs the interpreter between two operations of the model, and there is one interpreter.
_MOST_CPU_LANES = 8

BatchFunction = Callable[[Sequence[PreparedImage]], ImageEmbeddings]
SomeEncoder = TypeVar("SomeEncoder", bound=Encoder)


class MemoryLimit:
    """Encodes batches of any size: in halves where the GPU's memory is too small, as it then remembers."""

    def __init__(self) -> None:
        self._most_at_once: int | None = None

    def encode(self, encode: BatchFunction, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Encode all, in as few pieces as fit; raises EncoderError where not even one image does."""
        done, rest = list[ImageEmbeddings](), prepared
        while rest or not done:
            piece = rest[: self._most_at_once]
            try:
                done.append(encode(piece))
            except torch.OutOfMemoryError as error:
                if len(piece) <= 1:
                    raise EncoderError(
                        "the GPU's memory does not hold the model and one image: free it, or use --device cpu"
                    ) from error
                self._most_at_once = len(piece) // 2
            else:
                rest = rest[len(piece) :]
                continue
            torch.cuda.empty_cache()  # out here, where the error no longer holds on to the tensors
        return _join(done)


def find_batch_size(encode: BatchFunction, example: PreparedImage, device: torch.device) -> int:
    """How many images like `example` to encode at once: on a GPU, doubled while the memory holds it."""
    if device.type != "cuda":
        return CPU_BATCH
    size = _FIRST_GPU_BATCH
    while size < _LARGEST_GPU_BATCH:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            encode([example] * size)
        except torch.OutOfMemoryError:
            return max(1, size // 2)
        used = torch.cuda.max_memory_allocated(device) - before
        idle = torch.cuda.memory_reserved(device) - before
        if (2 * used) * _LANES_A_GPU > torch.cuda.mem_get_info(device)[0] + idle:
            return size
        size *= 2
    return size


def stack_pixels(pixels: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Pixels of one shape as a batch on the device; to a GPU from pinned memory, without waiting for it."""
    batch = torch.from_numpy(np.stack(pixels))
    if device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def to_unit_rows(rows: Tensor) -> FloatArray:
    """Rows (n, dim) of unit length, computed in float32: those that bfloat16 calls so differ by 0.2 %."""
    unit: FloatArray = torch.nn.functional.normalize(rows.float(), dim=-1).cpu().numpy()
    return unit


@contextmanager
def open_lanes(
    encoder: SomeEncoder, device: torch.device, load: Callable[[str], SomeEncoder]
) -> Iterator[list[SomeEncoder]]:
    """The encoder once for each batch that is best in hand at a time, to be called from a thread each.

    On a CPU these share the cores out among them: a batch on one core never waits for another core, which a
    decoder may hold up. On "cuda", without a number, `load` makes an encoder on each further GPU.
    """
    if device.type == "cpu":
        threads = torch.get_num_threads()
        each = math.ceil(threads / _MOST_CPU_LANES)
        lanes = threads // each
        torch.set_num_threads(each)
        keep_memory()
        try:
            yield [encoder] * lanes
        finally:
            torch.set_num_threads(threads)
        return
    others = range(1, torch.cuda.device_count()) if device.index is None else range(0)
    yield [encoder, *(load(f"cuda:{number}") for number in others)] * _LANES_A_GPU


def _join(parts: Sequence[ImageEmbeddings]) -> ImageEmbeddings:
    if len(parts) == 1:
        return parts[0]
    summaries = [part.summaries for part in parts if part.summaries is not None]
    return ImageEmbeddings(
        np.concatenate([part.vectors for part in parts]), np.concatenate(summaries) if summaries else None
    )
