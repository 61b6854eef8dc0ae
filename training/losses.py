"""The contrastive half of L = a * L_AR + c * L_con (arXiv 2503.21757, section 3); L_AR is the model's own.

And the loss by which a vision tower that starts from nothing learns to see: it names the words of captions.
"""

import math

import torch
from torch import Tensor, nn

HARD_NEGATIVE = -1  # the id of a target that matches no source
_LARGEST_SCALE = 100.0  # as CLIP (arXiv 2103.00020, section 2.5)


class ContrastiveLoss(nn.Module):
    """Symmetric InfoNCE with a learned temperature, where rows of equal ids are positives.

    A row with several positives spreads its target evenly over them (L_out of SupCon, arXiv 2004.11362).
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def temperature(self) -> float:
        """What similarities are divided by."""
        return 1 / self._scale().item()

    def forward(self, sources: Tensor, targets: Tensor, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Mean of both directions over unit rows (s, width), (t, width); targets without a source repel."""
        logits = self._scale() * sources @ targets.T  # (s, t)
        positives = source_ids[:, None] == target_ids[None, :]
        matched = positives.any(dim=0)
        forth = _cross_entropy(logits, positives)
        back = _cross_entropy(logits[:, matched].T, positives[:, matched].T)
        return (forth + back) / 2

    def _scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=_LARGEST_SCALE)


class WordLoss(nn.Module):
    """Which words do the captions of an image hold? A linear guess from the mean of its features.

    Words that few texts hold count more (SuperClass, arXiv 2411.03313, sections 3.1 and 3.2).
    """

    frequencies: Tensor

    def __init__(self, width: int, frequencies: Tensor) -> None:
        """frequencies: float32 (vocabulary,), the share of texts that hold each word."""
        super().__init__()
        self.head = nn.Linear(width, len(frequencies))
        self.register_buffer("frequencies", frequencies)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Mean cross-entropy over images (n, width) and the words of each, bool (n, vocabulary)."""
        rarity = -self.frequencies.clamp(min=1e-6).log()
        wanted = nn.functional.normalize(words * rarity, p=1, dim=1)
        return nn.functional.cross_entropy(self.head(images.float()), wanted)


def _cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    wanted = positives.float() / positives.sum(dim=1, keepdim=True)
    return nn.functional.cross_entropy(logits, wanted)
