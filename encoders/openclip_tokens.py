"""CLIP's token ids, as open_clip's SimpleTokenizer gives them, without its imports."""

import gzip
from itertools import islice
from pathlib import Path

import regex
from tokenizers.models import BPE

_MERGES = 49152 - 256 - 2  # of those in the vocabulary file, CLIP uses the first
START, END = 49406, 49407
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}
_WORD = regex.compile(
    "|".join([*_SPECIAL, r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"]), regex.IGNORECASE
)
# The vocabulary writes each byte as a letter: as itself if that can be seen, or as one beyond Latin-1.
_SEEN = {*range(33, 127), *range(161, 173), *range(174, 256)}
_UNSEEN = dict(zip(sorted({*range(256)} - _SEEN), range(256, 512), strict=False))


class ClipTokenizer:
    """Cleans a text and splits its words into pieces (byte pair encoding)."""

    def __init__(self, vocabulary: Path, length: int) -> None:
        """vocabulary: open_clip's file of merges. length: the most ids of a text, start and end included."""
        self.length = length
        letters = sorted(chr(_UNSEEN.get(byte, byte)) for byte in range(256))
        with gzip.open(vocabulary, "rt", encoding="utf-8", newline="\n") as lines:
            merges = [(first, second) for first, second in map(str.split, islice(lines, 1, _MERGES + 1))]
        words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
        ids = {word: number for number, word in enumerate(words)}
        self._pairs = BPE(ids, merges, end_of_word_suffix="</w>")

    def encode(self, text: str) -> list[int]:
        """The ids of a text between start and end; of one that is too long, the end takes the last place."""
        ids = [START]
        for word in _WORD.findall(_clean(text)):
            ids += [_SPECIAL[word]] if word in _SPECIAL else self._split(word)
        return [*ids[: self.length - 1], END]

    def _split(self, word: str) -> list[int]:
        letters = word.encode().decode("latin-1").translate(_UNSEEN)
        return [piece.id for piece in self._pairs.tokenize(letters)]


def _clean(text: str) -> str:
    if "&" in text or not (text.isascii() and text.isprintable()):  # ftfy, slow to import, changes no other
        import html

        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()
