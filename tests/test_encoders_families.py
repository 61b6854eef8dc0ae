"""Each LVLM family against a stock transformers forward written out by hand, and against itself."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
)

from encoders.base import EncoderDamaged, EncoderMismatch, EncoderNotFound, MissingDependency
from encoders.fwd2bot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from encoders.fwd2bot.families import FAMILIES, find_family, find_family_of_processor
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Fwd2Bot, pool
from encoders.fwd2bot.pretrained import load_lvlm
from tests.tiny_families import DYNAMIC, NAMES, TinyLvlm, make_lvlm_of
from tests.tiny_models import SUMMARIES

QUESTIONS = ["What is it?", "Where are the two green cats, and what is the dog in the snow doing?"]
SIZES = [(16, 16), (20, 20), (40, 40), (40, 12), (12, 40), (33, 17), (17, 33), (64, 64)]


def draw(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A noise picture of this (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


PICTURES = [draw(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest) -> TinyLvlm:
    torch.manual_seed(0)
    return make_lvlm_of(request.param)


@pytest.fixture(scope="module")
def fresh(tiny: TinyLvlm) -> Fwd2Bot:
    """A model with fresh adapters, which add nothing yet."""
    torch.manual_seed(1)
    return Fwd2Bot(tiny.model, SUMMARIES).eval()


@pytest.fixture(scope="module")
def adapted(tiny: TinyLvlm) -> Fwd2Bot:
    """A model whose two adapters differ."""
    torch.manual_seed(2)
    model = Fwd2Bot(tiny.model, SUMMARIES).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def count_image_tokens(model: PreTrainedModel, input_ids: Tensor) -> list[int]:
    return (input_ids == model.config.image_token_id).sum(dim=1).tolist()


@torch.no_grad()
def test_pass_one_is_the_stock_forward_over_a_prompt_that_ends_in_the_summary_tokens(
    tiny: TinyLvlm, fresh: Fwd2Bot
) -> None:
    """k words that no prompt uses get the summary tokens as embeddings; all else is the stock model."""
    inputs = tiny.builder.images(PICTURES)
    ours = fresh.compress(inputs)
    words = tiny.model.get_input_embeddings().weight
    unused = [word for word in range(len(words)) if word not in inputs["input_ids"]][:SUMMARIES]
    before = words[unused].clone()
    words[unused] = fresh.summary_tokens
    ending = torch.tensor(unused).expand(len(PICTURES), -1)
    extended = dict(inputs) | {
        "input_ids": torch.cat([inputs["input_ids"], ending], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(ending)], dim=1),
    }
    if "mm_token_type_ids" in inputs:
        extended["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], 0 * ending], dim=1)
    stock = tiny.model.model(**extended).last_hidden_state[:, -SUMMARIES:]
    words[unused] = before
    close(ours, stock)


@torch.no_grad()
def test_pass_two_over_the_models_own_image_features_gives_the_stock_logits(
    tiny: TinyLvlm, fresh: Fwd2Bot
) -> None:
    """Pass 2 reads features as text: no height and width positions, no features added to deeper layers."""
    family, picture = fresh.family, draw((16, 32))
    whole = {"do_image_splitting": False} if "fake" in family.before else {}  # one tile only
    prompt = tiny.builder.frames.fill_image(QUESTIONS[0])
    stock_inputs = tiny.builder.processor(images=[[picture]], text=[prompt], return_tensors="pt", **whole)
    pixels = {name: value for name, value in stock_inputs.items() if name != "input_ids"}
    features = fresh.image_features(pixels)
    if family.spatial_positions:
        length = stock_inputs["input_ids"].shape[1]
        stock_inputs["position_ids"] = torch.arange(length).expand(3, 1, -1)
    deep = tiny.model.model.visual.deepstack_visual_indexes if family.deep_features else []
    kept = [deep.pop() for _ in range(len(deep))]
    stock = tiny.model(**stock_inputs).logits
    deep.extend(reversed(kept))
    builder = InputBuilder(tiny.builder.processor, tiny.builder.prompts, len(features))
    inputs = builder.questions([QUESTIONS[0]])
    assert inputs["input_ids"].tolist() == stock_inputs["input_ids"].tolist()
    close(tiny.model.get_output_embeddings()(fresh.answer_hidden(features[None], inputs)), stock)


@torch.no_grad()
def test_an_image_or_text_alone_equals_its_row_in_a_batch_of_eight(tiny: TinyLvlm, adapted: Fwd2Bot) -> None:
    together = adapted.compress(tiny.builder.images(PICTURES))
    texts = ["two green cats on grass " * length for length in range(1, 9)]
    together_texts = adapted.compress(tiny.builder.texts(texts))
    for row in (0, 3, 7):
        close(together[row : row + 1], adapted.compress(tiny.builder.images([PICTURES[row]])))
        close(together_texts[row : row + 1], adapted.compress(tiny.builder.texts([texts[row]])))


@pytest.mark.parametrize("tiny", DYNAMIC, indirect=True)
def test_images_of_many_sizes_have_their_own_numbers_of_tokens_in_one_batch(
    tiny: TinyLvlm, fresh: Fwd2Bot
) -> None:
    inputs = tiny.builder.images(PICTURES)
    counts = count_image_tokens(tiny.model, inputs["input_ids"])
    assert len(set(counts)) > 1
    with torch.no_grad():
        features = fresh.image_features(inputs)
        means = fresh.average_features(features, inputs)
        half = fresh.average_features(features.bfloat16(), inputs)
    assert len(features) == sum(counts)
    for mean, of_half, part in zip(means, half, features.split(counts), strict=True):
        close(mean, part.mean(dim=0))
        close(of_half, part.bfloat16().float().mean(dim=0))  # summed in float32


@torch.no_grad()
def test_half_precision_as_on_a_gpu_gives_nearly_the_same_embeddings(tiny: TinyLvlm) -> None:
    half, full = (
        Fwd2Bot(copy.deepcopy(tiny.model).to(dtype), SUMMARIES) for dtype in (torch.bfloat16, torch.float32)
    )
    half.summary_tokens.copy_(full.summary_tokens)
    for inputs in (tiny.builder.images(PICTURES), tiny.builder.texts(QUESTIONS)):
        ours, theirs = (pool(model.eval().compress(inputs)) for model in (half, full))
        assert (ours * theirs).sum(dim=1).min() > 0.99


@torch.no_grad()
def test_greedy_generation_says_the_likeliest_token_of_pass_two(tiny: TinyLvlm, adapted: Fwd2Bot) -> None:
    summaries = torch.randn(2, *adapted.summary_shape)
    inputs = tiny.builder.questions(QUESTIONS)  # two lengths, so one is padded
    image = tiny.model.config.image_token_id  # a random model might say it
    settings = {"pad_token_id": tiny.builder.tokenizer.pad_token_id, "suppress_tokens": [image]}
    said = adapted.generate(summaries, inputs, max_new_tokens=3, do_sample=False, **settings)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for step in range(said.shape[1]):
        hidden = adapted.answer_hidden(summaries, {"input_ids": ids, "attention_mask": mask})[:, -1]
        logits = tiny.model.get_output_embeddings()(hidden)
        logits[:, image] = -torch.inf
        likeliest = logits.argmax(dim=-1)
        assert said[:, step].tolist() == likeliest.tolist()
        ids = torch.cat([ids, likeliest[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # raised by PEFT
def test_a_checkpoint_comes_back_and_peft_alone_loads_its_adapters(
    tiny: TinyLvlm, adapted: Fwd2Bot, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(adapted, tiny.builder.processor, tiny.builder.prompts)
    save_checkpoint(tmp_path, checkpoint, dtype=torch.float32)
    loaded = load_checkpoint(tmp_path, "cpu")
    builder = InputBuilder(loaded.processor, loaded.prompts, SUMMARIES)
    words = torch.randn(1, 5, adapted.summary_shape[1])
    with torch.no_grad():
        ours = adapted.compress(tiny.builder.images(PICTURES))
        close(loaded.model.compress(builder.images(PICTURES)), ours)
        for name, tree in (("compress", adapted.compressor), ("generate", adapted.generator)):
            base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
            theirs = PeftModel.from_pretrained(base, str(tmp_path / name)).eval().get_base_model()
            hidden = theirs.get_decoder()(inputs_embeds=words).last_hidden_state
            close(hidden, tree.get_base_model().get_decoder()(inputs_embeds=words).last_hidden_state)


def test_every_linear_layer_of_the_llm_is_adapted_and_nothing_else_is_trained(
    tiny: TinyLvlm, fresh: Fwd2Bot
) -> None:
    decoder = tiny.model.get_decoder()
    linear = sum(isinstance(part, torch.nn.Linear) for part in decoder.modules())
    trained = [name for name, parameter in fresh.named_parameters() if parameter.requires_grad]
    assert len(trained) == 1 + 2 * 2 * linear
    assert all("lora_" in name or name == "summary_tokens" for name in trained)


def test_the_image_side_is_the_shorter_side_of_the_largest_picture(tiny: TinyLvlm, fresh: Fwd2Bot) -> None:
    expected = 16 if fresh.family.model_type in ("fast_vlm", "llava") else 32
    assert fresh.family.image_side(tiny.builder.processor) == expected


def test_a_builder_is_the_same_in_a_worker_that_is_started_anew(tiny: TinyLvlm) -> None:
    """Such a worker is sent its builder pickled: on macOS, and on Linux from Python 3.14 on."""
    sent = pickle.loads(pickle.dumps(tiny.builder))
    assert sent.image_side == tiny.builder.image_side
    for ours, theirs in (
        (tiny.builder.images(PICTURES), sent.images(PICTURES)),
        (tiny.builder.texts(["a dog"]), sent.texts(["a dog"])),
        (tiny.builder.questions(["what?"]), sent.questions(["what?"])),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_processor_of_another_model_is_one_sentence() -> None:
    model, builder = make_lvlm_of("llava")
    builder.processor.num_additional_image_tokens = 3
    with pytest.raises(EncoderMismatch, match="6 places for 4 image or summary tokens"):
        Fwd2Bot(model, SUMMARIES).compress(builder.images(PICTURES[:1]))


CLIP = CLIPConfig(text_config=CLIPTextConfig().to_dict(), vision_config=CLIPVisionConfig().to_dict())


@pytest.mark.parametrize("config", [LlamaConfig(), CLIP], ids=["llama", "clip"])
def test_a_model_that_is_no_lvlm_is_refused_with_what_there_is(
    config: LlamaConfig | CLIPConfig, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(EncoderNotFound, match=rf"'{config.model_type}'.*llava, .*internvl") as caught:
        load_lvlm(str(tmp_path), "cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EncoderDamaged, match=rf"{re.escape(str(tmp_path))}.*again"):
        load_lvlm(str(tmp_path), "cpu", torch.float32)


def test_families_are_found_by_model_type_and_by_processor() -> None:
    for family in FAMILIES:
        assert find_family(family.model_type) is family
        assert (
            find_family_of_processor(make_lvlm_of(family.model_type).builder.processor).before
            == family.before
        )
    with pytest.raises(EncoderNotFound, match="object"):
        find_family_of_processor(object())  # type: ignore[arg-type]


def test_four_bits_without_a_gpu_say_so(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="CUDA GPU"):
        load_lvlm(str(tmp_path), "cpu", torch.float32, "4bit")
    with pytest.raises(EncoderNotFound, match="none or 4bit"):
        load_lvlm(str(tmp_path), "cpu", torch.float32, "3bit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_four_bits_on_a_gpu_leave_both_passes_trainable(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, builder = make_lvlm_of("llava")
    model.save_pretrained(tmp_path)
    builder.processor.save_pretrained(tmp_path)
    loaded = load_lvlm(str(tmp_path), "cuda", torch.bfloat16, "4bit")
    parts = {name for name, part in loaded.model.named_modules() if type(part).__name__ == "Linear4bit"}
    assert parts and all(name.startswith("model.language_model.") for name in parts)
    fwd2bot = Fwd2Bot(loaded.model, SUMMARIES).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        summaries = fwd2bot.compress(builder.images(PICTURES[:2]).to("cuda"))
        inputs, labels = builder.answers([QUESTIONS[0]] * 2, ["dog", "cat"])
        fwd2bot.token_losses(summaries, inputs.to("cuda"), labels.to("cuda")).sum().backward()
    trained = [parameter for parameter in fwd2bot.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)
