"""The families of LVLMs that can be read twice, and the little that the code must know of each.

All else comes from transformers: the model's own processor writes its image tokens, `get_image_features`
computes them, and its own chat template frames the prompts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import ProcessorMixin

from encoders.base import EncoderNotFound


def _fixed_side(processor: ProcessorMixin) -> int:
    """One size for every picture, or one for its shorter or longer edge."""
    size = processor.image_processor.size
    side = size.get("shortest_edge") or size.get("longest_edge") or min(size["height"], size["width"])
    return int(side)


def _grid_side(processor: ProcessorMixin) -> int:
    """The best of a list of resolutions (any-resolution)."""
    return int(max(min(pair) for pair in processor.image_processor.image_grid_pinpoints))


def _area_side(processor: ProcessorMixin) -> int:
    """Any shape, up to so many pixels in all, which the processor calls the longest edge."""
    return math.isqrt(processor.image_processor.size["longest_edge"])


def _tiled_side(processor: ProcessorMixin) -> int:
    """Cut into up to so many tiles of a fixed size."""
    return _fixed_side(processor) * math.isqrt(processor.image_processor.max_patches)


@dataclass(frozen=True)
class Family:
    """What is known of one model type of transformers.

    processor: its class there. before, after: what it writes around the tokens of one whole image; so must
    pass 2 around the summary tokens. spatial_positions: image tokens have a position in time, height and
    width (M-RoPE). deep_features: visual features are added after the first layers of the LLM too
    (DeepStack). image_side: shorter side, in pixels, of the largest picture that the model is shown.
    """

    model_type: str
    processor: str
    before: str = ""
    after: str = ""
    spatial_positions: bool = False
    deep_features: bool = False
    image_side: Callable[[ProcessorMixin], int] = _fixed_side


_FAKE, _GLOBAL = "<fake_token_around_image>", "<fake_token_around_image><global-img>"

FAMILIES = (
    Family("fast_vlm", "LlavaProcessor"),
    Family("llava", "LlavaProcessor"),
    Family("llava_next", "LlavaNextProcessor", image_side=_grid_side),
    Family("llava_onevision", "LlavaOnevisionProcessor", image_side=_grid_side),
    Family("qwen2_vl", "Qwen2VLProcessor", spatial_positions=True, image_side=_area_side),
    Family("qwen2_5_vl", "Qwen2_5_VLProcessor", spatial_positions=True, image_side=_area_side),
    Family("qwen3_vl", "Qwen3VLProcessor", "", "", True, True, _area_side),
    Family("smolvlm", "SmolVLMProcessor", _GLOBAL, _FAKE),
    Family("idefics3", "Idefics3Processor", _GLOBAL, _FAKE),
    Family("internvl", "InternVLProcessor", "<img>", "</img>", image_side=_tiled_side),
)


def find_family(model_type: str) -> Family:
    """The family of a model; raises EncoderNotFound with those there are."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise EncoderNotFound(f"A {model_type!r} model is no LVLM that fwd2bot can use: it uses {known}")


def find_family_of_processor(processor: ProcessorMixin) -> Family:
    """The first family that has this processor: those that share one frame images alike."""
    name = type(processor).__name__
    for family in FAMILIES:
        if family.processor == name:
            return family
    known = ", ".join(sorted({family.processor for family in FAMILIES}))
    raise EncoderNotFound(f"A {name} is no processor that fwd2bot can use: it uses {known}")
