"""A Fwd2Bot checkpoint as a folder: what `save_checkpoint` writes, `load_checkpoint` reads.

fwd2bot.json                  format, base ("base", a path or a hub name), family, adapters, prompts
base/                         an ordinary transformers folder: config, weights, processor
processor/                    only the processor, if the base is elsewhere
compress/, generate/          the two adapters, each an ordinary PEFT folder; or shared/, or none
summary_tokens.safetensors    summary_tokens (k, width)
training/settings.json        how it was trained, if recorded; no encoder reads it
README.md                     a model card
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import ProcessorMixin

from encoders.base import DatasetError, EncoderDamaged, Fwd2BotError, first_line
from encoders.fwd2bot.adapters import NONE, AdapterSettings
from encoders.fwd2bot.card import write_card
from encoders.fwd2bot.folders import (
    ADAPTER_FILE,
    ADAPTER_FOLDERS,
    FORMAT,
    OWN_BASE,
    PROCESSOR_FOLDER,
    TOKENS_FILE,
    find_base,
    read_settings,
)
from encoders.fwd2bot.model import Fwd2Bot
from encoders.fwd2bot.pretrained import load_lvlm, load_processor
from encoders.fwd2bot.prompts import Prompts
from encoders.load import SETTINGS_FILE, find_checkpoint
from encoders.shortage import is_shortage

_CARD_FILE = "README.md"
_RECIPE_FILE = "training/settings.json"


class Checkpoint(NamedTuple):
    """A model in evaluation mode, with what it needs to read images and texts.

    base: path or hub name of the LVLM's own weights, or OWN_BASE if the checkpoint contains them.
    recipe: the bytes of training/settings.json, empty if there is none.
    """

    model: Fwd2Bot
    processor: ProcessorMixin
    prompts: Prompts
    base: str = OWN_BASE
    recipe: bytes = b""

    @classmethod
    def from_pretrained(cls, name: str, device: str = "cpu") -> "Checkpoint":
        """Load a folder, a hub name, or "tiny", in float32; raises EncoderNotFound and EncoderDamaged."""
        return load_checkpoint(find_checkpoint(name), device)

    def push_to_hub(self, repository: str) -> str:
        """Upload what `save_checkpoint` writes to a hub repository; returns the URL of the commit.

        The repository is created if it is missing. A base in a local folder is uploaded too. A model card
        that the repository already has is kept.
        """
        pushed = self._replace(base=OWN_BASE) if Path(self.base).is_dir() else self
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        described = api.file_exists(repository, _CARD_FILE)
        with TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), pushed)
            return str(
                api.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    ignore_patterns=[_CARD_FILE] if described else None,
                )
            )


def save_checkpoint(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype = torch.float16) -> None:
    """Write a checkpoint, with the base's weights in `dtype` unless `checkpoint.base` says where they are.

    An LLM that was itself trained is always written. Raises DatasetError if weights to write are quantized.
    """
    model, processor, prompts, base, recipe = checkpoint
    base = OWN_BASE if model.adapters.mode == NONE else base
    folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(folder / (OWN_BASE if base == OWN_BASE else PROCESSOR_FOLDER))
    if base == OWN_BASE:
        _save_base(folder / OWN_BASE, model, dtype)
    for name, tree in _list_adapters(model).items():
        tree.peft_config["default"].base_model_name_or_path = base
        # The LLM's embeddings belong to the base, so PEFT need not look up whether they were resized.
        tree.save_pretrained(str(folder / name), save_embedding_layers=False)
    save_file(
        {"summary_tokens": model.summary_tokens.detach().float().cpu().contiguous()}, folder / TOKENS_FILE
    )
    settings = {
        "format": FORMAT,
        "base": base,
        "family": model.family.model_type,
        "adapters": model.adapters.mode,
        "prompts": asdict(prompts),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if recipe:
        (folder / _RECIPE_FILE).parent.mkdir(exist_ok=True)
        (folder / _RECIPE_FILE).write_bytes(recipe)
    write_card(folder, model, prompts, None if base == OWN_BASE else base)


def load_checkpoint(folder: Path, device: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Load a checkpoint onto a device; raises EncoderDamaged if a file is missing or cannot be used."""
    try:
        settings = read_settings(folder)
        lvlm, processor = load_lvlm(str(find_base(folder)), device, dtype)
        tokens = load_file(folder / TOKENS_FILE)["summary_tokens"]
        model = Fwd2Bot(lvlm, tokens.shape[0], _read_adapter_settings(folder, settings["adapters"]))
        if settings["family"] not in (None, model.family.model_type):
            raise EncoderDamaged(
                f"{folder} was made over a {settings['family']} and its base is now a "
                f"{model.family.model_type}: fetch both again"
            )
        if (folder / PROCESSOR_FOLDER).is_dir():
            processor = load_processor(folder / PROCESSOR_FOLDER, model.family)
        model.summary_tokens.data.copy_(tokens)
        for name, tree in _list_adapters(model).items():
            _load_adapter(tree, folder / name)
        prompts = Prompts(**settings["prompts"])
        recipe = (folder / _RECIPE_FILE).read_bytes() if (folder / _RECIPE_FILE).is_file() else b""
        model = model.to(device).eval()
    except Fwd2BotError:
        raise
    except Exception as error:  # third-party readers may raise anything; the file is at fault
        if is_shortage(error):
            raise
        raise EncoderDamaged(
            f"The checkpoint {folder} cannot be read ({first_line(error)}): fetch or train it again"
        ) from error
    return Checkpoint(model, processor, prompts, settings["base"], recipe)


def _read_adapter_settings(folder: Path, mode: str) -> AdapterSettings:
    configs = [PeftConfig.from_pretrained(str(folder / name)) for name in ADAPTER_FOLDERS[mode]]
    kinds = {(config.r, config.lora_alpha) for config in configs}
    if len(kinds) > 1:
        raise EncoderDamaged(f"The two adapters of {folder} differ in rank or alpha: fetch or train it again")
    return AdapterSettings(*kinds.pop(), mode) if kinds else AdapterSettings(mode=mode)


def _save_base(folder: Path, model: Fwd2Bot, dtype: torch.dtype) -> None:
    if getattr(model.lvlm, "is_quantized", False):
        raise DatasetError(f"Weights in 4 bits cannot be written to {folder}: name their origin as the base")
    weights = model.lvlm.state_dict()
    # A tensor with two names (lm_head tied to the word embeddings) stays one tensor, and is written once.
    places = {name: (value.data_ptr(), value.shape) for name, value in weights.items()}
    cast = {places[name]: _cast(value, dtype) for name, value in weights.items()}
    model.lvlm.save_pretrained(folder, state_dict={name: cast[place] for name, place in places.items()})


def _load_adapter(tree: PeftModel, folder: Path) -> None:
    # PEFT would fall back to a pickle; only safetensors may be read.
    if not (folder / ADAPTER_FILE).is_file():
        raise EncoderDamaged(f"The checkpoint has no {folder / ADAPTER_FILE}: fetch or train it again")
    missing = tree.load_adapter(str(folder), "default", is_trainable=True).missing_keys
    if any("lora_" in key for key in missing):
        raise EncoderDamaged(f"{folder / ADAPTER_FILE} lacks {len(missing)} tensors: fetch or train it again")


def _list_adapters(model: Fwd2Bot) -> dict[str, Any]:
    trees = (model.compressor, model.generator)  # the same tree twice if shared
    return dict(zip(ADAPTER_FOLDERS[model.adapters.mode], trees, strict=False))


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.detach().to(dtype).cpu() if value.is_floating_point() else value.cpu()
