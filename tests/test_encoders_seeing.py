"""Answers from pixels, against a greedy loop over the stock model's forward; one question per image."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from encoders.base import SeeingEncoder
from encoders.fwd2bot.adapters import find_base_model
from encoders.fwd2bot.checkpoint import Checkpoint
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.model import Fwd2Bot
from encoders.fwd2bot.writer import LONGEST_REPLY
from encoders.load import load_encoder
from tests.tiny_families import TinyLvlm, make_lvlm_of
from tests.tiny_models import SUMMARIES, make_builder, make_fastvlm, make_pictures

QUESTIONS = ["what is it?", "a red dog in the snow what is it?", "two cats?"]


def answer_by_hand(tiny: TinyLvlm, picture: Image.Image, question: str) -> str:
    """The greedy answer, one token at a time, without a cache and without padding."""
    inputs = tiny.builder.processor(
        text=[tiny.builder.frames.fill_image(question)], images=[[picture]], return_tensors="pt"
    )
    ids = inputs["input_ids"]
    start, end = ids.shape[1], tiny.builder.tokenizer.eos_token_id
    while ids.shape[1] - start < LONGEST_REPLY and (ids.shape[1] == start or ids[0, -1] != end):
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            ids = torch.cat([ids, tiny.model(**inputs).logits[:, -1:].argmax(dim=-1)], dim=1)
    return tiny.builder.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_answers_from_pixels_are_the_stock_models_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = make_lvlm_of("llava")
    tiny.model.save_pretrained(tmp_path)
    tiny.builder.processor.save_pretrained(tmp_path)
    encoder = load_encoder(f"lvlm:{tmp_path}", "cpu")
    assert isinstance(encoder, SeeingEncoder)
    pictures = make_pictures()
    by_hand = [answer_by_hand(tiny, *pair) for pair in zip(pictures, QUESTIONS, strict=True)]
    assert len(set(by_hand)) > 1
    assert encoder.answer_images(pictures, QUESTIONS) == by_hand
    assert encoder.caption_images(pictures[:1]) == [answer_by_hand(tiny, pictures[0], "Describe the image.")]


def test_an_answer_ends_with_what_it_was_taught_to_end_with() -> None:
    """Whichever end token the base's configuration names, if any."""
    builder = make_builder()
    model = Fwd2Bot(make_fastvlm(builder), SUMMARIES).eval()
    find_base_model(model.generator).generation_config.eos_token_id = None
    taught = builder.writer.answer("a red dog")
    assert taught[-1] == builder.tokenizer.eos_token_id
    words = itertools.cycle(taught)

    def foretell(_: nn.Module, given: object, logits: Tensor) -> Tensor:
        return torch.full_like(logits, -1.0).index_fill(-1, torch.tensor(next(words)), 1.0)

    find_base_model(model.generator).get_output_embeddings().register_forward_hook(foretell)
    checkpoint = Checkpoint(model, builder.processor, builder.prompts)
    encoder = Fwd2BotEncoder("new", "", checkpoint, torch.device("cpu"))
    assert encoder.caption(np.zeros((1, *model.summary_shape), np.float32)) == ["a red dog"]


@pytest.fixture(scope="module")
def encoder() -> Fwd2BotEncoder:
    return load_encoder("tiny", "cpu")  # type: ignore[return-value]


def test_each_image_may_have_a_question_of_its_own(encoder: Fwd2BotEncoder) -> None:
    summaries = encoder.encode_images(make_pictures()).summaries
    assert summaries is not None
    alone = [encoder.answer(summaries[row : row + 1], question)[0] for row, question in enumerate(QUESTIONS)]
    assert encoder.answer(summaries, QUESTIONS) == alone


def test_a_checkpoint_answers_from_pixels_by_the_adapter_of_pass_two(encoder: Fwd2BotEncoder) -> None:
    pictures = make_pictures()
    adapted = TinyLvlm(find_base_model(encoder.model.generator), encoder.builder)
    stock = TinyLvlm(encoder.model.lvlm, encoder.builder)
    expected = answer_by_hand(adapted, pictures[0], QUESTIONS[0])
    assert expected != answer_by_hand(stock, pictures[0], QUESTIONS[0])
    assert isinstance(encoder, SeeingEncoder)
    assert encoder.answer_images(pictures[:1], QUESTIONS[:1]) == [expected]
    assert encoder.caption_images(pictures) == encoder.answer_images(pictures, ["Describe the image."] * 3)
