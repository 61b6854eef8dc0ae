"""The contenders of the race: fwd2bot, rclip and clip-retrieval, each run by the commands its users type.

Each stores everything in one folder, its store. If a contender needs several commands for one job
(clip-retrieval embeds, then indexes), their times are added up.
"""

import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers.environments import (
    CLIP_RETRIEVAL,
    OURS,
    RCLIP_2,
    RCLIP_3,
    Installs,
    find_versions,
    make_environment,
    module_command,
    module_script,
    write_random_weights,
)
from benchmarks.speed import time_process
from encoders.base import FloatArray, ImageEmbeddings, IndexNotFound
from indexer.columns import FileRow
from indexer.lock import lock_index
from indexer.manifest import read_manifest
from indexer.table import EmbeddingTable
from indexer.writer import ROWS_PER_COMMIT, IndexWriter

QUERY = "a red circle"

# What clip-retrieval's server does for one query, without the server.
_QUERY_CLIP_RETRIEVAL = """
import sys
from clip_retrieval.clip_back import ClipOptions, KnnService, load_clip_index

options = ClipOptions(
    indice_folder=sys.argv[1], clip_model=sys.argv[2], enable_hdf5=False, enable_faiss_memory_mapping=False,
    columns_to_return=["image_path"], reorder_metadata_by_ivf_index=False, enable_mclip_option=False,
    use_jit=False, use_arrow=False, provide_safety_model=False, provide_violence_detector=False,
    provide_aesthetic_embeddings=False,
)
service = KnnService(clip_resources={"index": load_clip_index(options)})
print(service.query(text_input=sys.argv[3], num_images=10, num_result_ids=10, deduplicate=False))
"""


@dataclass(frozen=True)
class Architecture:
    """A CLIP model as open_clip names it, and where its random weights are for each contender."""

    name: str
    pretrained: str
    hub: Path
    rclip_data: Path


class Contender(Protocol):
    """One side of a race."""

    @property
    def name(self) -> str:
        """The program's name; for a rival, with its version."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of the relevant packages, by name."""

    def index_commands(self, photos: Path, store: Path) -> Sequence[Sequence[str]]:
        """Prepare the store; returns the command lines that update it, to be run in the photos' folder."""

    def search_command(self, photos: Path, store: Path) -> Sequence[str]:
        """The command line of one query."""

    def variables(self, store: Path) -> Mapping[str, str]:
        """Environment variables for all its commands."""

    def count_stored(self, store: Path) -> int:
        """How many images a later run does not have to read again."""

    def fill_store(self, photos: Path, store: Path, count: int) -> None:
        """Fill a store that holds a few images up to `count` rows, with random embeddings."""


@dataclass(frozen=True)
class Fwd2bot:
    """fwd2bot, with an open_clip model."""

    python: Path
    architecture: Architecture
    versions: Mapping[str, str]
    name: str = "fwd2bot"

    @property
    def model(self) -> str:
        """The model, as `--model` takes it."""
        return f"openclip:{self.architecture.name}/{self.architecture.pretrained}"

    def index_commands(self, photos: Path, store: Path) -> Sequence[Sequence[str]]:
        """See Contender."""
        options = ("--model", self.model, "--device", "cpu", "--index", str(store / "index"))
        return [module_command(self.python, "retrieval.cli", "index", ".", *options)]

    def search_command(self, photos: Path, store: Path) -> Sequence[str]:
        """See Contender."""
        options = ("--index", str(store / "index"))
        return module_command(self.python, "retrieval.cli", "search", QUERY, *options)

    def variables(self, store: Path) -> Mapping[str, str]:
        """See Contender."""
        return _use_hub(self.architecture.hub)

    def count_stored(self, store: Path) -> int:
        """See Contender."""
        try:
            return len(EmbeddingTable.open(store / "index").ids)
        except IndexNotFound:
            return 0

    def fill_store(self, photos: Path, store: Path, count: int) -> None:
        """See Contender."""
        index_dir = store / "index"
        with lock_index(index_dir):
            writer = IndexWriter(index_dir, read_manifest(index_dir))
            first = len(EmbeddingTable.open(index_dir).ids)
            for start in range(first, count, ROWS_PER_COMMIT):
                numbers = range(start, min(start + ROWS_PER_COMMIT, count))
                rows = [FileRow(_name(number), 1, 0, f"{number:032x}", 1, 1, "ok", "") for number in numbers]
                writer.append(rows, ImageEmbeddings(draw_vectors(rows, writer.manifest.encoder.dim), None))
            writer.commit()
            writer.refresh_faiss()


