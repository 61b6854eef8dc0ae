"""Train a small Fwd2Bot from scratch with the joint loss.

    python -m training.train training/configs/tiny.toml --data DIR --run runs/tiny

Stopped at any moment and started again with the same words, it goes on from its last state. At the end the
run's folder holds `model/`, a checkpoint for `fwd2bot index --model runs/tiny/model`; `log.jsonl` has a line
every few seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from transformers import ProcessorMixin

from benchmarks.datasets import read_karpathy
from benchmarks.scenes import describe_scene, make_scene, questions, unique_caption
from encoders.base import Fwd2BotError, TrainingDiverged
from encoders.fwd2bot.checkpoint import Checkpoint, save_checkpoint
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Fwd2Bot, pool
from encoders.load import choose_device
from training.data import Step, StepDataset
from training.losses import ContrastiveLoss, WordLoss
from training.lvlm import make_lvlm, make_processor, train_tokenizer
from training.packing import mark_words
from training.settings import OptimizerSettings, TrainingSettings, read_settings, write_settings
from training.sources.open import open_sources, read_all_captions
from training.validate import Validation

_LOG_SECONDS = 10
_STATE_FILE = "state.pt"
_TOKENIZER_SCENES = 3000
_COUNTED_CAPTIONS = 10_000


class Trainer:
    """Model, losses and optimizer of one run, and the step that moves them."""

    def __init__(self, settings: TrainingSettings, processor: ProcessorMixin, frequencies: Tensor) -> None:
        """frequencies: float32 (vocabulary,), see `WordLoss`."""
        torch.manual_seed(settings.seed)
        self.settings, self.processor = settings, processor
        self.model = Fwd2Bot(
            make_lvlm(processor.tokenizer, settings.lvlm), settings.summary_tokens, settings.adapters
        )
        self.model.requires_grad_(True)  # nothing is pretrained, so nothing is frozen
        self.model.lvlm.model.vision_tower.to(memory_format=torch.channels_last)
        self.contrastive = ContrastiveLoss()
        self.words = WordLoss(settings.lvlm.width, frequencies)
        device = choose_device("auto")
        self.model.to(device)
        self.contrastive.to(device)
        self.words.to(device)
        if settings.compiled:
            self.model.compile_layers()
        self.optimizer = torch.optim.AdamW(
            self._parameter_groups(), settings.optimizer.learning_rate, fused=True
        )
        self.step = 0

    def train_step(self, batch: Step) -> dict[str, float]:
        """One forward, backward and update; returns the losses. A loss that is not finite stops the run."""
        settings = self.settings
        rate = schedule_rate(settings.optimizer, self.step, settings.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        batch = batch.to(self.model.device)
        losses = self._tower_losses(batch) if batch.tower_only else self._joint_losses(batch)
        loss = torch.stack(
            [getattr(settings, f"{name}_weight") * value for name, value in losses.items()]
        ).sum()
        if not torch.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss.item()} at step {self.step}, where the source ids are "
                f"{batch.source_ids.tolist()}: look at these, or lower the learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.optimizer.gradient_norm)
        self.optimizer.step()
        self.step += 1
        shown = {name: value.item() for name, value in losses.items()}
        return {**shown, "temperature": self.contrastive.temperature, "rate": rate}

    def _joint_losses(self, batch: Step) -> dict[str, Tensor]:
        """Both losses of the paper and, where they have a weight, those of the tower's own."""
        with torch.autocast(self.model.device.type, torch.bfloat16):
            output = self.model(batch.sources, batch.targets, batch.answers)
        targets, ids = pool(output.targets), batch.source_ids
        losses = {
            "contrastive": self.contrastive(pool(output.sources), targets, ids, batch.target_ids),
            "answer": output.answer_loss,
        }
        if self.settings.feature_weight and len(output.images):
            features = normalize(output.images.float(), dim=-1)
            losses["feature"] = self.contrastive(features, targets, ids[: len(features)], batch.target_ids)
        if self.settings.word_weight and len(output.images):
            losses["word"] = self.words(output.images, batch.words)
        return losses

    def _tower_losses(self, batch: Step) -> dict[str, Tensor]:
        """The LLM is not run at all."""
        (inputs,) = batch.sources
        with torch.autocast(self.model.device.type, torch.bfloat16):
            images = self.model.average_features(self.model.image_features(inputs), inputs)
        return {"word": self.words(images, batch.words)}

    def save_state(self, path: Path) -> None:
        """Write all that a resumed run needs; a kill in the middle leaves the state before."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "contrastive": self.contrastive.state_dict(),
            "words": self.words.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": write_settings(self.settings),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def load_state(self, path: Path) -> None:
        """Go on from a written state; settings that changed since are told."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.contrastive.load_state_dict(state["contrastive"])
        self.words.load_state_dict(state["words"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        now = write_settings(self.settings)
        changed = [name for name, value in state["settings"].items() if value != now.get(name)]
        _tell(f"resumed at step {self.step}" + (f"; changed since: {', '.join(changed)}" if changed else ""))

    def _parameter_groups(self) -> list[dict[str, Any]]:
        parameters = [*self.model.parameters(), *self.contrastive.parameters(), *self.words.parameters()]
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        others = [parameter for parameter in parameters if parameter.ndim < 2]
        return [
            {"params": matrices, "weight_decay": self.settings.optimizer.weight_decay},
            {"params": others, "weight_decay": 0.0},  # norms, biases and the temperature
        ]


def schedule_rate(settings: OptimizerSettings, step: int, total: int) -> float:
    """Warm up, stay, cool down: the learning rate at a step."""
    rising = (step + 1) / max(settings.warmup_steps, 1)
    falling = (total - step) / max(settings.cooldown_steps, 1)
    return settings.learning_rate * min(1.0, rising, falling)


def train(settings: TrainingSettings, data: Path, run: Path) -> None:
    """Run, or go on with, the training that `settings` describe, in the folder `run`."""
    run.mkdir(parents=True, exist_ok=True)
    sources = open_sources(settings.sources, data)
    captions = list(read_all_captions(sources))
    processor = make_processor(
        train_tokenizer(_tokenizer_texts(captions, settings), settings.lvlm.vocabulary), settings.lvlm
    )
    builder = InputBuilder(processor, settings.prompts, settings.summary_tokens)
    trainer = Trainer(settings, processor, _count_words(builder, captions, settings))
    if (run / _STATE_FILE).exists():
        trainer.load_state(run / _STATE_FILE)
    held_out = read_karpathy(
        data / settings.validation.annotations,
        data / settings.validation.images,
        {settings.validation.split},
    )
    dataset = StepDataset(sources, builder, settings.batches, settings.augmentation, settings.seed)
    _run_steps(trainer, dataset, Validation(held_out, builder), run)
    save_checkpoint(run / "model", Checkpoint(trainer.model, processor, settings.prompts))
    _tell(f"the model is in {run / 'model'}")


def _run_steps(trainer: Trainer, dataset: StepDataset, validation: Validation, run: Path) -> None:
    settings, state = trainer.settings, run / _STATE_FILE
    log = _Log(run / "log.jsonl", settings.total_steps)
    saved = time.monotonic()
    for batch in _load_steps(dataset, trainer.step):
        losses = trainer.train_step(batch)
        log.add(trainer.step, losses, len(batch.source_ids))
        if trainer.step % settings.validate_every == 0 or trainer.step == settings.total_steps:
            log.write({"step": trainer.step, **validation.measure(trainer.model)})
        if time.monotonic() - saved > settings.checkpoint_seconds or trainer.step == settings.total_steps:
            trainer.save_state(state)
            saved = time.monotonic()


def _load_steps(dataset: StepDataset, start: int) -> Iterator[Step]:
    steps = range(start, len(dataset))
    loader = DataLoader(dataset, batch_size=None, sampler=steps, num_workers=1, prefetch_factor=4)
    return iter(loader)


def _tokenizer_texts(captions: Sequence[str], settings: TrainingSettings) -> Iterator[str]:
    """Captions, with the prompts and the scenes' own words often enough to become tokens of their own."""
    yield from captions
    prompts = settings.prompts
    for index in range(_TOKENIZER_SCENES):
        scene = make_scene(settings.seed, index)
        yield from describe_scene(scene, Random(index))
        yield from (f"{question} {answer}" for question, answer in questions(scene))
        yield from (prompts.image, prompts.text, prompts.caption)


def _count_words(builder: InputBuilder, captions: Sequence[str], settings: TrainingSettings) -> Tensor:
    """The share of texts that hold each word, over captions and drawn scenes."""
    scenes = [unique_caption(make_scene(settings.seed, index)) for index in range(_TOKENIZER_SCENES)]
    texts = [*captions[-_COUNTED_CAPTIONS:], *scenes]
    return mark_words(builder, texts).float().mean(dim=0)


class _Log:
    """Means over the last seconds, as a line on stderr and a JSON line in a file."""

    def __init__(self, path: Path, total: int) -> None:
        self.path, self.total = path, total
        self._start()

    def add(self, step: int, values: dict[str, float], sources: int) -> None:
        """Count one step; writes when some seconds have passed."""
        self.steps += 1
        self.sources += sources
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        seconds = time.monotonic() - self.since
        if seconds >= _LOG_SECONDS:
            means = {name: value / self.steps for name, value in self.sums.items()}
            left = (self.total - step) * seconds / self.steps / 60
            self.write(
                {"step": step, **means, "samples_per_second": self.sources / seconds, "minutes_left": left}
            )

    def write(self, values: dict[str, float]) -> None:
        """Write one line now, and begin to count anew."""
        rounded = {
            name: float(f"{value:.5g}") if isinstance(value, float) else value
            for name, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.strftime("%H:%M:%S"), **rounded}) + "\n")
        _tell("  ".join(f"{name} {value}" for name, value in rounded.items()))
        self._start()

    def _start(self) -> None:
        self.steps, self.sources, self.since = 0, 0, time.monotonic()
        self.sums: dict[str, float] = {}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a small Fwd2Bot from scratch."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="a TOML file, such as training/configs/tiny.toml")
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder that the settings' data paths start at"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="where state, log and model go; an earlier run goes on"
    )
    options = parser.parse_args(arguments)
    try:
        train(read_settings(options.settings), options.data, options.run)
    except Fwd2BotError as error:
        _tell(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
