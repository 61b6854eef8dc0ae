"""Build an index on disk from a folder of images. Read this first; `build` is the data path, top to bottom.

Source.find -> compare_files -> embed_photos -> BatchRecorder -> IndexWriter -> FAISS
the folder     what is new      threads, model  rows, copies     Parquet parts  derived from the parts
"""

import os
from collections.abc import Container, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

from encoders.base import CannotAnswer, Encoder, IndexFailure, IndexNotFound, NothingToIndex
from encoders.memory import give_back_memory

from .columns import FileRow
from .contents import KnownContents
from .decode import DEFAULT_MAX_MEGAPIXELS, quiet_pillow, read_photo
from .embed import embed_photos
from .faiss_library import require_faiss
from .file_list import FoundImages
from .images import ImageFile
from .lock import lock_index
from .manifest import (
    MANIFEST_NAME,
    PARTS_FOLDER,
    Manifest,
    TokenFormat,
    create_manifest,
    read_manifest,
    require_same_encoder,
    write_manifest,
)
from .observer import SILENT, Observer
from .paths import escape_path
from .plan import BuildPlan, compare_files
from .recorder import BatchRecorder
from .repair import restore_manifest
from .roots import Root, locate_root, name_root, relate_root, resolve_root
from .sources import open_source
from .writer import ROWS_PER_PART, IndexWriter, remove_orphans


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    tokens: None keeps the format of the index, and is int8 for a new or rebuilt one whose model has tokens.
    batch_size: None lets the encoder choose for its device. rebuild: the first commit replaces the
    existing index as a whole. moved: the index of another folder or URL becomes that of this one, to which
    its files have moved.
    """

    tokens: TokenFormat | None = None
    batch_size: int | None = None
    workers: int = os.cpu_count() or 1
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    rebuild: bool = False
    moved: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that would hang a run, or exclude files by mistake."""
        for name, is_sound, remedy in (
            ("tokens", self.tokens in (None, *get_args(TokenFormat)), "give int8, float16 or none"),
            ("batch_size", self.batch_size is None or self.batch_size > 0, "give one or more, or None"),
            ("workers", self.workers > 0, "give one or more"),
            ("exclude", not isinstance(self.exclude, str), "give a tuple, such as ('trash', '*.gif')"),
            ("max_megapixels", self.max_megapixels > 0, "give more than 0"),
        ):
            if not is_sound:
                raise IndexFailure(f"{name} is {getattr(self, name)!r}: {remedy}")


class BuildReport(NamedTuple):
    """What a run did; indexed + copied + reused + skipped account for every image now in the folder.

    indexed: embedded by the model. copied: moved, restored or duplicate files, whose bytes the index had
    already embedded. reused: unchanged files. removed: files that are gone. skipped: files that cannot be
    read, in this or an earlier run, and folders, archives and links left out, one per `skip` call.
    """

    indexed: int
    copied: int
    reused: int
    removed: int
    skipped: int


def build(
    folder: Root,
    index: str | Path,
    encoder: Encoder,
    settings: BuildSettings | None = None,
    observer: Observer = SILENT,
) -> BuildReport:
    """Bring the index of a folder or URL up to date, embedding only bytes it has not seen before.

    The encoder is asked for more than its name only if there is something to read, so a LazyEncoder may never
    load. Progress and skipped files go to the observer. A killed run loses only the rows not yet committed
    (see writer.py), an interrupted one none; the next run continues from there. Raises a Fwd2BotError, or the
    OSError of a full disk.
    """
    folder, index = name_root(folder), Path(index)
    settings = settings or BuildSettings()
    require_faiss()
    before, found = _read_date(index), _find_some_images(folder, settings, observer)
    if not index.exists():
        _choose_tokens(encoder, settings)  # loads the model: one that is refused leaves no folder behind
    with lock_index(index), quiet_pillow():
        if _read_date(index) != before:  # another run may know of files newer than this listing
            found = _find_some_images(folder, settings, observer)
        manifest = _read_matching_manifest(folder, index, settings, observer)
        if manifest is not None and (settings.moved or not (index / MANIFEST_NAME).exists()):
            manifest = write_manifest(index, manifest)  # even if there is nothing to read
        remove_orphans(index)
        plan = compare_files(found, index, manifest, settings.max_megapixels)
        del found
        if manifest is not None and (plan.fresh or encoder.name != manifest.encoder.name):
            manifest = _follow_encoder(index, manifest, encoder)
        manifest = manifest or create_manifest(folder, index, encoder, _choose_tokens(encoder, settings))
        writer = IndexWriter(index, manifest)
        _mark_removed(plan.removed, writer)
        try:
            done = _embed_files(folder, plan.fresh, encoder, settings, writer, observer)
        except KeyboardInterrupt:
            writer.commit()
            raise
        plan = plan._replace(fresh=plan.fresh[:0])  # frees a long listing before FAISS needs the memory
        writer.commit()
        give_back_memory()  # that of the model and of the last part
        writer.refresh_faiss(observer)
    skipped = plan.skipped_before + done.skipped
    return BuildReport(done.embedded, done.copied, plan.reused, len(plan.removed), skipped)


