r"""Train a CLIP-like two-tower model on the same batches as Fwd2Bot, to compare the two.

    python -m training.two_tower training/configs/tiny.toml --data DIR --run runs/two_tower

The image tower is that of the settings file, with the same initial weights. The text tower is CLIP's
transformer, with the depth and width of the file's LLM, and an MLP width chosen so that both models have the
same number of weights. Rows, their order, views, captions, optimizer and schedule are those of
`training.train`, and so are logging, states and resuming. The loss is symmetric InfoNCE, with the same
positives and hard negatives; text-only pairs train the text tower. Two towers cannot answer, so there is no
answer loss, and there is no word loss either: the tower_only batches, in which Fwd2Bot's tower learns the
words of captions, are contrastive here, on the same pictures and captions. With [distillation] in the file
the run is not a comparison: the towers then learn from teachers too, in order to become one.

    RUN/result.json   weights of both models, steps, and recall of all captions of the val and test splits
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, CLIPTextConfig, CLIPTextModelWithProjection

from encoders.base import DatasetError
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Answers, Fwd2Bot, JointOutput
from encoders.fwd2bot.prompts import Prompts
from training.data import StepDataset, open_dataset
from training.data_settings import UnlabelledSettings
from training.distributed import join_ranks
from training.initial_model import make_initial_model
from training.run_log import RunLog, run_command, tell
from training.settings import (
    LvlmSettings,
    TrainingSettings,
    end_run_at,
    read_settings,
    restore_settings,
)
from training.sources.open import Sources, open_sources
from training.states import STATE_FILE, read_state
from training.train import run_steps
from training.trainer import Trainer
from training.validate import Validation, read_held_out, report_recall

RESULT_FILE = "result.json"
_TEST_SPLIT = "test"


class TwoTowers(nn.Module):
    """An image tower and a text tower, each projected to a common space.

    It has the interface that Trainer uses of Fwd2Bot: one summary token per row, and no answers.
    """

    def __init__(
        self, image_tower: nn.Module, image_width: int, text: CLIPTextConfig, image_token: int
    ) -> None:
        super().__init__()
        self.image_token = image_token
        self.image_tower = image_tower
        self.image_projection = nn.Linear(image_width, text.hidden_size, bias=False)
        # Eager attention, as in the LLM: see `training.lvlm`.
        self.text_tower: Any = CLIPTextModelWithProjection._from_config(text, attn_implementation="eager")

    @property
    def summary_shape(self) -> tuple[int, int]:
        """(1, dim): one vector per row."""
        return 1, self.image_projection.out_features

    @property
    def device(self) -> torch.device:
        """The device that inputs must be on."""
        return self.image_projection.weight.device

    def compress(self, inputs: BatchEncoding) -> Tensor:
        """Embed images or left-padded texts: (batch, 1, dim), not normalised."""
        if "pixel_values" in inputs:
            pixels = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
            rows = self.image_projection(self.image_tower(pixels).pooler_output.flatten(1))
        else:
            mask = inputs["attention_mask"]
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            rows = self.text_tower(inputs["input_ids"], mask, positions).text_embeds
        embedded: Tensor = rows[:, None]
        return embedded

    def forward(
        self, sources: Sequence[BatchEncoding], targets: Sequence[BatchEncoding], answers: Sequence[Answers]
    ) -> JointOutput:
        """Embed a step; sources with images must come first. answers: must be empty, and are ignored."""
        none = self.image_projection.weight.new_empty(0, *self.summary_shape)
        embedded_sources, embedded_targets = (
            torch.cat([self.compress(inputs) for inputs in side] or [none]) for side in (sources, targets)
        )
        images = sum(len(inputs["input_ids"]) for inputs in sources if "pixel_values" in inputs)
        return JointOutput(embedded_sources, embedded_targets, embedded_sources[:images, 0], none.sum())

    def compile_layers(self) -> None:
        """Have torch.compile fuse each layer of the text tower."""
        for layer in self.text_tower.text_model.encoder.layers:
            layer.compile(dynamic=True)


def make_two_towers(model: Fwd2Bot, shape: LvlmSettings, builder: InputBuilder) -> TwoTowers:
    """Two towers with as many weights as `model` (within 2 %); they take over its image tower."""

    def make_text_config(intermediate: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(builder.tokenizer),
            hidden_size=shape.width,
            projection_dim=shape.width,
            intermediate_size=intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=builder.longest_text + 1,
            pad_token_id=builder.tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=builder.tokenizer.eos_token_id,
        )

    def make(intermediate: int) -> TwoTowers:
        text = make_text_config(intermediate)
        return TwoTowers(model.lvlm.model.vision_tower, shape.tower_widths[-1], text, model.image_token)

    with torch.device("meta"):
        one, two = count_weights(make(1)), count_weights(make(2))
    return make(max(1, 1 + round((count_weights(model) - one) / (two - one))))


def count_weights(model: nn.Module) -> int:
    """The number of weights of a model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def adapt_settings(settings: TrainingSettings, share: float, until: int | None = None) -> TrainingSettings:
    """Adapt a run's settings to two towers: InfoNCE on every row, for `share` times the steps.

    Distillation is kept if the file has it, and with it the unlabelled pictures. until: the step to end at,
    one of those that the share leaves. Raises DatasetError if `share` is not positive and finite, or there
    is no such step.
    """
    if not 0 < share < math.inf:
        raise DatasetError(f"A share of {share} is none of a run's steps: give --share a number above 0")
    optimizer = settings.optimizer
    adapted = replace(
        settings,
        contrastive_weight=1.0,
        contrastive_loss="infonce",
        answer_weight=0.0,
        gradient_checkpointing=False,  # there is no LLM to checkpoint
        feature_weight=0.0,
        word_weight=0.0,
        sources={
            name: source
            if isinstance(source, UnlabelledSettings)
            else replace(source, contrastive=True, answer=False)
            for name, source in settings.sources.items()
        },
        batches=tuple(
            replace(batch, steps=round(share * batch.steps), tower_only=False) for batch in settings.batches
        ),
        optimizer=replace(
            optimizer,
            warmup_steps=round(share * optimizer.warmup_steps),
            cooldown_steps=round(share * optimizer.cooldown_steps),
        ),
    )
    return adapted if until is None else end_run_at(adapted, until)


