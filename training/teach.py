r"""Write teachers' embeddings of the pictures and texts of a training set, for [distillation].

    python -m training.teach training/configs/tiny-distilled.toml --data DIR \
        --teachers tiny --two-towers runs/two_tower --out runs/teachers

Each teacher embeds each picture and each caption of the settings' sources once; a picture's embedding is the
mean with that of its mirror image. `training.guides` describes the files. Scenes are new at every step, so
they are left out.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn.functional import normalize
from tqdm import tqdm

from encoders.base import DatasetError, FloatArray, ImageEmbeddings
from encoders.fwd2bot.encoder import Fwd2BotEncoder
from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.model import pool
from encoders.load import load_encoder
from encoders.precision import autocast
from training.guides import PICTURE_COLUMNS, PICTURES_FILE, TEXT_COLUMNS, TEXTS_FILE, make_batch, write_table
from training.image_size import set_image_size, show_at
from training.run_log import run_command, tell
from training.settings import read_settings
from training.sources.base import Source
from training.sources.caption_groups import CaptionGroupSource
from training.sources.drawn import DrawnSource
from training.sources.open import Sources, open_sources, read_all_captions
from training.two_tower import load_two_towers
from training.validate import Compressor, embed_texts

_BATCH = 32


class Teacher(Protocol):
    """The part of an encoder that teaching needs. Embeddings are of unit length."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """Embed RGB images of any size."""

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts: float32 (texts, dim), rows of unit length."""


class ModelTeacher:
    """A model with its training input builder, used as an encoder."""

    def __init__(self, model: Compressor, builder: InputBuilder) -> None:
        self.model, self.builder = model, builder
        self.dim = model.summary_shape[1]

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """See Encoder."""
        inputs = self.builder.images(list(images)).to(self.model.device)
        with autocast(self.model.device):
            return ImageEmbeddings(pool(self.model.compress(inputs)).float().cpu().numpy(), None)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """See Encoder."""
        rows: FloatArray = embed_texts(self.model, self.builder, texts).cpu().numpy()
        return rows


class WideEyedTeacher:
    """A model that embeds each picture at several sizes, and averages the embeddings."""

    def __init__(self, model: Compressor, builder: InputBuilder, sides: Sequence[int]) -> None:
        """sides: of the input pictures, in pixels; raises DatasetError if the model cannot read one."""
        for side in sides:
            set_image_size(model, builder, side)
        self.teacher, self.sides = ModelTeacher(model, builder), sides
        self.dim, self.encode_texts = self.teacher.dim, self.teacher.encode_texts

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """See Encoder."""
        looks = []
        for side in self.sides:
            show_at(self.teacher.builder, side)
            looks.append(self.teacher.encode_images(images).vectors)
        return ImageEmbeddings(_average(looks), None)


def teach(teachers: Sequence[Teacher], sources: Sources, out: Path) -> None:
    """Write the teachers' embeddings of the sources to `out`; raises DatasetError if `teachers` is empty."""
    if not teachers:
        raise DatasetError("Nobody teaches: name --teachers, --two-towers, or both")
    out.mkdir(parents=True, exist_ok=True)
    dim = sum(teacher.dim for teacher in teachers)
    with write_table(out / PICTURES_FILE, PICTURE_COLUMNS, dim) as writer:
        for name, row_numbers, pictures in _load_pictures(sources):
            embeddings = _join([_embed_mirrored(teacher, pictures) for teacher in teachers])
            writer.write_batch(make_batch(writer, [[name] * len(pictures), row_numbers], embeddings))
    # Texts sorted by length need little padding, and each is embedded once, however often it occurs.
    texts = sorted(set(read_all_captions(sources)), key=lambda text: (len(text), text))
    starts = range(0, len(texts), _BATCH)
    with write_table(out / TEXTS_FILE, TEXT_COLUMNS, dim) as writer:
        for start in tqdm(starts, desc="texts", unit="batch", disable=None):
            part = texts[start : start + _BATCH]
            embeddings = _join([teacher.encode_texts(part) for teacher in teachers])
            writer.write_batch(make_batch(writer, [part], embeddings))