def plan_build(
    folder: Root,
    index: str | Path,
    settings: BuildSettings | None = None,
    observer: Observer = SILENT,
) -> BuildPlan:
    """Say what `build` would do, without writing anything.

    Its refusals are those of `build`, but for those of the model, which is not loaded.
    """
    folder, index = name_root(folder), Path(index)
    settings = settings or BuildSettings()
    found = _find_some_images(folder, settings, observer)
    manifest = _read_matching_manifest(folder, index, settings, observer)
    return compare_files(found, index, manifest, settings.max_megapixels)


def _find_some_images(folder: Root, settings: BuildSettings, observer: Observer) -> FoundImages:
    observer.begin("listing", 0)
    found = open_source(folder).find(settings.exclude, settings.follow_links, observer)
    for path, reason in (*found.unreadable, *found.refused):  # first: they may be why there is no image
        observer.skip(path or ".", reason)
    if not found.files:  # an unmounted disk is likelier than every photo gone: leave the index as it is
        raise NothingToIndex(f"{folder} holds no image that can be indexed: name a folder that does")
    return found


def _read_date(index: Path) -> str:
    """When the index was last written, or "" if that cannot be read."""
    try:
        return read_manifest(index).updated
    except (IndexFailure, OSError):
        return ""


def _read_matching_manifest(
    folder: Root, index: Path, settings: BuildSettings, observer: Observer
) -> Manifest | None:
    """The manifest to continue from, or None for a new index; IndexFailure if its folder or tokens differ.

    An index whose manifest was lost continues from its parts; those that are damaged are named.
    """
    if settings.rebuild:
        return None
    manifest: Manifest | None
    try:
        manifest = read_manifest(index)
    except IndexNotFound:
        manifest, damaged = restore_manifest(index, relate_root(folder, index))
        for name in damaged:
            place = escape_path(str(index / PARTS_FOLDER / name))
            observer.skip(place, "this part is damaged, and its images are read again")
        if manifest is None and settings.moved:
            raise
    if manifest is None:
        return None
    indexed = locate_root(manifest.root, index)
    if indexed != resolve_root(folder) and not settings.moved:
        raise IndexFailure(
            f"{index} is the index of {indexed}, not of {folder}: "
            "choose another --index, or --moved where its files have moved here, or --rebuild"
        )
    if settings.tokens not in (None, manifest.tokens):
        raise IndexFailure(
            f"{index} keeps tokens as {manifest.tokens}, not {settings.tokens}: drop --tokens, or --rebuild"
        )
    return replace(manifest, root=relate_root(folder, index))


def _follow_encoder(index: Path, manifest: Manifest, encoder: Encoder) -> Manifest:
    """Refuse any encoder but that of the index, and store its new name, by which a moved model is found."""
    require_same_encoder(encoder, manifest)
    if encoder.name == manifest.encoder.name:
        return manifest
    return write_manifest(index, replace(manifest, encoder=replace(manifest.encoder, name=encoder.name)))


def _choose_tokens(encoder: Encoder, settings: BuildSettings) -> TokenFormat:
    if encoder.summary_shape is not None:
        return settings.tokens or "int8"
    if settings.tokens in ("int8", "float16"):
        raise CannotAnswer(
            f"{encoder.name} has no summary tokens to keep as {settings.tokens}: drop --tokens"
        )
    return "none"


def _mark_removed(paths: Sequence[str], writer: IndexWriter) -> None:
    """Append rows for deleted files, one part at a time: a renamed folder can make them many."""
    for start in range(0, len(paths), ROWS_PER_PART):
        some = paths[start : start + ROWS_PER_PART]
        writer.append([FileRow(path, 0, 0, "", 0, 0, "deleted", "") for path in some], None)


def _embed_files(
    folder: Root,
    files: Sequence[ImageFile],
    encoder: Encoder,
    settings: BuildSettings,
    writer: IndexWriter,
    observer: Observer,
) -> BatchRecorder:
    """Read files and write their rows: embed new bytes, copy the rows of known ones."""
    asked = writer.manifest if files else replace(writer.manifest, parts=())  # no files: no digest looked up
    contents = KnownContents.read(writer.index_dir, asked)
    recorder = BatchRecorder(writer, contents, observer)
    observer.begin("reading", len(files))
    known: Container[str] = contents
    while files:
        read = partial(
            read_photo,
            open_source(folder),
            image_size=encoder.image_size,
            max_megapixels=settings.max_megapixels,
            known=known,
        )
        with closing(embed_photos(encoder, files, read, settings.batch_size, settings.workers)) as batches:
            for photos, embeddings in batches:
                recorder.record(photos, embeddings)
        files, known = recorder.take_unsettled(), ()
    return recorder
