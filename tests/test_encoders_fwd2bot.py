"""Fwd2Bot against a stock transformers forward written out by hand, and against itself."""

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    BatchEncoding,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SwinConfig,
)

from encoders.base import EncoderMismatch
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import IGNORED, AdapterSettings, Answers, Fwd2Bot, pool
from tests.conftest import NO_MEMORY
from tests.tiny_models import BATCH, SUMMARIES, make_builder, make_fastvlm, make_pictures

QUESTION = "What is it?"


def make_llava(builder: InputBuilder, vision: str) -> PreTrainedModel:
    """Stock LLaVA with a CLIP tower (without its class token) or a Swin tower; 4 image tokens."""
    text = LlamaConfig(
        vocab_size=len(builder.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    towers = {
        "clip": CLIPVisionConfig(
            image_size=16,
            patch_size=8,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        "swin": SwinConfig(
            image_size=16, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=2
        ),
    }
    config = LlavaConfig(
        vision_config=towers[vision],
        text_config=text,
        image_token_index=builder.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default" if vision == "clip" else "full",
        vision_feature_layer=-2 if vision == "clip" else -1,
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def builder() -> InputBuilder:
    return make_builder()


@pytest.fixture(params=["fastvlm", "llava-clip", "llava-swin"])
def lvlm(request: pytest.FixtureRequest, builder: InputBuilder) -> PreTrainedModel:
    torch.manual_seed(0)
    if request.param == "fastvlm":
        return make_fastvlm(builder)
    return make_llava(builder, request.param.removeprefix("llava-"))


@pytest.fixture
def model(builder: InputBuilder) -> Fwd2Bot:
    torch.manual_seed(0)
    return randomize_adapters(Fwd2Bot(make_fastvlm(builder), SUMMARIES, AdapterSettings(4, 4)))


def randomize_adapters(model: Fwd2Bot) -> Fwd2Bot:
    """Make the adapters differ: at LoRA's initial zeros, both would do nothing."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_step(builder: InputBuilder) -> tuple[list[BatchEncoding], list[BatchEncoding], list[Answers]]:
    texts = ["a red dog", "two green cats on grass", "snow"]
    inputs, labels = builder.answers([QUESTION] * BATCH, texts)
    answers = [Answers(torch.arange(BATCH), inputs, labels)]
    return [builder.images(make_pictures())], [builder.texts(texts)], answers


def total_loss(model: Fwd2Bot, builder: InputBuilder) -> Tensor:
    output = model(*make_step(builder))
    similarity = pool(output.sources) @ pool(output.targets).T
    return torch.nn.functional.cross_entropy(similarity * 10, torch.arange(BATCH)) + output.answer_loss


def gradients(model: Fwd2Bot) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_pass_one_equals_a_stock_forward_written_out_by_hand(
    lvlm: PreTrainedModel, builder: InputBuilder
) -> None:
    model = Fwd2Bot(lvlm, SUMMARIES).eval()  # fresh LoRA adds nothing
    inputs = builder.images(make_pictures())
    with torch.no_grad():
        words = lvlm.get_input_embeddings()(inputs["input_ids"])
        features = lvlm.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        for row in range(BATCH):
            places = inputs["input_ids"][row] == lvlm.config.image_token_id
            words[row, places] = features[row]
        sequence = torch.cat([words, model.summary_tokens.expand(BATCH, -1, -1)], dim=1)
        stock = lvlm.model.language_model(inputs_embeds=sequence).last_hidden_state[:, -SUMMARIES:]
        ours = model.compress(inputs)
    torch.testing.assert_close(ours, stock)


def test_pass_two_over_the_models_own_image_features_gives_the_stock_logits(
    lvlm: PreTrainedModel, builder: InputBuilder
) -> None:
    """With k set to the number of image tokens and H_v in place of H_c, pass 2 is the stock model."""
    model = Fwd2Bot(lvlm, SUMMARIES).eval()
    pictures = make_pictures()
    prompt = builder.frames.fill_image(QUESTION)
    stock_inputs = builder.processor(images=pictures, text=[prompt] * BATCH, return_tensors="pt")
    with torch.no_grad():
        features = model.image_features(builder.images(pictures)).unflatten(0, (BATCH, -1))
        stock = lvlm(**stock_inputs).logits
        hidden = model.answer_hidden(features, builder.questions([QUESTION] * BATCH))
        ours = lvlm.get_output_embeddings()(hidden)
    assert features.shape[1] == SUMMARIES
    torch.testing.assert_close(ours, stock)


def test_generation_from_image_features_is_the_stock_models_own(
    lvlm: PreTrainedModel, builder: InputBuilder
) -> None:
    model = Fwd2Bot(lvlm, SUMMARIES).eval()
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": builder.tokenizer.pad_token_id}
    prompt = builder.frames.fill_image(QUESTION)
    stock_inputs = builder.processor(images=make_pictures(), text=[prompt] * BATCH, return_tensors="pt")
    stock = lvlm.generate(**stock_inputs, **settings)[:, stock_inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        features = model.image_features(builder.images(make_pictures())).unflatten(0, (BATCH, -1))
    ours = model.generate(features, builder.questions([QUESTION] * BATCH), **settings)
    assert ours.tolist() == stock.tolist()


def test_a_text_alone_equals_its_row_in_a_padded_batch(model: Fwd2Bot, builder: InputBuilder) -> None:
    texts = ["snow", "two green cats on grass under a very blue sky", "a dog"]
    with torch.no_grad():
        together = model.compress(builder.texts(texts))
        alone = torch.cat([model.compress(builder.texts([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_an_answers_loss_alone_equals_its_row_in_a_padded_batch(
    model: Fwd2Bot, builder: InputBuilder
) -> None:
    answers = ["snow", "two green cats on grass under a very blue sky", "a dog"]
    summaries = torch.randn(3, *model.summary_shape)
    with torch.no_grad():
        together = model.token_losses(summaries, *builder.answers([QUESTION] * 3, answers)).sum(dim=1)
        alone = [
            model.token_losses(summaries[row : row + 1], *builder.answers([QUESTION], [answer])).sum()
            for row, answer in enumerate(answers)
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_token_losses_are_the_stock_cross_entropy_of_the_labelled_tokens(
    model: Fwd2Bot, builder: InputBuilder
) -> None:
    summaries = torch.randn(2, *model.summary_shape)
    inputs, labels = builder.answers([QUESTION] * 2, ["a dog", "a red bird in snow"])
    with torch.no_grad():
        ours = model.token_losses(summaries, inputs, labels)
        logits = model.lvlm.lm_head(model.answer_hidden(summaries, inputs))
    naive = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    torch.testing.assert_close(ours, naive)
    assert (labels != IGNORED).sum() == sum(
        len(builder.tokenizer(f" {text}")["input_ids"]) + 1 for text in ("a dog", "a red bird in snow")
    )


def test_one_backward_reaches_both_adapters_and_the_summary_tokens(
    model: Fwd2Bot, builder: InputBuilder
) -> None:
    total_loss(model, builder).backward()
    found = gradients(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(found) == sorted(trainable)
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    kinds = {name.split(".")[0] for name in found}
    assert kinds == {"compressor", "generator", "summary_tokens"}


def test_the_answer_loss_alone_reaches_pass_one_through_the_summaries(
    model: Fwd2Bot, builder: InputBuilder
) -> None:
    model(*make_step(builder)).answer_loss.backward()
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model).values())


def test_a_step_tells_the_mean_of_each_images_features(model: Fwd2Bot, builder: InputBuilder) -> None:
    sources, targets, answers = make_step(builder)
    with torch.no_grad():
        means = model(sources, targets, answers).images
        features = model.image_features(sources[0]).unflatten(0, (BATCH, -1))
    torch.testing.assert_close(means, features.mean(dim=1))


def test_gradient_checkpointing_changes_no_gradient(model: Fwd2Bot, builder: InputBuilder) -> None:
    model.train()
    model.lvlm.model.vision_tower.eval()  # its batch statistics are not tested here
    total_loss(model, builder).backward()
    plain = gradients(model)
    model.zero_grad()
    model.enable_gradient_checkpointing()
    total_loss(model, builder).backward()
    recomputed = gradients(model)
    assert recomputed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-4)


def test_each_pass_uses_its_own_adapter_alone(model: Fwd2Bot, builder: InputBuilder) -> None:
    inputs = builder.texts(["a dog"])
    questions = builder.questions([QUESTION])
    with torch.no_grad():
        summaries, hidden = model.compress(inputs), model.answer_hidden(model.compress(inputs), questions)
        for name, parameter in model.generator.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        assert torch.equal(model.compress(inputs), summaries)
        assert not torch.allclose(model.answer_hidden(summaries, questions), hidden)


def test_both_trees_hold_the_very_tensors_of_the_base(model: Fwd2Bot) -> None:
    base = {parameter.data_ptr() for parameter in model.lvlm.parameters()}
    for tree in (model.compressor, model.generator):
        assert isinstance(tree, PeftModel)
        shared = {p.data_ptr() for name, p in tree.named_parameters() if "lora_" not in name}
        assert shared == base


def test_the_vocabulary_is_not_resized_for_summary_tokens(model: Fwd2Bot, builder: InputBuilder) -> None:
    assert model.lvlm.get_input_embeddings().weight.shape[0] == len(builder.tokenizer)


def test_pass_one_does_not_run_the_language_models_head(model: Fwd2Bot, builder: InputBuilder) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("lm_head was run")

    hooks = [
        tree.get_base_model().lm_head.register_forward_pre_hook(refuse)
        for tree in (model.compressor, model.generator)
    ]
    hooks.append(model.lvlm.lm_head.register_forward_pre_hook(refuse))
    with torch.no_grad():
        assert model.compress(builder.images(make_pictures())).shape == (BATCH, *model.summary_shape)
    assert len(hooks) == 3


def test_an_embedding_is_the_unit_mean_of_the_summary_tokens() -> None:
    summaries = torch.randn(5, 3, 8)
    mean = summaries.mean(dim=1)
    torch.testing.assert_close(pool(summaries), mean / mean.norm(dim=1, keepdim=True))


def test_features_that_do_not_fill_their_places_are_refused(model: Fwd2Bot, builder: InputBuilder) -> None:
    with pytest.raises(EncoderMismatch, match="places for"):
        model.answer_hidden(torch.zeros(1, SUMMARIES + 1, 32), builder.questions([QUESTION]))


def test_pixels_that_the_tower_cannot_read_are_refused(model: Fwd2Bot, builder: InputBuilder) -> None:
    inputs = builder.images(make_pictures())
    inputs["pixel_values"] = inputs["pixel_values"][:, :1]  # one channel of three
    with pytest.raises(EncoderMismatch, match=r"cannot read what its processor makes.*of one make"):
        model.compress(inputs)


@pytest.mark.parametrize("words", [NO_MEMORY, "could not create a primitive"])
def test_a_tower_without_memory_does_not_blame_the_pixels(
    model: Fwd2Bot, builder: InputBuilder, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(model.lvlm, "get_image_features", fail)
    with pytest.raises(RuntimeError, match=words):
        model.compress(builder.images(make_pictures()))
