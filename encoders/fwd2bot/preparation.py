"""Preprocesses images ahead of the model: completely, if the processor handles each one independently."""

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from encoders.base import PreparedImage
from encoders.batches import stack_pixels
from encoders.fwd2bot.inputs import InputBuilder

_PIXELS = "pixel_values"
_TRIALS = ((96, 64), (64, 96), (500, 400))
_SHAPING = ("do_resize", "do_center_crop", "do_pad")
_SCALING = ("do_rescale", "do_normalize")


class Resizing(NamedTuple):
    """Resizes an RGB image to (width, height) with Pillow's own `resize`, without a processor's checks."""

    size: tuple[int, int]
    resample: Image.Resampling

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """The resized image: uint8 (3, height, width)."""
        pixels: NDArray[np.uint8] = np.asarray(image.resize(self.size, self.resample))
        return pixels.transpose(2, 0, 1)


class ImagePreparer:
    """Turns images into pixels, in any thread, and pixels into the inputs of pass 1.

    If the processor turns every image into pixels of one size and nothing else, as LLaVA's does, one prompt
    serves all images. Otherwise the prompt depends on the image, and the pixels on the other images of the
    batch, so the image is prepared with its batch.
    """

    def __init__(self, builder: InputBuilder) -> None:
        self._builder = builder
        self._lock = Lock()  # a tokenizer must not pad in two threads at once
        trials = [self._builder.images([Image.new("RGB", size)]) for size in _TRIALS]
        self._prompt = {name: value for name, value in trials[0].items() if name != _PIXELS}
        one_picture = trials[0][_PIXELS].ndim == 4 and len(trials[0][_PIXELS]) == 1  # and not several tiles
        self._alone = one_picture and len({_describe(trial) for trial in trials}) == 1
        processor = self._builder.processor.image_processor
        self._scale = find_scale(processor) if self._alone else None
        self._resizing = find_resizing(processor) if self._scale is not None else None

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Pixels (3, height, width), as uint8 or normalised float32, or the image unchanged."""
        if not self._alone:
            return image
        if self._resizing is not None and image.mode == "RGB":
            return self._resizing.apply(image)
        processor = self._builder.processor.image_processor
        without = _SCALING if self._scale is not None else ()
        return _process(processor, image, without).numpy()

    def collate(self, prepared: Sequence[PreparedImage], device: torch.device) -> BatchEncoding:
        """The inputs of pass 1, on the device, for a batch of outputs of `prepare`."""
        images = [image for image in prepared if isinstance(image, Image.Image)]
        if images:
            with self._lock:
                return self._builder.images(images).to(device)
        pixels = [image for image in prepared if not isinstance(image, Image.Image)]
        prompt = {name: value.expand(len(pixels), -1).to(device) for name, value in self._prompt.items()}
        batch = stack_pixels(pixels, device)
        return BatchEncoding(prompt | {_PIXELS: batch if self._scale is None else scale(batch, self._scale)})


def find_resizing(image_processor: Any) -> Resizing | None:
    """The plain resize that an image processor applies to RGB images before scaling; None if it does more.

    Checked on images of several shapes: the pixels must be identical.
    """
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)) for size in _TRIALS]
    wanted = [_process(image_processor, image, _SCALING).numpy() for image in images]
    try:
        resample = Image.Resampling(image_processor.resample)
    except (AttributeError, ValueError):  # the processor resizes in another way, or not at all
        return None
    resizing = Resizing(wanted[0].shape[:0:-1], resample)
    same = (
        np.array_equal(resizing.apply(image), pixels) for image, pixels in zip(images, wanted, strict=True)
    )
    return resizing if all(same) else None


def find_scale(image_processor: Any) -> Tensor | None:
    """The table by which an image processor scales each of 256 byte values, per channel: float32 (3, 256).

    None if there is no such table: values are not scaled independently, or scaling cannot be switched off.
    """
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    noise = Image.fromarray(np.random.default_rng(0).integers(40, 200, (96, 64, 3), np.uint8))
    try:
        table = _process(image_processor, ramp, _SHAPING).reshape(3, 256)
        unscaled = _process(image_processor, noise, _SCALING)
    except (RuntimeError, TypeError, ValueError):  # the processor does not have these settings
        return None
    if unscaled.dtype != torch.uint8:
        return None
    found = scale(unscaled[None], table)[0]
    return table if torch.equal(found, _process(image_processor, noise)) else None


def scale(pixels: Tensor, table: Tensor) -> Tensor:
    """Scale bytes (n, 3, height, width) by a table from `find_scale`: float32, on the device of the bytes."""
    channels = 256 * torch.arange(3, dtype=torch.int32, device=pixels.device).view(3, 1, 1)
    places = (pixels.int() + channels).flatten()
    return table.to(pixels.device).flatten().index_select(0, places).view(pixels.shape)


def _process(image_processor: Any, image: Image.Image, without: Sequence[str] = ()) -> Tensor:
    """The pixels (3, height, width) of one image, with the processor's steps in `without` switched off."""
    left_out = {name: False for name in without if getattr(image_processor, name, None)}
    pixels: Tensor = image_processor(image, return_tensors="pt", **left_out)[_PIXELS][0]
    return pixels


def _describe(inputs: BatchEncoding) -> tuple[object, ...]:
    """What must not depend on the image: the names of the inputs, the pixels' shape and the prompt."""
    return tuple(
        (name, *value.shape) if name == _PIXELS else (name, *value.flatten().tolist())
        for name, value in inputs.items()
    )
