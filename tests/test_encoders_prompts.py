"""What the model is told: its processor's chat template, and which parts of a user's text reach it."""

from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers.normalizers import Prepend
from tokenizers.pre_tokenizers import ByteLevel

from encoders.base import EncoderDamaged
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prepend", [False, True], ids=["as it is", "a space before every text"])
def test_an_answer_has_the_tokens_that_it_has_behind_its_question(name: str, prepend: bool) -> None:
    builder = make_lvlm_of(name).builder
    tokenizer: Any = builder.tokenizer
    if prepend:  # as LLaVA-1.5's tokenizer does, which is Llama's
        tokenizer.backend_tokenizer.normalizer = Prepend(" ")
        tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    for answer in ("a dog on grass", "Yes.", "(none)"):
        _, labels = builder.answers(["is it a dog?"], [answer])
        said = [token for token in labels[0].tolist() if token != IGNORED]
        question = builder.frames.fill_image("is it a dog?")
        space = "" if question.endswith("\n") else " "
        whole = tokenizer(f"{question}{space}{answer}")["input_ids"]
        assert said == [*whole[1 - len(said) :], tokenizer.eos_token_id]


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
