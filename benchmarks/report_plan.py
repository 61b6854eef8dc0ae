"""What `benchmarks.report` measures, in the order of the document: commands, sizes, and a short description.

On two cores everything took 46 minutes, 28 of them for a million neighbours, and under ten with --fast.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.contenders import RIVALS
from benchmarks.scenes import write_scenes
from encoders.base import DEFAULT_ENCODER, Encoder, Fwd2BotError, IndexNotFound
from encoders.load import load_encoder
from indexer.build import BuildSettings, build
from indexer.manifest import read_manifest

_SERIES = 2
_BASE = "encoders/weights/base"  # the LVLM of the embedded model, an ordinary transformers folder
_SLOW_TO_START = ("clip-retrieval-2.45.0",)  # takes 100 seconds per run
_RCLIP_ASKS = (
    " rclip has no command that only indexes: its rows of that, "
    '"nothing changed" above all, hold a query too.'
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }} "
    "{% endfor %}{% endfor %}"
)


class Scope(NamedTuple):
    """How much to measure, and on what. data: folder of real photos. place: where rivals are installed."""

    fast: bool
    results: Path
    data: Path | None
    place: Path | None


class Section(NamedTuple):
    """One table: its name, its heading, a short description, and its command."""

    name: str
    title: str
    words: str
    module: str
    list_arguments: Callable[[Scope], Sequence[str]]
    is_possible: Callable[[Scope], bool] = lambda scope: True


def choose_scenes(scope: Scope) -> list[str]:
    """Command-line arguments for drawn scenes, which are written if they do not exist yet."""
    count = 100 if scope.fast else 1000
    folder = scope.results / f"scenes-{count}"
    if not (folder / "dataset_scenes.json").exists():
        write_scenes(folder, count, _SERIES)
    return ["--dataset", str(folder / "dataset_scenes.json"), "--images", str(folder)]


def choose_lvlm(scope: Scope) -> str:
    """The LVLM of the embedded model with a chat template added, which sentence-transformers needs."""
    folder = scope.results / "lvlm"
    shutil.copytree(_BASE, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    return str(folder)


def choose_photos(scope: Scope) -> list[str]:
    """Command-line arguments for the real photos; raises Fwd2BotError if the folder holds no data set."""
    found = sorted(scope.data.glob("dataset_*.json")) if scope.data else []
    if scope.data is None or not found:
        near = sorted(scope.data.glob("*/dataset_*.json")) if scope.data else []
        example = f", such as {near[0].parent}" if near else ""
        raise Fwd2BotError(f"{scope.data} holds no dataset_*.json: give --data the folder of one{example}.")
    images = scope.data / "images"
    return ["--dataset", str(found[0]), "--images", str(images if images.is_dir() else scope.data)]


def choose_index(scope: Scope) -> Path:
    """An index of the real photos, built if it does not exist yet or was made by a different model."""
    photos, index = Path(choose_photos(scope)[-1]), scope.results / "photos-index"
    encoder = load_encoder(DEFAULT_ENCODER)
    build(photos, index, encoder, BuildSettings(rebuild=not _is_made_by(encoder, index)))
    return index


def _is_made_by(encoder: Encoder, index: Path) -> bool:
    try:
        return read_manifest(index).encoder.fingerprint == encoder.fingerprint
    except IndexNotFound:
        return False


def has_photos(scope: Scope) -> bool:
    """Whether real photos were given."""
    return scope.data is not None


def has_place(scope: Scope) -> bool:
    """Whether a folder for rivals was given."""
    return scope.place is not None


def _on_scenes(*more: str) -> Callable[[Scope], list[str]]:
    return lambda scope: [*choose_scenes(scope), *more]


def _on_photos(*more: str) -> Callable[[Scope], list[str]]:
    return lambda scope: [*choose_photos(scope), *more]


def _list_storage(scope: Scope) -> list[str]:
    return choose_photos(scope) if has_photos(scope) else choose_scenes(scope)


def _list_ann(scope: Scope) -> list[str]:
    if scope.fast:
        return ["--rows", "20000", "--dim", "256", "--seconds", "0.5"]
    return ["--rows", "100000", "--dim", "256", "512"]


def _list_speed(scope: Scope) -> list[str]:
    return choose_scenes(scope)[2:]


def _list_throughput(scope: Scope) -> list[str]:
    return ["--count", "100" if scope.fast else "1000"]


def _list_side_by_side(scope: Scope) -> list[str]:
    return [
        "--models",
        DEFAULT_ENCODER,
        f"lvlm:{choose_lvlm(scope)}",
        f"st:{choose_lvlm(scope)}",
        "--seconds",
        "1" if scope.fast else "5",
    ]


def _make_race(rival: str, megapixels: int) -> Section:
    """The race against one rival, installed from the package index, on photos of one size."""

    def list_arguments(scope: Scope) -> list[str]:
        size = (
            ["--count", "160", "--rounds", "1", "--rows", "10000"]
            if scope.fast
            else ["--count", "2000", "--rounds", "2" if rival in _SLOW_TO_START else "3"]
        )
        return ["--place", str(scope.place), "--rival", rival, "--megapixels", str(megapixels), *size]

    asks = _RCLIP_ASKS if rival.startswith("rclip") else ""
    title, words = (
        f"The whole job, beside {rival}, on photos of {megapixels} megapixel{'s' if megapixels > 1 else ''}",
        f"On drawn photos of camera size, with the same random weights.{asks}",
    )
    module, name = "benchmarks.peers.race", f"race_{rival.replace('-', '_').replace('.', '_')}_{megapixels}mp"
    return Section(
        name,
        title,
        words,
        module,
        list_arguments,
        lambda scope: has_place(scope) and (megapixels == 1 or not scope.fast),
    )


SECTIONS = [
    Section(
        "text_to_image",
        "Retrieval, on drawn scenes",
        "Of the embedded model; scenes it has never seen, by each of their captions.",
        "benchmarks.text_to_image",
        _on_scenes("--index-forms", "--rerank", "30"),
    ),
    Section(
        "text_to_image_photos",
        "Retrieval, on real photos",
        "Of the embedded model, on the test split of the data given.",
        "benchmarks.text_to_image",
        _on_photos("--index-forms", "--rerank", "30"),
        has_photos,
    ),
    Section(
        "compositionality",
        "Compositionality",
        "Hard negatives of drawn scenes, told from the truth by embedding and by likelihood.",
        "benchmarks.compositionality",
        lambda scope: ["--count", "100" if scope.fast else "1000"],
    ),
    Section(
        "generation",
        "Generation from stored tokens",
        "Captions of drawn scenes, from every form in which tokens can be kept.",
        "benchmarks.generation",
        _on_scenes(),
    ),
    Section(
        "generation_photos",
        "Generation from stored tokens, on real photos",
        "The same on the data given.",
        "benchmarks.generation",
        _on_photos(),
        has_photos,
    ),
    Section(
        "storage",
        "Storage",
        "Bytes an image as really written, and what each form costs in recall and likelihood.",
        "benchmarks.storage",
        _list_storage,
    ),
    Section(
        "ann",
        "Nearest neighbours",
        "Clustered synthetic vectors. What fwd2bot chooses stands first; where it is beaten is said below.",
        "benchmarks.ann",
        _list_ann,
    ),
    Section(
        "ann_photos",
        "Nearest neighbours, of real photos",
        "The same over the embeddings of the data given.",
        "benchmarks.ann",
        lambda scope: ["--index", str(choose_index(scope)), "--seconds", "0.5" if scope.fast else "5"],
        has_photos,
    ),
    Section(
        "ann_million",
        "Nearest neighbours, of a million",
        "The same at a million, where fwd2bot goes over to inverted lists.",
        "benchmarks.ann",
        lambda scope: ["--rows", "1000000", "--dim", "256", "512"],
        lambda scope: not scope.fast,
    ),
    Section(
        "speed",
        "The installed command",
        "Wall time and peak memory of each command, start included.",
        "benchmarks.speed",
        _list_speed,
    ),
    Section(
        "throughput",
        "Whether the model is the bottleneck",
        "An index run over photos of one megapixel, beside the bare encoder on tensors that are ready.",
        "benchmarks.throughput",
        _list_throughput,
    ),
    Section(
        "side_by_side",
        "Encoders side by side",
        "The embedded model, and its LVLM as it comes, in fwd2bot and in sentence-transformers.",
        "benchmarks.side_by_side",
        _list_side_by_side,
    ),
    Section(
        "side_by_side_clip",
        "Encoders side by side, and a CLIP model",
        "The embedded model beside a CLIP model of open_clip with random weights, which is fair for speed.",
        "benchmarks.side_by_side",
        lambda scope: ["--place", str(scope.place), "--seconds", "1" if scope.fast else "5"],
        has_place,
    ),
    *(_make_race(rival, megapixels) for rival in RIVALS for megapixels in (1, 12)),
]
