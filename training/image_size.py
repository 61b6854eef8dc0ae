"""Run a trained model at a different image size."""

import torch
from PIL import Image

from encoders.base import DatasetError, EncoderMismatch
from encoders.fwd2bot.inputs import InputBuilder
from training.validate import Compressor


def set_image_size(model: Compressor, builder: InputBuilder, side: int) -> int:
    """Feed the model pictures of side x side pixels from now on; returns the number of image tokens of each.

    Crops in training show objects larger than whole pictures do, so a model retrieves better at a higher
    resolution than it was trained at (FixRes, arXiv 1906.06423). Raises DatasetError if the tower only reads
    the size that it was made for.
    """
    show_at(builder, side)
    try:
        inputs = builder.images([Image.new("RGB", (side, side))])
        with torch.no_grad():
            model.compress(inputs.to(model.device))
    except (EncoderMismatch, RuntimeError, ValueError) as error:
        raise DatasetError(f"The model cannot read pictures of {side} x {side} pixels: {error}") from error
    image_token: int = builder.processor.image_token_id  # type: ignore[attr-defined]
    return int((inputs["input_ids"] == image_token).sum())


def show_at(builder: InputBuilder, side: int) -> None:
    """Resize pictures to side x side pixels from now on; `set_image_size` must have accepted this side."""
    builder.processor.image_processor.size = {"height": side, "width": side}
