"""What `benchmarks.peers.race` measures: as dataclasses, as ratios, and as a table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.speed import Run


@dataclass(frozen=True)
class Lap:
    """One round of one side."""

    images_per_second: float
    first: Run
    second: Run
    search: Run


@dataclass(frozen=True)
class Kill:
    """How many of `images` were stored by a run killed after `seconds`, and the duration of the next run."""

    images: int
    stored: int
    seconds: float
    seconds_to_end: float


@dataclass(frozen=True)
class Figures:
    """One side: all its rounds, its killed run, and one query per round among `large_rows` rows."""

    name: str
    versions: dict[str, str]
    laps: list[Lap]
    kill: Kill
    large_rows: int
    large_search: list[Run]


@dataclass(frozen=True)
class Ratio:
    """How many times better fwd2bot is: the median, minimum and maximum over rounds."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Race:
    """Both sides on photos of one size."""

    megapixels: float
    images: int
    ours: Figures
    theirs: Figures
    ratios: dict[str, Ratio]


@dataclass(frozen=True)
class RaceResult:
    """A race for each photo size; the weights are random, so retrieval quality is not measured."""

    rival: str
    races: list[Race]


def compare_sides(ours: Figures, theirs: Figures) -> dict[str, Ratio]:
    """The ratio of each figure that is measured in every round; above 1 means that ours is better."""
    pairs = list(zip(ours.laps, theirs.laps, strict=True))
    large = zip(ours.large_search, theirs.large_search, strict=True)
    return {
        "images/s": _sum_up([our.images_per_second / their.images_per_second for our, their in pairs]),
        "all photos, start included": _sum_up(
            [their.first.seconds / our.first.seconds for our, their in pairs]
        ),
        "nothing changed": _sum_up([their.second.seconds / our.second.seconds for our, their in pairs]),
        "cold query": _sum_up([their.search.seconds / our.search.seconds for our, their in pairs]),
        "cold query, many rows": _sum_up([their.seconds / our.seconds for our, their in large]),
        "peak memory": _sum_up([their.first.peak_mib / our.first.peak_mib for our, their in pairs]),
    }


def _sum_up(ratios: Sequence[float]) -> Ratio:
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def render_race(race: Race) -> str:
    """Medians of both sides, the ratios with their spread, and the package versions."""
    ours, theirs = race.ours, race.theirs
    size = f"{race.megapixels:g} megapixel{'' if race.megapixels == 1 else 's'}"
    rounds = f"{len(ours.laps)} round{'' if len(ours.laps) == 1 else 's'}"
    lines = [
        f"{race.images:,} JPEGs of {size}, {rounds}, random weights",
        f"{'':<28}{ours.name:>14}{theirs.name:>24}   ratio (least to most)",
    ]
    for title, our, their in zip(race.ratios, _take_medians(ours), _take_medians(theirs), strict=True):
        ratio = race.ratios[title]
        spread = f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})"
        beaten = "  beaten" if ratio.median < 1 else ""
        lines.append(f"{title:<28}{our:>14}{their:>24}   {spread}{beaten}")
    killed = [f"{side.kill.stored:,} of {side.kill.images:,}" for side in (ours, theirs)]
    to_end = [f"{side.kill.seconds_to_end:.1f} s" for side in (ours, theirs)]
    lines += [f"{'left after kill -9 half-way':<28}{killed[0]:>14}{killed[1]:>24}"]
    lines += [f"{'next run, to the end':<28}{to_end[0]:>14}{to_end[1]:>24}"]
    for side in (ours, theirs):
        lines.append(f"{side.name}: {', '.join(f'{name} {each}' for name, each in side.versions.items())}")
    return "\n".join([*lines, ""])


def _take_medians(figures: Figures) -> list[str]:
    """The medians of one side as text, in the order of `compare_sides`."""
    laps = figures.laps
    return [
        f"{statistics.median(lap.images_per_second for lap in laps):.2f}",
        f"{statistics.median(lap.first.seconds for lap in laps):.1f} s",
        f"{statistics.median(lap.second.seconds for lap in laps):.2f} s",
        f"{statistics.median(lap.search.seconds for lap in laps):.2f} s",
        f"{statistics.median(run.seconds for run in figures.large_search):.2f} s",
        f"{statistics.median(lap.first.peak_mib for lap in laps):,.0f} MiB",
    ]
