"""Chunks change what is in memory, but not the gradient."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from encoders.fwd2bot.model import IGNORED, Fwd2Bot, JointOutput
from tests.gradients import (
    ALONE,
    ANSWER_WEIGHT,
    SOURCE_IDS,
    TARGET_IDS,
    assert_same_gradients,
    gradients_of,
    loss_of,
    make_model,
    make_step,
    naive_gradients,
    run,
)
from tests.tiny_models import make_builder
from training.grad_cache import Chunk, accumulate_gradients, split_step, take_answers, take_rows
from training.losses import ContrastiveLoss, SigmoidLoss


def cached_gradients(
    model: Fwd2Bot, loss: nn.Module, step: Chunk, size: int
) -> tuple[dict[str, Tensor], float]:
    embedding_loss = partial(loss_of, loss=loss, source_ids=SOURCE_IDS, target_ids=TARGET_IDS, ranks=ALONE)
    chunks = split_step(step, size, model.lvlm.config.image_token_id)
    answer = accumulate_gradients(partial(run, model), chunks, embedding_loss, ANSWER_WEIGHT, ALONE, seed=1)
    return gradients_of(model, loss), answer.item()


@pytest.mark.parametrize("kind", [ContrastiveLoss, SigmoidLoss])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("size", [0, 3, 2, 1], ids=lambda size: f"chunks of {size}")
def test_chunks_give_the_gradient_of_the_whole_batch(
    kind: Callable[[], nn.Module], checkpointing: bool, size: int
) -> None:
    builder = make_builder()
    step = make_step(builder)
    expected, answer = naive_gradients(make_model(builder).requires_grad_(True), kind(), step)
    model = make_model(builder).requires_grad_(True)
    if checkpointing:
        model.enable_gradient_checkpointing()
    found, found_answer = cached_gradients(model, kind(), step, size)
    assert found_answer == pytest.approx(answer, rel=1e-5)
    assert_same_gradients(found, expected)


def test_a_chunk_that_is_embedded_twice_draws_the_same_dropout() -> None:
    builder = make_builder()
    model, seen = make_model(builder, dropout=0.5), []

    def forward(chunk: Chunk) -> JointOutput:
        output = run(model, chunk)
        seen.append(torch.cat([output.sources, output.targets]).detach())
        return output

    chunks = split_step(make_step(builder), 2, model.lvlm.config.image_token_id)
    accumulate_gradients(forward, chunks, lambda rows: rows.sources.sum(), 0.0, ALONE, seed=3)
    half = len(seen) // 2
    assert half == len(chunks)
    for first, second in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(run(model, chunks[0]).sources, run(model, chunks[0]).sources)  # dropout is on


def test_what_lies_in_rows_for_each_image_is_cut_with_its_prompt() -> None:
    ids = torch.tensor([[9, 9, 1], [9, 1, 1], [9, 9, 9]])  # 2, 1 and 3 image tokens, two patches per token
    inputs = BatchEncoding({"input_ids": ids, "grid": torch.arange(3), "pixel_values": torch.arange(12)})
    assert take_rows(inputs, range(0, 1), 9)["pixel_values"].tolist() == [0, 1, 2, 3]
    assert take_rows(inputs, range(1, 2), 9)["pixel_values"].tolist() == [4, 5]
    last = take_rows(inputs, range(1, 3), 9)
    assert last["pixel_values"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert last["grid"].tolist() == [1, 2] and len(last["input_ids"]) == 2


def test_answers_follow_their_sources() -> None:
    step = make_step(make_builder())
    (taken,) = take_answers(step.answers, range(0, 2))
    assert taken.sources.tolist() == [0, 1, 0]
    said = [labels[labels != IGNORED] for labels in taken.labels]
    assert [len(tokens) for tokens in said] == [
        int((step.answers[part].labels[row] != IGNORED).sum()) for part, row in [(0, 1), (1, 0), (1, 1)]
    ]
    assert not take_answers(step.answers, range(5, 6))
