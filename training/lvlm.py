"""A small LVLM from scratch: tokenizer, processor and random weights, all in stock transformers classes."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    ResNetConfig,
    SiglipImageProcessorPil,
)

from encoders.fwd2bot.pretrained import put_channels_last
from encoders.fwd2bot.prompts import IMAGE_PLACEHOLDER
from training.settings import LvlmSettings

_PAD, _END = "<pad>", "<end>"
_LONGEST_SEQUENCE = 1024


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over lower-cased texts: any string can be encoded, and common words are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PAD, _END, IMAGE_PLACEHOLDER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_END,
        padding_side="left",
        model_max_length=_LONGEST_SEQUENCE,
    )
    fast.add_special_tokens({"extra_special_tokens": [IMAGE_PLACEHOLDER]})
    return fast


def make_processor(tokenizer: PreTrainedTokenizerFast, settings: LvlmSettings) -> LlavaProcessor:
    """A LLaVA processor that squeezes pictures of any shape to a square, as is done in training."""
    size = {"height": settings.image_size, "width": settings.image_size}
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size=size),
        tokenizer=tokenizer,
        patch_size=_stride(settings),
        vision_feature_select_strategy="full",
        image_token=IMAGE_PLACEHOLDER,
    )


def make_lvlm(tokenizer: PreTrainedTokenizerFast, settings: LvlmSettings) -> FastVlmForConditionalGeneration:
    """ResNet tower, MLP projector, Qwen2 LLM with tied embeddings: random weights, all trainable."""
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=_LONGEST_SEQUENCE,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    vision = ResNetConfig(
        embedding_size=settings.tower_stem,
        hidden_sizes=list(settings.tower_widths),
        depths=list(settings.tower_depths),
        layer_type="basic",
        hidden_size=settings.tower_widths[-1],  # type: ignore[call-arg]  # the projector reads it
    )
    image_token = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    config = FastVlmConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,  # type: ignore[arg-type]  # one token, one id
        image_seq_length=(settings.image_size // _stride(settings)) ** 2,
        tie_word_embeddings=True,
    )
    lvlm: FastVlmForConditionalGeneration = FastVlmForConditionalGeneration._from_config(config)
    use_fast_layout(lvlm)
    return lvlm


def use_fast_layout(lvlm: PreTrainedModel) -> None:
    """Use what trains fastest on a CPU: channels last, and eager attention in bf16, not a fused kernel."""
    put_channels_last(lvlm)
    lvlm.set_attn_implementation("eager")


def _stride(settings: LvlmSettings) -> int:
    return int(2 ** (len(settings.tower_widths) + 1))  # the stem divides by 4, every further stage by 2
