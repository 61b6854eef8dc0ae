"""Open sources from their settings: the one place that knows every kind."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from encoders.base import DatasetError
from training.data_settings import (
    BatchSettings,
    CaptionGroupSettings,
    CaptionTableSettings,
    ConversationSettings,
    KarpathySettings,
    ShardSettings,
    SourceSettings,
    UnlabelledSettings,
)
from training.sources.base import Source
from training.sources.caption_groups import CaptionGroupSource
from training.sources.caption_tables import CaptionTableSource
from training.sources.conversations import ConversationSource
from training.sources.drawn import FAMILY_SIZE, DrawnSource
from training.sources.karpathy import KarpathySource
from training.sources.shards import ShardSource
from training.sources.unlabelled import UnlabelledSource

Sources = Mapping[str, Source | DrawnSource]


def open_sources(settings: Mapping[str, SourceSettings], folder: Path) -> Sources:
    """Open all sources, with paths relative to `folder`; raises DatasetError if one cannot be used."""
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {folder}: --data names where the settings' paths start")
    return {name: _open_source(source, folder) for name, source in settings.items()}


def read_all_captions(sources: Sources) -> Iterator[str]:
    """Every caption of the sources that are not drawn, those with text-only rows first; skips broken rows."""
    readable = [source for source in sources.values() if not isinstance(source, DrawnSource)]
    for source in sorted(readable, key=lambda source: source.pictured):
        for row in range(len(source)):
            try:
                yield from source.read_captions(row)
            except DatasetError:  # reported when the row is dealt
                continue


def require_batches(
    sources: Sources, batches: Sequence[BatchSettings], ranks: int, guided: bool = False
) -> None:
    """Raise DatasetError if a batch asks for something that does not exist, or would train nothing.

    guided: whether there are teachers' embeddings, so that sources without captions train too.
    """
    if not sum(batch.steps for batch in batches):
        raise DatasetError("This run would train on nothing: its [[batches]] have no steps")
    for name, source in sources.items():
        if not source.settings.contrastive and not source.settings.answer and not guided:
            raise DatasetError(
                f"Source {name} would train nothing: set contrastive or answer to true, give [distillation], "
                "or leave it out"
            )
    for number, batch in enumerate(batches, start=1):
        where = f"Batch {number} of the settings"
        if sum(batch.counts.values()) < ranks:
            raise DatasetError(
                f"{where} holds {batch.counts or 'no rows'}: each of {ranks} processes needs a row, so take "
                f"{ranks} or more"
            )
        for name, count in batch.counts.items():
            _require_count(sources, name, count, batch.tower_only, where)


def _require_count(sources: Sources, name: str, count: int, tower_only: bool, where: str) -> None:
    if name not in sources:
        raise DatasetError(f"{where} asks for source {name}: there are {', '.join(sources) or 'none'}")
    source = sources[name]
    if count < 0:
        raise DatasetError(f"{where} asks for {count} rows of {name}: leave the source out to have none")
    if isinstance(source, DrawnSource):
        if source.settings.kind == "families" and count % FAMILY_SIZE:
            raise DatasetError(f"{where} asks for {count} rows of {name}: families have {FAMILY_SIZE} each")
    elif tower_only and count and not source.pictured:
        raise DatasetError(f"{where} trains the tower only, and source {name} is not of pictures alone")


def _open_source(settings: SourceSettings, folder: Path) -> Source | DrawnSource:
    match settings:
        case KarpathySettings():
            return KarpathySource(settings, folder)
        case ConversationSettings():
            return ConversationSource(settings, folder)
        case CaptionTableSettings():
            return CaptionTableSource(settings, folder)
        case ShardSettings():
            return ShardSource(settings, folder)
        case UnlabelledSettings():
            return UnlabelledSource(settings, folder)
        case CaptionGroupSettings():
            return CaptionGroupSource(settings, folder)
        case _:
            return DrawnSource(settings)
