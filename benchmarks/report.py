"""Every table and chart of docs/benchmarks.md, measured and written by one command.

    python -m benchmarks.report [--fast] [--data DIR] [--only NAME ...] [--render]

runs the benchmarks of `benchmarks.report_plan` one after another, each as the command that its table names,
stores each result as JSON under --results (with its printed output as "table"), and writes the tables into
the document between markers with their names. The prose around the markers is written by hand; missing
sections are appended. A benchmark that fails is named on stderr, keeps its previous table, and makes the exit
code 1. --render only writes the existing results, and measures nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import draw_charts
from benchmarks.command import run_command
from benchmarks.report_plan import SECTIONS, Scope, Section, choose_photos
from encoders.base import Fwd2BotError

_MODULE = "benchmarks.report"
_TITLE = "# Benchmarks\n"


def measure_section(section: Section, scope: Scope) -> None:
    """Run a section's command and store its result with the table it printed; raises if it fails."""
    result = scope.results / f"{section.name}.json"
    arguments = [*section.list_arguments(scope), "--json", str(result), "--force"]
    command = [sys.executable, "-m", section.module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Fwd2BotError(f"{section.name} failed, for the reason above: {' '.join(command[1:])}")
    run = json.loads(result.read_text(encoding="utf-8")) | {"table": done.stdout}
    if scope.data is not None:  # do not publish local paths
        run["command"] = run["command"].replace(str(scope.data), "DIR")
    result.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


def measure_sections(sections: Sequence[Section], scope: Scope) -> list[str]:
    """Measure one section after another; returns the names of those that failed."""
    failed = []
    for section in sections:
        start = time.perf_counter()
        try:
            measure_section(section, scope)
        except Fwd2BotError as error:
            print(error, file=sys.stderr)
            failed.append(section.name)
        print(f"{section.name}: {time.perf_counter() - start:,.0f} s", file=sys.stderr)
    return failed


def render_block(run: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """One result in Markdown: its table, how it was measured, and its charts."""
    machine, versions = run["machine"], run["versions"]
    made = [
        f"`{run['command']}`",
        run["date"],
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    made += [f"seed {run['seed']}"] if run["seed"] is not None else []
    made += [f"model {run['encoder']['name']} ({run['encoder']['fingerprint']})"] if run["encoder"] else []
    charts = [f"![{Path(picture).stem.replace('_', ' ')}]({picture})" for picture in pictures]
    return "\n\n".join(["```\n" + run["table"].strip("\n") + "\n```", *["; ".join(made) + "."], *charts])


def replace_block(document: str, section: Section, block: str) -> str:
    """The document with this block between the section's markers, which are appended if missing."""
    begin, end = f"<!-- begin {section.name} -->", f"<!-- end {section.name} -->"
    marked = f"{begin}\n\n{block}\n\n{end}"
    if document.count(begin) == document.count(end) == 1 and document.index(begin) < document.index(end):
        return document[: document.index(begin)] + marked + document[document.index(end) + len(end) :]
    if begin in document or end in document:
        raise Fwd2BotError(
            f"the document needs {begin} and {end}, each once and in this order: put them right."
        )
    return f"{document.rstrip()}\n\n## {section.title}\n\n{section.words}\n\n{marked}\n"


def render_document(sections: Sequence[Section], results: Path, document: Path) -> Iterator[str]:
    """Write the existing results into the document; yields the names of the sections shown."""
    text = document.read_text(encoding="utf-8") if document.exists() else _TITLE
    for section in sections:
        path = results / f"{section.name}.json"
        if not path.exists():
            continue
        pictures = [
            str(picture.relative_to(document.parent))
            for picture in draw_charts(path, document.parent / "pictures")
        ]
        run = json.loads(path.read_text(encoding="utf-8"))
        if "table" in run:
            text = replace_block(text, section, render_block(run, pictures))
            yield section.name
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(text, encoding="utf-8")


def choose_sections(names: Sequence[str], scope: Scope) -> list[Section]:
    """The sections with these names, or all those whose inputs are available."""
    if names:
        return [section for section in SECTIONS if section.name in names]
    return [section for section in SECTIONS if section.is_possible(scope)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and write docs/benchmarks.md."""
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=main.__doc__)
    parser.add_argument(
        "--fast", action="store_true", help="minutes instead of an hour, and figures to match"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="real photos: dataset_*.json and images/")
    parser.add_argument("--place", type=Path, metavar="DIR", help="where rivals are installed; else no race")
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--results", type=Path, default=Path("runs/benchmark"), metavar="DIR")
    parser.add_argument("--document", type=Path, default=Path("docs/benchmarks.md"), metavar="FILE")
    parser.add_argument("--render", action="store_true", help="write what is there and measure nothing")
    options = parser.parse_args(arguments)

    def report() -> None:
        scope = Scope(options.fast, options.results, options.data, options.place)
        sections = choose_sections(options.only, scope)
        if scope.data is not None:
            choose_photos(scope)  # refuses a wrong folder now, and not in an hour
        failed = [] if options.render else measure_sections(sections, scope)
        shown = list(render_document(SECTIONS, options.results, options.document))
        print(f"{options.document} shows {', '.join(shown) or 'nothing yet'}")
        if failed:
            raise Fwd2BotError(f"not measured: {', '.join(failed)}")

    return run_command(report)


if __name__ == "__main__":
    sys.exit(main())