def _load_pictures(sources: Sources) -> Iterator[tuple[str, list[int], list[Image.Image]]]:
    """Batches of the pictures of each source, with their row numbers; unreadable ones are reported."""
    for name, source in sources.items():
        if isinstance(source, DrawnSource | CaptionGroupSource):
            continue
        for start in tqdm(range(0, len(source), _BATCH), desc=name, unit="batch", disable=None):
            loaded = dict(_load_each(name, source, range(start, min(start + _BATCH, len(source)))))
            if loaded:
                yield name, list(loaded), list(loaded.values())


def _load_each(name: str, source: Source, rows: range) -> Iterator[tuple[int, Image.Image]]:
    for row in rows:
        try:
            if not source.draw_sample(row, Random(0)).text:  # a row with a text has no picture
                yield row, source.load_picture(row, 0)
        except DatasetError as error:
            tell(f"source {name} passes over {source.describe_row(row)}: {error}")


def _embed_mirrored(teacher: Teacher, pictures: Sequence[Image.Image]) -> FloatArray:
    """The mean embedding of picture and mirror image, of unit length: two views are better than one."""
    plain = teacher.encode_images(pictures).vectors
    mirrored = teacher.encode_images([ImageOps.mirror(picture) for picture in pictures]).vectors
    return _average([plain, mirrored])


def _average(looks: Sequence[FloatArray]) -> FloatArray:
    """The mean of several embeddings of the same pictures, scaled to unit length."""
    mean: FloatArray = normalize(torch.from_numpy(np.sum(looks, axis=0)), dim=1).numpy()
    return mean


def _join(embeddings: Sequence[FloatArray]) -> FloatArray:
    """Concatenate the teachers' embeddings, scaled so that rows keep unit length."""
    joined: FloatArray = np.concatenate(embeddings, axis=1) / np.sqrt(len(embeddings))
    return joined


def _widen_eyes(teacher: Teacher, sides: Sequence[int]) -> Teacher:
    """The teacher at these image sizes; raises DatasetError if it is not a model trained here."""
    if not sides:
        return teacher
    if not isinstance(teacher, Fwd2BotEncoder | ModelTeacher):
        raise DatasetError("Only models that were trained here can be shown another --image-size")
    return WideEyedTeacher(teacher.model, teacher.builder, sides)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write teachers' embeddings of a training set."""
    parser = argparse.ArgumentParser(prog="python -m training.teach", description=main.__doc__)
    parser.add_argument("settings", type=Path, help="the settings of the run that is to learn from them")
    parser.add_argument("--data", type=Path, required=True, help="as for training.train")
    parser.add_argument(
        "--teachers", nargs="*", default=[], metavar="MODEL", help="as in `fwd2bot index --model`"
    )
    parser.add_argument(
        "--two-towers", nargs="*", default=[], type=Path, metavar="RUN", help="runs of training.two_tower"
    )
    parser.add_argument(
        "--image-size",
        nargs="+",
        default=[],
        type=int,
        metavar="PIXELS",
        help="show them pictures of this side, not of their own: crops made these look larger in training; "
        "of several sides, the mean is written",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder that distillation.teachers names")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    options = parser.parse_args(arguments)

    def command() -> None:
        settings = read_settings(options.settings, options.overrides)
        models = [load_encoder(name) for name in options.teachers]
        towers = [load_two_towers(run, options.data) for run in options.two_towers]
        teachers = [_widen_eyes(model, options.image_size) for model in models]
        teachers += [_widen_eyes(ModelTeacher(*tower), options.image_size) for tower in towers]
        teach(teachers, open_sources(settings.sources, options.data), options.out)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