def train_two_towers(
    settings: TrainingSettings, data: Path, run: Path, share: float = 1.0, until: int | None = None
) -> dict[str, Any]:
    """Run or resume the training in the folder `run`; returns the contents of result.json."""
    _require_shape(settings)
    run.mkdir(parents=True, exist_ok=True)
    settings = adapt_settings(settings, share, until)
    sources = open_sources(settings.sources, data)
    towers, builder, weights = start_two_towers(settings, sources)
    tell("  ".join(f"weights of {name}: {count:,}" for name, count in weights.items()))
    dataset = open_dataset(settings, sources, builder)
    _take_steps(settings, towers, dataset, data, run)
    result = {
        "weights": weights,
        "steps": settings.total_steps,
        "recall": {
            split: asdict(report_recall(towers, builder, read_held_out(settings.validation, data, split)))
            for split in (settings.validation.split, _TEST_SPLIT)
        },
    }
    (run / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def start_two_towers(
    settings: TrainingSettings, sources: Sources
) -> tuple[TwoTowers, InputBuilder, dict[str, int]]:
    """The towers of step 0, the builder of their inputs, and the weight counts of Fwd2Bot and the towers."""
    shape = _require_shape(settings)
    initial = make_initial_model(settings, sources, torch.device("cpu"))
    builder = write_plainly(initial.builder)
    weights = {"fwd2bot": count_weights(initial.model)}
    towers = make_two_towers(initial.model, shape, builder)
    return towers, builder, {**weights, "two_towers": count_weights(towers)}


def load_two_towers(run: Path, data: Path) -> tuple[TwoTowers, InputBuilder]:
    """The towers at a run's last state, and the builder of their inputs; raises DatasetError without one.

    data: the data folder that the run was given; the tokenizer is trained again on its captions.
    """
    state = read_state(run / STATE_FILE, torch.device("cpu"), ("settings", "model"))
    settings = restore_settings(state["settings"], str(run / STATE_FILE))
    towers, builder, _ = start_two_towers(settings, open_sources(settings.sources, data))
    try:
        towers.load_state_dict(state["model"])
    except RuntimeError as error:
        raise DatasetError(f"{run} is not a run of training.two_tower on the data of {data}") from error
    return towers.eval(), builder


def _require_shape(settings: TrainingSettings) -> LvlmSettings:
    if not isinstance(settings.lvlm, LvlmSettings):
        raise DatasetError(
            "Two towers start from nothing: give settings, or a run of settings, whose [lvlm] is a shape and "
            "no base"
        )
    return settings.lvlm


def _take_steps(
    settings: TrainingSettings, towers: TwoTowers, dataset: StepDataset, data: Path, run: Path
) -> None:
    # Without an answer loss, Trainer only uses the part of Fwd2Bot's interface that TwoTowers has.
    trainer = Trainer(settings, cast(Fwd2Bot, towers), None, join_ranks())
    held_out = read_held_out(settings.validation, data, settings.validation.split)
    validation = Validation(held_out, dataset.builder)

    def judge(log: RunLog | None) -> None:
        towers.eval()
        if log:
            log.note(trainer.step, validation.measure_recall(towers))

    run_steps(trainer, dataset, run, judge)
    towers.eval()


def write_plainly(builder: InputBuilder) -> InputBuilder:
    """A builder without instructions: a text is its words and the end token, where CLIP pools."""
    end = str(builder.tokenizer.eos_token)
    return replace(builder, prompts=Prompts("{content}{instruction}", image="", text=end), summary_count=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train two towers on the data of Fwd2Bot, and measure their recall."""
    parser = argparse.ArgumentParser(prog="python -m training.two_tower", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="the settings of the Fwd2Bot to be compared with")
    parser.add_argument("--data", type=Path, required=True, help="as for training.train")
    parser.add_argument("--run", type=Path, required=True, help="as for training.train")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of each batch's steps, of warm-up and of cool-down (1.0)"
    )
    parser.add_argument("--until", type=int, metavar="STEP", help="as for training.train")
    options = parser.parse_args(arguments)

    def command() -> None:
        settings = read_settings(options.settings, options.overrides)
        result = train_two_towers(settings, options.data, options.run, options.share, options.until)
        print(json.dumps(result))

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
