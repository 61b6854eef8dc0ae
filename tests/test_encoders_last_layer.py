"""The last layer of pass 1, run at the summary tokens alone, gives the full layer's output there."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.last_layer import SummaryLayer, read_summaries_alone
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from tests.tiny_models import SUMMARIES, make_builder, make_fastvlm, make_pictures

TEXTS = ["a dog", "a brown dog that runs on the beach, and two children", "cat"]


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    return make_builder()


def make_model(builder: InputBuilder, mode: str = "per_pass") -> Fwd2Bot:
    torch.manual_seed(0)
    model = Fwd2Bot(make_fastvlm(builder), SUMMARIES, AdapterSettings(4, 4, mode)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # at zero, an adapter changes nothing
            torch.nn.init.normal_(weight, std=0.1)
    return model


def find_last_layer(tree: Any) -> Any:
    return getattr(tree, "get_base_model", lambda: tree)().get_decoder().layers[-1]


@torch.no_grad()
def compress_all(model: Fwd2Bot, builder: InputBuilder) -> list[Tensor]:
    """Summaries of images, all of one length; of texts, with padding; and of the first text alone."""
    inputs: list[BatchEncoding] = [builder.images(make_pictures()), builder.texts(TEXTS)]
    return [model.compress(each) for each in [*inputs, builder.texts(TEXTS[:1])]]


def test_summaries_are_those_of_the_whole_layer(builder: InputBuilder) -> None:
    model = make_model(builder)
    whole = compress_all(model, builder)
    model.prepare_inference()
    assert isinstance(find_last_layer(model.compressor), SummaryLayer)
    for found, expected in zip(compress_all(model, builder), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[0], compress_all(model, builder)[1][0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_a_mask_a_row_sees_itself_and_those_before_it(builder: InputBuilder) -> None:
    model, length = make_model(builder), SUMMARIES + 3
    model.prepare_inference()
    layer, width = find_last_layer(model.compressor), model.summary_shape[1]
    rows = torch.randn(2, length, width, generator=torch.Generator().manual_seed(0))
    turns = model.compressor.get_decoder().rotary_emb(rows, torch.arange(length)[None])
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    torch.testing.assert_close(layer(rows, None, turns), layer(rows, causal, turns))


@pytest.mark.parametrize("mode", ["shared", "none"])
def test_a_tree_that_answers_too_keeps_all_rows(builder: InputBuilder, mode: str) -> None:
    model = make_model(builder, mode)
    model.prepare_inference()
    assert model.generator is model.compressor
    assert not isinstance(find_last_layer(model.compressor), SummaryLayer)


def test_a_layer_with_a_window_stays_as_it_is(builder: InputBuilder) -> None:
    decoder = make_fastvlm(builder).get_decoder()
    decoder.layers[-1].self_attn.sliding_window = 8
    read_summaries_alone(decoder, SUMMARIES)
    assert not isinstance(decoder.layers[-1], SummaryLayer)
