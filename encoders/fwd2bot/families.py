"""The supported LVLM families, and the little that the code must know about each.

Everything else comes from transformers: the model's own processor writes the image placeholders,
`get_image_features` computes the image tokens, and the chat template frames the prompts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import ProcessorMixin

from encoders.base import EncoderNotFound


def _fixed_side(processor: ProcessorMixin) -> int:
    """The fixed size of every image, or of its shorter or longer edge."""
    size = processor.image_processor.size
    side = size.get("shortest_edge") or size.get("longest_edge") or min(size["height"], size["width"])
    return int(side)


def _grid_side(processor: ProcessorMixin) -> int:
    """The largest shorter side in a list of resolutions (any-resolution)."""
    return int(max(min(pair) for pair in processor.image_processor.image_grid_pinpoints))


def _area_side(processor: ProcessorMixin) -> int:
    """For images of any shape, up to `longest_edge` pixels in total: the side of such a square."""
    return math.isqrt(processor.image_processor.size["longest_edge"])


def _tiled_side(processor: ProcessorMixin) -> int:
    """For images cut into up to `max_patches` tiles of a fixed size: the side of a square of tiles."""
    return _fixed_side(processor) * math.isqrt(processor.image_processor.max_patches)


@dataclass(frozen=True)
class Family:
    """What the code knows about one transformers model type.

    processor: name of its processor class. before, after: what the processor writes around the tokens of one
    whole image, and pass 2 must write around the summary tokens. spatial_positions: image tokens have
    positions in time, height and width (M-RoPE). deep_features: visual features are also added after the
    first layers of the LLM (DeepStack). image_side: shorter side, in pixels, of the largest image it takes.
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
    """The family of a model type; raises EncoderNotFound, which lists the supported ones."""
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise EncoderNotFound(f"A {model_type!r} model is no LVLM that fwd2bot can use: it uses {known}")


def find_family_of_processor(processor: ProcessorMixin) -> Family:
    """The first family with this processor; families that share a processor frame images alike."""
    name = type(processor).__name__
    for family in FAMILIES:
        if family.processor == name:
            return family
    known = ", ".join(sorted({family.processor for family in FAMILIES}))
    raise EncoderNotFound(f"A {name} is not a processor that fwd2bot can use: it uses {known}")
