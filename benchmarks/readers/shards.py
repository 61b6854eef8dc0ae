"""WebDataset shards: .tar files of KEY.jpg with KEY.txt (a caption on each line) or KEY.json ("caption").

img2dataset and CLIP_benchmark's retrieval sets use this format. If there is a KEY.txt, KEY.json does not have
to contain a caption. The photos are not extracted.
"""

import tarfile
from pathlib import Path, PurePosixPath

from benchmarks.readers.base import CaptionedImage, clean_captions, parse_json
from encoders.base import DatasetError
from indexer.archives import list_archive

_CAPTION_KINDS = (".txt", ".json")
_LARGEST_CAPTION = 1 << 20  # bytes


def parse_shards(place: Path) -> list[CaptionedImage]:
    """Read one .tar, all in a folder, or all that match a pattern ("val/*.tar"), in order of their names."""
    shards = [place] if place.is_file() else sorted(_expand(place))
    if not shards:
        raise DatasetError(f"There is no .tar shard at {place}.")
    images = [image for shard in shards for image in _parse_shard(shard)]
    if not images:
        raise DatasetError(f"No shard of {place} holds a picture beside its caption (KEY.jpg and KEY.txt).")
    return images


def _expand(place: Path) -> list[Path]:
    return list(place.glob("*.tar") if place.is_dir() else place.parent.glob(place.name))


def _parse_shard(shard: Path) -> list[CaptionedImage]:
    try:
        listing = list_archive(shard)
        if listing.damage:
            raise DatasetError(f"{shard} is damaged ({listing.damage}): fetch it again.")
        captions = _read_captions(shard)
    except (OSError, tarfile.TarError) as error:
        raise DatasetError(f"{shard} cannot be read: {error}.") from error
    return [
        CaptionedImage(shard / name, captions[_find_key(name)], "")
        for name in listing.members
        if _find_key(name) in captions
    ]


def _read_captions(shard: Path) -> dict[str, tuple[str, ...]]:
    captions, without = dict[str, tuple[str, ...]](), dict[str, str]()
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            kind = PurePosixPath(member.name).suffix.lower()
            if not member.isreg() or kind not in _CAPTION_KINDS:
                continue
            where = f"{member.name} in {shard}"
            stream = archive.extractfile(member)
            if stream is None or member.size > _LARGEST_CAPTION:
                raise DatasetError(f"{where} has {member.size} bytes, too many for captions.")
            texts, key = _list_texts(stream.read(), kind, where), _find_key(member.name)
            if texts is None:
                without[key] = where
            else:
                captions.setdefault(key, clean_captions(texts, where))
    for key, where in without.items():
        if key not in captions:
            raise DatasetError(f'{where} is not of the form {{"caption": "..."}}, and there is no {key}.txt.')
    return captions


def _list_texts(content: bytes, kind: str, where: str) -> list[str] | None:
    """The captions of a member; None if it is JSON without a caption."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where} is not text: {error}.") from error
    if kind == ".txt":
        return text.splitlines()
    record = parse_json(text, where)
    caption = record.get("caption") if isinstance(record, dict) else None
    return [caption] if isinstance(caption, str) else None


def _find_key(name: str) -> str:
    """The key that the members of one sample share: the name up to the first dot after the last slash."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))
