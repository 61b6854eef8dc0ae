"""Caption scores against the definitions of their papers, written out."""

import gc
import math
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import nltk
import pytest
from nltk.corpus.reader import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from benchmarks.caption_metrics import load_tokenizer, score_captions
from encoders.base import DatasetError, MissingDependency

SAID = ["a brown dog runs on the green grass", "two men on a boat", "a red car", "people sit"]
WANTED = [
    ["a brown dog is running on the green grass", "a dog runs", "the brown dog on the grass runs fast"],
    ["two men in a small boat on the water", "a boat with two men"],
    ["a dog sleeps in a red car", "a parked car"],
    ["a band plays a song", "musicians on a stage at night"],
]


def count_ngrams(caption: str, length: int) -> Counter[tuple[str, ...]]:
    words = caption.split()
    return Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1))


def compute_cider_d(row: int) -> float:
    """Formulas 2 to 5 of Vedantam et al. 2015, with n up to 4, sigma 6 and the factor 10 of CIDEr-D."""
    total = 0.0
    for length in range(1, 5):
        frequency = Counter(
            gram
            for each in WANTED
            for gram in set().union(*(count_ngrams(caption, length) for caption in each))
        )

        def weigh(
            caption: str, length: int = length, frequency: Counter[tuple[str, ...]] = frequency
        ) -> dict[tuple[str, ...], float]:
            counts = count_ngrams(caption, length).items()
            return {gram: n * math.log(len(WANTED) / max(1, frequency[gram])) for gram, n in counts}

        said = weigh(SAID[row])
        for reference in WANTED[row]:
            wanted = weigh(reference)
            norms = math.hypot(*said.values()) * math.hypot(*wanted.values())
            overlap = sum(
                min(weight, wanted.get(gram, 0)) * wanted.get(gram, 0) for gram, weight in said.items()
            )
            gap = len(SAID[row].split()) - len(reference.split())
            total += 10 * math.exp(-(gap**2) / 72) * (overlap / norms if norms else 0) / len(WANTED[row])
    return total / 4


def compute_bleu_4() -> float:
    """Papineni et al. 2002 over the whole set, brevity against the closest reference length."""
    product = 1.0
    for length in range(1, 5):
        right = total = 0
        for said, wanted in zip(SAID, WANTED, strict=True):
            grams = count_ngrams(said, length)
            most = Counter[tuple[str, ...]]()
            for reference in wanted:
                most |= count_ngrams(reference, length)
            right += sum((grams & most).values())
            total += sum(grams.values())
        product *= right / total
    spoken = sum(len(said.split()) for said in SAID)
    closest = sum(
        min(
            (len(reference.split()) for reference in wanted),
            key=lambda n, said=said: abs(n - len(said.split())),
        )
        for said, wanted in zip(SAID, WANTED, strict=True)
    )
    return product**0.25 * min(1.0, math.exp(1 - closest / spoken))


def find_longest_common(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + find_longest_common(one[1:], other[1:])
    return max(find_longest_common(one[1:], other), find_longest_common(one, other[1:]))


def compute_rouge_l(row: int) -> float:
    """Lin 2004, with beta 1.2 and the best precision and recall over the references."""
    said = SAID[row].split()
    common = [(find_longest_common(said, each.split()), len(each.split())) for each in WANTED[row]]
    precision = max(length / len(said) for length, _ in common)
    recall = max(length / of for length, of in common)
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision else 0.0


def test_scores_are_those_of_the_papers_written_out() -> None:
    scores = score_captions(SAID, WANTED)
    assert scores.each_cider_d == pytest.approx([compute_cider_d(row) for row in range(4)])
    assert scores.cider_d == pytest.approx(fmean(scores.each_cider_d))
    assert scores.bleu_4 == pytest.approx(compute_bleu_4(), rel=1e-6)
    assert scores.rouge_l == pytest.approx(fmean(compute_rouge_l(row) for row in range(4)))
    assert 0 < scores.bleu_4 < scores.rouge_l < 1 < scores.cider_d < 10


def install_wordnet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a WordNet of boats and ships alone, in the files that NLTK expects."""
    place = folder / "corpora" / "wordnet"
    place.mkdir(parents=True)
    parts = [f"{kind}.{part}" for kind in ("index", "data") for part in ("noun", "verb", "adj", "adv")]
    for name in ("cntlist.rev", "index.sense", "noun.exc", "verb.exc", "adj.exc", "adv.exc", *parts):
        (place / name).write_text("")
    (place / "lexnames").write_text("00\tnoun.artifact\t1\n")
    (place / "data.noun").write_text("00000000 00 n 02 boat 0 ship 0 000 | it floats  \n")
    (place / "index.noun").write_text("boat n 1 0 1 0 00000000  \nship n 1 0 1 0 00000000  \n")
    look_for_wordnet([folder], monkeypatch)


def look_for_wordnet(folders: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make NLTK look for WordNet again, in these folders alone."""
    monkeypatch.setattr(nltk.data, "path", [str(folder) for folder in folders])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, object()))


