"""Batches of photos to rows: new photos are appended with their embeddings, known ones are copied."""

from collections.abc import Sequence

from encoders.base import ImageEmbeddings

from .columns import LARGEST_SIDE, FileRow
from .contents import KnownContents
from .images import ImageFile, Photo
from .observer import Observer
from .writer import IndexWriter


class BatchRecorder:
    """Writes batches, informs the observer, and counts embedded, copied and skipped files."""

    def __init__(self, writer: IndexWriter, contents: KnownContents, observer: Observer) -> None:
        self.embedded = self.copied = self.skipped = 0
        self._writer = writer
        self._contents = contents
        self._observer = observer
        self._unsettled: list[Photo] = []  # duplicates of a photo of this run that is not written yet

    def record(self, photos: Sequence[Photo], embeddings: ImageEmbeddings | None) -> None:
        """Write one batch; `embeddings` are those of its photos that were decoded without error."""
        self._append([photo for photo in photos if not photo.known and not photo.unread], embeddings)
        failed = [photo for photo in photos if photo.error]
        for photo in failed:
            self._observer.skip(photo.file.path, photo.error)
        self._contents.give_up(photo.digest for photo in failed)
        self.skipped += len(failed)
        unsettled_before = len(self._unsettled)
        self._copy([*self._unsettled, *(photo for photo in photos if photo.known)])
        self._observer.advance(len(photos) + unsettled_before - len(self._unsettled))

    def take_unsettled(self) -> list[ImageFile]:
        """Take the files that were waiting for another with the same bytes, which failed."""
        files = [photo.file for photo in self._unsettled]
        self._unsettled = []
        return files

    def _append(self, photos: Sequence[Photo], embeddings: ImageEmbeddings | None) -> None:
        rows = [describe_photo(photo) for photo in photos]
        first_id = self._writer.next_id
        self._writer.append(rows, embeddings)
        embedded = {row.digest: first_id + place for place, row in enumerate(rows) if row.status == "ok"}
        self._contents.add(embedded)
        self.embedded += sum(row.status == "ok" for row in rows)

    def _copy(self, photos: Sequence[Photo]) -> None:
        rows, sources = list[FileRow](), list[int]()
        self._unsettled = []
        for photo in photos:
            source = self._contents.find(photo.digest)
            if source is None:
                self._unsettled.append(photo)
            else:
                rows.append(describe_photo(photo))
                sources.append(source)
        self._writer.append_copies(rows, sources)
        self.copied += len(rows)


def describe_photo(photo: Photo) -> FileRow:
    """The row of a photo."""
    status = "skipped" if photo.error else "ok"
    size = photo.width, photo.height
    if max(size) > LARGEST_SIDE:  # the header lies, and no column could hold it
        size = 0, 0
    return FileRow(*photo.file, photo.digest, *size, status, photo.error, photo.metadata)
