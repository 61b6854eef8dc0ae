"""Caption metrics against human references: CIDEr-D, BLEU-4, ROUGE-L and METEOR, by established libraries.

CIDEr-D, BLEU-4 and ROUGE-L are pycocoevalcap's, as the COCO caption server computes them; METEOR is NLTK's.
Captions are tokenized by NLTK's Treebank tokenizer, sentence by sentence, and lower-cased, and the
punctuation that the COCO server drops is dropped. The server's own tokenizer (Stanford's, which needs Java)
splits a few words differently, so its figures may differ slightly.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from encoders.base import DatasetError, MissingDependency

INSTALL_COMMAND = "pip install pycocoevalcap nltk"
WORDNET_COMMAND = "python -m nltk.downloader wordnet"

# What the COCO caption server drops, in Penn Treebank notation.
_BRACKETS = {"-LRB-", "-RRB-", "-LCB-", "-RCB-"}
_PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"} | _BRACKETS
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Words = list[str]


class CaptionScores(NamedTuple):
    """Scores of a set of captions, as fractions: papers print them times 100.

    each_cider_d: CIDEr-D of each caption, for standard errors; the mean is `cider_d`. meteor: None if NLTK
    has no WordNet (see WORDNET_COMMAND); it is the METEOR of 2005 (exact, stem, WordNet synonyms), not 1.5
    with its paraphrase tables, so it must not be compared with figures of METEOR 1.5.
    """

    cider_d: float
    bleu_4: float
    rouge_l: float
    meteor: float | None
    each_cider_d: tuple[float, ...]


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score candidates[i] against references[i], a set of one or more captions.

    CIDEr-D weights words by their frequency in all references, so a set of one image scores 0. Raises
    MissingDependency, and DatasetError if the lengths differ, a set is empty or the references have no words.
    """
    if len(candidates) != len(references) or not all(references):
        raise DatasetError(
            f"{len(candidates)} captions cannot be scored against {len(references)} sets of references: "
            "give each caption a set of at least one."
        )
    tokenize = load_tokenizer()
    said = [tokenize(candidate) for candidate in candidates]
    wanted = [[tokenize(reference) for reference in each] for each in references]
    if not any(words for each in wanted for words in each):
        raise DatasetError("The references hold no words, so nothing can be scored against them.")
    return _score_words(said, wanted)


def load_tokenizer() -> Callable[[str], Words]:
    """The tokenizer of all scores here, from caption to lower-case words; raises MissingDependency."""
    try:
        from nltk.tokenize import TreebankWordTokenizer
    except ImportError as error:
        raise _missing(error) from error
    cut = TreebankWordTokenizer().tokenize

    def tokenize(caption: str) -> Words:
        sentences = _SENTENCE_END.split(caption.strip())  # Treebank splits off only the last full stop
        words = (word for sentence in sentences for word in cut(sentence, convert_parentheses=True))
        return [word.lower() for word in words if word not in _PUNCTUATION]

    return tokenize


def _score_words(said: Sequence[Words], wanted: Sequence[Sequence[Words]]) -> CaptionScores:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise _missing(error) from error
    results = {row: [" ".join(words)] for row, words in enumerate(said)}
    truths = {row: [" ".join(words) for words in each] for row, each in enumerate(wanted)}
    cider_d, each = Cider().compute_score(truths, results)
    return CaptionScores(
        cider_d=float(cider_d),
        bleu_4=float(Bleu(4).compute_score(truths, results, verbose=0)[0][3]),
        rouge_l=float(Rouge().compute_score(truths, results)[0]),
        meteor=_score_meteor(said, wanted),
        each_cider_d=tuple(float(score) for score in each),
    )


def _score_meteor(said: Sequence[Words], wanted: Sequence[Sequence[Words]]) -> float | None:
    from nltk.translate.meteor_score import meteor_score

    wordnet = load_wordnet()
    if wordnet is None:
        return None
    pairs = zip(wanted, said, strict=True)
    return float(np.mean([meteor_score(each, words, wordnet=wordnet) for each, words in pairs]))


def load_wordnet() -> Any | None:
    """NLTK's WordNet, or None if its data is missing or incomplete."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):
        return None
    return wordnet


def _missing(error: ImportError) -> MissingDependency:
    return MissingDependency(f"Scoring captions needs pycocoevalcap and NLTK ({error}): {INSTALL_COMMAND}")
