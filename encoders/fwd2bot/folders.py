"""Locates and hashes the files of a model, without importing torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from encoders.base import EncoderDamaged
from encoders.load import SETTINGS_FILE, explain_hub

PER_PASS, SHARED, NONE = "per_pass", "shared", "none"  # how the two passes are adapted: see AdapterSettings
ADAPTER_FOLDERS = {PER_PASS: ("compress", "generate"), SHARED: ("shared",), NONE: ()}
OWN_BASE = "base"
PROCESSOR_FOLDER = "processor"
TOKENS_FILE = "summary_tokens.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
FORMAT = 1
_CHUNK = 1 << 22


def find_base(folder: Path) -> Path:
    """The transformers folder of a checkpoint's LVLM: inside it, elsewhere on disk, or from the hub."""
    base = read_settings(folder)["base"]
    return folder / OWN_BASE if base == OWN_BASE else fetch_lvlm(base)


def list_folders(folder: Path) -> list[Path]:
    """Every folder that may hold a part of a checkpoint."""
    adapters = [folder / name for names in ADAPTER_FOLDERS.values() for name in names]
    return [folder, *adapters, folder / PROCESSOR_FOLDER, find_base(folder)]


def read_settings(folder: Path) -> dict[str, Any]:
    """Read fwd2bot.json and check its format version; raises EncoderDamaged for another version."""
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    if settings["format"] != FORMAT:
        raise EncoderDamaged(
            f"The checkpoint {folder} has format {settings['format']} and this version reads {FORMAT}: "
            "update fwd2bot"
        )
    return {
        "base": str(settings["base"]),
        "family": settings.get("family"),  # the first checkpoints had one family and one mode
        "adapters": str(settings.get("adapters", PER_PASS)),
        "prompts": {name: str(text) for name, text in settings["prompts"].items()},
    }


def fetch_lvlm(name: str) -> Path:
    """The folder of a transformers model, fetched from the hub if it is not on disk."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with explain_hub(name):
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))


def fingerprint_checkpoint(folder: Path, backend: str) -> str:
    """Hash of every file that an embedding depends on, and of the image processor's backend."""
    return hash_folders(list_folders(folder), backend)


def hash_folders(folders: Sequence[Path], settings: str) -> str:
    """Hash of a model's files in `folders`, and of `settings`: all that its embeddings depend on.

    Files are hashed in the order of their paths below the first folder; those of a base elsewhere as if they
    were in its OWN_BASE folder.
    """
    root, digest = folders[0], xxhash.xxh3_128(settings.encode())

    def place(path: Path) -> Path:
        return path.relative_to(root) if path.is_relative_to(root) else Path(OWN_BASE, path.name)

    files = {path for part in folders for name in MODEL_FILES for path in part.glob(name)}
    for path in sorted(files, key=place):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
