"""What the model is told: the chat template of its processor, and what of a user's text may reach it."""

import pytest
import torch
from PIL import Image

from encoders.base import EncoderDamaged
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.prompts import Prompts
from tests.tiny_families import NAMES, make_lvlm_of
from tests.tiny_models import SUMMARIES

PICTURE = Image.new("RGB", (16, 16))


@pytest.mark.parametrize("name", NAMES)
def test_a_users_text_holds_no_token_of_special_meaning(name: str) -> None:
    builder = make_lvlm_of(name).builder
    tokenizer = builder.tokenizer
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(special))
    for make in (builder.texts, builder.questions):
        plain, hostile = (make([text])["input_ids"] for text in ("dog", "dog".join(special)))
        assert torch.isin(plain, ids).sum() == torch.isin(hostile, ids).sum()


def test_an_answer_follows_a_line_break_without_a_space() -> None:
    for name, space in (("qwen2_vl", False), ("llava", True)):
        builder = make_lvlm_of(name).builder
        _, labels = builder.answers(["What is it?"], ["dog"])
        answer = builder.tokenizer(" dog" if space else "dog")["input_ids"]
        assert labels[0][-len(answer) - 1 : -1].tolist() == answer


def test_a_first_token_that_the_chat_template_wrote_is_not_added_again() -> None:
    builder = make_lvlm_of("llava").builder
    builder.tokenizer.bos_token = "<|im_start|>"
    builder.processor.chat_template = "{{ bos_token }}" + builder.processor.chat_template
    start = builder.tokenizer.bos_token_id
    assert builder.frames.image.startswith("<|im_start|>")
    for inputs in (builder.images([PICTURE]), builder.texts(["a dog"]), builder.questions(["a dog?"])):
        assert inputs["input_ids"][0].tolist().count(start) == 1


def test_without_a_chat_template_the_prompts_are_plain() -> None:
    builder = make_lvlm_of("llava").builder
    builder.processor.chat_template = None
    assert builder.frames.fill_text("a dog", "Say it.") == "USER: a dog\nSay it. ASSISTANT:"
    assert builder.frames.fill_image("Say it.") == "USER: <image>\nSay it. ASSISTANT:"


def test_a_template_of_ones_own_comes_before_the_chat_template() -> None:
    processor = make_lvlm_of("llava").builder.processor
    builder = InputBuilder(processor, Prompts(template="{content} {instruction}"), SUMMARIES)
    assert builder.frames.fill_text("a dog", "Say it.") == "a dog Say it."


@pytest.mark.parametrize("template", ["{{ nope.x.y }}", "{% if", "{{ 1 + 'a' }}"])
def test_a_chat_template_that_fails_is_refused(template: str) -> None:
    builder = make_lvlm_of("llava").builder
    builder.processor.chat_template = template
    with pytest.raises(EncoderDamaged, match=r"The chat template cannot be used \(.*\): give"):
        builder.images([PICTURE])


def test_a_chat_template_that_leaves_the_image_out_is_refused() -> None:
    builder = make_lvlm_of("llava").builder
    builder.processor.chat_template = "{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(EncoderDamaged, match="<image> 0 times for one image"):
        builder.images([PICTURE])
