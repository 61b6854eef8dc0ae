"""Another image size for a model that was trained at one."""

import torch
from PIL import Image

from encoders.base import DatasetError, EncoderMismatch
from encoders.fwd2bot.inputs import InputBuilder
from training.validate import Compressor


def set_image_size(model: Compressor, builder: InputBuilder, side: int) -> int:
    """Show the model pictures of side x side pixels from now on; says how many image tokens each has.

    Crops in training show things larger than they are in whole pictures, so a model finds more in these at a
    higher resolution than it learned at (FixRes, arXiv 1906.06423). Raises DatasetError where the tower reads
    the size that it was made for and no other.
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
    """Make pictures of side x side pixels from now on, which `set_image_size` found that the model reads."""
    builder.processor.image_processor.size = {"height": side, "width": side}
