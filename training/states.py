"""What a run leaves on disk: the state it resumes from, and checkpoints of its model.

    RUN/state.pt    step, trained weights, optimizer, settings: all that a resumed run needs
    RUN/model/      the newest model, a checkpoint for `fwd2bot index --model RUN/model`
    RUN/best/       the model with the best validation score

In each checkpoint, training/settings.json holds all settings of the run.

A new state or checkpoint replaces the old one only once it is completely written: a state in one rename, a
checkpoint in two; `put_back_model` repairs the folder after a kill between the two.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from encoders.base import DatasetError, Fwd2BotError, first_line
from encoders.fwd2bot.checkpoint import Checkpoint, save_checkpoint
from encoders.fwd2bot.folders import OWN_BASE
from encoders.load import quiet_transformers
from training.settings import BaseSettings, TrainingSettings, write_settings
from training.trainer import Trainer

STATE_FILE = "state.pt"
_CHANGING = ("image_size", "tower")  # settings of [lvlm] that may change when a run is resumed
_PARTS = ("step", "model", "contrastive", "words", "optimizer", "settings")  # old states have no "best"
_PLACES = ("base", "checkpoint")  # settings of [lvlm] that hold a path or hub name: the folder may move


def save_state(trainer: Trainer, path: Path) -> None:
    """Write everything a resumed run needs; a kill or a full disk midway leaves the previous state intact.

    No random state is saved: random draws depend on seed, step and rank alone.
    """
    state = {
        "step": trainer.step,
        "best": trainer.best,
        "model": _find_trained(trainer),
        "contrastive": trainer.contrastive.state_dict(),
        "words": trainer.words.state_dict() if trainer.words else None,
        "optimizer": trainer.optimizer.state_dict(),
        "settings": write_settings(trainer.settings),
    }
    temporary = path.with_suffix(".tmp")
    with _keep_whole(path, temporary), temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_state(trainer: Trainer, path: Path) -> list[str]:
    """Restore a trainer from a saved state; returns the names of the settings that have changed since.

    Raises DatasetError if the state belongs to a different model.
    """
    state = read_state(path, trainer.ranks.device, _PARTS)
    now = write_settings(trainer.settings)
    changed = [name for name, value in now.items() if state["settings"].get(name) != value]
    try:
        _require_same_model(state["settings"], now)
        _load_trained(trainer, state["model"])
        trainer.contrastive.load_state_dict(state["contrastive"])
        if trainer.words:
            trainer.words.load_state_dict(state["words"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.optimizer.param_groups[0]["weight_decay"] = trainer.settings.optimizer.weight_decay
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is the state of another model (these settings differ: {', '.join(changed)}): "
            "choose another --run, or the settings it was made with"
        ) from error
    trainer.step, trainer.best = state["step"], state.get("best", -math.inf)
    return changed


def save_model(folder: Path, checkpoint: Checkpoint, settings: TrainingSettings) -> None:
    """Write a checkpoint, replacing the previous one; a pretrained base is stored by name only."""
    base = _name_base(settings.lvlm.base) if isinstance(settings.lvlm, BaseSettings) else OWN_BASE
    temporary, before = folder.with_name(f"{folder.name}.new"), _place_before(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    put_back_model(folder)
    with _keep_whole(folder, temporary), quiet_transformers():
        recipe = json.dumps(write_settings(settings), indent=2) + "\n"
        save_checkpoint(temporary, checkpoint._replace(base=base, recipe=recipe.encode()))
    if folder.exists():
        folder.rename(before)
    temporary.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def put_back_model(folder: Path) -> None:
    """Restore the previous checkpoint if `save_model` was killed between its two renames."""
    before = _place_before(folder)
    if before.exists() and not folder.exists():
        before.rename(folder)
    shutil.rmtree(before, ignore_errors=True)


def read_state(path: Path, device: torch.device, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Read what `save_state` wrote; raises DatasetError if the file holds anything else or lacks `parts`."""
    if not path.exists():
        raise DatasetError(f"{path.parent} is not a training run: it holds no {path.name}")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        if not isinstance(state, dict) or not state.keys() >= set(parts):
            raise ValueError("torch wrote it, and another program")
    except (EOFError, OSError, RuntimeError, UnpicklingError, ValueError) as error:
        raise DatasetError(f"{path} is not the state of a run: remove it to start anew") from error
    return state


def _require_same_model(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError if the state is from a different model, even one whose weights would fit.

    A different image size is still the same model, and so is a base or checkpoint whose folder has moved; so
    is a different `tower`, which is only read before the first step.
    """
    for name in ("summary_tokens", "adapters", "prompts"):
        if before[name] != now[name]:
            raise ValueError(name)
    if _describe_start(before["lvlm"]) != _describe_start(now["lvlm"]):
        raise ValueError("lvlm")


def _describe_start(lvlm: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in lvlm.items() if name not in _CHANGING}
    return {name: Path(value).name if name in _PLACES else value for name, value in kept.items()}


def _find_trained(trainer: Trainer) -> dict[str, Tensor]:
    """The part of the state dict that training changes: trained weights, each once, and all buffers."""
    model = trainer.model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changing = trained | {name for name, _ in model.named_buffers()}
    return {name: value for name, value in model.state_dict().items() if name in changing}


def _load_trained(trainer: Trainer, values: dict[str, Tensor]) -> None:
    """Load trained weights; old states hold shared weights under every name, and only the first is read."""
    wanted = _find_trained(trainer)
    trainer.model.load_state_dict({name: values[name] for name in wanted}, strict=False)


@contextmanager
def _keep_whole(path: Path, temporary: Path) -> Iterator[None]:
    """Report a failed write as a one-sentence Fwd2BotError, and remove the partial file or folder."""
    try:
        yield
    except Fwd2BotError:
        _remove(temporary)
        raise
    except Exception as error:  # tokenizers raises a bare Exception on a full disk
        _remove(temporary)
        reason = first_line(error)
        raise Fwd2BotError(
            f"{path} could not be written ({reason}): make room and start again; what was there is whole"
        ) from error


def _place_before(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _name_base(base: str) -> str:
    return str(Path(base).resolve()) if Path(base).is_dir() else base
