"""Batches as large as device memory allows, and how many of them to run concurrently."""

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

# On a CPU, larger batches only overflow the cache: a tiny model took 12.7 ms per image at 8, 14.7 ms at 64.
CPU_BATCH = 16
_FIRST_GPU_BATCH, _LARGEST_GPU_BATCH = 8, 512
# While a GPU computes one batch, the next is stacked and copied.
_LANES_A_GPU = 2
# Each lane needs the GIL between any two operations of the model, so more lanes would only wait for it.
_MOST_CPU_LANES = 8

BatchFunction = Callable[[Sequence[PreparedImage]], ImageEmbeddings]
SomeEncoder = TypeVar("SomeEncoder", bound=Encoder)


class MemoryLimit:
    """Encodes batches of any size; each time the GPU runs out of memory, halves the piece size for good."""

    def __init__(self) -> None:
        self._most_at_once: int | None = None

    def encode(self, encode: BatchFunction, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Encode all, in as few pieces as fit in memory; raises EncoderError if a single image does not."""
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
            torch.cuda.empty_cache()  # outside `except`, whose error keeps the tensors alive
        return _join(done)


def find_batch_size(encode: BatchFunction, example: PreparedImage, device: torch.device) -> int:
    """The batch size for images like `example`: fixed on a CPU; on a GPU, doubled while memory allows."""
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
    """Stack pixels of one shape into a batch on the device; to a GPU, asynchronously from pinned memory."""
    batch = torch.from_numpy(np.stack(pixels))
    if device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def to_unit_rows(rows: Tensor) -> FloatArray:
    """Scale rows (n, dim) to unit length, in float32: computed in bfloat16, lengths are off by 0.2 %."""
    unit: FloatArray = torch.nn.functional.normalize(rows.float(), dim=-1).cpu().numpy()
    return unit


@contextmanager
def open_lanes(
    encoder: SomeEncoder, device: torch.device, load: Callable[[str], SomeEncoder]
) -> Iterator[list[SomeEncoder]]:
    """Yield one encoder per batch to run concurrently, each to be called from its own thread.

    On a CPU, all are the same encoder and divide the cores among them: a batch on one core never waits for
    another core that a decoder may occupy. On "cuda" without a number, `load` adds an encoder on each further
    GPU; each encoder is yielded _LANES_A_GPU times.
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
