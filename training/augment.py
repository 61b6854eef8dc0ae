"""Random views of a batch of pictures, as tensors: crop and resize, mirror, colour jitter, erased patch."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

_LUMINANCE = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Chance:
    """Random numbers for the `rows` of a global batch; each rank gets those of its own rows.

    first: index of the rank's first row; every `ranks`-th row after it is also its own.
    """

    generator: Generator
    rows: int
    first: int = 0
    ranks: int = 1

    def draw(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """One number in [low, high) for each of the rank's own rows: float32 (own rows,)."""
        drawn = low + (high - low) * torch.rand(self.rows, generator=self.generator)
        return drawn[self.first :: self.ranks]


def crop_randomly(pictures: Tensor, size: int, smallest: float, mirror: Tensor, chance: Chance) -> Tensor:
    """Crop a random box and resize it to size x size: float32 (n, 3, height, width) to (n, 3, size, size).

    smallest: the smallest fraction of the area to keep. mirror: bool (n,), which pictures to flip left-right.
    """
    count = pictures.shape[0]
    area = chance.draw(smallest, 1.0)
    ratio = chance.draw(-0.2, 0.2).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    middle_x = chance.draw(-1, 1) * (1 - width)
    middle_y = chance.draw(-1, 1) * (1 - height)
    if not count:  # affine_grid rejects an empty batch
        return pictures.new_empty(0, 3, size, size)
    zero = torch.zeros(count)
    rows = [
        torch.stack([torch.where(mirror, -width, width), zero, middle_x], 1),
        torch.stack([zero, height, middle_y], 1),
    ]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False)
    return nn.functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def jitter_colours(pictures: Tensor, strength: float, chance: Chance) -> Tensor:
    """Change brightness, contrast and saturation of pictures in [0, 1] by up to `strength` each."""
    brightness, contrast, saturation = (
        chance.draw(1 - strength, 1 + strength).view(-1, 1, 1, 1) for _ in range(3)
    )
    pictures = pictures * brightness
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    pictures = mean + contrast * (pictures - mean)
    grey = (pictures * _LUMINANCE).sum(dim=1, keepdim=True)
    return (grey + saturation * (pictures - grey)).clamp(0, 1)


def erase_patches(pictures: Tensor, share: float, chance: Chance) -> Tensor:
    """Fill a random square with the mean colour in a `share` of the pictures (Cutout, arXiv 1708.04552)."""
    _, _, height, width = pictures.shape
    half = chance.draw(0.1, 0.25) * min(height, width)
    half = half * (chance.draw() < share)
    rows = (torch.arange(height) - (chance.draw()[:, None] * height)).abs() < half[:, None]
    columns = (torch.arange(width) - (chance.draw()[:, None] * width)).abs() < half[:, None]
    patch = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)  # (n, 1, height, width)
    return torch.where(patch, pictures.mean(dim=(2, 3), keepdim=True), pictures)
