"""A stock LVLM's last hidden state under a one-word prompt, against a forward written out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.base import CannotAnswer, EncoderDamaged, EncoderMismatch, EncoderNotFound, TalkingEncoder
from encoders.load import load_encoder
from encoders.lvlm import LvlmEncoder
from retrieval.ask import ask
from tests.conftest import build, paint
from tests.tiny_families import NAMES, TinyLvlm, make_lvlm_of
from tests.tiny_models import make_pictures

TEXTS = ["a red dog", "two green cats on grass in the snow"]


@pytest.fixture(scope="module", params=NAMES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyLvlm, Path]:
    torch.manual_seed(0)
    return save(make_lvlm_of(request.param), tmp_path_factory.mktemp(request.param))


def save(tiny: TinyLvlm, folder: Path) -> tuple[TinyLvlm, Path]:
    tiny.model.save_pretrained(folder)
    tiny.builder.processor.save_pretrained(folder)
    return tiny, folder


def read_by_hand(tiny: TinyLvlm, text: str, picture: Image.Image | None = None) -> np.ndarray:
    """The unit last hidden state of one prompt, without padding, by the stock model's own forward."""
    images = {"images": [[picture]]} if picture else {}
    inputs = tiny.builder.processor(text=[text], return_tensors="pt", **images)
    with torch.no_grad():
        hidden = tiny.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
    return hidden / np.linalg.norm(hidden)


def test_an_embedding_is_the_unit_last_hidden_state_of_the_stock_model(saved: tuple[TinyLvlm, Path]) -> None:
    tiny, folder = saved
    encoder = load_encoder(f"lvlm:{folder}", "cpu")
    pictures, frames = make_pictures(), tiny.builder.frames
    image_prompt = frames.fill_image("Summary above image in one word:")
    by_hand = [read_by_hand(tiny, image_prompt, picture) for picture in pictures]
    vectors, summaries = encoder.encode_images(pictures)
    np.testing.assert_allclose(vectors, by_hand, atol=1e-5)
    assert summaries is None
    prompts = [frames.fill_text(text, "Summary above sentence in one word:") for text in TEXTS]
    np.testing.assert_allclose(
        encoder.encode_texts(TEXTS), [read_by_hand(tiny, prompt) for prompt in prompts], atol=1e-5
    )
    assert (encoder.dim, vectors.dtype) == (32, np.float32)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(make_lvlm_of("llava"), tmp_path_factory.mktemp("llava"))[1]


def test_the_fingerprint_is_of_the_weights_and_the_chat_template(tmp_path: Path) -> None:
    tiny, folder = save(make_lvlm_of("llava"), tmp_path)
    before = LvlmEncoder.load("lvlm:x", str(folder), "cpu").fingerprint
    assert LvlmEncoder.load("lvlm:y", str(folder), "cpu").fingerprint == before
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER", "HUMAN"))
    changed = LvlmEncoder.load("lvlm:x", str(folder), "cpu").fingerprint
    assert changed != before
    with torch.no_grad():
        tiny.model.get_output_embeddings().weight.add_(1)
    tiny.model.save_pretrained(folder)
    assert LvlmEncoder.load("lvlm:x", str(folder), "cpu").fingerprint not in (before, changed)


def test_an_index_of_it_is_searched_and_says_that_it_cannot_answer(llava: Path, tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        paint(tmp_path / f"{colour}.png", colour)
    encoder = load_encoder(f"lvlm:{llava}", "cpu")
    assert not isinstance(encoder, TalkingEncoder)
    build(tmp_path, encoder)
    with pytest.raises(CannotAnswer):
        ask(tmp_path / ".fwd2bot", "red.png", "what is it?")


def test_a_processor_of_another_model_is_one_sentence(tmp_path: Path) -> None:
    _, folder = save(make_lvlm_of("llava"), tmp_path)
    config = folder / "processor_config.json"
    config.write_text(config.read_text().replace('"patch_size": 8', '"patch_size": 4'))
    with pytest.raises(EncoderMismatch, match=r"one place$") as caught:
        load_encoder(f"lvlm:{folder}", "cpu").encode_images(make_pictures())
    assert "\n" not in str(caught.value)


def test_a_name_that_leads_to_no_lvlm_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EncoderDamaged, match="again"):
        load_encoder(f"lvlm:{tmp_path}", "cpu")

    def refuse(name: str, **_: object) -> str:
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(EncoderNotFound, match=r"somebody/model.*no network"):
        load_encoder("lvlm:somebody/model", "cpu")
