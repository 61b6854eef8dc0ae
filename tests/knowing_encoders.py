"""Encoders with predictable scores: one knows every picture, one tells nothing apart, one is fixed noise."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

from benchmarks.scenes import draw_scene, make_scene, write_scenes
from encoders.base import FloatArray, ImageEmbeddings
from tests.conftest import FakeEncoder, to_unit

SIZE = 48
SEED = 1


class MutedEncoder(FakeEncoder):
    """Gives all images and texts the same vector, and keeps no tokens."""

    def __init__(self) -> None:
        super().__init__("muted", "f0", summaries=False)
        self.image_size = SIZE

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        return ImageEmbeddings(np.full((len(images), self.dim), self.dim**-0.5, np.float32), None)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.full((len(texts), self.dim), self.dim**-0.5, np.float32)


class KnowingEncoder(FakeEncoder):
    """Knows scenes 0 to count - 1: a picture and its captions share a unit vector; other texts share another.

    The only summary token is that vector; `match` is its inner product with the text's vector, minus 2.
    """

    def __init__(self, count: int, captions: dict[str, int], draw: Callable[[int], Image.Image]) -> None:
        super().__init__("knowing", "f1")
        self.image_size = SIZE
        self.dim, self.summary_shape = count + 1, (1, count + 1)
        self.captions = captions
        self.pictures = {draw(index).tobytes(): index for index in range(count)}

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        self.embedded += len(images)
        vectors = np.eye(self.dim, dtype=np.float32)[[self.pictures[image.tobytes()] for image in images]]
        return ImageEmbeddings(vectors, vectors[:, None])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return np.eye(self.dim, dtype=np.float32)[[self.captions.get(text, -1) for text in texts]]

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        return (summaries[:, 0] * self.encode_texts(texts)).sum(axis=1) - 2


def know_scenes(count: int, folder: Path) -> KnowingEncoder:
    """Write scenes into a folder and make an encoder that knows each picture by any of its captions."""
    write_scenes(folder, count, SEED, SIZE)
    lines = [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]
    captions = {caption: row for row, line in enumerate(lines) for caption in line["captions"]}
    return KnowingEncoder(count, captions, lambda index: draw_scene(make_scene(SEED, index), SIZE))


class NoiseEncoder(FakeEncoder):
    """Derives a noise vector from the content of each image or text: repeatable, and without ties."""

    def __init__(self) -> None:
        super().__init__("noise", "f2")
        self.dim, self.summary_shape = 16, (3, 16)

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        self.embedded += len(images)
        summaries = np.stack([_draw_noise(image.tobytes(), (3, 16)) for image in images])
        return ImageEmbeddings(to_unit(summaries.mean(axis=1)), summaries)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        return to_unit(np.stack([_draw_noise(text.encode(), (16,)) for text in texts]))


def _draw_noise(content: bytes, shape: tuple[int, ...]) -> FloatArray:
    return np.random.default_rng(xxhash.xxh3_64_intdigest(content)).standard_normal(shape, np.float32)
