"""The stock LVLM that all variants adapt, a plain captioner over uncompressed image tokens, and its features.

RUN/stock/                  the LVLM, an ordinary transformers folder
RUN/features.safetensors    H_v: train (copies, photos, tokens, width) and test (photos, tokens, width), bf16
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import BatchEncoding, PreTrainedModel, ProcessorMixin

from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import decode_pictures
from encoders.base import DatasetError
from encoders.fwd2bot.adapters import NONE
from encoders.fwd2bot.checkpoint import Checkpoint
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import AdapterSettings, Answers, Fwd2Bot
from encoders.fwd2bot.pretrained import load_lvlm
from encoders.fwd2bot.prompts import Prompts
from encoders.precision import autocast
from training.ablations.batches import deal_batch, prompt_images
from training.ablations.phases import run_phase
from training.ablations.settings import AblationSettings
from training.augment import Chance
from training.deal import Deal
from training.grad_cache import Chunk, count_tokens
from training.sources.base import Source
from training.views import SquareViews

_FEATURES, _STOCK = "features.safetensors", "stock"
_BATCH = 64


class Stock(NamedTuple):
    """The LVLM, its processor and prompts, and its features of the photos (see above)."""

    lvlm: PreTrainedModel
    processor: ProcessorMixin
    prompts: Prompts
    train: Tensor
    test: Tensor

    @property
    def image_tokens(self) -> int:
        """How many tokens an image has."""
        return self.test.shape[1]

    def write_prompts(self, placeholders: int) -> InputBuilder:
        """An input builder whose prompts of pass 2 have that many placeholders."""
        return InputBuilder(self.processor, self.prompts, placeholders)


def prepare_stock(
    settings: AblationSettings,
    checkpoint: Checkpoint,
    source: Source,
    test: list[CaptionedImage],
    run: Path,
) -> Stock:
    """Train the captioner and store its features, or load what an earlier command stored."""
    if not (run / _STOCK).exists():
        train_captioner(settings, checkpoint, source)
        _save_stock(checkpoint, run / _STOCK)
    lvlm, processor = load_lvlm(str(run / _STOCK), "cpu", torch.float32)
    lvlm.set_attn_implementation("eager")  # see `training.lvlm`
    if not (run / _FEATURES).exists():
        model = Fwd2Bot(lvlm, 1, AdapterSettings(mode=NONE)).eval()
        builder = InputBuilder(processor, checkpoint.prompts, 1)
        features = {
            "train": _see_training_photos(model, builder, source, settings),
            "test": _see_test_photos(model, builder, test),
        }
        save_file(features, run / f"{_FEATURES}.tmp")
        (run / f"{_FEATURES}.tmp").replace(run / _FEATURES)
    return Stock(
        lvlm, processor, checkpoint.prompts, *_load_features(run / _FEATURES, len(source), len(test))
    )


def train_captioner(settings: AblationSettings, checkpoint: Checkpoint, source: Source) -> None:
    """Train the checkpoint's whole LVLM, tower included, to caption photos from all their image tokens."""
    lvlm, phase = checkpoint.model.lvlm, settings.stock
    model, tokens = Fwd2Bot(lvlm, 1, AdapterSettings(mode=NONE)), count_image_tokens(checkpoint)
    builder = InputBuilder(checkpoint.processor, checkpoint.prompts, tokens)
    views, deal = SquareViews(builder, settings.augmentation), Deal("photos", source, settings.seed)
    lvlm.set_attn_implementation("eager")  # see `training.lvlm`
    lvlm.requires_grad_(True).train()

    def find_loss(step: int) -> Tensor:
        batch = deal_batch(deal, builder, step, phase.photos)
        inputs = _view(views, source, batch.rows.tolist(), settings.seed + step)
        with autocast(torch.device("cpu")):
            features = model.image_features(inputs).unflatten(0, (phase.photos, tokens))
            return average_answers(model.token_losses, features, batch.answers)

    run_phase("stock captioner", phase, lvlm.parameters(), find_loss)
    lvlm.eval()


def average_answers(
    token_losses: Callable[[Tensor, BatchEncoding, Tensor], Tensor],
    memory: Tensor,
    answers: Sequence[Answers],
) -> Tensor:
    """Mean cross-entropy over all answer tokens; memory (rows, ...): what pass 2 reads of each row."""
    losses = [token_losses(memory[part.sources], part.inputs, part.labels).sum() for part in answers]
    return torch.stack(losses).sum() / count_tokens(Chunk([], [], answers))


def count_image_tokens(checkpoint: Checkpoint) -> int:
    """How many tokens an image has."""
    prompt = prompt_images(InputBuilder(checkpoint.processor, checkpoint.prompts, 1), 1)
    return int((prompt["input_ids"] == checkpoint.model.image_token).sum())


@torch.no_grad()
def _see_training_photos(
    model: Fwd2Bot, builder: InputBuilder, source: Source, settings: AblationSettings
) -> Tensor:
    """Features (copies, photos, tokens, width), bfloat16; each copy is a new random view of all photos."""
    views, copies = SquareViews(builder, settings.augmentation), []
    for number in range(settings.copies):
        starts = tqdm(range(0, len(source), _BATCH), desc=f"view {number + 1}", unit="batch", disable=None)
        parts = [range(start, min(start + _BATCH, len(source))) for start in starts]
        seed = settings.seed + number * len(source)
        copies.append(
            torch.cat(
                [_see(model, _view(views, source, part, seed + part.start), len(part)) for part in parts]
            )
        )
    return torch.stack(copies)


@torch.no_grad()
def _see_test_photos(model: Fwd2Bot, builder: InputBuilder, images: Sequence[CaptionedImage]) -> Tensor:
    parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    photos = (list(decode_pictures([image.path for image in part], builder.image_side)) for part in parts)
    return torch.cat([_see(model, builder.images(part), len(part)) for part in photos])


def _see(model: Fwd2Bot, inputs: BatchEncoding, photos: int) -> Tensor:
    with autocast(torch.device("cpu")):
        features = model.image_features(inputs).to(torch.bfloat16)
    return features.view(photos, -1, features.shape[1])


def _load_features(path: Path, photos: int, test_photos: int) -> tuple[Tensor, Tensor]:
    try:
        features = load_file(path)
        train, test = features["train"], features["test"]
    except (KeyError, OSError, SafetensorError) as error:
        raise DatasetError(f"{path} cannot be read ({error}): remove it, and it is made again") from error
    if (train.shape[1], len(test)) != (photos, test_photos):
        raise DatasetError(
            f"{path} is of {train.shape[1]} training and {len(test)} test photos, and the data have {photos} "
            f"and {test_photos}: choose another --run, or the data it was made from"
        )
    return train, test


def _view(views: SquareViews, source: Source, rows: Sequence[int], seed: int) -> BatchEncoding:
    """Random views of photos; never mirrored, because captions say left and right."""
    photos = [_load(source, row, views.side) for row in rows]
    chance = Chance(torch.Generator().manual_seed(seed), len(photos))
    return views.show(photos, [], torch.zeros(len(photos), dtype=torch.bool), chance, replace(chance, rows=0))


def _load(source: Source, row: int, side: int) -> Image.Image:
    try:
        return source.load_picture(row, side)
    except DatasetError as error:
        raise DatasetError(
            f"{source.describe_row(row)}: {error}; every variant sees every photo, so mend or remove it"
        ) from error


def _save_stock(checkpoint: Checkpoint, folder: Path) -> None:
    temporary = folder.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.model.lvlm.save_pretrained(temporary)
    checkpoint.processor.save_pretrained(temporary)
    temporary.rename(folder)
