"""Two processes on the CPU train like one, with replicated and with sharded weights."""

import os
import socket
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from encoders.base import DatasetError
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Fwd2Bot, pool
from tests.conftest import FakeEncoder
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
from tests.training_runs import make_base, make_settings, read_log, settle_on, write_colours
from training import sharding
from training.distributed import Ranks, join_ranks
from training.grad_cache import Chunk, Embeddings, accumulate_gradients, split_step, take_answers
from training.initial_model import make_initial_model
from training.losses import ContrastiveLoss, SigmoidLoss
from training.settings import DistillationSettings, TrainingSettings, read_settings
from training.sharding import align_chunks, require_shards_fit, shard_frozen_weights, wants_shards
from training.sources.open import open_sources
from training.teach import teach
from training.train import train

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

CONFIGS = Path(__file__).parent.parent / "training" / "configs"
LOSSES = {"infonce": ContrastiveLoss, "sigmoid": SigmoidLoss}
Result = tuple[dict[str, Tensor], float, float]  # gradients, answer loss, loss on embeddings


def share_step(step: Chunk, rank: int) -> tuple[Chunk, Tensor, Tensor]:
    """The part of a step that one of two ranks reads: the pictures and three targets, or the rest."""
    rows = range(3) if rank == 0 else range(3, 5)
    part = Chunk([step.sources[rank]], [step.targets[1 - rank]], take_answers(step.answers, rows))
    target_ids = TARGET_IDS[4:] if rank == 0 else TARGET_IDS[:4]
    return part, SOURCE_IDS[rows.start : rows.stop], target_ids


def measure_gradients(
    builder: InputBuilder, ranks: Ranks, loss: nn.Module, size: int, shared: bool
) -> Result:
    """Gradients and losses over all ranks; if `shared`, with sharded frozen weights and recomputation."""
    step, source_ids, target_ids = share_step(make_step(builder), ranks.rank)
    model, measured = make_model(builder).requires_grad_(not shared), []
    image_token = model.lvlm.config.image_token_id
    chunks = split_step(step, size, image_token)
    if shared:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name or name == "summary_tokens")
        model.enable_gradient_checkpointing()
        shard_frozen_weights(model, ranks)
        assert [name for name, each in model.named_parameters() if isinstance(each, DTensor)]
        chunks = align_chunks(chunks, builder.summary_count, image_token, ranks)

    def embedding_loss(rows: Embeddings) -> Tensor:
        measured.append(loss_of(rows, loss, source_ids, target_ids, ranks))
        return measured[0]

    answer = accumulate_gradients(partial(run, model), chunks, embedding_loss, ANSWER_WEIGHT, ranks, seed=1)
    ranks.add_gradients(model.parameters())
    return gradients_of(model, loss), answer.item(), measured[0].item()


