"""Which dtype a device computes in, and that an embedding hardly depends on it."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.load import load_encoder
from encoders.precision import autocast, choose_dtype

WORDS = ["a large red circle", "a dog runs on grass"]


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let the CPU's capabilities decide the dtype, as they do outside of tests."""
    monkeypatch.setattr("encoders.precision._HARDWARE", ("avx512_bf16", "amx_bf16"))
    return monkeypatch


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({}, torch.float32)],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    hardware: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    hardware.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_dtype("cpu") is dtype
    assert choose_dtype("cuda:0") is torch.bfloat16


@pytest.mark.parametrize("able", [True, False])
def test_training_computes_in_the_numbers_that_the_device_is_fast_in(
    hardware: pytest.MonkeyPatch, able: bool
) -> None:
    hardware.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    held = torch.ones(2, 2)
    with autocast(torch.device("cpu")):
        assert (held @ held).dtype is choose_dtype("cpu") is (torch.bfloat16 if able else torch.float32)


def test_an_index_made_in_bfloat16_is_searched_in_float32(hardware: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 7, 7, 3), np.uint8)
    images = [Image.fromarray(pixels).resize((112, 112)) for pixels in noise]
    encoders = []
    for able in (True, False):
        hardware.setattr(
            torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able}, raising=False
        )
        encoders.append(load_encoder("tiny"))
    short, full = encoders
    assert short.fingerprint == full.fingerprint
    assert not np.array_equal(short.encode_texts(WORDS), full.encode_texts(WORDS))
    for rows, wanted in [
        (short.encode_texts(WORDS), full.encode_texts(WORDS)),
        (short.encode_images(images).vectors, full.encode_images(images).vectors),
    ]:
        assert (rows * wanted).sum(axis=1).min() > 0.999
