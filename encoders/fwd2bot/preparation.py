"""What can be done to an image before the model is free: all of it, where the processor takes each alone."""

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
    """What makes an RGB image (width, height) large: Pillow's own `resize`, without a processor's checks."""

    size: tuple[int, int]
    resample: Image.Resampling

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image as bytes (3, height, width)."""
        pixels: NDArray[np.uint8] = np.asarray(image.resize(self.size, self.resample))
        return pixels.transpose(2, 0, 1)


class ImagePreparer:
    """Image to pixels in any thread, and pixels to the inputs of pass 1.

    Where the processor makes of every image pixels of one size and nothing else, as LLaVA's does, one prompt
    serves all images. Elsewhere the prompt depends on the image and the pixels on the company, so the image
    is prepared with its batch.
    """

    def __init__(self, builder: InputBuilder) -> None:
        self._builder = builder
        self._lock = Lock()  # a tokenizer may not be asked to pad in two threads at once
        trials = [self._builder.images([Image.new("RGB", size)]) for size in _TRIALS]
        self._prompt = {name: value for name, value in trials[0].items() if name != _PIXELS}
        one_picture = trials[0][_PIXELS].ndim == 4 and len(trials[0][_PIXELS]) == 1  # and not several tiles
        self._alone = one_picture and len({_describe(trial) for trial in trials}) == 1
        processor = self._builder.processor.image_processor
        self._scale = find_scale(processor) if self._alone else None
        self._resizing = find_resizing(processor) if self._scale is not None else None

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Pixels (3, height, width), as bytes or as normalised float32, or the image as it is."""
        if not self._alone:
            return image
        if self._resizing is not None and image.mode == "RGB":
            return self._resizing.apply(image)
        processor = self._builder.processor.image_processor
        without = _SCALING if self._scale is not None else ()
        return _process(processor, image, without).numpy()

    def collate(self, prepared: Sequence[PreparedImage], device: torch.device) -> BatchEncoding:
        """Pass 1 over what `prepare` made of a batch, on the device."""
        images = [image for image in prepared if isinstance(image, Image.Image)]
        if images:
            with self._lock:
                return self._builder.images(images).to(device)
        pixels = [image for image in prepared if not isinstance(image, Image.Image)]
        prompt = {name: value.expand(len(pixels), -1).to(device) for name, value in self._prompt.items()}
        batch = stack_pixels(pixels, device)
        return BatchEncoding(prompt | {_PIXELS: batch if self._scale is None else scale(batch, self._scale)})


def find_resizing(image_processor: Any) -> Resizing | None:
    """How an image processor brings RGB images to one size, scaling left out: None where it does more.

    That it does no more is seen on images of several shapes, to the last bit.
    """
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)) for size in _TRIALS]
    wanted = [_process(image_processor, image, _SCALING).numpy() for image in images]
    try:
        resample = Image.Resampling(image_processor.resample)
    except (AttributeError, ValueError):  # of a processor that has another way to resize, or none
        return None
    resizing = Resizing(wanted[0].shape[:0:-1], resample)
    same = (
        np.array_equal(resizing.apply(image), pixels) for image, pixels in zip(images, wanted, strict=True)
    )
    return resizing if all(same) else None


def find_scale(image_processor: Any) -> Tensor | None:
    """What an image processor makes of each of 256 values by channel: float32 (3, 256).

    None where it is not so simple: a value is not scaled alone, or there is no way to leave the scaling out.
    """
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    noise = Image.fromarray(np.random.default_rng(0).integers(40, 200, (96, 64, 3), np.uint8))
    try:
        table = _process(image_processor, ramp, _SHAPING).reshape(3, 256)
        unscaled = _process(image_processor, noise, _SCALING)
    except (RuntimeError, TypeError, ValueError):  # of a processor that knows no such settings
        return None
    if unscaled.dtype != torch.uint8:
        return None
    found = scale(unscaled[None], table)[0]
    return table if torch.equal(found, _process(image_processor, noise)) else None


def scale(pixels: Tensor, table: Tensor) -> Tensor:
    """Scale bytes (n, 3, height, width) by a table of `find_scale`: float32, on the device of the bytes."""
    channels = 256 * torch.arange(3, dtype=torch.int32, device=pixels.device).view(3, 1, 1)
    places = (pixels.int() + channels).flatten()
    return table.to(pixels.device).flatten().index_select(0, places).view(pixels.shape)


def _process(image_processor: Any, image: Image.Image, without: Sequence[str] = ()) -> Tensor:
    """The pixels (3, height, width) of one image, some of the steps that the processor takes left out."""
    left_out = {name: False for name in without if getattr(image_processor, name, None)}
    pixels: Tensor = image_processor(image, return_tensors="pt", **left_out)[_PIXELS][0]
    return pixels


def _describe(inputs: BatchEncoding) -> tuple[object, ...]:
    """What must not depend on the image: which inputs there are, their sizes, and the prompt."""
    return tuple(
        (name, *value.shape) if name == _PIXELS else (name, *value.flatten().tolist())
        for name, value in inputs.items()
    )
