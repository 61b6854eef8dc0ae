r"""What does each part of Fwd2Bot contribute? One change at a time, at the scale of the embedded model.

    python -m training.ablate training/configs/ablations.toml --data DIR --run runs/ablations \
        --report docs/experiments.md

The protocol follows the paper (arXiv 2503.21757), which adapts a stock LVLM that can already caption:

0. The stock LVLM: starting from the weights of the embedded model's base, the LLM and tower are trained as a
   plain captioner over uncompressed image tokens. Then both are frozen, and the tower's features of several
   random views of each training photo are stored, so that no variant has to run it again.
1. Each variant trains fresh summary tokens and adapters over that LLM, on the same batches in the same order,
   for the same number of steps. `training.ablations.variants` lists them; `joint` is the baseline.
2. Each variant is measured on the test photos (`training.ablations.measures`), `joint` with three seeds, to
   estimate the variance between seeds. A variant within two standard errors of `joint` gets two more seeds.

A finished trial is a JSON file in RUN/trials, and is not run again: an interrupted command resumes, and one
with nothing left to run only writes the report.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from statistics import fmean

from benchmarks.datasets import read_karpathy
from encoders.base import DatasetError
from encoders.fwd2bot.checkpoint import load_checkpoint
from training.ablations.report import is_close, render_report, write_report
from training.ablations.settings import AblationSettings
from training.ablations.stock import Stock, prepare_stock
from training.ablations.trial import Trial, read_trial, run_trial, write_trial
from training.ablations.variants import JOINT, VARIANTS
from training.run_log import run_command, tell
from training.sources.karpathy import KarpathySource
from training.typed_toml import read_toml

_SETTINGS_FILE, _TRIALS = "settings.json", "trials"


class Ablation:
    """The trials in one run folder: reads those that are finished and runs those that are not."""

    def __init__(self, settings: AblationSettings, data: Path, run: Path) -> None:
        """Raises DatasetError if the folder was made with different settings."""
        self.settings, self.run = settings, run
        self.source = KarpathySource(settings.photos, data)
        photos = settings.photos
        self.test = read_karpathy(data / photos.annotations, data / photos.images, {settings.test_split})
        _claim_folder(run, settings)
        self._stock: Stock | None = None

    def find_trial(self, name: str, seed: int) -> Trial:
        """The trial of a variant with a seed; runs it if that has not been done yet."""
        path = self.run / _TRIALS / f"{name}-{seed}.json"
        if not path.exists():
            stock = self._find_stock()
            trial = run_trial(self.settings, VARIANTS[name], seed, stock, self.source, self.test)
            path.parent.mkdir(exist_ok=True)
            write_trial(path, trial)
            figures = trial.measures.figures.items()
            tell(f"{path.stem}  " + "  ".join(f"{each} {fmean(values):.4g}" for each, values in figures))
        return read_trial(path)

    def _find_stock(self) -> Stock:
        if self._stock is None:
            folder = Path(self.settings.checkpoint or str(files("encoders.weights")))
            checkpoint = load_checkpoint(folder, "cpu")
            self._stock = prepare_stock(self.settings, checkpoint, self.source, self.test, self.run)
        return self._stock


def run_ablations(ablation: Ablation, names: Sequence[str], seeds: int) -> None:
    """Run the named variants once; `joint` and the variants close to it get `seeds` trials each."""
    first = ablation.settings.seed
    trials = {name: [ablation.find_trial(name, first)] for name in names}
    if JOINT not in names:
        return
    more = range(first + 1, first + seeds)
    trials[JOINT] += [ablation.find_trial(JOINT, seed) for seed in more]
    for name in [name for name in names if name != JOINT and is_close(trials, name)]:
        for seed in more:
            ablation.find_trial(name, seed)


def list_trials(run: Path) -> dict[str, list[Trial]]:
    """All finished trials in a run folder, by variant name."""
    found = {name: sorted((run / _TRIALS).glob(f"{name}-*.json")) for name in VARIANTS}
    return {name: [read_trial(path) for path in paths] for name, paths in found.items() if paths}


def _claim_folder(run: Path, settings: AblationSettings) -> None:
    """Record the settings in the folder; raises DatasetError if it already holds different ones."""
    path, now = run / _SETTINGS_FILE, json.loads(json.dumps(asdict(settings)))
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in now if before.get(name) != now[name]]
    except (AttributeError, ValueError) as error:
        raise DatasetError(f"{path} holds no settings ({error}): choose another --run") from error
    if changed:
        raise DatasetError(
            f"{run} holds the trials of another config (these settings differ: {', '.join(changed)}): choose "
            "another --run, or the settings it was made with"
        )


def _read_names(only: Sequence[str] | None) -> list[str]:
    unknown = [name for name in only or [] if name not in VARIANTS]
    if unknown:
        raise DatasetError(f"There is no variant {', '.join(unknown)}: there are {', '.join(VARIANTS)}")
    return [name for name in VARIANTS if only is None or name in only]


def _describe_run(settings: AblationSettings, settings_file: Path, test_photos: int) -> str:
    stock, variant = settings.stock, settings.variant
    return f"""## Ablations of the embedded model

    python -m training.ablate {settings_file} --data DIR --run DIR --report docs/experiments.md

One thing changed at a time over a stock captioner ({stock.steps} steps of {stock.photos} photos) that is then
frozen: {variant.steps} steps of {variant.photos} photos each, one caption matched and one said;
k = {settings.summary_tokens} where it is not varied. Measured on the {test_photos:,} photos of
`{settings.test_split}` with all their captions. A figure stands with its standard error, over photos and
seeds (whose spread is pooled over all variants of which there are several). Variants are compared photo by
photo, so the error of a difference is less than that of its sides; a finding agrees or disagrees where the
difference is two standard errors or more, and is undecided below."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and measure the variants of Fwd2Bot, and compare the results with the paper's findings."""
    parser = argparse.ArgumentParser(prog="python -m training.ablate", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="a TOML file, such as training/configs/ablations.toml")
    parser.add_argument("--data", type=Path, required=True, help="the folder that the photos' paths start at")
    parser.add_argument("--run", type=Path, required=True, help="where trials go; an earlier command goes on")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these variants alone")
    parser.add_argument("--seeds", type=int, default=3, help="at most, of what is near to joint (3)")
    parser.add_argument("--report", type=Path, help="a Markdown file to put the tables into")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    options = parser.parse_args(arguments)

    def command() -> None:
        names = _read_names(options.only)
        settings = read_toml(options.settings, AblationSettings, options.overrides)
        ablation = Ablation(settings, options.data, options.run)
        run_ablations(ablation, names, options.seeds)
        heading = _describe_run(settings, options.settings, len(ablation.test))
        report = render_report(list_trials(options.run), heading)
        if options.report:
            write_report(options.report, report)
        print(report)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
