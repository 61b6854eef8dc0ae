"""A random model of each LVLM family: the real class, a few layers deep, with processor and chat template."""

from collections.abc import Callable
from typing import Any, NamedTuple

import transformers
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from encoders.fwd2bot.families import FAMILIES, find_family
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.pretrained import drop_videos
from encoders.fwd2bot.prompts import Prompts
from tests.tiny_models import LVLM, SUMMARIES, WORDS, make_builder, make_fastvlm
from training.lvlm import train_tokenizer

NAMES = [family.model_type for family in FAMILIES]
DYNAMIC = [name for name in NAMES if name not in ("fast_vlm", "llava")]
PINPOINTS = [[16, 16], [16, 32], [32, 16], [32, 32]]
_SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<video>", "<end_of_utterance>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]
_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_MESSAGE = (
    "{{% for m in messages %}}{user}{{% for part in m['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}{assistant}{{% endif %}}"
)
_CHATML = {"user": "<|im_start|>user\n", "end": "<|im_end|>\n", "assistant": "<|im_start|>assistant\n"}
_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TEXT, "hidden_size": 24}
_QWEN_IMAGES = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


class TinyLvlm(NamedTuple):
    """A random model of one family, and the builder of its inputs."""

    model: PreTrainedModel
    builder: InputBuilder


def make_lvlm_of(name: str, summaries: int = SUMMARIES) -> TinyLvlm:
    """The model and the input builder of a family, by its model type."""
    if name == "fast_vlm":
        builder = make_builder()
        return TinyLvlm(make_fastvlm(builder), builder)
    config, processor = _MAKERS[name](_make_tokenizer(name))
    kind: Any = getattr(
        transformers, f"{type(config).__name__.removesuffix('Config')}ForConditionalGeneration"
    )
    return TinyLvlm(kind(config).eval(), InputBuilder(processor, Prompts(), summaries))


def _make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(WORDS, LVLM.vocabulary)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", *_SPECIAL]})
    if name == "internvl":
        tokenizer.add_special_tokens({"extra_special_tokens": list(_INTERNVL_TOKENS.values())})
        tokenizer._set_model_specific_special_tokens(_INTERNVL_TOKENS)
    return tokenizer


def _make_processor(name: str, image: str, words: dict[str, str], **parts: Any) -> ProcessorMixin:
    kind = drop_videos(getattr(transformers, find_family(name).processor))
    if name == "smolvlm":
        parts["video_processor"] = None
    processor: ProcessorMixin = kind(chat_template=_MESSAGE.format(image=image, **words), **parts)
    return processor


def _text(kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerFast, **more: Any) -> Any:
    return kind(
        **_TEXT,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **more,
    )


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _make_llava(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION, image_size=16, patch_size=8),
        text_config=_text(LlamaConfig, tokenizer),
        image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=4,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = _make_processor(
        "llava",
        "<image>\n",
        {"user": "USER: ", "end": " ", "assistant": "ASSISTANT:"},
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def _make_llava_next(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_VISION, image_size=16, patch_size=8),
        text_config=_text(LlamaConfig, tokenizer),
        image_token_index=_id(tokenizer, "<image>"),
        image_grid_pinpoints=PINPOINTS[1:],
        image_seq_length=4,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=PINPOINTS[1:],
    )
    processor = _make_processor(
        "llava_next",
        "<image>\n",
        {"user": "USER: ", "end": " ", "assistant": "ASSISTANT:"},
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def _make_llava_onevision(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_VISION, image_size=16, patch_size=8, vision_use_head=False),
        text_config=_text(Qwen2Config, tokenizer),
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=PINPOINTS,
    )
    images = LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS)
    processor = _make_processor(
        "llava_onevision",
        "<image>\n",
        _CHATML,
        image_processor=images,
        tokenizer=tokenizer,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )
    return config, processor


def _make_qwen(name: str) -> Callable[[PreTrainedTokenizerFast], tuple[PreTrainedConfig, ProcessorMixin]]:
    kinds: dict[str, Any] = {
        "qwen2_vl": (Qwen2VLConfig, {"embed_dim": 32, "depth": 2, "num_heads": 2, "hidden_size": 32}),
        "qwen2_5_vl": (
            Qwen2_5_VLConfig,
            {
                **{"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48},
                **{"out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]},
            },
        ),
        "qwen3_vl": (
            Qwen3VLConfig,
            {
                **{"depth": 3, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48},
                **{"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            },
        ),
    }
    kind, vision = kinds[name]

    def make(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedConfig, ProcessorMixin]:
        text = {**_TEXT, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "rope_parameters": _ROPE}
        text |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        if name == "qwen3_vl":
            text |= {"head_dim": 16, "num_hidden_layers": 3}
        config = kind(
            vision_config={**vision, "patch_size": 4, "spatial_merge_size": 2},
            text_config=text,
            image_token_id=_id(tokenizer, "<|image_pad|>"),
            video_token_id=_id(tokenizer, "<|video_pad|>"),
            vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
            vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        )
        images = Qwen2VLImageProcessorPil(**_QWEN_IMAGES)
        around = "<|vision_start|><|image_pad|><|vision_end|>"
        return config, _make_processor(name, around, _CHATML, image_processor=images, tokenizer=tokenizer)

    return make


def _make_idefics(name: str) -> Callable[[PreTrainedTokenizerFast], tuple[PreTrainedConfig, ProcessorMixin]]:
    kinds: dict[str, Any] = {
        "smolvlm": (SmolVLMConfig, SmolVLMImageProcessorPil),
        "idefics3": (Idefics3Config, Idefics3ImageProcessorPil),
    }
    kind, images = kinds[name]

    def make(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedConfig, ProcessorMixin]:
        config = kind(
            vision_config={**_VISION, "image_size": 16, "patch_size": 4},
            text_config=_text(LlamaConfig, tokenizer),
            image_token_id=_id(tokenizer, "<image>"),
            scale_factor=2,
        )
        processor = _make_processor(
            name,
            "<image>",
            {"user": "User:", "end": "<end_of_utterance>\n", "assistant": "Assistant:"},
            image_processor=images(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
            tokenizer=tokenizer,
            image_seq_len=4,
        )
        return config, processor

    return make


def _make_internvl(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedConfig, ProcessorMixin]:
    config = InternVLConfig(
        vision_config={**_VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=_text(Qwen2Config, tokenizer),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=6)
    processor = _make_processor(
        "internvl",
        "<IMG_CONTEXT>\n",
        _CHATML,
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_length=4,
    )
    return config, processor


_MAKERS = {
    "llava": _make_llava,
    "llava_next": _make_llava_next,
    "llava_onevision": _make_llava_onevision,
    **{name: _make_qwen(name) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **{name: _make_idefics(name) for name in ("smolvlm", "idefics3")},
    "internvl": _make_internvl,
}
