"""Texts in NumPy are embedded as open_clip embeds them, or are left to open_clip: `make test-openclip`."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoders import openclip_reader
from encoders.base import can_talk
from encoders.load import load_encoder, load_reader
from encoders.openclip import OpenClipEncoder
from encoders.openclip_reader import ClipReader, load_clip_reader, remember_weights
from encoders.openclip_tokens import ClipTokenizer
from tests.open_clip_here import find_weights, make_model, publish

TEXTS = [
    "two green cats on grass",
    "A RED Dog's ball, we'LL see: 12 of 345",
    "a dog \U0001f415\u200d\U0001f9ba, caf\u00c3\u00a9, \ufb01sh, \u2018\uff11\u2019 \u732b",  # ftfy mends it
    "&lt;b&gt;caf&eacute; &amp;amp; bar&lt;/b&gt; <i>&amp;</i>",
    "cats <end_of_text> dogs !!<start_of_text> <START_OF_TEXT> '\u017f",
    " \t\x07 a_b\n\x00 \ud800 ",
    "a dog " * 100,  # longer than a text may be
    "",
]
PLAIN = [
    "ViT-S-32-alt",
    "RN50",  # counts batches, in integers
    "ViT-B-32-quickgelu",
    "PE-Core-T-16-384",  # a text tower that is a module of its own, for shorter texts
]
OTHERS = [
    "MobileCLIP-S1",  # words see those that follow
    "coca_ViT-B-32",  # a token of the text's own
]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return publish(make_model(PLAIN[0]), PLAIN[0], tmp_path, monkeypatch)


@pytest.fixture
def whole(name: str) -> Any:
    return load_encoder(name, "cpu")


def find_note(hub: Path) -> Path:
    (note,) = (hub / "assets").rglob("*.json")
    return note


@pytest.mark.parametrize("architecture", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_texts_are_embedded_as_open_clip_does(
    architecture: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encoders.openclip.choose_dtype", lambda _: torch.float32)
    name = publish(make_model(architecture).to(dtype), architecture, tmp_path, monkeypatch)
    whole: Any = load_encoder(name, "cpu")
    reader = load_reader(name, whole.fingerprint)
    assert isinstance(reader, ClipReader) and not can_talk(reader)
    assert (reader.name, reader.fingerprint, reader.dim) == (whole.name, whole.fingerprint, whole.dim)
    vectors = reader.encode_texts(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, whole.encode_texts(TEXTS), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert reader.encode_texts([]).shape == (0, whole.dim)


@pytest.mark.parametrize("architecture", OTHERS)
def test_another_text_tower_is_left_to_open_clip(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish(make_model(architecture), architecture, tmp_path, monkeypatch)
    whole = load_encoder(name, "cpu")
    assert isinstance(load_reader(name, whole.fingerprint), OpenClipEncoder)
    assert not list(tmp_path.rglob("assets/**/*.json"))


@pytest.mark.parametrize("architecture", ["ViT-B-16-SigLIP", "ViT-H-14-CLIPA", "roberta-ViT-B-32"])
def test_other_tokenizers_are_left_to_open_clip(architecture: str) -> None:
    with pytest.raises(ValueError, match="is no plain CLIP"):
        openclip_reader._open_reader(f"openclip:{architecture}/mine", Path("weights"), "")


def test_token_ids_are_open_clips(whole: Any) -> None:
    import open_clip

    vocabulary = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    tokenizer, numbers = ClipTokenizer(vocabulary, 77), random.Random(0)
    alphabets = [range(32, 127), range(0x20, 0x250), range(0x110000), b"abcdeIS '&;<>"]
    texts = [
        "".join(map(chr, numbers.choices(numbers.choice(alphabets), k=numbers.randrange(100))))
        for _ in range(2000)
    ]
    for text in [*TEXTS, *texts]:
        expected = whole.tokenizer([text])[0].tolist()
        assert tokenizer.encode(text) == expected[: len(tokenizer.encode(text))], repr(text)
        assert not any(expected[len(tokenizer.encode(text)) :])


def edit(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def apply(hub: Path) -> None:
        note = json.loads(find_note(hub).read_text())
        change(note)
        find_note(hub).write_text(json.dumps(note))

    return apply


def flip_byte(hub: Path) -> None:
    with find_weights(hub).open("r+b") as file:
        file.seek(-1, os.SEEK_END)  # the last tensor is the image tower's
        (last,) = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no note": lambda hub: find_note(hub).unlink(),
    "half a note": lambda hub: find_note(hub).write_text(find_note(hub).read_text()[:40]),
    "not JSON": lambda hub: find_note(hub).write_bytes(b"\xff\x00"),
    "no object": lambda hub: find_note(hub).write_text("[]"),
    "other steps": edit(lambda note: note.update(steps=note["steps"].replace("224", "225"))),
    "no such file": edit(lambda note: note.update(weights="/nowhere")),
    "a folder": edit(lambda note: note.update(weights="/")),
    "another file": edit(lambda note: note.update(weights=__file__)),
    "other weights": flip_byte,
    "cut weights": lambda hub: os.truncate(find_weights(hub), find_weights(hub).stat().st_size - 4),
    "no weights": lambda hub: os.truncate(find_weights(hub), 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_note_that_leads_to_anything_else_is_of_no_effect(
    damage: str, name: str, whole: Any, tmp_path: Path
) -> None:
    note = find_note(tmp_path).read_text()
    assert load_clip_reader(name, whole.fingerprint) is not None
    DAMAGES[damage](tmp_path)
    assert load_clip_reader(name, whole.fingerprint) is None
    if "weights" not in damage:  # the model itself is as it was: loading it mends the note
        assert isinstance(load_reader(name, whole.fingerprint), OpenClipEncoder)
        assert find_note(tmp_path).read_text() == note
        assert load_clip_reader(name, whole.fingerprint) is not None


def test_a_model_of_another_fingerprint_or_name_is_loaded_whole(name: str, whole: Any) -> None:
    encoder = load_reader(name, "another")
    assert isinstance(encoder, OpenClipEncoder) and encoder.fingerprint == whole.fingerprint
    assert load_clip_reader(f"{name}2", whole.fingerprint) is None
    assert load_clip_reader("openclip:../../mine", whole.fingerprint) is None


def test_a_model_that_embeds_in_another_way_leaves_no_note(name: str, whole: Any, tmp_path: Path) -> None:
    find_note(tmp_path).unlink()
    wrong = np.eye(1, whole.dim, dtype=np.float32)[0]
    remember_weights(name, "some/model/", "steps", lambda text: wrong)
    assert not list((tmp_path / "assets").rglob("*.json"))


def test_a_cache_that_cannot_be_written_is_no_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").write_text("a file")
    whole = load_encoder(name, "cpu")
    assert load_clip_reader(name, whole.fingerprint) is None


def test_a_query_imports_neither_torch_nor_open_clip(name: str, whole: Any, tmp_path: Path) -> None:
    code = (
        f"import sys; from encoders.load import load_reader; reader = load_reader({name!r}, "
        f"{whole.fingerprint!r}); print(reader.encode_texts(['a dog']).shape, "
        "*sorted({'torch', 'open_clip', 'torchvision', 'timm', 'transformers', 'ftfy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(openclip_reader.__file__).parents[1],
        env=os.environ | {"HF_ASSETS_CACHE": str(tmp_path / "assets")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "(1, 256)"