def compute_meteor(said: list[str], matches: list[tuple[int, int]], wanted: list[str]) -> float:
    """METEOR of Banerjee and Lavie 2005, from an alignment made by hand."""
    precision, recall = len(matches) / len(said), len(matches) / len(wanted)
    mean = 10 * precision * recall / (recall + 9 * precision)
    chunks = 1 + sum(later != (one + 1, other + 1) for (one, other), later in pairwise(matches))
    return mean * (1 - 0.5 * (chunks / len(matches)) ** 3)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_meteor_knows_stems_and_synonyms(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_wordnet(tmp_path, monkeypatch)
        said, wanted = "two men on a boat", "two man sat on a ship"
        expected = compute_meteor(said.split(), [(0, 0), (2, 3), (3, 4), (4, 5)], wanted.split())
        assert score_captions([said], [[wanted, "nothing alike"]]).meteor == pytest.approx(expected)
        stems = compute_meteor(["boats", "sailing"], [(0, 0), (1, 1)], ["boat", "sails"])
        assert score_captions(["boats sailing"], [["boat sails"]]).meteor == pytest.approx(stems)
    gc.collect()  # NLTK leaves WordNet's files open: close them here, where the warning is ignored


def test_meteor_is_absent_and_not_zero_where_wordnet_was_never_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_for_wordnet([], monkeypatch)
    assert score_captions(SAID, WANTED).meteor is None


def test_half_of_wordnet_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_wordnet(tmp_path, monkeypatch)
    (tmp_path / "corpora" / "wordnet" / "lexnames").unlink()
    assert score_captions(SAID, WANTED).meteor is None


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ('A man\'s dog (brown), "Rex".', "a man 's dog brown rex"),
        ("It can't run... It sits. Yes!", "it ca n't run it sits yes"),
        ("a black-and-white cat;  two dogs", "a black-and-white cat two dogs"),
        (" ", ""),
    ],
)
def test_words_are_cut_as_the_penn_treebank_cuts_them_less_punctuation(caption: str, words: str) -> None:
    assert load_tokenizer()(caption) == words.split()


def test_case_and_punctuation_change_no_score() -> None:
    shouted = [f"{caption.upper()}!" for caption in SAID]
    assert score_captions(shouted, WANTED) == score_captions(SAID, WANTED)


def test_an_empty_caption_scores_nothing_and_stops_nothing() -> None:
    scores = score_captions(["", *SAID[1:]], WANTED)
    assert scores.each_cider_d[0] == 0 < scores.each_cider_d[1]


@pytest.mark.parametrize("references", [[["a"]], [["a"], []], [["a"], ["b"], ["c"]], [["..."], ["!"]]])
def test_references_that_do_not_fit_are_one_sentence(references: list[list[str]]) -> None:
    with pytest.raises(DatasetError, match="references"):
        score_captions(["a dog", "a cat"], references)


@pytest.mark.parametrize("package", ["nltk.tokenize", "pycocoevalcap.cider.cider"])
def test_a_package_that_is_not_there_is_named_with_its_command(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match="pip install pycocoevalcap nltk"):
        score_captions(SAID, WANTED)
