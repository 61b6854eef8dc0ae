r"""Shard the frozen weights of the LLM's layers over the ranks, for an LLM too large for one GPU (FSDP).

    accelerate launch --config_file training/configs/accelerate_fsdp.yaml \
        -m training.train training/configs/llava-1.5-7b-k16.toml --data DIR --run runs/llava

A layer is gathered when it runs and freed afterwards. Adapters are small, and stay whole on every rank, so
gradients, optimizer, states and checkpoints are the same as without sharding. The two adapted trees
(compressor and generator) are sharded separately, so each rank holds its shard twice. A gather blocks until
every rank joins it, so all ranks must run the same layers in the same order: `align_chunks` ensures that.
"""

import os
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BatchEncoding

from encoders.base import DatasetError
from encoders.fwd2bot.adapters import NONE, find_base_model
from encoders.fwd2bot.model import IGNORED, Answers, Fwd2Bot
from training.distributed import Ranks
from training.grad_cache import Chunk, take_rows
from training.settings import BaseSettings, TrainingSettings


def wants_shards(ranks: Ranks) -> bool:
    """Whether `accelerate launch` was told to shard the model."""
    return ranks.count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def require_shards_fit(settings: TrainingSettings) -> None:
    """Raise DatasetError if there are no frozen weights to shard, or the ranks could not stay in step."""
    lvlm = settings.lvlm
    frozen = isinstance(lvlm, BaseSettings) and settings.adapters.mode != NONE
    if not frozen or (isinstance(lvlm, BaseSettings) and lvlm.quantize != "none"):
        raise DatasetError(
            "FSDP shares out frozen weights in full precision: set lvlm.base, lvlm.quantize=none and "
            "adapters, or launch with training/configs/accelerate_ddp.yaml"
        )
    if not settings.chunk_size:
        raise DatasetError("FSDP needs chunks, which is how ranks keep step: set chunk_size, which is 0")


def shard_frozen_weights(model: Fwd2Bot, ranks: Ranks) -> None:
    """Put this rank's shard of each layer's frozen weights on its device, one layer at a time."""
    # The layers of the tree without adapters never run, and would keep the unsharded weights alive.
    model.lvlm.get_decoder().layers = nn.ModuleList()
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    trees = [model.compressor, *([model.generator] if model.generator is not model.compressor else [])]
    # Go through the trees in parallel: a layer's common weights are freed once both trees have been sharded.
    for twins in zip(*(find_base_model(tree).get_decoder().layers for tree in trees), strict=True):
        for layer in twins:
            trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
            # Explicit, because by default a layer wrapped on its own (a root module) stays gathered.
            fully_shard(layer, mesh=mesh, ignored_params=trained, reshard_after_forward=True)


def align_chunks(chunks: Sequence[Chunk], placeholders: int, image_token: int, ranks: Ranks) -> list[Chunk]:
    """Pad chunks so that every rank runs the same kinds in the same order; the padding adds no gradient.

    placeholders: k, the number of summary-token positions in a question.
    """
    first = (chunks[0].sources or chunks[0].targets)[0]
    row = [take_rows(first, range(1), image_token)]
    sources = _lengthen([chunk for chunk in chunks if chunk.sources], Chunk(row, [], [], idle=True), ranks)
    targets = _lengthen([chunk for chunk in chunks if chunk.targets], Chunk([], row, [], idle=True), ranks)
    asked = ranks.most(torch.tensor([len(chunk.answers) for chunk in sources], device=ranks.device))
    silence = _say_nothing(placeholders, image_token, ranks.device)
    answering = [
        chunk._replace(answers=chunk.answers or [silence]) if ask else chunk
        for chunk, ask in zip(sources, asked.tolist(), strict=True)
    ]
    return answering + targets


def _say_nothing(placeholders: int, image_token: int, device: torch.device) -> Answers:
    """A dummy question about the first source, with every label ignored."""
    ids = torch.full((1, placeholders + 1), image_token, device=device)
    ids[:, -1] = 0  # any token but the image token
    inputs = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    first = torch.zeros(1, dtype=torch.long, device=device)
    return Answers(first, inputs, torch.full_like(ids, IGNORED))


def _lengthen(chunks: list[Chunk], idle: Chunk, ranks: Ranks) -> list[Chunk]:
    longest = int(ranks.most(torch.tensor(len(chunks), device=ranks.device)))
    return chunks + [idle] * (longest - len(chunks))
