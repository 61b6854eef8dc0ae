"""How much faster is a training step than the same step in a plain eager loop? Times both in one run.

    python -m training.plain_loop training/configs/tiny.toml --data DIR --steps 10

Two copies of one model take the same steps of the recipe's last `[[batches]]` entry that runs the LLM, a few
steps at a time in alternation, so that other load on the machine slows both. The plain copy is an untuned
loop: float32, no compilation, the default layouts and attention of PyTorch and transformers, all texts of a
step padded to the longest, the LLM's head run at every position of the answers, and memory returned to the
system whenever the C library does so by default. Losses, optimizer and rows are the same; the losses of the
first step are reported, and differ only by rounding.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import BatchEncoding

from encoders.base import DatasetError
from encoders.fwd2bot.adapters import find_base_model
from encoders.fwd2bot.model import IGNORED, Fwd2Bot, JointOutput
from encoders.memory import keep_all_memory
from training.data import Step, open_dataset
from training.distributed import join_ranks
from training.grad_cache import Chunk, take_answers
from training.initial_model import make_initial_model
from training.run_log import run_command, tell
from training.settings import TrainingSettings, read_settings
from training.sources.open import open_sources
from training.trainer import Trainer

_WARM_UP = 3  # steps, none of them counted
_TURN = 3  # counted steps of each loop per turn, after one uncounted step in which memory settles


class Comparison(NamedTuple):
    """Throughput over the timed steps, in images per second. losses: of the first step, by name."""

    threads: int
    steps: int
    images_a_step: int
    tuned_images_per_second: float
    plain_images_per_second: float
    ratio: float
    tuned_losses: dict[str, float]
    plain_losses: dict[str, float]


class PlainTrainer(Trainer):
    """The same losses, computed as in a plain loop (see above)."""

    def _forward(self, chunk: Chunk) -> JointOutput:
        joint: JointOutput = self.model(chunk.sources, _join_texts(chunk.targets), [])
        parts = take_answers(chunk.answers, range(len(joint.sources)))
        if not parts:
            return joint
        (answers,) = parts
        hidden = self.model.answer_hidden(joint.sources[answers.sources], answers.inputs)
        logits = self.model.lvlm.get_output_embeddings()(hidden)
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), answers.labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        return joint._replace(answer_loss=loss)


class _Loop:
    """One of the two loops, with the totals of its counted steps."""

    def __init__(self, name: str, trainer: Trainer) -> None:
        self.name, self.trainer = name, trainer
        self.first_losses: dict[str, float] = {}
        self.steps, self.images, self.seconds = 0, 0, 0.0

    def take_turn(self, turn: Sequence[Step], uncounted: int) -> None:
        """Take some steps; the first `uncounted` are not timed."""
        for number, step in enumerate(turn):
            start = time.perf_counter()
            report = self.trainer.train_step(step)  # ends by reading its losses, which waits for the device
            seconds = time.perf_counter() - start
            self.first_losses = self.first_losses or report.losses
            tell(f"{self.name}  step {self.trainer.step}  {seconds:.3f} s")
            if number >= uncounted:
                self.steps, self.images = self.steps + 1, self.images + report.images
                self.seconds += seconds


def compare_loops(settings: TrainingSettings, data: Path, steps: int) -> Comparison:
    """Time `steps` steps of both loops, after a warm-up that is not counted."""
    lengths = [_WARM_UP, *(1 + min(_TURN, steps - done) for done in range(0, steps, _TURN))]
    settings = _take_last_batch(settings, steps, sum(lengths))
    sources, ranks = open_sources(settings.sources, data), join_ranks()
    model, builder, words = make_initial_model(settings, sources, ranks.device)
    dataset = open_dataset(settings, sources, builder)
    plain_trainer = PlainTrainer(
        replace(settings, compiled=False), _untune(copy.deepcopy(model)), copy.deepcopy(words), ranks
    )
    tuned, plain = _Loop("tuned", Trainer(settings, model, words, ranks)), _Loop("plain", plain_trainer)
    for number, end in enumerate(accumulate(lengths)):
        turn = [dataset[step] for step in range(end - lengths[number], end)]
        uncounted = 1 if number else len(turn)
        with keep_all_memory():
            tuned.take_turn(turn, uncounted)
        plain.take_turn(turn, uncounted)
    first, second = (loop.images / loop.seconds for loop in (tuned, plain))
    losses = [loop.first_losses for loop in (tuned, plain)]
    per_step = tuned.images // tuned.steps
    return Comparison(torch.get_num_threads(), steps, per_step, first, second, first / second, *losses)


def _take_last_batch(settings: TrainingSettings, steps: int, total: int) -> TrainingSettings:
    joint = [batch for batch in settings.batches if not batch.tower_only]
    if not joint or steps < 1:
        raise DatasetError(
            f"There is nothing to time in {steps} steps of {len(joint)} kinds of batches with the LLM: take "
            "a recipe that has one, and a step or more"
        )
    return replace(settings, batches=(replace(joint[-1], steps=total),))


def _untune(model: Fwd2Bot) -> Fwd2Bot:
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for tree in (model.lvlm, model.compressor, model.generator):
        find_base_model(tree).get_decoder().set_attn_implementation("sdpa")
    return model


def _join_texts(parts: Sequence[BatchEncoding]) -> list[BatchEncoding]:
    """Join all texts into one batch, left-padded to the longest."""
    if not parts:
        return []
    longest = max(part["input_ids"].shape[1] for part in parts)
    joined = {
        name: torch.cat([nn.functional.pad(part[name], (longest - part[name].shape[1], 0)) for part in parts])
        for name in ("input_ids", "attention_mask")
    }
    return [BatchEncoding(joined)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the training step of a recipe against the same step in a plain eager loop."""
    parser = argparse.ArgumentParser(prog="python -m training.plain_loop", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="a TOML file of training/configs")
    parser.add_argument("--data", type=Path, required=True, help="as for training.train")
    parser.add_argument("--steps", type=int, default=10, help="steps of each that are timed")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    options = parser.parse_args(arguments)

    def command() -> None:
        settings = read_settings(options.settings, options.overrides)
        print(json.dumps(compare_loops(settings, options.data, options.steps)._asdict()))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
