"""A Fwd2Bot checkpoint as a folder: what `save_checkpoint` writes, `load_checkpoint` reads.

fwd2bot.json                  format, base (a folder beside it, or a hub name), prompts
base/                         an ordinary transformers folder: config, weights, processor; or elsewhere
compress/, generate/          the two adapters, each an ordinary PEFT folder
summary_tokens.safetensors    summary_tokens (k, width)
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from encoders.base import EncoderDamaged
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from encoders.fwd2bot.prompts import Prompts

SETTINGS_FILE = "fwd2bot.json"
OWN_BASE = "base"
_FORMAT = 1
_TOKENS_FILE = "summary_tokens.safetensors"
_ADAPTER_FILE = "adapter_model.safetensors"


class Checkpoint(NamedTuple):
    """A model in evaluation mode, with what it needs to read images and texts."""

    model: Fwd2Bot
    processor: ProcessorMixin
    prompts: Prompts


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, base: str = OWN_BASE, dtype: torch.dtype = torch.float16
) -> None:
    """Write a checkpoint; the base's weights too, in `dtype`, unless `base` names where they are."""
    model, processor, prompts = checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    if base == OWN_BASE:
        weights = {name: _cast(value, dtype) for name, value in model.lvlm.state_dict().items()}
        model.lvlm.save_pretrained(folder / OWN_BASE, state_dict=weights)
        processor.save_pretrained(folder / OWN_BASE)
    for name, tree in _adapters(model).items():
        tree.peft_config["default"].base_model_name_or_path = base
        # The LLM's embeddings belong to the base, so PEFT need not look up whether they were resized.
        tree.save_pretrained(str(folder / name), save_embedding_layers=False)
    save_file(
        {"summary_tokens": model.summary_tokens.detach().float().cpu().contiguous()}, folder / _TOKENS_FILE
    )
    settings = {"format": _FORMAT, "base": base, "prompts": asdict(prompts)}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path, device: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Read a checkpoint onto a device; raises EncoderDamaged where a file is missing or cannot be used."""
    try:
        settings = _read_settings(folder)
        base = find_base(folder)
        lvlm = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(base)
        tokens = load_file(folder / _TOKENS_FILE)["summary_tokens"]
        model = Fwd2Bot(lvlm, tokens.shape[0], _read_adapter_settings(folder))
        model.summary_tokens.data.copy_(tokens)
        for name, tree in _adapters(model).items():
            _load_adapter(tree, folder / name)
    except EncoderDamaged:
        raise
    except Exception as error:  # whatever a reader of a foreign file raises, the file is what is wrong
        raise EncoderDamaged(
            f"The checkpoint {folder} cannot be read ({_first_line(error)}): fetch or train it again"
        ) from error
    return Checkpoint(model.to(device).eval(), processor, Prompts(**settings["prompts"]))


def find_base(folder: Path) -> Path:
    """The transformers folder of a checkpoint's LVLM: beside it, elsewhere on disk, or from the hub."""
    base = _read_settings(folder)["base"]
    if base == OWN_BASE:
        return folder / OWN_BASE
    return Path(base) if Path(base).is_dir() else Path(snapshot_download(base))


def _read_settings(folder: Path) -> dict[str, Any]:
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    if settings["format"] != _FORMAT:
        raise EncoderDamaged(
            f"The checkpoint {folder} has format {settings['format']} and this version reads {_FORMAT}: "
            "update fwd2bot"
        )
    return {
        "base": str(settings["base"]),
        "prompts": {name: str(text) for name, text in settings["prompts"].items()},
    }


def _read_adapter_settings(folder: Path) -> AdapterSettings:
    one, other = (PeftConfig.from_pretrained(str(folder / name)) for name in ("compress", "generate"))
    if (one.r, one.lora_alpha) != (other.r, other.lora_alpha):
        raise EncoderDamaged(f"The two adapters of {folder} differ in rank or alpha: fetch or train it again")
    return AdapterSettings(rank=one.r, alpha=one.lora_alpha)


def _load_adapter(tree: PeftModel, folder: Path) -> None:
    # PEFT would fall back to a pickle; only safetensors may be read.
    if not (folder / _ADAPTER_FILE).is_file():
        raise EncoderDamaged(f"The checkpoint has no {folder / _ADAPTER_FILE}: fetch or train it again")
    missing = tree.load_adapter(str(folder), "default", is_trainable=True).missing_keys
    if any("lora_" in key for key in missing):
        raise EncoderDamaged(
            f"{folder / _ADAPTER_FILE} lacks {len(missing)} tensors: fetch or train it again"
        )


def _adapters(model: Fwd2Bot) -> dict[str, PeftModel]:
    return {"compress": model.compressor, "generate": model.generator}


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.detach().to(dtype).cpu() if value.is_floating_point() else value.cpu()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
