"""The one place where a name becomes an encoder."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from encoders.base import (
    DEFAULT_ENCODER,
    LVLM_PREFIX,
    SENTENCE_PREFIX,
    Encoder,
    EncoderNotFound,
    Fwd2BotError,
    TextEncoder,
    first_line,
)
from encoders.shortage import is_shortage

_OPENCLIP = "openclip:"
SETTINGS_FILE = "fwd2bot.json"  # a folder without it is not a checkpoint


def load_encoder(name: str, device: str = "auto") -> Encoder:
    """Load "tiny" (embedded), a Fwd2Bot checkpoint, "lvlm:NAME", "openclip:ARCH/PRETRAINED" or "st:NAME".

    A checkpoint is a folder or a hub name, and so is NAME: of an LVLM of a supported family (see `families`)
    or, after "st:", of any sentence-transformers model that reads images.

    device: "cpu", "cuda", one GPU such as "cuda:1", or "auto" (a GPU if there is one). Raises
    EncoderNotFound, EncoderDamaged, EncoderMismatch and MissingDependency.
    """
    if name in (_OPENCLIP, SENTENCE_PREFIX, LVLM_PREFIX):
        raise EncoderNotFound(f"{name!r} lacks the name of a model: write it after the colon")
    with _pause_collector():
        device = choose_device(device)
        if name.startswith(_OPENCLIP):
            from encoders.openclip import OpenClipEncoder

            return OpenClipEncoder.load(name, name.removeprefix(_OPENCLIP), device)
        if name.startswith(SENTENCE_PREFIX):
            with quiet_transformers():
                from encoders.sentence import SentenceEncoder

                return SentenceEncoder.load(name, name.removeprefix(SENTENCE_PREFIX), device)
        if name.startswith(LVLM_PREFIX):
            with quiet_transformers():
                from encoders.lvlm import LvlmEncoder

                return LvlmEncoder.load(name, name.removeprefix(LVLM_PREFIX), device)
        folder = find_checkpoint(name)
        with quiet_transformers():
            from encoders.fwd2bot.encoder import Fwd2BotEncoder

            return Fwd2BotEncoder.load(name, folder, device)


def load_reader(name: str, fingerprint: str) -> TextEncoder:
    """Load a reader of texts and stored tokens that matches the encoder of this name and fingerprint.

    A small checkpoint, and a plain CLIP of open_clip that was loaded here before, is read with NumPy, which
    saves seconds of importing torch. Any other model, and one with another fingerprint, is loaded as a full
    encoder.
    """
    if name.startswith(_OPENCLIP):
        from encoders.openclip_reader import load_clip_reader

        return load_clip_reader(name, fingerprint) or load_encoder(name)
    from encoders.fwd2bot.numpy_reader import load_numpy_reader

    return load_numpy_reader(name, _place_checkpoint(name), fingerprint) or load_encoder(name)


def find_checkpoint(name: str) -> Path:
    """The folder of a Fwd2Bot checkpoint, fetched from the hub if it is not on disk."""
    folder = _place_checkpoint(name)
    if folder.is_dir() or name == DEFAULT_ENCODER or name.count("/") != 1:
        return _check_checkpoint(name, folder)
    from huggingface_hub import snapshot_download

    with explain_hub(name):
        # First: a repository without it is not a checkpoint, and may be a 7B LVLM. (`hf_hub_download` would
        # wait half a minute for a network.)
        _check_checkpoint(name, Path(snapshot_download(name, allow_patterns=SETTINGS_FILE)))
        return Path(snapshot_download(name))


@contextmanager
def explain_hub(name: str) -> Iterator[None]:
    """Turn errors of the hub, or of the connection to it, into EncoderNotFound."""
    try:
        yield
    except Fwd2BotError:
        raise
    except Exception as error:  # of the hub, the network, its proxy, the disk
        if is_shortage(error):
            raise
        reason = first_line(error)
        raise EncoderNotFound(
            f"{name!r} is not a folder, and the hub did not provide it ({reason}): check name and network"
        ) from error


def choose_device(device: str) -> str:
    """Check a device name and resolve "auto"; raises EncoderNotFound for a wrong name or a missing GPU."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise EncoderNotFound(
            f"There is no device {device!r}: choose auto, cpu or cuda, or one GPU such as cuda:1"
        )
    _require_current_folder()
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EncoderNotFound(
            "PyTorch sees no CUDA GPU here: use --device cpu, or install a CUDA build of PyTorch"
        )
    number = int(device.partition(":")[2] or 0)
    if number and number >= torch.cuda.device_count():
        raise EncoderNotFound(
            f"There is no GPU {device}: PyTorch sees {torch.cuda.device_count()}, from cuda:0"
        )
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _require_current_folder() -> None:
    """Refuse a current folder that was removed: MKL then ends the process, in the middle of a batch."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise EncoderNotFound(
            "PyTorch cannot compute where the current folder was removed: go to another one, and run it again"
        ) from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' messages and progress bars, then restore the program's own settings."""
    from transformers.utils import logging

    verbosity, showed_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if showed_progress:
            logging.enable_progress_bar()


def _place_checkpoint(name: str) -> Path:
    """Where a checkpoint would be on disk."""
    return Path(str(files("encoders.weights"))) if name == DEFAULT_ENCODER else Path(name).expanduser()


def _check_checkpoint(name: str, folder: Path) -> Path:
    if not (folder / SETTINGS_FILE).is_file():
        raise EncoderNotFound(
            f"{name!r} is not a model: give {DEFAULT_ENCODER!r}, a folder or hub name that holds "
            f"{SETTINGS_FILE}, {LVLM_PREFIX}NAME, {_OPENCLIP}ARCH/PRETRAINED or {SENTENCE_PREFIX}NAME"
        )
    return folder


@contextmanager
def _pause_collector() -> Iterator[None]:
    """Pause garbage collection while torch and transformers are imported and a model is loaded.

    They create millions of long-lived objects: scanning these was a third of the wait for a first answer.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
