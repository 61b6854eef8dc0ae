"""Model and device names: what they resolve to, and the message where they resolve to nothing."""

import gc
import socket
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers.utils import logging

from encoders.base import EncoderNotFound, MissingDependency
from encoders.load import choose_device, load_encoder


def test_a_name_that_leads_nowhere_says_what_a_name_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tinny", str(tmp_path)):
        with pytest.raises(EncoderNotFound, match=r"'tiny'.*openclip"):
            load_encoder(name, "cpu")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(EncoderNotFound, match=r"somebody/model.*no network"):
        load_encoder("somebody/model", "cpu")


@pytest.mark.parametrize("prefix", ["", "lvlm:"])
@pytest.mark.parametrize("accepts", [False, True])
def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, accepts: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        if accepts:  # and then hangs up
            Thread(target=lambda: hub.accept()[0].close(), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waits to try again"))
        if not accepts:
            hub.close()
        with pytest.raises(EncoderNotFound, match=r"somebody/model.*check name and network"):
            load_encoder(f"{prefix}somebody/model", "cpu")


def test_loading_leaves_the_program_around_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("froze what is not its own"))
    logging.set_verbosity_info()
    try:
        load_encoder("tiny", "cpu")
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
        assert gc.isenabled()
    finally:
        logging.set_verbosity_warning()


@pytest.mark.parametrize("prefix", ["lvlm:", "st:", "openclip:"])
def test_a_prefix_without_a_name_is_refused_as_such(prefix: str) -> None:
    with pytest.raises(EncoderNotFound, match=f"'{prefix}' lacks the name of a model"):
        load_encoder(prefix, "cpu")


def test_what_is_no_checkpoint_is_not_fetched_to_find_that_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(name: str, allow_patterns: str) -> str:
        assert allow_patterns == "fwd2bot.json"
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(EncoderNotFound, match=r"is not a model: give .*lvlm:NAME"):
        load_encoder("llava-hf/llava-1.5-7b-hf", "cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(EncoderNotFound, match="auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(EncoderNotFound, match="no CUDA GPU"):
            choose_device("cuda")


def test_openclip_without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingDependency, match=r"fwd2bot\[openclip\]"):
        load_encoder("openclip:ViT-B-32/openai", "cpu")


def test_openclip_with_a_torchvision_of_another_torch_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_clip.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependency, match=r"::nms does not exist.*force-reinstall torch torchvision"):
        load_encoder("openclip:ViT-B-32/openai", "cpu")
