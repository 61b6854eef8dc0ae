"""The gradient of one large batch, computed in chunks that fit in memory (GradCache, arXiv 2101.06983).

A contrastive loss compares every row with every other, so the gradients of small batches do not add up to
that of the large one: plain gradient accumulation would optimise a different loss. Here they do add up:

1. embed all chunks without keeping activations for a backward;
2. compute the loss of the whole batch on the embeddings, and its gradient with respect to each embedding;
3. embed each chunk again, and backpropagate its embeddings' gradients through the model.

The answer loss is a mean over the tokens of the whole batch, so each chunk adds its share of it in step 3. A
batch of one chunk is embedded only once. For several ranks, see `training.distributed`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import BatchEncoding

from encoders.fwd2bot.model import IGNORED, Answers, JointOutput, pool
from training.distributed import Ranks


class Chunk(NamedTuple):
    """The part of a step that is in memory at once, or all of it. Its answers are about its own sources.

    idle: a dummy without rows of the step, run only to stay in step with other ranks (`training.sharding`).
    """

    sources: Sequence[BatchEncoding]
    targets: Sequence[BatchEncoding]
    answers: Sequence[Answers]
    idle: bool = False


class Embeddings(NamedTuple):
    """This rank's rows: sources, targets (rows, width) of unit length; images (n, width), not normalised."""

    sources: Tensor
    targets: Tensor
    images: Tensor


def accumulate_gradients(
    forward: Callable[[Chunk], JointOutput],
    chunks: Sequence[Chunk],
    embedding_loss: Callable[[Embeddings], Tensor],
    answer_weight: float,
    ranks: Ranks,
    seed: int,
) -> Tensor:
    """Add up the gradients of a step, and return the answer loss of all ranks (nats a token).

    embedding_loss: the weighted loss of the whole batch, given this rank's embeddings. seed: of dropout, so
    that a chunk uses the same masks both times it is embedded.
    """
    tokens = ranks.add(torch.tensor(sum(map(count_tokens, chunks)), device=ranks.device)).clamp(min=1)
    at_once = len(chunks) == 1
    with torch.set_grad_enabled(at_once):
        outputs = [
            _forward_seeded(forward, chunk if at_once else chunk._replace(answers=[]), seed + number)
            for number, chunk in enumerate(chunks)
        ]
    embedded = [_embed(output, chunk) for output, chunk in zip(outputs, chunks, strict=True)]
    whole = Embeddings(*(torch.cat(parts).detach().requires_grad_() for parts in zip(*embedded, strict=True)))
    loss = embedding_loss(whole)
    if loss.requires_grad:
        loss.backward()
    parts_of_each = zip(*embedded, strict=True)
    gradients = [_split_gradient(rows, parts) for rows, parts in zip(whole, parts_of_each, strict=True)]
    answered = torch.zeros((), device=ranks.device)
    for number, chunk in enumerate(chunks):
        output = outputs[0] if at_once else _forward_seeded(forward, chunk, seed + number)
        share = count_tokens(chunk) / tokens
        answered += output.answer_loss.detach() * share
        _send_back(
            [*_embed(output, chunk), output.answer_loss],
            [*(next(gradient) for gradient in gradients), answer_weight * share],
        )
    return ranks.add(answered)


def split_step(step: Chunk, size: int, image_token: int) -> list[Chunk]:
    """Cut a step into chunks of up to `size` sources or targets; 0 leaves it whole."""
    if size == 0:
        return [step]
    chunks, first = [], 0
    for inputs in step.sources:
        for rows in _cut_rows(inputs, size):
            answers = take_answers(step.answers, range(first + rows.start, first + rows.stop))
            chunks.append(Chunk([take_rows(inputs, rows, image_token)], [], answers))
        first += len(inputs["input_ids"])
    for inputs in step.targets:
        for rows in _cut_rows(inputs, size):
            chunks.append(Chunk([], [take_rows(inputs, rows, image_token)], []))
    return chunks


def take_rows(inputs: BatchEncoding, rows: range, image_token: int) -> BatchEncoding:
    """Select a range of rows from the inputs of pass 1.

    A tensor with several rows per image (patches, tiles) instead of one per prompt is cut in proportion to
    the image tokens of the prompts.
    """
    places = (inputs["input_ids"] == image_token).sum(dim=1).cumsum(dim=0)
    batch, before = len(places), int(places[rows.start - 1]) if rows.start else 0
    taken = {}
    for name, value in inputs.items():
        if len(value) == batch:
            taken[name] = value[rows.start : rows.stop]
        else:
            part = len(value) / int(places[-1])
            taken[name] = value[round(before * part) : round(int(places[rows.stop - 1]) * part)]
    return BatchEncoding(taken)


def take_answers(answers: Sequence[Answers], sources: range) -> list[Answers]:
    """The answers about a range of sources, as one left-padded part; an empty list if there are none."""
    parts = [(part, (part.sources >= sources.start) & (part.sources < sources.stop)) for part in answers]
    parts = [(part, mine) for part, mine in parts if mine.any()]
    if not parts:
        return []
    length = max(part.labels.shape[1] for part, _ in parts)
    # Any padding id would do, since the mask hides it, as long as it is not the image token; 0 is not.
    inputs = {
        name: torch.cat([_pad_left(part.inputs[name][mine], length, 0) for part, mine in parts])
        for name in ("input_ids", "attention_mask")
    }
    labels = torch.cat([_pad_left(part.labels[mine], length, IGNORED) for part, mine in parts])
    asked = torch.cat([part.sources[mine] for part, mine in parts])
    return [Answers(asked - sources.start, BatchEncoding(inputs), labels)]


def count_tokens(step: Chunk) -> int:
    """The number of answer tokens that pass 2 is trained on."""
    return sum(int((part.labels[:, 1:] != IGNORED).sum()) for part in step.answers)


def _cut_rows(inputs: BatchEncoding, size: int) -> Iterator[range]:
    total = len(inputs["input_ids"])
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def _pad_left(rows: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(rows, (length - rows.shape[1], 0), value=value)


def _forward_seeded(forward: Callable[[Chunk], JointOutput], chunk: Chunk, seed: int) -> JointOutput:
    torch.manual_seed(seed)
    return forward(chunk)


def _embed(output: JointOutput, chunk: Chunk) -> Embeddings:
    rows = Embeddings(pool(output.sources), pool(output.targets), output.images.float())
    return Embeddings(*(part[:0] for part in rows)) if chunk.idle else rows


def _split_gradient(rows: Tensor, parts: Sequence[Tensor]) -> Iterator[Tensor | None]:
    if rows.grad is None:
        return iter([None] * len(parts))
    return iter(rows.grad.split([len(part) for part in parts]))


def _send_back(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """One backward from all tensors, except those without a gradient or without trained ancestors."""
    pairs = [
        (tensor, gradient)
        for tensor, gradient in zip(tensors, gradients, strict=True)
        if gradient is not None and tensor.requires_grad
    ]
    if pairs:
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
