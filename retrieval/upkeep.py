"""The commands that write an index: index, merge, verify, compact."""

import gc
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    BatchOption,
    DeviceOption,
    DryRunOption,
    ExcludeOption,
    FolderArgument,
    FollowOption,
    IndexOption,
    IndexPlaceOption,
    JsonOption,
    MegapixelsOption,
    ModelOption,
    MovedOption,
    RebuildOption,
    TokensOption,
    WatchOption,
    WorkersOption,
    read_place,
)
from .terminal import Progress, complain, print_note, print_plan, print_report, print_results

if TYPE_CHECKING:
    from encoders.base import Encoder
    from indexer.build import BuildReport

INDEX_EPILOG = """\b
A second run reads only what is new or has changed; what has moved is not embedded again.
A killed run goes on where it was; a killed --rebuild does so without --rebuild, and with it
begins again. Files that cannot be decoded are named on stderr, and left alone until they change;
files that cannot be opened are tried again.
Hidden files and folders are left out.

\b
Examples:
  fwd2bot index ~/Photos
  fwd2bot index ~/Photos --watch
  fwd2bot index ~/Photos --exclude "*.gif" --exclude trash
  fwd2bot index /mnt/archive --index ~/archive-index --device cuda --batch-size 128
  fwd2bot index /mnt/new/archive --index ~/archive-index --moved
  fwd2bot index s3://bucket/photos --index ~/bucket-index
  fwd2bot index ~/Photos --dry-run"""


def index(
    folder: FolderArgument,
    index_place: IndexPlaceOption = None,
    model: ModelOption = None,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    exclude: ExcludeOption = None,
    follow_links: FollowOption = False,
    max_megapixels: MegapixelsOption = 200.0,
    rebuild: RebuildOption = False,
    moved: MovedOption = False,
    watch: WatchOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Index a folder of images, or bring its index up to date."""
    from indexer.build import BuildSettings, build, plan_build
    from indexer.lazy import LazyEncoder
    from indexer.roots import name_root
    from indexer.watch import watch_folder
    from retrieval.locate import choose_model, find_index, place_index

    _refuse_contradictions(watch, dry_run, rebuild, moved, index_place)
    root = name_root(folder)
    place = place_index(root, index_place)
    if moved:
        place = find_index(place)  # a mistyped path must not start a new index
    settings = BuildSettings(
        tokens=tokens,
        batch_size=batch_size,
        workers=workers or os.cpu_count() or 1,
        exclude=tuple(exclude or ()),
        follow_links=follow_links,
        max_megapixels=max_megapixels,
        rebuild=rebuild,
        moved=moved,
    )
    progress = Progress()

    def show(report: "BuildReport") -> None:
        progress.close()
        print_report(report, as_json)

    name = choose_model(place, model, rebuild)
    if dry_run:
        with closing(progress):
            plan = plan_build(root, place, settings, progress)
        print_plan(plan, as_json)
        if model is not None and not rebuild:
            _compare_models(place, name)
        return
    encoder = LazyEncoder(name, lambda: _load_encoder(name, device))
    with _explain_stop(progress, rebuild):
        if watch:
            watch_folder(root, place, encoder, settings, progress, show)
        else:
            show(build(root, place, encoder, settings, progress))


def _compare_models(place: Path, name: str) -> None:
    """After a dry run, which loads no model, say so where the index is of one with another name."""
    from encoders.base import IndexNotFound
    from indexer.manifest import read_manifest

    with suppress(IndexNotFound):
        made_by = read_manifest(place).encoder.name
        if name != made_by:
            print_note(
                f"the index was made by {made_by}: the run refuses {name}, unless it is the same model"
            )


@contextmanager
def _explain_stop(progress: Progress, rebuild: bool) -> Iterator[None]:
    """Close the progress bar in the end and, after Ctrl-C, say which command goes on."""
    with closing(progress):
        try:
            yield
        except KeyboardInterrupt:
            progress.close()
            anew = " without --rebuild" if rebuild and progress.read else ""  # before, the old index stands
            print_note(f"stopped: what was read is kept, and the same command{anew} goes on from there")
            raise


def _refuse_contradictions(
    watch: bool, dry_run: bool, rebuild: bool, moved: bool, index_place: Path | None
) -> None:
    if watch and dry_run:
        raise typer.BadParameter("--dry-run changes nothing, and --watch does: leave out one of them")
    if moved and rebuild:
        raise typer.BadParameter(
            "--moved goes on with an index, and --rebuild does not: leave out one of them"
        )
    if moved and index_place is None:
        raise typer.BadParameter("--moved is for an index stored elsewhere: name it with --index")


MERGE_EPILOG = """\b
Both must be of the same model. A path that both know stays as INTO has it; merging twice is
merging once. The folder of FROM must lie in the folder of INTO. Where it does not, --out makes
a new index of the folder above both, and leaves the two as they are.

\b
Examples:
  fwd2bot merge ~/Photos ~/Photos/2019
  fwd2bot merge ~/Photos ~/Scans --out ~/.fwd2bot"""


def merge(
    into: Annotated[
        Path, typer.Argument(metavar="INTO", parser=read_place, help="An index, or a folder that has one.")
    ],
    source: Annotated[
        Path, typer.Argument(metavar="FROM", parser=read_place, help="The index to add to it.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", parser=read_place, help="Add both to the index here instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add one index to another, without reading an image."""
    from indexer.merge import create_above
    from retrieval.locate import find_index

    target, other = find_index(into), find_index(source)
    if out is not None:
        create_above(out, target, other)
        _merge(out, target, as_json)
        target = out
    _merge(target, other, as_json)


def _merge(target: Path, source: Path, as_json: bool) -> None:
    from indexer.merge import merge_index

    with closing(Progress()) as progress:
        report = merge_index(target, source, progress)
    print_report(report, as_json)


VERIFY_EPILOG = """\b
Where something is damaged, --repair makes the FAISS file and the manifest anew and drops the
damaged parts; the next `fwd2bot index` embeds their images again.

\b
Examples:
  fwd2bot verify
  fwd2bot verify --repair --index ~/archive-index"""


def verify(
    index_dir: IndexOption = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
) -> None:
    """Read every byte of the index and name what is damaged."""
    from indexer.audit import Fault, audit_index
    from indexer.repair import repair_index
    from retrieval.locate import find_index

    place = find_index(index_dir)
    faults = list[Fault]()
    with closing(Progress()) as progress:
        for fault in repair_index(place, progress) if repair else audit_index(place, progress):
            faults.append(fault)
            progress.close()
            complain(fault.sentence)  # at once: reading the next part may raise
    if faults and not repair:
        raise typer.Exit(1)
    lost = sum(fault.part.rows for fault in faults if fault.part is not None)
    if lost:
        print_note(f"dropped {lost:,} rows: run `fwd2bot index` to read their images again")
    print_results([f"{place} is whole{' again' if faults else ''}\n"])


COMPACT_EPILOG = "\b\nExamples:\n  fwd2bot compact\n  fwd2bot compact --index ~/archive-index"


def compact(index_dir: IndexOption = None, as_json: JsonOption = False) -> None:
    """Drop rows of files that have changed or gone; join small parts."""
    from indexer.compact import compact_index
    from retrieval.locate import find_index

    with closing(Progress()) as progress:
        report = compact_index(find_index(index_dir), progress)
    print_report(report, as_json)


def _load_encoder(name: str, device: str) -> "Encoder":
    from encoders.load import load_encoder  # torch and transformers come with it

    encoder = load_encoder(name, device)
    gc.freeze()  # its imports created millions of long-lived objects: no collection need scan them
    return encoder
