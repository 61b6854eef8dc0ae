"""The open_clip baseline against open_clip itself, where the extra is installed: `make test-openclip`."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.base import EncoderNotFound, TalkingEncoder
from encoders.openclip import OpenClipEncoder

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

# torchvision's wheels are built for CUDA torch: beside a CPU build they want these two schemas to import.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

ARCHITECTURE = "ViT-S-32-alt"  # the smallest; random weights do for an equality
PICTURES = [Image.new("RGB", (300, 200), colour) for colour in ("red", "blue", "white")]
TEXTS = ["a red wall", "the sea"]


@pytest.fixture(scope="module")
def encoder() -> OpenClipEncoder:
    import open_clip

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(ARCHITECTURE)
    return OpenClipEncoder("mine", model, preprocess, open_clip.get_tokenizer(ARCHITECTURE), "cpu")


def test_embeddings_are_open_clips_own(encoder: OpenClipEncoder) -> None:
    with torch.no_grad():
        pixels = torch.stack([encoder.preprocess(picture) for picture in PICTURES])
        images = encoder.model.encode_image(pixels, normalize=True).numpy()
        texts = encoder.model.encode_text(encoder.tokenizer(TEXTS), normalize=True).numpy()
    vectors, summaries = encoder.encode_images(PICTURES)
    np.testing.assert_allclose(vectors, images, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-6)
    assert summaries is None and not isinstance(encoder, TalkingEncoder)
    assert vectors.shape[1] == encoder.dim and encoder.image_size == 224


def test_the_fingerprint_follows_the_weights(encoder: OpenClipEncoder) -> None:
    again = OpenClipEncoder("mine", encoder.model, encoder.preprocess, encoder.tokenizer, "cpu")
    assert again.fingerprint == encoder.fingerprint
    with torch.no_grad():
        next(encoder.model.parameters()).add_(1)
    again = OpenClipEncoder("mine", encoder.model, encoder.preprocess, encoder.tokenizer, "cpu")
    assert again.fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("name", "hint"), [("ViT-B-32/nope", "ViT-B-32/openai"), ("Nope/x", "list_pretrained")]
)
def test_an_unknown_name_says_which_are_known(name: str, hint: str) -> None:
    with pytest.raises(EncoderNotFound, match=hint):
        OpenClipEncoder.load(f"openclip:{name}", name, "cpu")
