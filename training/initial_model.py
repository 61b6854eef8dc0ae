"""The model that a run starts with: small and from scratch, pretrained with adapters, or a checkpoint."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import ProcessorMixin

from benchmarks.scenes import describe_scene, make_scene, questions, unique_caption
from encoders.base import DatasetError
from encoders.fwd2bot.adapters import NONE, PER_PASS, list_adapter_weights
from encoders.fwd2bot.checkpoint import load_checkpoint
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import Fwd2Bot
from encoders.fwd2bot.pretrained import load_lvlm
from encoders.fwd2bot.prompts import CONTENT_HOLE, INSTRUCTION_HOLE
from encoders.load import find_checkpoint
from training.image_size import set_image_size
from training.losses import WordLoss
from training.lvlm import make_lvlm, make_processor, train_tokenizer, use_fast_layout
from training.packing import mark_words
from training.settings import BaseSettings, CheckpointSettings, LvlmSettings, TrainingSettings
from training.sources.open import Sources, read_all_captions

_TOKENIZER_SCENES = 3000
_COUNTED_CAPTIONS = 10_000


class InitialModel(NamedTuple):
    """A model, the builder of its inputs, and the word loss, which only a model from scratch has."""

    model: Fwd2Bot
    builder: InputBuilder
    words: WordLoss | None

    @property
    def processor(self) -> ProcessorMixin:
        """The LVLM's processor."""
        return self.builder.processor


def make_initial_model(settings: TrainingSettings, sources: Sources, device: torch.device) -> InitialModel:
    """Build the model of step 0, in main memory; the same settings and sources give the same weights.

    device: where it will be trained; a 4-bit model is loaded there at once. A checkpoint's new tower is not
    put in here, because it has to be fitted to the run's pictures (`training.graft`).
    """
    if isinstance(settings.lvlm, BaseSettings):
        return _adapt_pretrained(settings, settings.lvlm, device)
    if isinstance(settings.lvlm, CheckpointSettings):
        return _go_on(settings, settings.lvlm)
    return _start_from_nothing(settings, settings.lvlm, list(read_all_captions(sources)))


def _start_from_nothing(settings: TrainingSettings, shape: LvlmSettings, captions: list[str]) -> InitialModel:
    tokenizer = train_tokenizer(_tokenizer_texts(captions, settings), shape.vocabulary)
    builder = _build_inputs(make_processor(tokenizer, shape), settings)
    frequencies = _count_words(builder, captions, settings.seed)
    torch.manual_seed(settings.seed)
    lvlm = make_lvlm(tokenizer, shape)
    model = Fwd2Bot(lvlm, settings.summary_tokens, settings.adapters)
    model.requires_grad_(True)  # nothing is pretrained, so nothing is frozen
    return InitialModel(model, builder, WordLoss(shape.width, frequencies))


def _adapt_pretrained(settings: TrainingSettings, base: BaseSettings, device: torch.device) -> InitialModel:
    """Put adapters on a pretrained LVLM: frozen weights are bfloat16 on a GPU, trained ones float32."""
    _require_sight(settings, base.base)
    frozen = device.type == "cuda" and settings.adapters.mode != NONE
    dtype = torch.bfloat16 if frozen else torch.float32
    place = "cpu" if base.quantize == "none" else str(device)
    lvlm, processor = load_lvlm(base.base, place, dtype, base.quantize)
    torch.manual_seed(settings.seed)
    model = Fwd2Bot(lvlm, settings.summary_tokens, settings.adapters)
    return InitialModel(model, _build_inputs(processor, settings), None)


def _go_on(settings: TrainingSettings, start: CheckpointSettings) -> InitialModel:
    """Load a checkpoint to train further in float32: all of it, or only the adapter of pass 2."""
    _require_sight(settings, start.checkpoint)
    model, processor, prompts, *_ = load_checkpoint(find_checkpoint(start.checkpoint), "cpu")
    found = model.summary_shape[0], model.adapters, prompts
    if found != (settings.summary_tokens, settings.adapters, settings.prompts):
        raise DatasetError(
            f"{start.checkpoint} has {found[0]} summary tokens, {found[1]} and {found[2]}: give the same "
            "summary_tokens, [adapters] and [prompts]"
        )
    model.requires_grad_(start.trained == "all")
    if start.trained == "generate":
        _train_answers_alone(settings, model, start)
    use_fast_layout(model.lvlm)
    builder = _build_inputs(processor, settings)
    if start.image_size:
        model.lvlm.config.image_seq_length = set_image_size(model, builder, start.image_size)
    return InitialModel(model, builder, None)


def _build_inputs(processor: ProcessorMixin, settings: TrainingSettings) -> InputBuilder:
    builder = InputBuilder(
        processor, settings.prompts, settings.summary_tokens, longest_answer=settings.longest_answer
    )
    image, text = builder.frames
    for frame, hole in ((image, INSTRUCTION_HOLE), (text, INSTRUCTION_HOLE), (text, CONTENT_HOLE)):
        if hole not in frame:
            raise DatasetError(
                f"Prompts of the form {frame!r:.200} keep a text or a question from the model: give "
                f"prompts.template both {CONTENT_HOLE} and {INSTRUCTION_HOLE}"
            )
    return builder


def _train_answers_alone(settings: TrainingSettings, model: Fwd2Bot, start: CheckpointSettings) -> None:
    if model.adapters.mode != PER_PASS:
        raise DatasetError(
            f'trained = "generate" needs an adapter for pass 2 alone, not {model.adapters.mode}'
        )
    matched = settings.contrastive_weight or settings.feature_weight or settings.distillation
    if matched or start.image_size or start.tower:
        raise DatasetError(
            'trained = "generate" leaves embeddings as they are: set contrastive_weight and feature_weight '
            "to 0, and leave out [distillation], image_size and tower"
        )
    for weight in list_adapter_weights(model.generator):
        weight.requires_grad_(True)


def _require_sight(settings: TrainingSettings, name: str) -> None:
    """Raise DatasetError for settings that only make sense for a tower trained from scratch."""
    if settings.word_weight or any(batch.tower_only for batch in settings.batches):
        raise DatasetError(f"{name} sees already: set word_weight = 0, and leave out batches with tower_only")


def _tokenizer_texts(captions: Sequence[str], settings: TrainingSettings) -> Iterator[str]:
    """Captions, plus prompts and scene texts, repeated so that their words become single tokens."""
    yield from captions
    prompts = settings.prompts
    for index in range(_TOKENIZER_SCENES):
        scene = make_scene(settings.seed, index)
        yield from describe_scene(scene, Random(index))
        yield from (f"{question} {answer}" for question, answer in questions(scene))
        yield from (prompts.image, prompts.text, prompts.caption)


def _count_words(builder: InputBuilder, captions: Sequence[str], seed: int) -> Tensor:
    """The fraction of texts that hold each token, over captions and drawn scenes: float32 (vocabulary,)."""
    scenes = [unique_caption(make_scene(seed, index)) for index in range(_TOKENIZER_SCENES)]
    texts = [*captions[-_COUNTED_CAPTIONS:], *scenes]
    return mark_words(builder, texts).float().mean(dim=0)
