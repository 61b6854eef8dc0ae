"""Random models of the real classes with a few thousand weights, for the tests of encoders and training."""

import numpy as np
from PIL import Image
from transformers import FastVlmForConditionalGeneration

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.prompts import Prompts
from training.lvlm import make_lvlm, make_processor, train_tokenizer
from training.settings import LvlmSettings

BATCH = 3
SUMMARIES = 4  # the number of image tokens of a 16 x 16 picture at a stride of 8
LVLM = LvlmSettings(
    image_size=16,
    tower_stem=8,
    tower_widths=(8, 16),
    tower_depths=(1, 1),
    vocabulary=400,
    width=32,
    intermediate=48,
    layers=2,
    heads=2,
)
WORDS = ["a red dog in the snow", "two green cats on grass", "what is it? describe the image summarize text"]


def make_builder() -> InputBuilder:
    """An input builder whose processor has its own tokenizer and a chat template like LLaVA's."""
    return InputBuilder(make_processor(train_tokenizer(WORDS, LVLM.vocabulary), LVLM), Prompts(), SUMMARIES)


def make_fastvlm(builder: InputBuilder) -> FastVlmForConditionalGeneration:
    """A random model of the embedded default model's class."""
    return make_lvlm(builder.tokenizer, LVLM).eval()


def make_pictures() -> list[Image.Image]:
    """Square noise pictures of three sizes."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)) for side in (16, 20, 40)]
