"""Chunks and ranks change what is in memory, and not the gradient."""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from transformers import (
    BatchEncoding,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from encoders.base import DatasetError
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED, AdapterSettings, Answers, Fwd2Bot, pool
from tests.tiny_models import make_builder, make_pictures
from training.distributed import Ranks, join_ranks
from training.grad_cache import (
    Chunk,
    Embeddings,
    accumulate_gradients,
    split_step,
    take_answers,
    take_rows,
)
from training.losses import HARD_NEGATIVE, ContrastiveLoss, SigmoidLoss

ALONE = Ranks(0, 1, torch.device("cpu"))
ANSWER_WEIGHT = 0.7
SOURCE_IDS = torch.tensor([5, 3, 9, 7, 4])
TARGET_IDS = torch.tensor([3, 5, HARD_NEGATIVE, 4, 9, 7, 5])
CAPTIONS = [
    "a red dog",
    "two cats on grass, and a dog",
    "snow",
    "a dog in the snow",
    "grass",
    "green",
    "cats?",
]


def make_model(builder: InputBuilder, dropout: float = 0.0) -> Fwd2Bot:
    """Stock LLaVA with a CLIP tower, all of it trained; adapters that do something."""
    torch.manual_seed(0)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, hidden_size=24, **sizes),
        text_config=LlamaConfig(
            vocab_size=len(builder.tokenizer), hidden_size=32, attention_dropout=dropout, **sizes
        ),
        image_token_index=builder.tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    model = Fwd2Bot(LlavaForConditionalGeneration(config), builder.summary_count, AdapterSettings(4, 4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(True).train()


def make_step(builder: InputBuilder) -> Chunk:
    """Three pictures and two texts, seven captions in two parts, six answers of which one source has two."""
    sources = [builder.images(make_pictures()), builder.texts(["a cat", "two red dogs in snow"])]
    targets = [builder.texts(CAPTIONS[:4]), builder.texts(CAPTIONS[4:])]
    short = Answers(torch.tensor([4, 0]), *builder.answers(["what?"] * 2, ["red", "no"]))
    long = Answers(torch.tensor([1, 0, 2, 3]), *builder.answers(["what is it?"] * 4, CAPTIONS[:4]))
    return Chunk(sources, targets, [short, long])


def share_step(step: Chunk, rank: int) -> tuple[Chunk, Tensor, Tensor]:
    """What one of two ranks reads of a step: the pictures and three targets, or the rest."""
    rows = range(3) if rank == 0 else range(3, 5)
    part = Chunk([step.sources[rank]], [step.targets[1 - rank]], take_answers(step.answers, rows))
    target_ids = TARGET_IDS[4:] if rank == 0 else TARGET_IDS[:4]
    return part, SOURCE_IDS[rows.start : rows.stop], target_ids


def loss_of(
    embeddings: Embeddings, loss: nn.Module, source_ids: Tensor, target_ids: Tensor, ranks: Ranks
) -> Tensor:
    """Sources against targets, and images against targets, over all ranks."""
    sources, targets, images = (ranks.gather(rows) for rows in embeddings)
    image_ids = ranks.gather(source_ids[: len(embeddings.images)])
    source_ids, target_ids = ranks.gather(source_ids), ranks.gather(target_ids)
    images = nn.functional.normalize(images, dim=1)
    value: Tensor = loss(sources, targets, source_ids, target_ids)
    value = value + 0.3 * loss(images, targets, image_ids, target_ids)
    return value


def gradients_of(*modules: nn.Module) -> dict[str, Tensor]:
    named = ((name, each) for module in modules for name, each in module.named_parameters())
    return {name: each.grad.clone() for name, each in named if each.grad is not None}


def naive_gradients(model: Fwd2Bot, loss: nn.Module, step: Chunk) -> tuple[dict[str, Tensor], float]:
    """One forward of everything, one backward of the sum."""
    output = model(*step)
    embeddings = Embeddings(pool(output.sources), pool(output.targets), output.images)
    total = loss_of(embeddings, loss, SOURCE_IDS, TARGET_IDS, ALONE) + ANSWER_WEIGHT * output.answer_loss
    total.backward()
    return gradients_of(model, loss), output.answer_loss.item()


def cached_gradients(
    model: Fwd2Bot, loss: nn.Module, step: Chunk, size: int
) -> tuple[dict[str, Tensor], float]:
    embedding_loss = partial(loss_of, loss=loss, source_ids=SOURCE_IDS, target_ids=TARGET_IDS, ranks=ALONE)
    chunks = split_step(step, size, model.lvlm.config.image_token_id)
    answer = accumulate_gradients(
        lambda chunk: model(*chunk), chunks, embedding_loss, ANSWER_WEIGHT, ALONE, seed=1
    )
    return gradients_of(model, loss), answer.item()


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        # The gradient of a key bias is zero but for rounding, hence the second term.
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name


@pytest.mark.parametrize("kind", [ContrastiveLoss, SigmoidLoss])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("size", [0, 3, 2, 1], ids=lambda size: f"chunks of {size}")
def test_chunks_give_the_gradient_of_the_whole_batch(
    kind: Callable[[], nn.Module], checkpointing: bool, size: int
) -> None:
    builder = make_builder()
    step = make_step(builder)
    expected, answer = naive_gradients(make_model(builder), kind(), step)
    model = make_model(builder)
    if checkpointing:
        model.enable_gradient_checkpointing()
    found, found_answer = cached_gradients(model, kind(), step, size)
    assert found_answer == pytest.approx(answer, rel=1e-5)
    assert_same_gradients(found, expected)


def test_a_chunk_that_is_embedded_twice_draws_the_same_dropout() -> None:
    builder = make_builder()
    model, seen = make_model(builder, dropout=0.5), []

    def forward(chunk: Chunk) -> object:
        output = model(*chunk)
        seen.append(torch.cat([output.sources, output.targets]).detach())
        return output

    chunks = split_step(make_step(builder), 2, model.lvlm.config.image_token_id)
    accumulate_gradients(forward, chunks, lambda rows: rows.sources.sum(), 0.0, ALONE, seed=3)
    half = len(seen) // 2
    assert half == len(chunks)
    for first, second in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(model(*chunks[0]).sources, model(*chunks[0]).sources)  # it does draw


def test_what_lies_in_rows_for_each_image_is_cut_with_its_prompt() -> None:
    ids = torch.tensor([[9, 9, 1], [9, 1, 1], [9, 9, 9]])  # 2, 1 and 3 image tokens; two patches for each
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


def run_rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks, builder = join_ranks(), make_builder()
    assert (ranks.rank, ranks.count, ranks.device.type) == (rank, 2, "cpu")
    step, source_ids, target_ids = share_step(make_step(builder), rank)
    saved = {}
    for size in (0, 2):
        for kind in (ContrastiveLoss, SigmoidLoss):
            model, loss = make_model(builder), kind()
            measured = []

            def embedding_loss(
                rows: Embeddings, loss: nn.Module = loss, seen: list[float] = measured
            ) -> Tensor:
                value = loss_of(rows, loss, source_ids, target_ids, ranks)
                seen.append(value.item())
                return value

            chunks = split_step(step, size, model.lvlm.config.image_token_id)
            answer = accumulate_gradients(
                lambda chunk, model=model: model(*chunk), chunks, embedding_loss, ANSWER_WEIGHT, ranks, seed=1
            )
            ranks.add_gradients(model.parameters())
            saved[f"{kind.__name__} {size}"] = (gradients_of(model, loss), answer.item(), measured[0])
    torch.save(saved, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_sharding_is_refused_and_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(DatasetError, match="FSDP cannot shard"):
        join_ranks()


def find_free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_give_losses_and_gradients_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    torch.multiprocessing.start_processes(
        run_rank, (find_free_port(), str(tmp_path)), nprocs=2, start_method="fork"
    )
    builder = make_builder()
    for kind in (ContrastiveLoss, SigmoidLoss):
        loss, model = kind(), make_model(builder)
        step = make_step(builder)
        expected, answer = naive_gradients(model, loss, step)
        output = model(*step)
        rows = Embeddings(pool(output.sources), pool(output.targets), output.images)
        whole = loss_of(rows, loss, SOURCE_IDS, TARGET_IDS, ALONE).item()
        for rank in range(2):
            saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
            for size in (0, 2):
                gradients, found_answer, found_loss = saved[f"{kind.__name__} {size}"]
                assert found_loss == pytest.approx(whole, rel=1e-5)
                assert found_answer == pytest.approx(answer, rel=1e-5)
                assert_same_gradients(gradients, expected)
