"""Both passes in NumPy give what transformers gives, or are left to transformers."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import FastVlmForConditionalGeneration

from encoders.base import can_talk
from encoders.fwd2bot import numpy_reader
from encoders.fwd2bot.adapters import MODES
from encoders.fwd2bot.checkpoint import Checkpoint, save_checkpoint
from encoders.fwd2bot.folders import fingerprint_checkpoint
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot
from encoders.fwd2bot.numpy_reader import NumpyReader, find_repeats, load_numpy_reader
from encoders.fwd2bot.prompts import Prompts
from encoders.load import load_encoder, load_reader
from tests.tiny_models import LVLM, SUMMARIES, make_builder, make_fastvlm

TEXTS = [
    "two green cats on grass",
    "A RED Dog, in the snow!",
    "<image> dogs <pad> and <end> cats",  # special tokens lose their meaning in a text
    "ﬁsh \t é 猫 🐕",  # characters that are normalised or split into bytes
    "a dog " * 100,  # longer than the limit for a text
    "",
]
BACKEND = "SiglipImageProcessorPil"


def save_random(folder: Path, mode: str = "per_pass", key_heads: int = LVLM.heads) -> Path:
    torch.manual_seed(5)
    builder = make_builder()
    config = make_fastvlm(builder).config
    config.text_config.num_key_value_heads = key_heads
    model = Fwd2Bot(FastVlmForConditionalGeneration(config), SUMMARIES, AdapterSettings(4, 8, mode)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith("bias"):  # these start at zero
            torch.nn.init.normal_(parameter, std=0.2)
    prompts = Prompts(template="{content} {instruction}", text="Say it in a word.")
    save_checkpoint(folder, Checkpoint(model, builder.processor, prompts))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def load_small(folder: Path) -> NumpyReader | None:
    return load_numpy_reader("mine", folder, fingerprint_checkpoint(folder, BACKEND))


def require_same(name: str) -> None:
    """Check that every output of the NumPy reader is that of transformers."""
    whole: Any = load_encoder(name, "cpu")
    reader = load_reader(name, whole.fingerprint)
    assert isinstance(reader, NumpyReader) and can_talk(reader)
    assert (reader.name, reader.fingerprint, reader.dim) == (whole.name, whole.fingerprint, whole.dim)
    vectors = reader.encode_texts(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, whole.encode_texts(TEXTS), atol=2e-5)

    random = np.random.default_rng(1)
    pictures = [Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)) for _ in TEXTS]
    summaries = whole.encode_images(pictures).summaries
    for texts in (TEXTS, [TEXTS[0], *TEXTS[:-1]], TEXTS[:1] * len(TEXTS)):  # equal texts share a batch
        likelihoods = reader.match(summaries, texts)
        assert likelihoods.dtype == np.float32
        np.testing.assert_allclose(likelihoods, whole.match(summaries, texts), atol=2e-4)
    assert reader.answer(summaries, TEXTS) == [
        whole.answer(row[None], text)[0] for row, text in zip(summaries, TEXTS, strict=True)
    ]
    assert reader.answer(summaries, "What is it?") == whole.answer(summaries, "What is it?")
    assert reader.caption(summaries) == whole.caption(summaries)


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_a_pass_one_for_both_or_none_is_read_as_peft_does(tmp_path: Path, mode: str) -> None:
    require_same(str(save_random(tmp_path, mode)))


def test_the_embedded_model_is_read_as_transformers_does() -> None:
    require_same("tiny")


def test_heads_may_share_their_keys(tmp_path: Path) -> None:
    require_same(str(save_random(tmp_path, key_heads=1)))


def test_nothing_is_said_of_nothing(saved: Path) -> None:
    reader: Any = load_small(saved)
    nothing = np.empty((0, SUMMARIES, LVLM.width), np.float32)
    assert reader.encode_texts([]).shape == (0, LVLM.width)
    assert reader.answer(nothing, "What is it?") == [] and reader.match(nothing, []).shape == (0,)


def test_a_run_of_words_is_not_said_twice() -> None:
    random = np.random.default_rng(0)
    for length in (1, 2, 3):
        for count in range(12):
            said = random.integers(0, 3, count).tolist()
            runs = {tuple(said[n : n + length]) for n in range(count - length + 1)}
            expected = {word for word in range(3) if (*said[count - length + 1 :], word)[-length:] in runs}
            assert set(find_repeats(said, length)) == (expected if count >= length else set())


def edit(file: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return apply


def drop_tensor(folder: Path) -> None:
    place = folder / "compress" / "adapter_model.safetensors"
    weights = load_file(place)
    weights.pop(next(iter(weights)))
    save_file(weights, place)


OTHER_MAKES: dict[str, Callable[[Path], None]] = {
    "another LVLM": edit("base/config.json", lambda config: config.update(model_type="llava")),
    "another LLM": edit("base/config.json", lambda config: config["text_config"].update(model_type="qwen3")),
    "other positions": edit(
        "base/config.json", lambda config: config["text_config"]["rope_parameters"].update(rope_type="yarn")
    ),
    "a window": edit(
        "base/config.json", lambda config: config["text_config"].update(use_sliding_window=True)
    ),
    "another tokenizer": edit(
        "base/tokenizer_config.json", lambda config: config.update(tokenizer_class="LlamaTokenizer")
    ),
    "a first token": edit("base/tokenizer_config.json", lambda config: config.update(bos_token="<end>")),
    "the processor's template": edit(
        "fwd2bot.json", lambda settings: settings["prompts"].update(template="")
    ),
    "a base elsewhere": edit("fwd2bot.json", lambda settings: settings.update(base="../copy/base")),
    "other ways to speak": edit(
        "base/generation_config.json", lambda config: config.update(repetition_penalty=1.5)
    ),
    "several ends": edit("base/generation_config.json", lambda config: config.update(eos_token_id=[1, 2])),
    "another end": edit("base/generation_config.json", lambda config: config.update(eos_token_id=2)),
    "a lost tensor": drop_tensor,
    "no weights": lambda folder: (folder / "base" / "model.safetensors").unlink(),
    "damaged weights": lambda folder: (folder / "base" / "model.safetensors").write_bytes(b"\xff" * 64),
    "no JSON": lambda folder: (folder / "fwd2bot.json").write_text("{"),
}


@pytest.mark.parametrize("make", OTHER_MAKES)
def test_what_is_of_another_make_is_left_to_transformers(
    copy: Path, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    assert load_small(copy) is not None
    fingerprint = fingerprint_checkpoint(copy, BACKEND)
    OTHER_MAKES[make](copy)
    # Keep the fingerprint the same: another one would be refused for itself.
    monkeypatch.setattr(numpy_reader, "fingerprint_checkpoint", lambda folder, backend: fingerprint)
    assert load_numpy_reader("mine", copy, fingerprint) is None


def test_large_weights_are_left_to_transformers(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_reader, "LARGEST", 1000)
    assert load_small(copy) is None


def test_a_checkpoint_of_another_fingerprint_is_loaded_whole(saved: Path) -> None:
    encoder = load_reader(str(saved), "another")
    assert not isinstance(encoder, NumpyReader)
    assert encoder.fingerprint == fingerprint_checkpoint(saved, BACKEND)


def test_texts_are_read_without_torch() -> None:
    code = (
        "import sys; from encoders.load import load_reader; "
        f"reader = load_reader('tiny', {load_encoder('tiny', 'cpu').fingerprint!r}); "
        "print(reader.encode_texts(['a dog']).shape, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    place = Path(numpy_reader.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 256) False False"
