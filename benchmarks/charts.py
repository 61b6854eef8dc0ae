"""Draw the charts of docs/benchmarks.md from result files, as SVG; equal figures give identical files.

    python -m benchmarks.charts runs/benchmark/ann.json runs/benchmark/storage.json --out docs/pictures

draws recall against queries per second (from `ann`), recall against bytes per image (from `storage`) and
throughput by batch size (from `side_by_side`), each named after its result file.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ann_kinds import OURS
from benchmarks.command import run_command
from encoders.base import Fwd2BotError, MissingDependency

_MODULE = "benchmarks.charts"
_INCHES = (7.0, 4.2)
_MARKERS = "osD^vP*X"
_STYLE = {"svg.hashsalt": "fwd2bot", "svg.fonttype": "none", "axes.grid": True, "grid.alpha": 0.3}


class Series(NamedTuple):
    """One line of a chart: its name, and its points (x, y), connected in order."""

    name: str
    points: Sequence[tuple[float, float]]


def list_recall_by_rate(result: Mapping[str, Any], number: int) -> list[Series]:
    """From one collection of `ann`: for each kind, single queries per second and recall@10."""
    return [
        Series(
            kind["name"],
            [(point["queries_per_second"], point["recall_at_10"]) for point in kind["points"]],
        )
        for kind in result["collections"][number]["kinds"]
    ]


def list_recall_by_bytes(result: Mapping[str, Any]) -> list[Series]:
    """From `storage`: for each form, bytes per image and R@10."""
    return [
        Series(cost["form"], [(cost["bytes_per_image"], cost["recall_at_10"])]) for cost in result["costs"]
    ]


def list_throughput(result: Mapping[str, Any]) -> list[Series]:
    """From `side_by_side`: for each encoder, batch size and images per second."""
    return [
        Series(
            encoder["model"] + (" (random weights)" if encoder["model"] in result["random"] else ""),
            [(float(size), rate) for size, rate in encoder["images_per_second"].items()],
        )
        for encoder in result["encoders"]
    ]


def draw_chart(path: Path, series: Sequence[Series], title: str, across: str, up: str) -> None:
    """Write one chart with a logarithmic x-axis; raises MissingDependency without matplotlib."""
    with _open_axes(path) as axes:
        for number, line in enumerate(series):
            x, y = zip(*line.points, strict=True)
            ours = line.name == OURS
            marker, size, width = _MARKERS[number % len(_MARKERS)], 10 if ours else 6, 2.5 if ours else 1.2
            axes.plot(x, y, marker=marker, markersize=size, linewidth=width, label=line.name)
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.legend(fontsize=8)


@contextmanager
def _open_axes(path: Path) -> Iterator[Any]:
    """Axes to draw on; written to an SVG file on exit."""
    if find_spec("matplotlib") is None:
        raise MissingDependency(
            'charts need matplotlib, which is not installed: pip install "fwd2bot[benchmarks]"'
        )
    matplotlib, figures = import_module("matplotlib"), import_module("matplotlib.figure")
    with matplotlib.rc_context(_STYLE):
        figure = figures.Figure(figsize=_INCHES, layout="constrained")
        yield figure.add_subplot()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_recall_by_rate(result: Mapping[str, Any], stem: Path) -> list[Path]:
    """A chart for each collection."""
    paths = []
    for number, collection in enumerate(result["collections"]):
        paths.append(stem.with_name(f"{stem.name}_{number + 1}.svg"))
        title = f"{collection['source']}: up and to the right is better"
        draw_chart(
            paths[-1], list_recall_by_rate(result, number), title, "queries/s, one at a time", "recall@10"
        )
    return paths


def draw_recall_by_bytes(result: Mapping[str, Any], stem: Path) -> list[Path]:
    """One chart, if photos were given; else none."""
    if not result["costs"]:
        return []
    title = f"{result['data']['dataset']}: up and to the left is better"
    draw_chart(
        stem.with_suffix(".svg"), list_recall_by_bytes(result), title, "bytes an image", "R@10, text to image"
    )
    return [stem.with_suffix(".svg")]


def draw_throughput(result: Mapping[str, Any], stem: Path) -> list[Path]:
    """One chart of all encoders."""
    draw_chart(
        stem.with_suffix(".svg"), list_throughput(result), "images a second", "images at once", "images/s"
    )
    return [stem.with_suffix(".svg")]


CHARTS: dict[str, Callable[[Mapping[str, Any], Path], list[Path]]] = {
    "ann": draw_recall_by_rate,
    "storage": draw_recall_by_bytes,
    "side_by_side": draw_throughput,
}


def draw_charts(path: Path, out: Path) -> list[Path]:
    """Draw the charts of a result file, if its benchmark has any; raises Fwd2BotError if it is damaged."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        draw = CHARTS.get(run["benchmark"])
        return draw(run["result"], out / path.stem) if draw else []
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Fwd2BotError(f"{path} is not a benchmark result ({error!r}): measure it again.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw charts from result files."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=main.__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="what --json wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the SVG files go")
    options = parser.parse_args(arguments)

    def draw() -> None:
        paths = [path for result in options.results for path in draw_charts(result, options.out)]
        if not paths:
            raise Fwd2BotError(f"there is nothing to draw: give a result of {', '.join(CHARTS)}.")
        print("\n".join(map(str, paths)))

    return run_command(draw)


if __name__ == "__main__":
    sys.exit(main())
