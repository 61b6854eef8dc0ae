"""The results of `benchmarks.ann`: as dataclasses, as a table, and where fwd2bot's index is beaten."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_AS_GOOD = 0.01  # recall that is lower by no more than this counts as equal
_CLEARLY = 1.1  # a rival has to be better by more than this factor to count as a defeat


@dataclass(frozen=True)
class Point:
    """One search setting of one index: its effort, recall, and queries per second."""

    effort: str
    recall_at_10: float
    queries_per_second: float
    batched_queries_per_second: float


@dataclass(frozen=True)
class KindResult:
    """One kind of index, built and searched."""

    name: str
    build_seconds: float
    build_peak_mib: float
    bytes_per_vector: float
    open_seconds: float
    search_peak_mib: float
    points: list[Point]


@dataclass(frozen=True)
class CollectionResult:
    """All kinds on the same vectors; skipped: why a kind is missing; defeats: where fwd2bot loses."""

    source: str
    rows: int
    dim: int
    queries: int
    kinds: list[KindResult]
    skipped: dict[str, str]
    defeats: list[str]


@dataclass(frozen=True)
class AnnResult:
    """One measurement for each collection."""

    collections: list[CollectionResult]


def find_defeats(kinds: Sequence[KindResult], ours: str) -> list[str]:
    """A line for each figure in which a kind with equal recall is clearly better than ours.

    Only points with a recall of at least ours minus 0.01 count; each line names the best of them.
    """
    own = next((kind for kind in kinds if kind.name == ours), None)
    if own is None:
        return []
    point = own.points[0]
    rivals = [
        (kind, rival)
        for kind in kinds
        if kind.name != ours
        for rival in kind.points
        if rival.recall_at_10 >= point.recall_at_10 - _AS_GOOD
    ]
    return list(_compare_with(own, point, rivals))


def _compare_with(own: KindResult, point: Point, rivals: Sequence[tuple[KindResult, Point]]) -> Iterator[str]:
    if not rivals:
        return
    rates = ("queries_per_second", "queries/s alone"), ("batched_queries_per_second", "queries/s in batches")
    for field, words in rates:
        kind, best = max(rivals, key=lambda pair: float(getattr(pair[1], field)))
        theirs, our = getattr(best, field), getattr(point, field)
        if theirs > _CLEARLY * our:
            yield f"{words}: {_name(kind, best)} {theirs:,.0f}, {own.name} {our:,.0f}"
    costs = (
        ("build_seconds", "seconds to build"),
        ("bytes_per_vector", "bytes a vector"),
        ("search_peak_mib", "peak MiB of searching"),
    )
    for field, words in costs:
        kind, best = min(rivals, key=lambda pair: float(getattr(pair[0], field)))
        theirs, our = getattr(kind, field), getattr(own, field)
        if _CLEARLY * theirs < our:
            yield f"{words}: {_name(kind, best)} {theirs:,.1f}, {own.name} {our:,.1f}"


def _name(kind: KindResult, point: Point) -> str:
    return f"{kind.name} {point.effort}".strip() + f" (recall {point.recall_at_10:.3f})"


def render_collection(result: CollectionResult) -> str:
    """A line for each effort of each kind, then what was skipped, and where fwd2bot is beaten."""
    lines = [
        f"{result.source}; {result.queries} queries",
        f"{'kind':<30}{'effort':<26}{'recall@10':>9}{'alone/s':>9}{'by 256/s':>10}"
        f"{'bytes':>7}{'peak MiB':>10}{'build s':>9}",
    ]
    for kind in result.kinds:
        for point in kind.points:
            first = point is kind.points[0]
            lines.append(
                f"{kind.name if first else '':<30}{point.effort:<26}{point.recall_at_10:>9.4f}"
                f"{point.queries_per_second:>9,.0f}{point.batched_queries_per_second:>10,.0f}"
            )
            if first:
                lines[-1] += (
                    f"{kind.bytes_per_vector:>7,.0f}{kind.search_peak_mib:>10,.0f}{kind.build_seconds:>9,.1f}"
                )
    lines += [f"skipped: {name}: {reason}" for name, reason in result.skipped.items()]
    lines += [f"beaten in {defeat}" for defeat in result.defeats] or ["beaten in nothing at the same recall"]
    return "\n".join([*lines, ""])
