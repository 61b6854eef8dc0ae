"""What can be done to an image before the model is free: all of it, where the processor takes each alone."""

from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from PIL import Image
from transformers import BatchEncoding

from encoders.base import FloatArray, PreparedImage
from encoders.batches import stack_pixels
from encoders.fwd2bot.inputs import InputBuilder

_PIXELS = "pixel_values"
_TRIALS = ((96, 64), (64, 96))


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

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Float32 pixels (3, height, width), normalised, or the image as it is."""
        if not self._alone:
            return image
        inputs = self._builder.processor.image_processor(image, return_tensors="np")
        pixels: FloatArray = np.asarray(inputs[_PIXELS][0], np.float32)
        return pixels

    def collate(self, prepared: Sequence[PreparedImage], device: torch.device) -> BatchEncoding:
        """Pass 1 over what `prepare` made of a batch, on the device."""
        images = [image for image in prepared if isinstance(image, Image.Image)]
        if images:
            with self._lock:
                return self._builder.images(images).to(device)
        pixels = [image for image in prepared if not isinstance(image, Image.Image)]
        prompt = {name: value.expand(len(pixels), -1).to(device) for name, value in self._prompt.items()}
        return BatchEncoding(prompt | {_PIXELS: stack_pixels(pixels, device)})


def _describe(inputs: BatchEncoding) -> tuple[object, ...]:
    """What must not depend on the image: which inputs there are, their sizes, and the prompt."""
    return tuple(
        (name, *value.shape) if name == _PIXELS else (name, *value.flatten().tolist())
        for name, value in inputs.items()
    )
