"""The open_clip baseline against open_clip itself, where the extra is installed: `make test-openclip`."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils.import_utils import is_torchvision_available

from encoders.base import EncoderNotFound, TalkingEncoder
from encoders.load import load_encoder
from encoders.openclip import OpenClipEncoder, read_class_token_alone
from tests.open_clip_here import make_model, publish

ARCHITECTURE = "ViT-S-32-alt"  # the smallest; random weights are enough for a comparison
PICTURES = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue", "white")]
TEXTS = ["a red wall", "the sea"]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(ARCHITECTURE)


@pytest.fixture(scope="module")
def encoder(model: Any) -> OpenClipEncoder:
    return make_encoder(model)


def make_encoder(model: Any) -> OpenClipEncoder:
    """An encoder of a copy of the model, because an encoder changes the one it is given."""
    import open_clip

    preprocess = open_clip.create_model_and_transforms(ARCHITECTURE)[2]
    return OpenClipEncoder(
        "mine", copy.deepcopy(model), preprocess, open_clip.get_tokenizer(ARCHITECTURE), "cpu"
    )


def test_embeddings_are_open_clips_own(model: Any, encoder: OpenClipEncoder) -> None:
    with torch.no_grad():
        pixels = torch.stack([encoder.preprocess(picture) for picture in PICTURES])
        images = model.encode_image(pixels, normalize=True).numpy()
        texts = model.encode_text(encoder.tokenizer(TEXTS), normalize=True).numpy()
    vectors, summaries = encoder.encode_images(PICTURES)
    np.testing.assert_allclose(vectors, images, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-6)
    assert summaries is None and not isinstance(encoder, TalkingEncoder)
    assert vectors.shape[1] == encoder.dim and encoder.image_size == 224


def test_the_last_block_computes_the_class_token_alone(encoder: OpenClipEncoder) -> None:
    shapes = list[torch.Size]()
    last = encoder.model.visual.transformer.resblocks[-1]
    with last.register_forward_hook(lambda block, rows, output: shapes.append(output.shape)):
        encoder.encode_images(PICTURES)
    assert [shape[:2] for shape in shapes] == [(len(PICTURES), 1)]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        (ARCHITECTURE, {"pool_type": "avg"}),
        (ARCHITECTURE, {"output_tokens": True}),
        ("ViT-S-16-alt", {}),
        ("coca_ViT-B-32", {}),
        ("RN50", {}),
    ],
)
def test_a_tower_of_which_more_is_read_stays_as_it_is(architecture: str, changes: dict[str, Any]) -> None:
    import open_clip

    tower: Any = open_clip.create_model(architecture).visual.eval()
    for name, value in changes.items():
        setattr(tower, name, value)
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before = tower(pixels)
        read_class_token_alone(tower)
        after = tower(pixels)
    torch.testing.assert_close(after, before)


def test_the_fingerprint_follows_the_weights(model: Any, encoder: OpenClipEncoder) -> None:
    other = copy.deepcopy(model)
    assert make_encoder(other).fingerprint == encoder.fingerprint
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert make_encoder(other).fingerprint != encoder.fingerprint


def test_the_fingerprint_is_not_of_where_a_function_lies_in_memory(encoder: OpenClipEncoder) -> None:
    class Steps:
        def __init__(self, address: str) -> None:
            self.address = address

        def __repr__(self) -> str:
            return f"Compose(<function _convert_to_rgb at {self.address}>)"

    one, other = (
        OpenClipEncoder("mine", encoder.model, Steps(address), encoder.tokenizer, "cpu").fingerprint
        for address in ("0x7f00aa", "0x000001E5B2C4A8B0")
    )
    assert one == other


def test_rows_have_unit_length_in_bfloat16_too(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.openclip.choose_dtype", lambda _: torch.bfloat16)
    short = make_encoder(model)
    for rows in (short.encode_images(PICTURES).vectors, short.encode_texts(TEXTS)):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert short.encode_texts([]).shape == (0, short.dim)


def test_torchvision_makes_no_other_model_of_an_lvlm() -> None:
    encoder: Any = load_encoder("tiny", "cpu")
    assert is_torchvision_available()
    assert type(encoder.builder.processor.image_processor).__name__.endswith("Pil")


@pytest.mark.parametrize(
    ("name", "hint"), [("ViT-B-32/nope", "ViT-B-32/openai"), ("Nope/x", "list_pretrained")]
)
def test_an_unknown_name_says_which_are_known(name: str, hint: str) -> None:
    with pytest.raises(EncoderNotFound, match=hint):
        OpenClipEncoder.load(f"openclip:{name}", name, "cpu")


def test_weights_that_are_not_drawn_are_all_read(
    model: Any, encoder: OpenClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish(model, ARCHITECTURE, tmp_path, monkeypatch)
    assert load_encoder(name, "cpu").fingerprint == encoder.fingerprint


def test_weights_take_memory_once(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import factory

    read, places = factory.load_state_dict, set[int]()

    def keep_places(*names: Any, **options: Any) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = read(*names, **options)
        places.update(tensor.data_ptr() for tensor in tensors.values())
        return tensors

    monkeypatch.setattr(factory, "load_state_dict", keep_places)
    monkeypatch.setattr("encoders.openclip.choose_dtype", lambda _: torch.float32)
    encoder: Any = load_encoder(publish(model, ARCHITECTURE, tmp_path, monkeypatch), "cpu")
    assert {parameter.data_ptr() for parameter in encoder.model.parameters()} <= places


def test_weights_of_another_dtype_are_converted(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders.openclip.choose_dtype", lambda _: torch.float32)
    half = copy.deepcopy(model).half()
    encoder: Any = load_encoder(publish(half, ARCHITECTURE, tmp_path, monkeypatch), "cpu")
    for ours, theirs in zip(encoder.model.parameters(), half.parameters(), strict=True):
        assert torch.equal(ours, theirs.float())
