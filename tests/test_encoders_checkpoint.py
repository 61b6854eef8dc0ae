"""A checkpoint folder loads as it was saved; one that cannot be trusted is refused in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from encoders.base import EncoderDamaged, TalkingEncoder
from encoders.fwd2bot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.folders import fingerprint_checkpoint
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot, pool
from encoders.load import load_encoder
from tests.conftest import NO_MEMORY
from tests.tiny_models import SUMMARIES, make_builder, make_fastvlm, make_pictures

EMBEDDINGS = "model.language_model.embed_tokens.weight"
TEXTS = ["a red dog", "two green cats on grass"]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal up to rounding: saved from plain attention, loaded with the fused kernel."""
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    torch.manual_seed(3)
    builder = make_builder()
    model = Fwd2Bot(make_fastvlm(builder), SUMMARIES, AdapterSettings(4, 8)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint = Checkpoint(model, builder.processor, builder.prompts)
    save_checkpoint(folder, checkpoint, dtype=torch.float32)
    return folder, checkpoint


@pytest.fixture
def copy(saved: tuple[Path, Checkpoint], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


@pytest.fixture(scope="module")
def encoder(saved: tuple[Path, Checkpoint]) -> Fwd2BotEncoder:
    return Fwd2BotEncoder.load("mine", saved[0], "cpu")


def test_a_saved_model_computes_the_same_after_loading(saved: tuple[Path, Checkpoint]) -> None:
    folder, (model, _, prompts, *_) = saved
    loaded = load_checkpoint(folder, "cpu")
    assert loaded.prompts == prompts
    builder = make_builder()
    with torch.no_grad():
        for inputs in (builder.images(make_pictures()), builder.texts(TEXTS)):
            close(loaded.model.compress(inputs), model.compress(inputs))
        summaries = torch.randn(2, *model.summary_shape)
        questions = builder.questions(["What is it?"] * 2)
        close(loaded.model.answer_hidden(summaries, questions), model.answer_hidden(summaries, questions))


def test_a_head_tied_to_the_word_embeddings_is_written_once(saved: tuple[Path, Checkpoint]) -> None:
    folder, (model, *_) = saved
    written = load_file(folder / "base" / "model.safetensors")
    assert [name for name in written if "embed_tokens" in name or "lm_head" in name] == [EMBEDDINGS]
    for lvlm in (model.lvlm, load_checkpoint(folder, "cpu").model.lvlm):
        assert lvlm.get_output_embeddings().weight is lvlm.get_input_embeddings().weight


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # raised by PEFT
def test_peft_alone_loads_each_adapter_over_the_saved_base(saved: tuple[Path, Checkpoint]) -> None:
    folder, (model, *_) = saved
    words = torch.randn(2, 5, model.summary_shape[1])
    for name, ours in (("compress", model.compressor), ("generate", model.generator)):
        base = AutoModelForImageTextToText.from_pretrained(folder / "base")
        theirs = PeftModel.from_pretrained(base, str(folder / name)).eval()
        with torch.no_grad():
            expected = ours.get_base_model().model.language_model(inputs_embeds=words).last_hidden_state
            got = theirs.get_base_model().model.language_model(inputs_embeds=words).last_hidden_state
        close(got, expected)


def test_weights_kept_in_half_precision_move_an_embedding_by_little(
    saved: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    _, checkpoint = saved
    save_checkpoint(tmp_path, checkpoint, dtype=torch.float16)
    assert load_file(tmp_path / "base" / "model.safetensors")[EMBEDDINGS].dtype == torch.float16
    inputs = make_builder().images(make_pictures())
    with torch.no_grad():
        half, full = (
            pool(each.model.compress(inputs)) for each in (load_checkpoint(tmp_path, "cpu"), checkpoint)
        )
    assert (half * full).sum(dim=1).min() > 0.9999


def test_an_encoder_returns_what_the_protocol_says(encoder: Fwd2BotEncoder) -> None:
    assert isinstance(encoder, TalkingEncoder)
    vectors, summaries = encoder.encode_images(make_pictures())
    assert vectors.dtype == summaries.dtype == np.float32
    assert summaries.shape == (3, *encoder.summary_shape)
    assert vectors.shape == (3, encoder.dim)
    mean = summaries.mean(axis=1)
    np.testing.assert_allclose(vectors, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    texts = encoder.encode_texts(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert encoder.encode_texts([]).shape == (0, encoder.dim)
    assert encoder.image_size == 16


def test_many_texts_are_embedded_as_they_are_alone(encoder: Fwd2BotEncoder) -> None:
    texts = [f"dog {number}" for number in range(300)]
    np.testing.assert_allclose(
        encoder.encode_texts(texts)[299], encoder.encode_texts([texts[299]])[0], atol=1e-5
    )


def test_match_is_the_mean_log_likelihood_of_the_caption(encoder: Fwd2BotEncoder) -> None:
    summaries = encoder.encode_images(make_pictures()).summaries
    got = encoder.match(summaries[:2], TEXTS)
    builder = encoder.builder
    for row, text in enumerate(TEXTS):
        inputs, labels = builder.answers([builder.prompts.caption], [text])
        with torch.no_grad():
            hidden = encoder.model.answer_hidden(torch.from_numpy(summaries[row : row + 1]), inputs)
            chances = encoder.model.lvlm.lm_head(hidden).log_softmax(dim=-1)[0]
        picked = [chances[at - 1, token] for at, token in enumerate(labels[0].tolist()) if token >= 0]
        assert got[row] == pytest.approx(float(sum(picked) / len(picked)), abs=1e-5)


def test_captions_and_answers_are_one_line_for_each_image(encoder: Fwd2BotEncoder) -> None:
    summaries = encoder.encode_images(make_pictures()).summaries
    assert encoder.caption(summaries) == encoder.answer(summaries, encoder.builder.prompts.caption)
    alone = [encoder.answer(summaries[row : row + 1], "What is it?")[0] for row in range(3)]
    assert encoder.answer(summaries, "What is it?") == alone


def test_the_fingerprint_changes_with_all_that_an_embedding_depends_on(copy: Path) -> None:
    before = fingerprint_checkpoint(copy, "Pil")
    (copy / "README.md").write_text("words about the model")
    assert fingerprint_checkpoint(copy, "Pil") == before
    assert fingerprint_checkpoint(copy, "Torchvision") != before
    settings = (copy / "fwd2bot.json").read_text()
    (copy / "fwd2bot.json").write_text(settings.replace("Summarize the text", "Sum up the text"))
    assert fingerprint_checkpoint(copy, "Pil") != before
    (copy / "fwd2bot.json").write_text(settings)
    assert fingerprint_checkpoint(copy, "Pil") == before
    for path in (copy / "summary_tokens.safetensors", copy / "generate" / "adapter_model.safetensors"):
        original = path.read_bytes()
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
        assert fingerprint_checkpoint(copy, "Pil") != before
        path.write_bytes(original)


@pytest.mark.parametrize(
    "name",
    [
        "fwd2bot.json",
        "base/config.json",
        "base/model.safetensors",
        "base/tokenizer.json",
        "compress/adapter_model.safetensors",
        "generate/adapter_config.json",
        "summary_tokens.safetensors",
    ],
)
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_checkpoint_is_one_sentence(copy: Path, name: str, harm: str) -> None:
    path = copy / name
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.unlink()
    with pytest.raises(EncoderDamaged, match="again") as caught:
        load_checkpoint(copy, "cpu")
    assert "\n" not in str(caught.value)


def test_an_adapter_that_lacks_tensors_is_refused(copy: Path) -> None:
    path = copy / "compress" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)
    with pytest.raises(EncoderDamaged, match="lacks 1 tensor"):
        load_checkpoint(copy, "cpu")


def test_a_checkpoint_of_a_later_format_says_to_update(copy: Path) -> None:
    settings = json.loads((copy / "fwd2bot.json").read_text())
    (copy / "fwd2bot.json").write_text(json.dumps({**settings, "format": 99}))
    with pytest.raises(EncoderDamaged, match=r"format 99 .* update"):
        load_checkpoint(copy, "cpu")


def test_an_unknown_prompt_is_one_sentence(copy: Path) -> None:
    settings = json.loads((copy / "fwd2bot.json").read_text())
    settings["prompts"]["song"] = "Sing of the image."
    (copy / "fwd2bot.json").write_text(json.dumps(settings))
    with pytest.raises(EncoderDamaged, match=r"cannot be read .*song"):
        load_checkpoint(copy, "cpu")


def test_a_base_elsewhere_on_disk_is_found(saved: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    folder, checkpoint = saved
    save_checkpoint(tmp_path, checkpoint._replace(base=str(folder / "base")))
    assert not (tmp_path / "base").exists()
    builder = make_builder()
    with torch.no_grad():
        again = load_checkpoint(tmp_path, "cpu").model.compress(builder.texts(TEXTS))
        close(again, checkpoint.model.compress(builder.texts(TEXTS)))


def test_load_encoder_takes_a_folder(saved: tuple[Path, Checkpoint]) -> None:
    encoder = load_encoder(str(saved[0]), "cpu")
    assert encoder.name == str(saved[0])
    assert encoder.summary_shape == (SUMMARIES, encoder.dim)


def test_a_fingerprint_is_of_files_and_not_of_where_they_lie(
    saved: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    base = shutil.copytree(saved[0] / "base", tmp_path / "middle")
    found = set()
    for name in ("a", "z"):
        save_checkpoint(tmp_path / name, saved[1]._replace(base=str(base)))
        found.add(fingerprint_checkpoint(tmp_path / name, "Pil"))
    assert len(found) == 1


@pytest.mark.parametrize(
    "place", ["checkpoint._load_adapter", "pretrained.AutoModelForImageTextToText.from_pretrained"]
)
@pytest.mark.parametrize(
    "shortage", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(NO_MEMORY), MemoryError()]
)
def test_too_little_memory_is_no_damage_of_a_checkpoint(
    saved: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch, place: str, shortage: Exception
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise shortage

    monkeypatch.setattr(f"encoders.fwd2bot.{place}", fill)
    with pytest.raises(type(shortage)) as caught:
        load_checkpoint(saved[0], "cpu")
    assert caught.value is shortage


def test_nothing_in_gives_nothing_out(saved: tuple[Path, Checkpoint]) -> None:
    encoder: Any = load_encoder(str(saved[0]), "cpu")
    vectors, summaries = encoder.encode_images([])
    assert (vectors.shape, summaries.shape) == ((0, encoder.dim), (0, *encoder.summary_shape))
    assert encoder.encode_texts([]).shape == (0, encoder.dim)
    assert encoder.answer(summaries, []) == [] and encoder.match(summaries, []).shape == (0,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_nearly_the_cpus_embeddings(saved: tuple[Path, Checkpoint]) -> None:
    there, here = (load_encoder(str(saved[0]), device) for device in ("cuda", "cpu"))
    for ours, theirs in (
        (there.encode_images(make_pictures()).vectors, here.encode_images(make_pictures()).vectors),
        (there.encode_texts(TEXTS), here.encode_texts(TEXTS)),
    ):
        assert (ours * theirs).sum(axis=1).min() > 0.99  # the GPU computes in bfloat16
