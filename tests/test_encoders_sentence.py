"""sentence-transformers models against the library itself, where the extra is installed."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from encoders.base import (
    CannotAnswer,
    EncoderDamaged,
    EncoderMismatch,
    EncoderNotFound,
    MissingDependency,
    SeeingEncoder,
    TalkingEncoder,
)
from encoders.load import load_encoder
from retrieval.ask import ask
from retrieval.search import Searcher
from tests.conftest import build, paint
from tests.tiny_families import make_lvlm_of
from tests.tiny_models import make_builder, make_fastvlm, make_pictures

TEXTS = ["a red dog", "two green cats on grass in the snow"]
HAS_LIBRARY = find_spec("sentence_transformers") is not None
needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason="sentence-transformers is not installed")


def save_clip(folder: Path) -> Path:
    """Save a CLIP with random weights in the form the hub has."""
    torch.manual_seed(0)
    tokenizer = make_lvlm_of("llava").builder.tokenizer
    tokenizer.model_max_length = 77
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=size | ids | {"vocab_size": len(tokenizer)},
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    torch.manual_seed(0)
    tiny = make_lvlm_of("llava")
    tiny.model.save_pretrained(folder)
    tiny.builder.processor.save_pretrained(folder)
    return folder


@needs_library
def test_an_lvlm_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "llava")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(EncoderMismatch, match=f"no chat template.*use lvlm:{folder}"):
        load_encoder(f"st:{folder}")


@needs_library
@pytest.mark.parametrize(("save", "dim", "side"), [(save_clip, 24, 32), (save_llava, 32, 16)])
def test_embeddings_are_the_librarys_own(save, dim: int, side: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from sentence_transformers import SentenceTransformer

    encoder, pictures = load_encoder(f"st:{save(tmp_path)}", "cpu"), make_pictures()
    own = SentenceTransformer(str(tmp_path), device="cpu")
    vectors, summaries = encoder.encode_images(pictures)
    np.testing.assert_allclose(vectors, own.encode(pictures, normalize_embeddings=True), atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode_texts(TEXTS), own.encode(TEXTS, normalize_embeddings=True), atol=1e-5
    )
    assert summaries is None and not isinstance(encoder, TalkingEncoder | SeeingEncoder)
    assert (encoder.dim, encoder.image_size, vectors.dtype) == (dim, side, np.float32)
    assert encoder.encode_texts([]).shape == (0, dim)


@needs_library
def test_a_vision_tower_that_casts_nothing_runs_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = make_builder()
    make_fastvlm(builder).save_pretrained(tmp_path)
    builder.processor.save_pretrained(tmp_path)
    part = "{{ '<image>' if part.type == 'image' else part.text }} "
    parts = f"{{% for part in message.content %}}{part}{{% endfor %}}"
    template = f"{{% for message in messages %}}{parts}{{% endfor %}}"
    (tmp_path / "chat_template.jinja").write_text(template)
    exact = load_encoder(f"st:{tmp_path}", "cpu").encode_images(make_pictures()).vectors
    monkeypatch.setattr("encoders.sentence.choose_dtype", lambda device: torch.bfloat16)
    rounded = load_encoder(f"st:{tmp_path}", "cpu").encode_images(make_pictures()).vectors
    assert ((exact * rounded).sum(axis=1) > 0.99).all() and not np.array_equal(exact, rounded)


@needs_library
def test_prompts_of_the_model_go_before_queries_alone(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    own = SentenceTransformer(str(save_clip(tmp_path / "clip")), device="cpu", prompts={"query": "a red "})
    own.save(str(tmp_path / "st"))
    plain, prompted = (load_encoder(f"st:{tmp_path / name}", "cpu") for name in ("clip", "st"))
    np.testing.assert_allclose(prompted.encode_texts(["dog"]), plain.encode_texts(["a red dog"]), atol=1e-5)
    pictures = make_pictures()
    np.testing.assert_allclose(
        prompted.encode_images(pictures).vectors, plain.encode_images(pictures).vectors, atol=1e-5
    )
    assert prompted.fingerprint != plain.fingerprint


@needs_library
def test_an_index_of_it_is_searched_and_says_that_it_cannot_answer(tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    for colour in ("red", "green", "blue"):
        paint(gallery / f"{colour}.png", colour)
    build(gallery, load_encoder(f"st:{save_clip(tmp_path / 'clip')}", "cpu"))
    assert len(Searcher.open(gallery / ".fwd2bot").search("a red dog", 3)) == 3
    with pytest.raises(CannotAnswer):
        ask(gallery / ".fwd2bot", "red.png", "what is it?")


@needs_library
def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    before = load_encoder(f"st:{save_clip(tmp_path)}", "cpu").fingerprint
    assert load_encoder(f"st:{tmp_path}", "cpu").fingerprint == before
    config = tmp_path / "processor_config.json"
    config.write_text(config.read_text().replace('"rescale_factor": 0.0', '"rescale_factor": 0.1'))
    assert load_encoder(f"st:{tmp_path}", "cpu").fingerprint != before


@needs_library
def test_a_model_without_images_or_of_pickles_or_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = make_lvlm_of("llava").builder.tokenizer
    words = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "words"))
    with pytest.raises(EncoderNotFound, match="reads text: choose one for text and image"):
        load_encoder(f"st:{tmp_path / 'words'}", "cpu")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EncoderDamaged, match="fetch it again"):
        load_encoder(f"st:{tmp_path / 'nothing'}", "cpu")
    weights = save_clip(tmp_path / "clip") / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(EncoderDamaged, match="as a pickle: save it anew"):
        load_encoder(f"st:{tmp_path / 'clip'}", "cpu")


@pytest.mark.skipif(HAS_LIBRARY, reason="sentence-transformers is installed")
def test_a_library_that_is_not_there_is_named_with_its_command() -> None:
    with pytest.raises(MissingDependency, match=r'pip install "fwd2bot\[st\]"'):
        load_encoder("st:clip-ViT-B-32", "cpu")
