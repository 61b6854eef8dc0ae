"""Shared by the tests: an encoder without weights that sees colours, a gallery painted for it, its index."""

import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from encoders.base import Encoder, FloatArray, ImageEmbeddings, PreparedImage
from indexer.build import BuildReport, BuildSettings
from indexer.build import build as build_index
from indexer.manifest import read_manifest, write_manifest
from indexer.observer import SilentObserver
from indexer.parts import write_part
from indexer.table import EmbeddingTable
from retrieval import cli

# Set before torch is imported: for models as small as these, threads cost more than they gain, and would sum
# the same numbers in a different order every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."  # PyTorch's words

PALETTE = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}


@pytest.fixture(scope="session", autouse=True)
def single_precision() -> Iterator[None]:
    """Use float32 on every CPU, for comparisons with stock classes to the last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("encoders.precision._HARDWARE", ())
        yield


class FakeEncoder:
    """Measures how close each quarter of an image is to each palette colour, and understands colour words.

    Four summary tokens of eight values, one per quarter; implements TalkingEncoder.
    """

    def __init__(self, name: str = "tiny", fingerprint: str = "fake-1", summaries: bool = True) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.dim = len(PALETTE)
        self.image_size = 32
        self.summary_shape = (4, self.dim) if summaries else None
        self.embedded = 0
        self.batch_size = 4

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """Return the image: there is nothing to prepare."""
        return image

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Call `encode_images`, or whatever a test has replaced it with."""
        return self.encode_images([image for image in prepared if isinstance(image, Image.Image)])

    def lanes(self) -> AbstractContextManager[Sequence[Encoder]]:
        """One lane: a batch at a time."""
        return nullcontext([self])

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """Closeness to each palette colour, for each quarter of each image."""
        assert all(image.mode == "RGB" for image in images)
        self.embedded += len(images)
        pixels = np.stack([np.asarray(image.resize((8, 8), Image.Resampling.BOX)) for image in images])
        quarters = pixels.astype(np.float32).reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4)).reshape(-1, 4, 1, 3)
        colours = np.array(list(PALETTE.values()), np.float32)
        summaries = np.exp(-np.square((quarters - colours) / 128).sum(axis=-1)).astype(
            np.float32
        )  # (n, 4, 8)
        return ImageEmbeddings(to_unit(summaries.mean(axis=1)), summaries if self.summary_shape else None)

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """A 1 for each colour named, or for all if none is, scaled to unit length."""
        rows = [[float(word in text.lower().split()) for word in PALETTE] for text in texts]
        return to_unit(np.array([row if any(row) else [1.0] * self.dim for row in rows], np.float32))

    def caption(self, summaries: FloatArray) -> list[str]:
        """Name the colour closest to each image."""
        return [f"something {list(PALETTE)[tokens.mean(axis=0).argmax()]}" for tokens in summaries]

    def answer(self, summaries: FloatArray, question: str) -> list[str]:
        """Repeat the question and name the colour."""
        return [f"{question} {caption.split()[-1]}" for caption in self.caption(summaries)]

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        """The log of how close the image is to the colours of the text."""
        nearness = (to_unit(summaries.mean(axis=1)) * self.encode_texts(texts)).sum(axis=1)
        return np.log(np.clip(nearness, 1e-6, 1)).astype(np.float32)


def to_unit(rows: FloatArray) -> FloatArray:
    """Scale rows to unit length."""
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows / lengths, dtype=np.float32)


def paint(path: Path, colour: str | tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> Path:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def encoder() -> FakeEncoder:
    """An encoder without weights."""
    return FakeEncoder()


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A folder of eight images, one per palette colour, half of them in a subfolder."""
    root = tmp_path / "gallery"
    for number, (name, colour) in enumerate(PALETTE.items()):
        folder = root / "below" if number % 2 else root
        paint(folder / f"{name}.png", colour)
    return root


@pytest.fixture
def installed_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeEncoder], None]:
    """Replace whatever `load_encoder` would load with an encoder."""

    def install(encoder: FakeEncoder) -> None:
        module = types.ModuleType("encoders.load")
        module.load_encoder = lambda name, device="auto": encoder  # type: ignore[attr-defined]
        module.load_reader = lambda name, fingerprint: encoder  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "encoders.load", module)

    return install


class Witness(SilentObserver):
    """Records what was skipped and how far the run got."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.total = self.done = 0

    def begin(self, task: str, total: int) -> None:
        self.task = task
        if task == "reading":
            self.total = total

    def advance(self, count: int) -> None:
        if self.task == "reading":
            self.done += count

    def skip(self, path: str, reason: str) -> None:
        self.skipped[path] = reason


def build(root: Path, encoder: Encoder, **changes: object) -> BuildReport:
    return build_index(root, root / ".fwd2bot", encoder, BuildSettings(workers=2, batch_size=3, **changes))


def open_table(root: Path) -> EmbeddingTable:
    return EmbeddingTable.open(root / ".fwd2bot")


def write_rows(index: Path, rows: pa.Table) -> None:
    """Replace the only part with these rows, written as the index does, and update the manifest to match."""
    manifest = read_manifest(index)
    part = write_part(index, manifest.parts[0].name, rows.schema, [rows])
    write_manifest(index, replace(manifest, parts=(part,)))


@pytest.fixture
def here(
    gallery: Path,
    encoder: FakeEncoder,
    installed_encoder: Callable[[FakeEncoder], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The gallery, not yet indexed, as the current folder."""
    installed_encoder(encoder)
    monkeypatch.chdir(gallery)
    return gallery


@pytest.fixture
def indexed(here: Path) -> Path:
    assert run("index", ".").exit_code == 0
    return here


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command as its script runs it, with our own errors handled."""
    monkeypatch.setattr(sys, "argv", ["fwd2bot", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the tokenizer on few scenes: it need not know many words here."""
    monkeypatch.setattr("training.initial_model._TOKENIZER_SCENES", 60)


@pytest.fixture(scope="module", name="data")
def colours_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that `write_colours` writes, shared by the tests of a module."""
    from tests.training_runs import write_colours

    return write_colours(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", name="run")
def short_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of three steps on `data`: its model reads 16 pixels a side, two strides of its tower."""
    from tests.training_runs import make_settings
    from training.train import train

    folder = tmp_path_factory.mktemp("run")
    train(make_settings(3), data, folder)
    return folder