def join_environment(rank: int, port: int) -> None:
    """Set the environment that `accelerate launch` gives a process."""
    torch.set_num_threads(1)
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_rank(rank: int, port: int, folder: Path) -> None:
    join_environment(rank, port)
    ranks, builder = join_ranks(), make_builder()
    assert (ranks.rank, ranks.count, ranks.device.type) == (rank, 2, "cpu")
    saved = {
        f"{kind} {size} {shared}": measure_gradients(builder, ranks, loss(), size, shared)
        for kind, loss in LOSSES.items()
        for size, shared in [(0, False), (2, False), (2, True), (1, True)]
    }
    torch.save(saved, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def make_taught_run(folder: Path) -> TrainingSettings:
    """Settings with five rows per step, two in memory at a time, and teachers."""
    settings = settle_on(folder / "base", make_settings(4), rows=5)
    return replace(settings, distillation=DistillationSettings(str(folder / "teachers"), 1.0, 0.1))


def require_one_whole_layer_at_a_time(patch: pytest.MonkeyPatch) -> None:
    """Check that each layer is freed before the next is sharded, and the model moved only when all are."""
    move, share = Fwd2Bot.to, sharding.fully_shard
    begun: list[weakref.ref[nn.Parameter]] = []

    def move_shares(model: Fwd2Bot, device: torch.device) -> Fwd2Bot:
        assert len(begun) == 4  # two layers in two trees
        assert not [each for each in begun if each() is not None]
        return move(model, device)

    def share_next(layer: nn.Module, **settings: Any) -> None:
        weight = layer.get_parameter("self_attn.q_proj.base_layer.weight")
        assert not [each for each in begun if each() not in (None, weight)]
        begun.append(weakref.ref(weight))
        share(layer, **settings)

    patch.setattr(Fwd2Bot, "to", move_shares)
    patch.setattr(sharding, "fully_shard", share_next)


def train_rank(rank: int, port: int, folder: Path, sharded: bool) -> None:
    join_environment(rank, port)
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    with pytest.MonkeyPatch.context() as patch:
        if sharded:
            require_one_whole_layer_at_a_time(patch)
        train(make_taught_run(folder), folder, folder / f"shares {sharded}")
    torch.distributed.destroy_process_group()


def find_free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@pytest.fixture(scope="module")
def ranks_results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    """The results of each of two processes."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(run_rank, (find_free_port(), folder), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("size", "shared"), [(0, False), (2, False), (2, True), (1, True)])
@pytest.mark.parametrize("kind", LOSSES)
def test_two_processes_give_losses_and_gradients_of_one(
    ranks_results: list[dict[str, Result]], kind: str, size: int, shared: bool
) -> None:
    builder, loss = make_builder(), LOSSES[kind]()
    model, step = make_model(builder).requires_grad_(not shared), make_step(builder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not shared or "lora" in name or name == "summary_tokens")
    expected, answer = naive_gradients(model, loss, step)
    output = run(model, step)
    whole = loss_of(
        Embeddings(*map(pool, output[:2]), output.images), loss, SOURCE_IDS, TARGET_IDS, ALONE
    ).item()
    for found in ranks_results:
        gradients, found_answer, found_loss = found[f"{kind} {size} {shared}"]
        assert found_loss == pytest.approx(whole, rel=1e-5)
        assert found_answer == pytest.approx(answer, rel=1e-5)
        assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("sharded", [False, True], ids=["copies", "shares"])
def test_a_run_of_two_processes_is_a_run_of_one(tmp_path: Path, sharded: bool) -> None:
    pytest.importorskip("accelerate")
    write_colours(tmp_path)
    make_base(tmp_path / "base")
    settings = make_taught_run(tmp_path)
    teach([FakeEncoder()], open_sources(settings.sources, tmp_path), tmp_path / "teachers")
    train(settings, tmp_path, tmp_path / "alone")
    torch.multiprocessing.start_processes(
        train_rank, (find_free_port(), tmp_path, sharded), nprocs=2, start_method="fork"
    )
    run = tmp_path / f"shares {sharded}"
    alone, together = read_log(tmp_path / "alone"), read_log(run)
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    assert all(line["affinity"] > 0 for line in together if "rate" in line)
    for one, two in zip(alone, together, strict=True):
        assert all(two[name] == pytest.approx(value, rel=1e-3) for name, value in one.items())
    assert Fwd2BotEncoder.load("new", run / "model", "cpu").summary_shape == (2, 32)
    train(settings, tmp_path, run)  # one process resumes from the state that two left
    assert read_log(run) == together


def test_a_base_is_loaded_beside_the_gpu_in_the_gpus_numbers(tmp_path: Path) -> None:
    make_base(tmp_path)
    settings = settle_on(tmp_path, make_settings(4), rows=5)
    model = make_initial_model(settings, {}, torch.device("cuda")).model
    numbers = {(each.requires_grad, each.device.type, each.dtype) for each in model.parameters()}
    assert numbers == {(True, "cpu", torch.float32), (False, "cpu", torch.bfloat16)}


def test_shares_are_made_when_the_launcher_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Ranks(0, 2, torch.device("cpu"))
    assert not wants_shards(two)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert wants_shards(two) and not wants_shards(ALONE)


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("tiny", "seed=1", "frozen weights"),
        ("llava-1.5-7b-k16", "adapters.mode=none", "frozen weights"),
        ("llava-1.5-7b-k16", "lvlm.quantize=4bit", "full precision"),
        ("llava-1.5-7b-k16", "chunk_size=0", "FSDP needs chunks"),
    ],
)
def test_what_cannot_be_shared_is_named(recipe: str, override: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        require_shards_fit(read_settings(CONFIGS / f"{recipe}.toml", [override]))
    require_shards_fit(read_settings(CONFIGS / "llava-1.5-7b-k16.toml"))
