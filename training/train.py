r"""Train Fwd2Bot with the joint loss: a small model from scratch, or adapters on a pretrained LVLM.

    python -m training.train training/configs/tiny.toml --data DIR --run runs/tiny
    accelerate launch --config_file training/configs/accelerate_ddp.yaml \
        -m training.train training/configs/llava-1.5-7b-k16.toml --data DIR --run runs/llava

Read this first: `train` is a run from top to bottom. A run may be stopped at any moment; started again with
the same command line, it resumes from its last state. The run's folder holds `model/`, a checkpoint for
`fwd2bot index --model runs/tiny/model`, and the files described in `training.states` and `training.run_log`.
See docs/training.md.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from transformers import BatchEncoding

from encoders.base import DatasetError, Fwd2BotError, TrainingDiverged
from encoders.fwd2bot.checkpoint import Checkpoint
from encoders.memory import keep_all_memory
from training.data import Step, StepDataset, open_dataset
from training.distributed import join_ranks
from training.graft import graft_tower
from training.initial_model import make_initial_model
from training.run_log import RunLog, run_command, tell
from training.settings import CheckpointSettings, TrainingSettings, read_settings
from training.sources.open import open_sources
from training.states import STATE_FILE, load_state, put_back_model, save_model, save_state
from training.trainer import Trainer
from training.validate import Validation, read_held_out, score_measures

DIVERGED_FILE = "diverged.txt"
_ROWS_NAMED = 12
_STEPS_AHEAD = 4  # prefetched by each worker
_FITTED_STEPS = 12  # a new tower's projector is fitted to the pictures of so many steps


def train(settings: TrainingSettings, data: Path, run: Path) -> None:
    """Run or resume the training that `settings` describe, in the folder `run`."""
    ranks = join_ranks()
    run.mkdir(parents=True, exist_ok=True)
    if ranks.rank == 0:
        for folder in (run / "model", run / "best"):
            put_back_model(folder)
    sources = open_sources(settings.sources, data)
    model, builder, words = make_initial_model(settings, sources, ranks.device)
    trainer = Trainer(settings, model, words, ranks)
    held_out = read_held_out(settings.validation, data, settings.validation.split)
    dataset = open_dataset(settings, sources, builder, ranks)
    tower = settings.lvlm.tower if isinstance(settings.lvlm, CheckpointSettings) else ""
    if tower and not (run / STATE_FILE).exists():
        graft_tower(model, Path(tower), _read_pictures(dataset))
    checkpoint = Checkpoint(model, builder.processor, settings.prompts)
    validation = Validation(held_out, builder)
    run_steps(trainer, dataset, run, lambda log: _judge(trainer, validation, checkpoint, log, run))


@keep_all_memory()
def run_steps(
    trainer: Trainer, dataset: StepDataset, run: Path, judge: Callable[[RunLog | None], None]
) -> None:
    """Take all remaining steps, starting from the last saved state; only rank 0 writes files.

    judge: called on every rank every `validate_every` steps and after the last; it gets the log on rank 0,
    None elsewhere. Raises TrainingDiverged, naming the rows of the step, if a loss or gradient is not finite.
    """
    settings, total = trainer.settings, trainer.settings.total_steps
    if (run / STATE_FILE).exists():
        changed = load_state(trainer, run / STATE_FILE)
        tell(
            f"resumed at step {trainer.step}" + (f"; changed since: {', '.join(changed)}" if changed else "")
        )
        if trainer.step > total:
            raise DatasetError(
                f"{run} has taken {trainer.step} steps already, and would end at {total}: let it end later, "
                "or choose another --run"
            )
    log = RunLog(run, trainer.step, total) if trainer.ranks.rank == 0 else None
    saved = time.monotonic()
    for batch in _load_steps(dataset, trainer.step, settings.workers):
        try:
            report = trainer.train_step(batch)
        except TrainingDiverged as error:
            rows = dataset.describe_rows(error.rows)
            if log:
                (run / DIVERGED_FILE).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
            some = ", ".join([*rows[:_ROWS_NAMED], *(["..."] if len(rows) > _ROWS_NAMED else [])])
            raise TrainingDiverged(
                f"{error}: look at its {len(rows):,} rows, all named in {run / DIVERGED_FILE} ({some}), or "
                "lower the learning rate"
            ) from None
        if log:
            log.add(trainer.step, report)
        if trainer.step % settings.validate_every == 0 or trainer.step == total:
            judge(log)
        if log and (time.monotonic() - saved > settings.checkpoint_seconds or trainer.step == total):
            save_state(trainer, run / STATE_FILE)
            saved = time.monotonic()


def _judge(
    trainer: Trainer, validation: Validation, checkpoint: Checkpoint, log: RunLog | None, run: Path
) -> None:
    """Validate the model on held-out photos and save it: as the newest and, if it is, as the best."""
    measures = validation.measure(trainer.model)
    if log is None:
        return
    log.note(trainer.step, measures)
    save_model(run / "model", checkpoint, trainer.settings)
    score = score_measures(measures, trainer.settings)
    if score > trainer.best:
        trainer.best = score
        save_model(run / "best", checkpoint, trainer.settings)
    tell(f"the model of step {trainer.step} is in {run / 'model'}, and the best so far in {run / 'best'}")


def _read_pictures(dataset: StepDataset) -> list[BatchEncoding]:
    """The picture inputs of the first steps, for fitting a new tower's projector."""
    steps = (dataset[step] for step in range(min(_FITTED_STEPS, len(dataset))))
    return [inputs for step in steps for inputs in step.sources if "pixel_values" in inputs]


class _CarefulSteps(Dataset[Step | Fwd2BotError]):
    """Steps, or the error that prevented one: if a worker raised it, the user would get a traceback."""

    def __init__(self, dataset: StepDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, step: int) -> Step | Fwd2BotError:
        try:
            return self._dataset[step]
        except Fwd2BotError as error:
            return error


def _load_steps(dataset: StepDataset, start: int, workers: int) -> Iterator[Step]:
    loader: DataLoader[Step | Fwd2BotError] = DataLoader(
        _CarefulSteps(dataset),
        batch_size=None,
        sampler=range(start, len(dataset)),
        num_workers=workers,
        prefetch_factor=_STEPS_AHEAD if workers else None,
    )
    for made in loader:
        if isinstance(made, Fwd2BotError):
            raise made
        yield made


def main(arguments: Sequence[str] | None = None) -> int:
    """Train Fwd2Bot with the joint loss; see docs/training.md."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="a TOML file, such as training/configs/tiny.toml")
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder that the settings' data paths start at"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="where state, log and model go; an earlier run goes on"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="a setting to put over the file's, such as optimizer.learning_rate=3e-4; may be repeated",
    )
    parser.add_argument(
        "--until",
        type=int,
        metavar="STEP",
        help="end there, sooner than the settings say, the learning rate having fallen as at their end",
    )
    options = parser.parse_args(arguments)

    def command() -> None:
        settings = read_settings(options.settings, options.overrides, options.until)
        train(settings, options.data, options.run)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
