"""Turn batches of pictures into the input of a vision tower of one square size, as random views."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding

from encoders.base import DatasetError
from encoders.fwd2bot.inputs import InputBuilder
from training.augment import Chance, crop_randomly, erase_patches, jitter_colours
from training.data_settings import AugmentationSettings
from training.sources.pictures import square_picture

_SCENE_COLOUR_JITTER = 0.08  # small, because scene captions name colours


class SquareViews:
    """The fast image path for models of one square size; without it, the model's own processor is used."""

    def __init__(self, builder: InputBuilder, settings: AugmentationSettings) -> None:
        self.builder, self.settings = builder, settings
        processor = builder.processor.image_processor
        size = processor.size
        self.size: int = size.get("height", 0)
        if not self.size or size != {"height": self.size, "width": self.size}:
            raise DatasetError(
                f"Views by [augmentation] need a model that reads one square size, and this one's is {size}: "
                "leave [augmentation] out"
            )
        self.side = self.size * 9 // 7  # of a photo before it is cropped
        self.mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
        self.deviation = torch.tensor(processor.image_std).view(1, 3, 1, 1)

    def show(
        self,
        photos: Sequence[Image.Image],
        scenes: Sequence[Image.Image],
        plain: Tensor,
        photo_chance: Chance,
        scene_chance: Chance,
    ) -> BatchEncoding:
        """Inputs of pass 1 for photos, then drawn scenes. plain: bool (photos,), which may be mirrored."""
        seen = [self._view_photos(photos, plain, photo_chance), self._view_scenes(scenes, scene_chance)]
        return self.builder.pixels((torch.cat(seen) - self.mean) / self.deviation)

    def _view_photos(self, photos: Sequence[Image.Image], plain: Tensor, chance: Chance) -> Tensor:
        # Draws random numbers even without photos, so that the scenes' draws are the same on every rank.
        pictures = _stack(photos, self.side)
        mirror = (chance.draw() < 0.5) & plain
        views = crop_randomly(pictures, self.size, self.settings.smallest_crop, mirror, chance)
        views = jitter_colours(views, self.settings.colour_jitter, chance)
        return erase_patches(views, self.settings.erased, chance)

    def _view_scenes(self, scenes: Sequence[Image.Image], chance: Chance) -> Tensor:
        # Rendered like the scenes' files, then resized as the image processor does.
        return jitter_colours(_stack(scenes, self.size), _SCENE_COLOUR_JITTER, chance)


def _stack(pictures: Sequence[Image.Image], side: int) -> Tensor:
    """Squeeze pictures to squares and stack them: float32 (n, 3, side, side) in [0, 1]."""
    if not pictures:
        return torch.empty((0, 3, side, side))
    stacked = torch.from_numpy(np.stack([square_picture(picture, side) for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float() / 255
