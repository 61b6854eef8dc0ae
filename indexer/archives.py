"""Images inside .zip and .tar files, read in place: an archive is treated as a folder, without unpacking it.

Nothing an archive says about itself is trusted: neither its names, which may lead out of it, nor its sizes.
It is opened again for each member, at the offset from its listing, so that threads share no handle.
"""

import errno
import os
import re
import stat
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .images import LONGEST_SHOWN, MAX_FILE_BYTES, describe_error, describe_size, is_image_name, is_too_long

ARCHIVE_EXTENSIONS = (".zip", ".tar")
_ON_THE_WAY = re.compile(r"\.(?:zip|tar)/", re.IGNORECASE)
_LONGEST_READ = 32 << 20  # bytes; a zip's directory is read at once, and takes twenty times as much memory
_MOST_MEMBERS = 1_000_000
_CHUNK = 1 << 20
_ZIP_HEADER = struct.Struct("<4s22xHH")  # what precedes an entry: signature, lengths of name and extra field


class Member(NamedTuple):
    """One image in an archive: its declared size and offset, in bytes, and its entry if it is in a zip."""

    size: int
    offset: int
    entry: zipfile.ZipInfo | None


@dataclass
class Listing:
    """The images in an archive by name. damage: why the listing is incomplete, or ""."""

    members: dict[str, Member] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    damage: str = ""

    def add(self, name: str, member: Member, plain: bool) -> None:
        """Record an entry if it has an image name; `plain` says that it is neither a link nor a device."""
        if not is_image_name(name):
            return
        if not plain or member.size < 0 or is_too_long(name) or _leads_out(name):
            self.refused.append(name[:LONGEST_SHOWN])
            return
        if len(self.members) == _MOST_MEMBERS:
            raise ValueError(f"it holds more than {_MOST_MEMBERS:,} images: pack fewer into one archive")
        self.members["/".join(part for part in name.split("/") if part not in ("", "."))] = member


def find_archive(root: Path, path: str) -> tuple[Path, str] | None:
    """Split a path below root into an archive and a name in it; None if no archive is on the path."""
    for match in _ON_THE_WAY.finditer(path):
        archive = root / path[: match.end() - 1]
        if archive.is_file():
            return archive, path[match.end() :]
    return None


def list_archive(archive: Path) -> Listing:
    """List the images in an archive; OSError if it cannot be opened."""
    status = archive.stat()
    with _listing_lock:  # one thread lists, and the others wait for its result
        return _list_archive(archive, status.st_size, status.st_mtime_ns)


def open_member(archive: Path, name: str) -> BinaryIO:
    """Read one image of an archive into memory; raises any exception if its bytes are damaged."""
    member = list_archive(archive).members.get(name)
    if member is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{archive}/{name}")
    with archive.open("rb") as stream:
        stream.seek(member.offset)
        data = read_all(stream if member.entry is None else _open_entry(stream, member.entry), member.size)
    if data.getbuffer().nbytes < member.size:
        raise ValueError("the archive ends within it")
    return data


_listing_lock = threading.Lock()


@lru_cache(maxsize=4)  # files are read in the order of their paths, so archive by archive
def _list_archive(archive: Path, size: int, mtime_ns: int) -> Listing:
    listing = Listing()
    with _CautiousFile(archive) as stream:
        try:
            if archive.name.lower().endswith(".zip"):
                _list_zip(stream, listing)
            else:
                _list_tar(stream, listing)
        except Exception as error:  # both modules may raise anything: struct.error, RecursionError ...
            listing.damage = describe_error(error)
    return listing


class _CautiousFile(FileIO):
    """A file that refuses large reads, such as a crafted header may cause."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, by default all that are left; ValueError above _LONGEST_READ."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LONGEST_READ:
            raise ValueError("a header in it is larger than any that is read")
        return super().read(wanted) or b""


def _list_zip(stream: FileIO, listing: Listing) -> None:
    with zipfile.ZipFile(stream) as archive:
        for entry in archive.infolist():
            plain = stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)
            listing.add(entry.filename, Member(entry.file_size, entry.header_offset, entry), plain)
    if not _lie_apart(member.entry for member in listing.members.values() if member.entry):
        listing.members.clear()
        raise ValueError("images in it share bytes, as in a zip bomb or a damaged file: pack it anew")


def _lie_apart(entries: Iterable[zipfile.ZipInfo]) -> bool:
    """Whether no byte belongs to two entries, so that the work is bounded by the archive's size.

    An entry takes at least its header and its compressed bytes; names, extra fields and descriptors only add
    to that.
    """
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            return False
        end = entry.header_offset + _ZIP_HEADER.size + entry.compress_size
    return True


def _list_tar(stream: FileIO, listing: Listing) -> None:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        place = 0
        while (entry := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps all entries it has read
            if archive.offset <= place:
                raise ValueError("an entry in it ends before it begins")
            place = archive.offset
            plain = entry.isreg() and not entry.issparse()
            listing.add(entry.name, Member(entry.size, entry.offset_data, None), plain)
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile itself takes a broken header for the end
            raise ValueError("a header in it is broken")


def _open_entry(stream: BinaryIO, entry: zipfile.ZipInfo) -> BinaryIO:
    """Open a zip entry whose local header comes next in the stream."""
    if entry.flag_bits & 1:
        raise ValueError("it is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods have no limit on how far one byte may expand.
        raise ValueError(f"its compression (method {entry.compress_type}) is not read: store or deflate it")
    header = stream.read(_ZIP_HEADER.size)
    if len(header) < _ZIP_HEADER.size or not header.startswith(b"PK\3\4"):
        raise ValueError("the archive has nothing in its place")
    _, name_length, extra_length = _ZIP_HEADER.unpack(header)
    stream.seek(name_length + extra_length, os.SEEK_CUR)
    return zipfile.ZipExtFile(stream, "r", entry)  # type: ignore[return-value]


def read_all(stream: BinaryIO, size: int) -> BytesIO:
    """Read at most `size` bytes into memory; ValueError if `size` is above MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        raise ValueError(describe_size(size))
    data = BytesIO()
    while chunk := stream.read(min(_CHUNK, size - data.tell())):
        data.write(chunk)
    data.seek(0)
    return data


def _leads_out(name: str) -> bool:
    """Whether a name is absolute, climbs up, or is invalid; a backslash counts as a slash, as on Windows."""
    parts = re.split(r"[/\\]", name)
    return parts[0] == "" or ".." in parts or name[1:2] == ":" or "\0" in name