@dataclass(frozen=True)
class Rclip:
    """rclip, which indexes before it searches: every index command also answers a query."""

    python: Path
    architecture: Architecture
    versions: Mapping[str, str]
    name: str

    def index_commands(self, photos: Path, store: Path) -> Sequence[Sequence[str]]:
        """See Contender."""
        for kept in self.architecture.rclip_data.iterdir():
            if not (store / kept.name).exists():
                (store / kept.name).symlink_to(kept)
        return [module_command(self.python, "rclip.main", "--filepath-only", "--top", "1", QUERY)]

    def search_command(self, photos: Path, store: Path) -> Sequence[str]:
        """See Contender."""
        return module_command(self.python, "rclip.main", "--no-indexing", "--filepath-only", QUERY)

    def variables(self, store: Path) -> Mapping[str, str]:
        """See Contender."""
        return {**_use_hub(self.architecture.hub), "RCLIP_DATADIR": str(store)}

    def count_stored(self, store: Path) -> int:
        """See Contender."""
        if not (store / "db.sqlite3").exists():
            return 0
        with closing(sqlite3.connect(store / "db.sqlite3")) as database:
            return int(database.execute("SELECT count(*) FROM images WHERE deleted IS NULL").fetchone()[0])

    def fill_store(self, photos: Path, store: Path, count: int) -> None:
        """See Contender."""
        with closing(sqlite3.connect(store / "db.sqlite3")) as database, database:
            columns = [column[1] for column in database.execute("PRAGMA table_info(images)")]
            model = dict(zip(columns, database.execute("SELECT * FROM images").fetchone(), strict=True))
            names = [str(photos / _name(number)) for number in range(self.count_stored(store), count)]
            vectors = draw_vectors(names, len(model["vector"]) // 4)
            marks = ", ".join("?" * len(columns))
            rows = (
                tuple((model | {"id": None, "filepath": name, "vector": vector.tobytes()}).values())
                for name, vector in zip(names, vectors, strict=True)
            )
            database.executemany(f"INSERT INTO images VALUES ({marks})", rows)


@dataclass(frozen=True)
class ClipRetrieval:
    """clip-retrieval, which embeds all photos, then indexes all embeddings, every time."""

    python: Path
    architecture: Architecture
    versions: Mapping[str, str]
    name: str

    def index_commands(self, photos: Path, store: Path) -> Sequence[Sequence[str]]:
        """See Contender."""
        for left in ("embeddings", "index"):  # it refuses to overwrite an index
            shutil.rmtree(store / left, ignore_errors=True)
        embed = ("inference", "--input_dataset", ".", "--output_folder", str(store / "embeddings"))
        options = ("--clip_model", self._model, "--enable_text", "False", "--enable_wandb", "False")
        return [self._run_module(*embed, *options), self._index_command(store)]

    def _index_command(self, store: Path) -> Sequence[str]:
        folders = ("--embeddings_folder", str(store / "embeddings"), "--index_folder", str(store / "index"))
        return self._run_module("index", *folders)

    def search_command(self, photos: Path, store: Path) -> Sequence[str]:
        """See Contender."""
        return module_script(self.python, _QUERY_CLIP_RETRIEVAL, str(store / "index"), self._model, QUERY)

    def variables(self, store: Path) -> Mapping[str, str]:
        """See Contender."""
        return _use_hub(self.architecture.hub)

    def count_stored(self, store: Path) -> int:
        """See Contender; it always embeds everything again."""
        return 0

    def fill_store(self, photos: Path, store: Path, count: int) -> None:
        """See Contender."""
        shutil.rmtree(store / "index", ignore_errors=True)
        embeddings, metadata = store / "embeddings" / "img_emb", store / "embeddings" / "metadata"
        (some,) = (np.load(path) for path in embeddings.glob("*.npy"))
        names = [str(photos / _name(number)) for number in range(count)]
        np.save(next(embeddings.glob("*.npy")), draw_vectors(names, some.shape[1]).astype(np.float16))
        pq.write_table(pa.table({"image_path": names}), next(metadata.glob("*.parquet")))
        time_process(self._index_command(store), self.name, photos, self.variables(store))

    @property
    def _model(self) -> str:
        return f"open_clip:{self.architecture.name}/{self.architecture.pretrained}"

    def _run_module(self, *arguments: str) -> list[str]:
        return module_command(self.python, "clip_retrieval.cli", *arguments)


def draw_vectors(rows: Sequence[object], dim: int) -> FloatArray:
    """A random unit vector for each row: float32 (n, dim)."""
    vectors = np.random.default_rng(len(rows)).standard_normal((len(rows), dim), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _name(number: int) -> str:
    return f"drawn/{number:08d}.jpg"


def _use_hub(hub: Path) -> dict[str, str]:
    return {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


class Rival(NamedTuple):
    """A rival: what to install, the relevant packages, and the model that both sides run."""

    installs: Installs
    packages: Sequence[str]
    architecture: str
    pretrained: str


# rclip 3 runs its model in ONNX Runtime; 2.1.6, the last version on PyTorch, uses a different model.
RIVALS = {
    "rclip-3.3.0": Rival(RCLIP_3, ("rclip", "onnxruntime"), "ViT-B-32-256", "datacomp_s34b_b86k"),
    "rclip-2.1.6": Rival(RCLIP_2, ("rclip", "torch"), "ViT-B-32-quickgelu", "openai"),
    "clip-retrieval-2.45.0": Rival(
        CLIP_RETRIEVAL, ("clip-retrieval", "torch", "faiss-cpu"), "ViT-B-32-256", "datacomp_s34b_b86k"
    ),
}


def prepare_ours(place: Path, name: str) -> Fwd2bot:
    """fwd2bot on a rival's model with random weights; creates environment and weights if missing."""
    rival = RIVALS[name]
    python = make_environment(place / "ours", OURS)
    data = place / f"rclip-data-{rival.architecture}"
    architecture = Architecture(rival.architecture, rival.pretrained, place / "hub", data)
    write_random_weights(python, architecture.hub, data, rival.architecture, rival.pretrained)
    versions = find_versions(python, ("fwd2bot", "torch", "open_clip_torch", "faiss-cpu"))
    return Fwd2bot(python, architecture, versions)


def prepare_pair(place: Path, name: str) -> tuple[Contender, Contender]:
    """fwd2bot and the named rival on the same model; creates environments and weights if missing."""
    rival, ours = RIVALS[name], prepare_ours(place, name)
    theirs = make_environment(place / name, rival.installs)
    kind = ClipRetrieval if name.startswith("clip-retrieval") else Rclip
    contender: Contender = kind(theirs, ours.architecture, find_versions(theirs, rival.packages), name)
    return ours, contender
