"""Texts, questions, answers and pixels as the two passes read them."""

import pytest
import torch
from PIL import Image

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED, AdapterSettings, Fwd2Bot
from encoders.fwd2bot.writer import LONGEST_QUESTION
from tests.tiny_models import SUMMARIES, make_builder, make_fastvlm

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    return make_builder()


@pytest.fixture
def model(builder: InputBuilder) -> Fwd2Bot:
    torch.manual_seed(0)
    return Fwd2Bot(make_fastvlm(builder), SUMMARIES, AdapterSettings(4, 4)).eval()


def test_an_image_placeholder_in_a_users_text_is_no_image(model: Fwd2Bot, builder: InputBuilder) -> None:
    with torch.no_grad():
        model.compress(builder.texts(["<image> of a dog"]))
        model.answer_hidden(torch.zeros(1, SUMMARIES, 32), builder.questions(["<image><image>?"]))


def test_of_a_very_long_question_the_end_is_kept(builder: InputBuilder) -> None:
    asked = builder.questions(["dog " * 10_000 + "red cat"])["input_ids"]
    wanted = builder.questions(["red cat"])["input_ids"]
    assert asked.shape[1] <= LONGEST_QUESTION + wanted.shape[1]
    assert "red cat" in builder.tokenizer.decode(asked[0])


def test_a_very_long_text_is_cut_and_not_an_error(model: Fwd2Bot, builder: InputBuilder) -> None:
    inputs = builder.texts(["dog " * 10_000])
    prompt = builder.texts([""])["input_ids"].shape[1]
    assert inputs["input_ids"].shape[1] <= builder.longest_text + prompt
    with torch.no_grad():
        assert torch.isfinite(model.compress(inputs)).all()


def test_an_answer_that_is_cut_has_no_end_to_be_learned(builder: InputBuilder) -> None:
    end = builder.tokenizer.eos_token_id
    for words, ends in ((builder.longest_answer // 2, True), (builder.longest_answer * 2, False)):
        _, labels = builder.answers([QUESTION], ["dog " * words])
        assert (int(labels[0, -1]) == end) == ends
        assert int((labels != IGNORED).sum()) <= builder.longest_answer + 1


def test_pixels_and_pictures_make_the_same_inputs(builder: InputBuilder) -> None:
    pictures = [Image.new("RGB", (16, 16), (value, 10, 200)) for value in (0, 90, 255)]
    from_pictures = builder.images(pictures)
    from_pixels = builder.pixels(from_pictures["pixel_values"])
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(from_pixels[name], from_pictures[name])
