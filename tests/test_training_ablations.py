"""Each ablation variant does what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from encoders.fwd2bot.adapters import find_base_model
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Fwd2Bot, pool
from tests.tiny_models import SUMMARIES, make_builder, make_fastvlm
from training.ablations.batches import prompt_images
from training.ablations.measures import average, count_bytes, divide
from training.ablations.variants import JOINT, VARIANTS, AblatedModel, Variant, count_placeholders, make_model

IMAGE_TOKENS, RANK = 4, 2
CAPTIONS = ["a red dog", "two green cats on grass in the snow"]


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    return make_builder()


@pytest.fixture(scope="module")
def lvlm(builder: InputBuilder) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make_fastvlm(builder)
    with torch.no_grad():  # as after training: no norm or bias is trivial
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_variant(lvlm: PreTrainedModel, variant: Variant, stirred: bool = True) -> AblatedModel:
    """A variant in evaluation mode; if `stirred`, with non-zero adapters, as after training."""
    torch.manual_seed(1)
    model = make_model(lvlm, variant, SUMMARIES, RANK)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if stirred and "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def make_features(lvlm: PreTrainedModel, rows: int = 2) -> Tensor:
    return torch.randn(rows, IMAGE_TOKENS, lvlm.config.text_config.hidden_size)


def lose(model: AblatedModel, builder: InputBuilder, memory: Tensor) -> Tensor:
    """The loss of each caption token, in nats."""
    places = count_placeholders(model.variant, SUMMARIES, IMAGE_TOKENS)
    asking = replace(builder, summary_count=places)
    inputs, labels = asking.answers(["what is it?"] * len(memory), CAPTIONS[: len(memory)])
    return model.token_losses(memory, inputs, labels)


def test_the_joint_variant_is_fwd2bot(lvlm: PreTrainedModel, builder: InputBuilder) -> None:
    model, features = make_variant(lvlm, VARIANTS[JOINT]), make_features(lvlm)
    reading = model.read(prompt_images(builder, 2), features)
    tokens = torch.zeros(2, 3, 16, 16)
    inputs = builder.pixels(tokens)
    seen = model.compress(inputs)
    again = model.read(prompt_images(builder, 2), model.image_features(inputs).unflatten(0, (2, -1)))
    torch.testing.assert_close(again.summaries, seen)
    asked, labels = builder.answers(["what is it?"] * 2, CAPTIONS)
    plain = Fwd2Bot.answer_hidden(model, reading.memory, asked)
    real = asked["attention_mask"].bool()
    torch.testing.assert_close(model.answer_hidden(reading.memory, asked)[real], plain[real])
    torch.testing.assert_close(model.embed(reading.summaries), pool(reading.summaries))
    assert labels.shape == asked["input_ids"].shape


def test_a_shared_adapter_is_one_set_of_tensors_and_two_have_as_many_weights(
    lvlm: PreTrainedModel,
) -> None:
    shared, joint = (make_variant(lvlm, VARIANTS[name]) for name in ("shared_adapter", JOINT))
    assert shared.compressor is shared.generator and joint.compressor is not joint.generator
    assert count_trained(shared) == count_trained(joint)
    adapters = [
        {id(each) for name, each in tree.named_parameters() if "lora" in name}
        for tree in (joint.compressor, joint.generator)
    ]
    assert adapters[0] and not adapters[0] & adapters[1]


def count_trained(model: torch.nn.Module) -> int:
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def test_without_adapters_the_summary_tokens_alone_are_trained(lvlm: PreTrainedModel) -> None:
    model = make_variant(lvlm, VARIANTS["no_adapters"])
    assert [name for name, each in model.named_parameters() if each.requires_grad] == ["summary_tokens"]


def test_the_whole_llm_is_trained_and_the_stock_stays_as_it_is(lvlm: PreTrainedModel) -> None:
    before = {name: value.clone() for name, value in lvlm.state_dict().items()}
    model = make_variant(lvlm, VARIANTS["whole_llm"])
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert any("layers" in name for name in trained) and not any("vision" in name for name in trained)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in lvlm.state_dict().items())


def test_in_a_single_forward_answers_see_the_summary_tokens_and_nothing_before_them(
    lvlm: PreTrainedModel, builder: InputBuilder
) -> None:
    """Compared with one pass over everything that masks the image and its prompt from the answer."""
    model = make_variant(lvlm, VARIANTS["single_forward"])
    features, prompt = make_features(lvlm), prompt_images(builder, 2)
    reading = model.read(prompt, features)
    asking = replace(builder, summary_count=0)
    inputs, _ = asking.answers(["what is it?"] * 2, [CAPTIONS[0]] * 2)
    image = model.place(features.flatten(0, 1), prompt["input_ids"], model._embed(prompt["input_ids"]))
    tokens = model.summary_tokens.expand(2, -1, -1)
    whole = torch.cat([image, tokens, model._embed(inputs["input_ids"])], dim=1)
    length, first = whole.shape[1], image.shape[1]
    hidden = torch.full((length, length), torch.finfo(whole.dtype).min).triu(1)
    hidden[first + SUMMARIES :, :first] = torch.finfo(whole.dtype).min
    out = (
        find_base_model(model.generator)
        .get_decoder()(inputs_embeds=whole, attention_mask=hidden.expand(2, 1, -1, -1), use_cache=False)
        .last_hidden_state
    )
    torch.testing.assert_close(reading.summaries, out[:, first : first + SUMMARIES], atol=1e-4, rtol=1e-4)
    answered = model.answer_hidden(reading.memory, inputs)
    torch.testing.assert_close(answered, out[:, first + SUMMARIES :], atol=1e-4, rtol=1e-4)
    changed = model.read(prompt, features + 1).memory
    assert not torch.allclose(model.answer_hidden(changed, inputs), answered, atol=1e-3)


def test_a_single_forward_embeds_a_text_alone_as_in_a_batch(
    lvlm: PreTrainedModel, builder: InputBuilder
) -> None:
    model = make_variant(lvlm, VARIANTS["single_forward"])
    both, alone = (model.embed_texts([builder.texts(texts)]) for texts in (CAPTIONS, CAPTIONS[:1]))
    torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=1e-5)


def test_attention_with_a_zero_query_is_the_mean_and_with_another_is_not(lvlm: PreTrainedModel) -> None:
    model = make_variant(lvlm, VARIANTS["attention"])
    summaries = torch.randn(3, SUMMARIES, model.summary_shape[1])
    torch.testing.assert_close(model.embed(summaries), pool(summaries))
    model.query.data.normal_(std=5)
    assert not torch.allclose(model.embed(summaries), pool(summaries), atol=1e-3)


def test_the_last_token_is_compared_alone(lvlm: PreTrainedModel) -> None:
    model = make_variant(lvlm, VARIANTS["last_token"])
    summaries = torch.randn(3, SUMMARIES, model.summary_shape[1])
    torch.testing.assert_close(model.embed(summaries), pool(summaries[:, -1:]))


def test_uncompressed_with_a_fresh_adapter_is_the_stock_model(
    lvlm: PreTrainedModel, builder: InputBuilder
) -> None:
    model = make_variant(lvlm, VARIANTS["uncompressed"], stirred=False)
    inputs, labels = replace(builder, summary_count=IMAGE_TOKENS).answers(["what is it?"] * 2, CAPTIONS)
    pixels = torch.randn(2, 3, 16, 16)
    features = model.image_features(builder.pixels(pixels)).unflatten(0, (2, -1))
    with torch.no_grad():
        logits = lvlm(**inputs, pixel_values=pixels, position_ids=count_real(inputs["attention_mask"])).logits
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none"
    )
    found = model.token_losses(model.read(inputs, features).memory, inputs, labels)
    torch.testing.assert_close(found.flatten(), wanted, atol=1e-4, rtol=1e-4)


def count_real(mask: Tensor) -> Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", [JOINT, "single_forward", "uncompressed"])
def test_what_is_said_is_the_most_likely_token_each_time(
    lvlm: PreTrainedModel, builder: InputBuilder, name: str
) -> None:
    model = make_variant(lvlm, VARIANTS[name])
    memory = model.read(prompt_images(builder, 2), make_features(lvlm)).memory
    asking = replace(builder, summary_count=count_placeholders(model.variant, SUMMARIES, IMAGE_TOKENS))
    inputs = asking.questions(["what is it?", "what?"])
    said = model.say(memory, inputs, 5, end=-5)  # an id that no token has
    ids, head = inputs["input_ids"], lvlm.get_output_embeddings()
    for place in range(5):
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, place), value=1)
        whole = type(inputs)({"input_ids": torch.cat([ids, said[:, :place]], dim=1), "attention_mask": mask})
        hidden = model.answer_hidden(memory, whole)[:, -1]
        assert torch.equal(head(hidden).argmax(dim=-1), said[:, place])  # type: ignore[misc]
    ended = model.say(memory, inputs, 5, end=int(said[0, 1]))
    assert (ended[0, 1:] == said[0, 1]).all()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [(JOINT, SUMMARIES), ("k16", 16), ("single_forward", 4 * SUMMARIES), ("uncompressed", 4)],
)
def test_bytes_are_those_of_what_is_kept(
    lvlm: PreTrainedModel, builder: InputBuilder, name: str, tokens: int
) -> None:
    """The keys and values of two layers take four times the bytes of the summary tokens."""
    model = make_variant(lvlm, VARIANTS[name])
    memory = model.read(prompt_images(builder, 2), make_features(lvlm)).memory
    width = model.summary_shape[1]
    embedding = 0 if name == "uncompressed" else 2 * width
    assert count_bytes(model, memory) == tokens * (width + 4) + embedding


def test_errors_are_those_of_photos_drawn_anew() -> None:
    random = np.random.default_rng(0)
    sums, counts = random.gamma(2, 3, 400), random.integers(1, 6, 400).astype(float)
    draws = random.integers(0, 400, (4000, 400))
    ratio = average(divide(sums, counts))
    assert ratio.value == pytest.approx(sums.sum() / counts.sum())
    ratios = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    assert ratio.error == pytest.approx(ratios.std(), rel=0.1)
    assert average(sums).error == pytest.approx(sums[draws].mean(axis=1).std(), rel=0.1)
