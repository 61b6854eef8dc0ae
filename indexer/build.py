"""A folder of images to an index on disk. Read this first; `build_index` is the data path, top to bottom.

Source.find -> plan_build -> embed_photos -> IndexWriter -> FAISS
the folder     what is new   threads, model  Parquet parts   derived from the parts
"""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from encoders.base import CannotAnswer, Encoder, IndexFailure, IndexNotFound, NothingToIndex

from .decode import DEFAULT_MAX_MEGAPIXELS, quiet_pillow, read_photo
from .embed import embed_photos
from .faiss_file import is_faiss_sound
from .faiss_library import require_faiss
from .images import FoundImages, ImageFile, Photo
from .lock import lock_index
from .manifest import Manifest, TokenFormat, create_manifest, locate_root, read_manifest, require_same_encoder
from .parts import FileRow
from .sources import open_source
from .table import KnownFile, read_known_files
from .writer import IndexWriter, remove_orphans


@dataclass(frozen=True)
class BuildSettings:
    """How to build. `tokens` None: as the index has them, int8 for a new index whose model keeps tokens."""

    tokens: TokenFormat | None = None
    batch_size: int = 32
    workers: int = os.cpu_count() or 1
    exclude: tuple[str, ...] = ()
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    rebuild: bool = False


class BuildSummary(NamedTuple):
    """What a run did: indexed + reused + skipped are the images now in the folder."""

    indexed: int
    reused: int
    removed: int
    skipped: int


class BuildPlan(NamedTuple):
    """What a run has to do: embed the `fresh` files and mark the `removed` paths."""

    fresh: list[ImageFile]
    removed: list[str]
    reused: int
    skipped_before: int


class BuildObserver(Protocol):
    """Whoever wants to see how a run gets on; paths are in stored form."""

    def begin(self, total: int) -> None:
        """So many files will be read."""

    def advance(self, count: int) -> None:
        """So many more are done."""

    def skip(self, path: str, reason: str) -> None:
        """This file or folder could not be read."""


class SilentObserver:
    """An observer that looks away."""

    def begin(self, total: int) -> None:
        """See BuildObserver."""

    def advance(self, count: int) -> None:
        """See BuildObserver."""

    def skip(self, path: str, reason: str) -> None:
        """See BuildObserver."""


def build_index(
    root: Path,
    index_dir: Path,
    encoder: Encoder,
    settings: BuildSettings | None = None,
    observer: BuildObserver | None = None,
) -> BuildSummary:
    """Bring the index of `root` up to date, embedding only what is new or has changed.

    The encoder is asked for more than its name only where there is something to embed, so a LazyEncoder may
    never load. A killed run loses only the rows not yet committed (see writer.py); the next run goes on from
    there.
    """
    settings, observer = settings or BuildSettings(), observer or SilentObserver()
    require_faiss()
    found = _find_some_images(root, settings, observer)
    with lock_index(index_dir), quiet_pillow():
        remove_orphans(index_dir)
        manifest = None if settings.rebuild else _read_matching_manifest(root, index_dir, encoder, settings)
        plan = _compare(found, _read_known(index_dir, manifest), settings)
        if plan.fresh and manifest is not None:
            require_same_encoder(encoder, manifest)
        manifest = manifest or create_manifest(root, index_dir, encoder, _choose_tokens(encoder, settings))
        writer = IndexWriter(index_dir, manifest)
        writer.append([FileRow(path, 0, 0, "", 0, 0, "deleted", "") for path in plan.removed], None)
        indexed, skipped = _embed_files(root, plan.fresh, encoder, settings, writer, observer)
        _finish(writer)
    return BuildSummary(indexed, plan.reused, len(plan.removed), plan.skipped_before + skipped)


def plan_build(root: Path, index_dir: Path, settings: BuildSettings | None = None) -> BuildPlan:
    """Say what `build_index` would do, without a model and without writing anything."""
    settings = settings or BuildSettings()
    found = _find_some_images(root, settings, SilentObserver())
    try:
        manifest = None if settings.rebuild else read_manifest(index_dir)
    except IndexNotFound:
        manifest = None
    return _compare(found, _read_known(index_dir, manifest), settings)


