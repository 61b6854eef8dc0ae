"""The data of a step depend on seed and step number alone, on any rank and with any files broken."""

import hashlib
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from encoders.fwd2bot.model import IGNORED
from tests.training_data import (
    make_dataset,
    make_settings,
    read_texts,
    share_out,
    write_lines,
    write_photos,
)
from training.data import Step, StepDataset
from training.data_settings import BatchSettings, CaptionGroupSettings, KarpathySettings
from training.losses import HARD_NEGATIVE

# For some steps of `BATCHES`: a hash of all but the pixels, and a weighted mean of each picture's pixels.
RECORDED = {
    0: ("8f3dfbf74f8e86a6", []),
    9: (
        "8b8eb38810c4dc40",
        [
            *[0.016, -0.0372, -0.0251, -0.0036, 0.0523, 0.0003, -0.0266],
            *[-0.0322, -0.0061, -0.0172, -0.11, -0.0867, -0.0935, -0.0781],
        ],
    ),
    22: (
        "d1bae85824bc806b",
        [0.0116, -0.0315, 0.0049, -0.0046, 0.0283, -0.0039, 0.0778, 0.0684, 0.0806, 0.0772],
    ),
    29: ("8cd8dc94988032f1", [0.0075, -0.0257, -0.0278, 0.0079, -0.0071]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_photos(tmp_path)
    return tmp_path


def digest_step(step: Step) -> str:
    """A hash of all token ids, labels, masks, ids and words, with their names, shapes and types."""
    digest = hashlib.sha256()

    def add(tensor: Tensor) -> None:
        digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())

    for part in [*step.sources, *step.targets, *(answers.inputs for answers in step.answers)]:
        for name in sorted(set(part) - {"pixel_values"}):
            digest.update(name.encode())
            add(part[name])
    for answers in step.answers:
        add(answers.sources)
        add(answers.labels)
    for tensor in (step.source_ids, step.target_ids, step.words):
        add(tensor)
    return digest.hexdigest()[:16]


def weigh_pixels(step: Step) -> list[float]:
    pixels = [part["pixel_values"] for part in step.sources if "pixel_values" in part]
    if not pixels:
        return []
    weights = torch.linspace(-1, 1, pixels[0][0].numel()).view(pixels[0].shape[1:])
    means: list[float] = (pixels[0] * weights).mean(dim=(1, 2, 3)).tolist()
    return means


def assert_equal(one: Step, other: Step) -> None:
    assert digest_step(one) == digest_step(other)
    assert weigh_pixels(one) == weigh_pixels(other)


@pytest.mark.parametrize("step", RECORDED)
def test_the_steps_of_a_run_stay_what_they_were(folder: Path, step: int) -> None:
    digest, pixels = RECORDED[step]
    made = make_dataset(folder)[step]
    assert digest_step(made) == digest
    assert weigh_pixels(made) == pytest.approx(pixels, abs=1e-4)


def test_a_step_depends_on_seed_and_number_alone(folder: Path) -> None:
    one, other = make_dataset(folder), make_dataset(folder)
    other[3], other[20]  # earlier reads change nothing
    assert_equal(one[9], other[9])
    assert weigh_pixels(make_dataset(folder, seed=6)[9]) != weigh_pixels(one[9])


def test_photos_held_in_memory_are_those_on_disk(folder: Path) -> None:
    assert_equal(make_dataset(folder)[9], make_dataset(folder, make_settings(in_memory=False))[9])


def test_every_epoch_shows_every_photo_once(folder: Path) -> None:
    dataset = make_dataset(folder)
    dealt = [known for step in range(2, 9) for known in dataset[step].source_ids.tolist() if known < 10**9]
    assert len(dealt) == 28
    assert all(sorted(dealt[start : start + 7]) == list(range(7)) for start in range(0, 28, 7))


def test_matching_ids_are_matching_texts(folder: Path) -> None:
    dataset = make_dataset(folder)
    step = dataset[3]
    texts = [text for part in step.targets for text in read_texts(dataset, part["input_ids"])]
    for known, text in zip(step.target_ids.tolist(), texts, strict=True):
        if 0 <= known < 10**9:
            assert f"dog {known}" in text or f"cat {known}" in text
        elif known >= 2 * 10**9:
            assert f"cat {known - 2 * 10**9}" in text
    assert (step.target_ids == HARD_NEGATIVE).sum() == 2  # one for each scene, none for families
    assert set(step.source_ids.tolist()) == set(step.target_ids.tolist()) - {HARD_NEGATIVE}
    assert step.paired.all()


def test_answers_belong_to_the_sources_they_name(folder: Path) -> None:
    dataset = make_dataset(folder)
    step = dataset[3]
    asked = torch.cat([part.sources for part in step.answers])
    assert sorted(asked.tolist()) == list(range(len(step.source_ids)))
    for part in step.answers:
        for source, labels in zip(part.sources.tolist(), part.labels, strict=True):
            known = int(step.source_ids[source])
            if known < 10**9:
                assert str(known) in dataset.builder.tokenizer.decode(labels[labels != IGNORED])


def test_a_tower_only_step_has_pictures_and_the_words_of_all_their_captions(folder: Path) -> None:
    dataset = make_dataset(folder)
    step = dataset[22]
    assert step.tower_only
    assert len(step.sources[0]["pixel_values"]) == len(step.words) == len(step.source_ids) == 10
    for known, words in zip(step.source_ids.tolist()[:4], step.words, strict=False):
        side = ["left", "right", "top"][known % 3]
        said = f"dog {known} one dog {known} two on the {side} a cat {known}"
        assert set(words.nonzero()[:, 0].tolist()) == set(dataset.builder.tokenizer(said)["input_ids"])


def test_a_text_only_batch_has_no_pictures_and_two_views_of_each_group(folder: Path) -> None:
    dataset = make_dataset(folder)
    (source,) = dataset[0].sources
    assert "pixel_values" not in source
    first = read_texts(dataset, source["input_ids"])
    second = [text for part in dataset[0].targets for text in read_texts(dataset, part["input_ids"])]
    assert len(first) == len(second) == 3
    assert not set(first) & set(second)


def list_rows(dataset: StepDataset, step: Step) -> list[tuple[int, float, list[str]]]:
    """For each source in order: its id, its weighted pixels, and its questions and answers."""
    pixels = weigh_pixels(step) + [0.0] * len(step.source_ids)
    rows = [(known, pixels[row], list[str]()) for row, known in enumerate(step.source_ids.tolist())]
    for part in step.answers:
        texts = read_texts(dataset, part.inputs["input_ids"])
        for source, text in zip(part.sources.tolist(), texts, strict=True):
            rows[source][2].append(text)
    return rows


def count_targets(dataset: StepDataset, step: Step) -> Counter[tuple[int, str]]:
    texts = [text for part in step.targets for text in read_texts(dataset, part["input_ids"])]
    return Counter(zip(step.target_ids.tolist(), texts, strict=True))


@pytest.mark.parametrize("broken", [(), ("2.png", "5.png")])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_shares_of_all_ranks_are_the_step_of_one_process(
    folder: Path, broken: tuple[str, ...], ranks: int
) -> None:
    for name in broken:
        (folder / name).unlink()
    alone = make_dataset(folder)
    shares = [make_dataset(folder, ranks=each) for each in share_out(ranks)]
    parts = [list_rows(share, share[9]) for share in shares]
    assert all(parts)
    together = sorted(row for part in parts for row in part)
    for (known, pixels, texts), row in zip(together, sorted(list_rows(alone, alone[9])), strict=True):
        assert (known, texts) == (row[0], row[2])
        assert pixels == pytest.approx(row[1], abs=1e-6)
    targets = sum((count_targets(share, share[9]) for share in shares), Counter[tuple[int, str]]())
    assert targets == count_targets(alone, alone[9])


def test_a_rank_without_photos_sees_scenes_in_the_colours_of_one_process(folder: Path) -> None:
    batches = [BatchSettings(1, {"photos": 1, "scenes": 3})]
    shares = [make_dataset(folder, batches=batches, ranks=each) for each in share_out(2)]
    seen = sorted(row for share in shares for row in list_rows(share, share[0]))
    alone = make_dataset(folder, batches=batches)
    assert [row[1] for row in seen] == pytest.approx([row[1] for row in sorted(list_rows(alone, alone[0]))])


def test_a_source_that_is_not_contrastive_has_no_targets_and_one_without_answers_is_not_asked(
    folder: Path,
) -> None:
    settings = make_settings()
    settings["photos"] = KarpathySettings("karpathy", "dataset.json", ".", ("train",), False, True)
    settings["groups"] = CaptionGroupSettings("caption_groups", "groups.jsonl", True, False)
    step = make_dataset(folder, settings, [BatchSettings(1, {"photos": 3, "groups": 2})])[0]
    assert step.paired.tolist() == [False] * 3 + [True] * 2
    assert sorted(step.target_ids.tolist()) == sorted(step.source_ids[3:].tolist())
    assert sorted(torch.cat([part.sources for part in step.answers]).tolist()) == [0, 1, 2]


def test_without_augmentation_pictures_go_through_the_processor_as_they_are(folder: Path) -> None:
    dataset = make_dataset(folder, make_settings(in_memory=False), augmentation=None)
    step = dataset[9]
    pictures = [dataset.sources["photos"].load_picture(row, 0) for row in step.source_ids[:4].tolist()]
    expected = dataset.builder.images(pictures)
    assert torch.equal(step.sources[0]["pixel_values"][:4], expected["pixel_values"])
    assert torch.equal(step.sources[0]["input_ids"][:4], expected["input_ids"])
    assert step.words.shape == (0, len(dataset.builder.tokenizer))


def test_a_broken_row_is_told_of_once_and_changes_no_other(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = make_dataset(folder, make_settings(in_memory=False))
    before = [list_rows(sound, sound[step]) for step in range(2, 9)]
    (folder / "3.png").write_bytes(b"no picture")
    broken = make_dataset(folder, make_settings(in_memory=False))
    with caplog.at_level(logging.WARNING):
        after = [list_rows(broken, broken[step]) for step in range(2, 9)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "source photos passes over 3.png: the picture cannot be decoded" in line
    for sound_rows, rows in zip(before, after, strict=True):
        assert 3 not in [known for known, *_ in rows]
        assert all(one == other for one, other in zip(sound_rows, rows, strict=True) if one[0] != 3)
    assert_equal(broken[4], make_dataset(folder, make_settings(in_memory=False))[4])


def test_a_broken_line_is_passed_over_by_every_rank_alike(folder: Path) -> None:
    write_lines(folder / "groups.jsonl", [{"captions": ["cat 0 a", "cat 0 b"]}, {"captions": ["alone"]}, 3])
    batches = [BatchSettings(4, {"groups": 2})]
    alone = make_dataset(folder, batches=batches)
    shares = [make_dataset(folder, batches=batches, ranks=each) for each in share_out(2)]
    for step in range(4):
        assert set(alone[step].source_ids.tolist()) == {2 * 10**9}
        texts = [read_texts(alone, part["input_ids"]) for part in alone[step].sources]
        parts = [read_texts(share, share[step].sources[0]["input_ids"]) for share in shares]
        assert texts == [[text for part in parts for text in part]]
