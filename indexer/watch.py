"""An index kept current as files come and go."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from encoders.base import Encoder, IndexFailure, IndexLocked, NothingToIndex

from .build import BuildReport, BuildSettings, build
from .observer import Observer
from .roots import Root, name_root

QUIET_MS = 500  # changes are collected until none has come for this long,
LONGEST_MS = 10_000  # or until they have kept coming for this long


def watch_folder(
    folder: Root,
    index: str | Path,
    encoder: Encoder,
    settings: BuildSettings,
    observer: Observer,
    report: Callable[[BuildReport], None],
) -> None:
    """Build the index now and after every batch of changes, until interrupted; `report` gets each result.

    What was read before the interruption is committed. One during the first run is raised, later ones are the
    intended end. If a later run finds the index locked or no images left, it is retried at the next change.
    NothingToIndex if the folder itself is removed or replaced: changes in its replacement would go unnoticed.
    """
    folder, index = name_root(folder), Path(index)
    if isinstance(folder, str):
        raise IndexFailure(f"{folder} is a URL and cannot be watched: run `fwd2bot index` from time to time")
    is_first = True
    try:
        for _ in _await_changes(folder, index):
            try:
                report(build(folder, index, encoder, settings, observer))
            except (IndexLocked, NothingToIndex) as error:
                if is_first:
                    raise
                observer.skip(".", str(error))
            is_first, settings = False, replace(settings, rebuild=False, moved=False)
    except KeyboardInterrupt:
        if is_first:
            raise


def _await_changes(folder: Path, index: Path) -> Iterator[None]:
    """Yield at once, and again whenever images may have changed."""
    from watchfiles import Change, watch

    given, places = folder.absolute(), (folder.resolve(), index.resolve())
    identity = _identify_folder(given)
    is_first = True
    for changes in watch(
        places[0],
        watch_filter=lambda _, path: _concerns_images(Path(path), *places),
        debounce=LONGEST_MS,
        step=QUIET_MS,
        rust_timeout=QUIET_MS,
        yield_on_timeout=True,  # starts the first run once the watch is active: no change is missed
        ignore_permission_denied=True,
    ):
        if (Change.deleted, str(places[0])) in changes or _identify_folder(given) != identity:
            raise NothingToIndex(
                f"{given} was removed or replaced and is watched no longer: start `fwd2bot index` again"
            )
        if changes or is_first:
            yield
        is_first = False


def _identify_folder(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, to notice a replacement unless the inode was reused; None if gone."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _concerns_images(path: Path, folder: Path, index: Path) -> bool:
    """Whether a change may concern images: not one in the index, nor one of a hidden file or folder."""
    if path.is_relative_to(index) or not path.is_relative_to(folder):
        return False
    return not any(name.startswith(".") for name in path.relative_to(folder).parts)
