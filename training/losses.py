"""The contrastive term of L = a * L_AR + c * L_con (arXiv 2503.21757, section 3); the model computes L_AR.

Also the distillation loss, and the word loss, by which a vision tower learns from scratch.
"""

import math

import torch
from torch import Tensor, nn

HARD_NEGATIVE = -1  # the id of a target that matches no source, and of a source that matches no target
_NEVER = -1e4  # the logit of a row with itself: probability 0, but finite, as 0 * inf would be nan
_LARGEST_SCALE = 100.0  # as in CLIP (arXiv 2103.00020, section 2.5)


class ContrastiveLoss(nn.Module):
    """Symmetric InfoNCE with a learned temperature; rows with equal ids are positives.

    A row with several positives spreads its target evenly over them (L_out of SupCon, arXiv 2004.11362).
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @property
    def temperature(self) -> float:
        """What similarities are divided by."""
        return (-self.log_scale.double()).exp().item()  # inf, not an error, if training diverged

    def forward(self, sources: Tensor, targets: Tensor, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Mean of both directions over unit rows (s, width), (t, width); unmatched rows are negatives."""
        logits = self.log_scale.exp() * sources @ targets.T  # (s, t)
        positives = match_ids(source_ids, target_ids)
        forth = _cross_entropy(logits, positives)
        back = _cross_entropy(logits.T, positives.T)
        return (forth + back) / 2


class SigmoidLoss(nn.Module):
    """SigLIP's loss (arXiv 2303.15343, algorithm 1): match or no match, for each pair independently.

    Temperature and bias are learned; the loss is the sum over all pairs, divided by the number of sources.
    """

    def __init__(self, temperature: float = 0.1, bias: float = -10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.bias = nn.Parameter(torch.tensor(bias))

    @property
    def temperature(self) -> float:
        """What similarities are divided by."""
        return (-self.log_scale.double()).exp().item()  # inf, not an error, if training diverged

    def forward(self, sources: Tensor, targets: Tensor, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        """The loss over unit rows (s, width), (t, width); rows without a match are only negatives."""
        logits = self.log_scale.exp() * sources @ targets.T + self.bias  # (s, t)
        signs = 2.0 * match_ids(source_ids, target_ids) - 1
        return -nn.functional.logsigmoid(signs * logits).sum() / len(sources)


@torch.no_grad()
def bound_scale(loss: ContrastiveLoss | SigmoidLoss) -> None:
    """Clamp the learned scale of similarities to at most 100 after each update, as CLIP does.

    If the loss clamped it instead, it would have no gradient beyond the bound, and stay there for good.
    """
    loss.log_scale.clamp_(max=math.log(_LARGEST_SCALE))


def compare_affinities(rows: Tensor, guides: Tensor, pictured: Tensor, temperature: float) -> Tensor:
    """Distil the teachers' similarities within a batch: mean KL divergence from theirs to ours, in nats.

    Each row gives one softmax over its cosines with all other pictures, and one over those with all other
    texts (affinity mimicking, TinyCLIP, arXiv 2309.12314, section 3.1, which only uses picture to text and
    text to picture).

    rows: (n, width), of unit length. guides: the teachers' embeddings (n, dim); rows of zeros, which no
    teacher saw, take no part. pictured: bool (n,), True for pictures, False for texts.
    """
    known = guides.any(dim=1)
    rows, guides, pictured = rows[known], guides[known], pictured[known]
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    ours, theirs = (
        (each @ each.T / temperature).masked_fill(same, _NEVER) for each in (rows, guides.to(rows.dtype))
    )
    losses = [
        nn.functional.kl_div(
            ours[mine][:, others].log_softmax(dim=1),
            theirs[mine][:, others].log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        for mine in (pictured, ~pictured)
        for others in (pictured, ~pictured)
        if mine.any() and others.any()
    ]
    return torch.stack(losses or [rows.sum()]).mean()


def match_ids(source_ids: Tensor, target_ids: Tensor) -> Tensor:
    """Which targets match which sources: bool (sources, targets)."""
    return (source_ids[:, None] == target_ids[None, :]) & (target_ids != HARD_NEGATIVE)


class WordLoss(nn.Module):
    """Predict the words of an image's captions from the mean of its features, with a linear head.

    Rare words are weighted more (SuperClass, arXiv 2411.03313, sections 3.1 and 3.2).
    """

    frequencies: Tensor

    def __init__(self, width: int, frequencies: Tensor) -> None:
        """frequencies: float32 (vocabulary,), the fraction of texts that contain each word."""
        super().__init__()
        self.head = nn.Linear(width, len(frequencies))
        self.register_buffer("frequencies", frequencies)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Mean cross-entropy over images (n, width) and the words of each, bool (n, vocabulary)."""
        rarity = -self.frequencies.clamp(min=1e-6).log()
        wanted = nn.functional.normalize(words * rarity, p=1, dim=1)
        return nn.functional.cross_entropy(self.head(images.float()), wanted)


def _cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    matched = positives.any(dim=1)
    logits, positives = logits[matched], positives[matched]
    wanted = positives.float() / positives.sum(dim=1, keepdim=True)
    return nn.functional.cross_entropy(logits, wanted)
