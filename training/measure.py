r"""Measure a recipe's training speed and memory on this machine, with random weights and inputs: no data.

    python -m training.measure training/configs/llava-1.5-7b-k16.toml --steps 10 --rows 64 \
        --set lvlm.base=training/shapes/llava-1.5-7b

`lvlm.base` may be a folder that holds only a config.json. A row is an image with one caption to match and one
answer to generate. Model FLOPs are those of a step without chunks and checkpointing, counted from the shapes
of each operator, so recomputation does not count. They are reported as a percentage of the rate that a large
matrix product in the same dtype (bfloat16 on a GPU) reaches on the same device, measured in the same run.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, BatchEncoding, PreTrainedConfig

from encoders.base import DatasetError
from encoders.fwd2bot.model import IGNORED, Answers, Fwd2Bot
from encoders.precision import choose_dtype
from training.data import Step
from training.data_settings import BatchSettings
from training.distributed import Ranks, join_ranks
from training.initial_model import make_initial_model
from training.run_log import run_command
from training.settings import BaseSettings, TrainingSettings, read_settings
from training.trainer import Trainer

# Tokens of an instruction, a caption and an answer: typical of short captions and long descriptions.
_INSTRUCTION, _CAPTION, _ANSWER = 20, 30, 100
_WARM_UP = 2
_COUNTED_ROWS = 2


class Measurement(NamedTuple):
    """Results of one process. memory_gib: peak allocated on the GPU, or peak resident memory without one.

    flops_share: model FLOP/s as a percentage of the FLOP/s of a large matrix product.
    """

    device: str
    rows: int
    images_per_second: float
    tokens_per_second: float
    memory_gib: float
    model_teraflops_per_second: float
    matrix_teraflops_per_second: float
    flops_share: float


def measure_training(settings: TrainingSettings, rows: int, steps: int) -> Measurement:
    """Train on `rows` random rows per step; the warm-up steps are not counted."""
    if min(rows, steps) < 1:
        raise DatasetError(
            f"There is nothing to measure in {steps} steps of {rows} rows: take 1 or more of each"
        )
    ranks = join_ranks()
    settings = replace(settings, batches=(BatchSettings(steps + _WARM_UP, {}),))
    model = _make_random_model(settings, ranks.device)
    flops = _count_flops(settings, model, ranks) * rows / _COUNTED_ROWS
    trainer, step = Trainer(settings, model, None, ranks), make_step(model, rows)
    for _ in range(_WARM_UP):
        trainer.train_step(step)
    start = time.perf_counter()
    reports = [trainer.train_step(step) for _ in range(steps)]  # each ends by reading its losses
    seconds = (time.perf_counter() - start) / steps
    peak = measure_matrix_rate(ranks.device)
    return Measurement(
        _name_device(ranks.device),
        rows,
        reports[-1].images / seconds,
        reports[-1].tokens / seconds,
        _read_peak_memory(ranks.device) / 2**30,
        flops / seconds / 1e12,
        peak / 1e12,
        100 * flops / seconds / peak,
    )


def make_step(model: Fwd2Bot, rows: int) -> Step:
    """A step of random pictures, captions and answers, of the lengths above."""
    config, count = model.lvlm.config, model.summary_shape[0]
    side, tokens = _read_image_shape(config)
    image = [config.image_token_id] * tokens
    pictures = _prompts(config, rows, image, _INSTRUCTION)
    pictures["pixel_values"] = torch.randn(rows, 3, side, side)
    captions = _prompts(config, rows, [], _INSTRUCTION + _CAPTION)
    asked = _prompts(config, rows, [config.image_token_id] * count, _INSTRUCTION + _ANSWER)
    labels = asked["input_ids"].clone()
    labels[:, :-_ANSWER] = IGNORED
    ids = torch.arange(rows)
    return Step(
        [pictures],
        [captions],
        [Answers(ids, asked, labels)],
        ids,
        ids,
        torch.zeros(rows, 0, dtype=torch.bool),
        torch.ones(rows, dtype=torch.bool),
    )


def measure_matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large matrix product in the dtype of training: the best of 10 runs."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=choose_dtype(device.type))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def _make_random_model(settings: TrainingSettings, device: torch.device) -> Fwd2Bot:
    if not isinstance(settings.lvlm, BaseSettings):
        return make_initial_model(settings, {}, device).model
    try:
        config = AutoConfig.from_pretrained(settings.lvlm.base)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{settings.lvlm.base} has no config.json that can be read: {error}") from error
    _read_image_shape(config)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        lvlm = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return Fwd2Bot(lvlm, settings.summary_tokens, settings.adapters)


def _count_flops(settings: TrainingSettings, model: Fwd2Bot, ranks: Ranks) -> int:
    """FLOPs of a step of `_COUNTED_ROWS` rows without recomputation."""
    plain = replace(settings, chunk_size=0, gradient_checkpointing=False, compiled=False)
    trainer = Trainer(plain, model, None, ranks)
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(make_step(model, _COUNTED_ROWS))
    flops: int = counter.get_total_flops()
    return flops


def _read_image_shape(config: PreTrainedConfig) -> tuple[int, int]:
    """An image's side in pixels and number of tokens; only for model types in which the number is fixed."""
    tokens = getattr(config, "image_seq_length", None)
    side = getattr(config.vision_config, "image_size", None)
    if config.model_type not in ("llava", "fast_vlm") or tokens is None:
        raise DatasetError(
            f"Random images can be made for a llava or a fast_vlm, not for {config.model_type}"
        )
    return side or int(tokens**0.5) * _find_stride(config), tokens


def _find_stride(config: PreTrainedConfig) -> int:
    """Stride of a staged tower: the stem divides the side by 4, every further stage by 2."""
    return int(2 ** (len(config.vision_config.hidden_sizes) + 1))


def _prompts(config: PreTrainedConfig, rows: int, image: list[int], words: int) -> BatchEncoding:
    ids = torch.randint(3, config.text_config.vocab_size, (rows, words))
    ids[ids == config.image_token_id] = 3
    ids = torch.cat([torch.tensor(image, dtype=torch.long).expand(rows, -1), ids], dim=1)
    mask: Tensor = torch.ones_like(ids)
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _read_peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a recipe's images/s, tokens/s, memory and percentage of the matrix rate."""
    parser = argparse.ArgumentParser(prog="python -m training.measure", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="a TOML file of training/configs")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--rows", type=int, default=64, help="images, captions and answers a step")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    options = parser.parse_args(arguments)

    def command() -> None:
        found = measure_training(
            read_settings(options.settings, options.overrides), options.rows, options.steps
        )
        shown = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in found._asdict().items()
        }
        print(json.dumps(shown))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