def _find_some_images(root: Path, settings: BuildSettings, observer: BuildObserver) -> FoundImages:
    found = open_source(root).find(settings.exclude)
    if (
        not found.files
    ):  # an index is left as it is: more likely the disk is not mounted than every photo gone
        raise NothingToIndex(f"{root} holds no image that can be indexed: name a folder that does")
    for path, reason in (*found.unreadable, *found.refused):
        observer.skip(path or ".", reason)
    return found


def _read_matching_manifest(
    root: Path, index_dir: Path, encoder: Encoder, settings: BuildSettings
) -> Manifest | None:
    """The manifest to go on with, or None for a new index; refuses what this run would not fit."""
    try:
        manifest = read_manifest(index_dir)
    except IndexNotFound:
        return None
    indexed_root = locate_root(manifest, index_dir)
    if indexed_root != root.resolve():
        raise IndexFailure(
            f"{index_dir} is the index of {indexed_root}, not of {root}: choose another --index, or --rebuild"
        )
    if settings.tokens not in (None, manifest.tokens):
        raise IndexFailure(
            f"{index_dir} keeps tokens as {manifest.tokens}, not {settings.tokens}: "
            "drop --tokens, or --rebuild"
        )
    if encoder.name != manifest.encoder.name:
        require_same_encoder(encoder, manifest)
    return manifest


def _choose_tokens(encoder: Encoder, settings: BuildSettings) -> TokenFormat:
    if encoder.summary_shape is not None:
        return settings.tokens or "int8"
    if settings.tokens in ("int8", "float16"):
        raise CannotAnswer(
            f"{encoder.name} has no summary tokens to keep as {settings.tokens}: drop --tokens"
        )
    return "none"


def _read_known(index_dir: Path, manifest: Manifest | None) -> dict[str, KnownFile]:
    return read_known_files(index_dir, manifest) if manifest is not None else {}


def _compare(found: FoundImages, known: dict[str, KnownFile], settings: BuildSettings) -> BuildPlan:
    """Set the files on disk against the newest rows of the index."""
    fresh: list[ImageFile] = []
    reused = skipped = 0
    for file in found.files:
        row = known.pop(file.path, None)
        if row is None or not _is_unchanged(file, row, settings):
            fresh.append(file)
        elif row.status == "ok":
            reused += 1
        else:
            skipped += 1
    hidden = tuple(f"{folder}/" for folder, _ in found.unreadable)
    gone = (path for path, row in known.items() if row.status != "deleted")
    removed = sorted(path for path in gone if not path.startswith(hidden))  # unseen is not gone
    return BuildPlan(fresh, removed, reused, skipped)


def _is_unchanged(file: ImageFile, row: KnownFile, settings: BuildSettings) -> bool:
    if row.status == "deleted" or (file.size, file.mtime_ns) != (row.size, row.mtime_ns):
        return False
    too_large_before = row.status == "skipped" and row.width > 0
    return not (too_large_before and row.width * row.height <= settings.max_megapixels * 1e6)


def _embed_files(
    root: Path,
    files: Sequence[ImageFile],
    encoder: Encoder,
    settings: BuildSettings,
    writer: IndexWriter,
    observer: BuildObserver,
) -> tuple[int, int]:
    """Embed files into the writer; returns how many were indexed and how many skipped."""
    observer.begin(len(files))
    if not files:
        return 0, 0
    read = partial(
        read_photo, open_source(root), image_size=encoder.image_size, max_megapixels=settings.max_megapixels
    )
    skipped = 0
    with closing(embed_photos(encoder, files, read, settings.batch_size, settings.workers)) as batches:
        for photos, embeddings in batches:
            for photo in photos:
                if photo.error:
                    skipped += 1
                    observer.skip(photo.file.path, photo.error)
            writer.append([_describe_photo(photo) for photo in photos if not photo.unread], embeddings)
            observer.advance(len(photos))
    return len(files) - skipped, skipped


def _describe_photo(photo: Photo) -> FileRow:
    status = "skipped" if photo.error else "ok"
    return FileRow(*photo.file, photo.digest, photo.width, photo.height, status, photo.error)


def _finish(writer: IndexWriter) -> None:
    writer.commit()
    if not writer.manifest.parts:  # nothing but files that could not be opened
        return
    writer.merge_parts()
    if not is_faiss_sound(writer.index_dir, writer.manifest):
        writer.refresh_faiss()
