"""The `fwd2bot` command: the one file of this package that prints.

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed and said why in a line, 2 wrong usage.
Nothing heavy is imported up here, so that `--help` answers at once.
"""

import errno
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from encoders.base import Encoder
    from indexer.build import BuildPlan, BuildSummary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Find the image a sentence describes, and ask it things from what was read once.",
    epilog="\b\nStart with:\n  fwd2bot index ~/Photos\n  cd ~/Photos && fwd2bot search two dogs on a beach",
)

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", metavar="PATH", help="The index; else the nearest .fwd2bot from here upwards."),
]
IndexPlaceOption = Annotated[
    Path | None, typer.Option("--index", metavar="PATH", help="Where the index goes; else DIR/.fwd2bot.")
]
MODEL_HELP = (
    "tiny, a Fwd2Bot checkpoint (folder or hub name), or openclip:ARCH/PRETRAINED; "
    "else the one the index was made with, tiny for a new one."
)
ModelOption = Annotated[str | None, typer.Option(metavar="NAME", help=MODEL_HELP)]
TokensOption = Annotated[
    Literal["int8", "float16", "none"] | None,
    typer.Option(help="How summary tokens are kept, for caption and ask; int8 for a new index."),
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model computes.")]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Images the model reads at once.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Decoding threads; else one a CPU.")
]
ExcludeOption = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave out names or paths like this; repeatable.")
]
MegapixelsOption = Annotated[
    float, typer.Option(min=0.0, metavar="N", help="Leave out larger images, judged by their header.")
]
RebuildOption = Annotated[bool, typer.Option("--rebuild", help="Forget the index and embed all anew.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="List what a run would do; change nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Its path, the end of its path, or its id.")
]

INDEX_EPILOG = """\b
A second run reads only what is new or has changed, and a killed run goes on where it was.
Files that cannot be read are named on stderr, and left alone until they change.
Hidden files and folders are left out.

\b
Examples:
  fwd2bot index ~/Photos
  fwd2bot index ~/Photos --exclude "*.gif" --exclude trash
  fwd2bot index /mnt/archive --index ~/archive-index --device cuda --batch-size 128
  fwd2bot index ~/Photos --dry-run"""


@app.command(epilog=INDEX_EPILOG)
def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of images.")],
    index_place: IndexPlaceOption = None,
    model: ModelOption = None,
    tokens: TokensOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 32,
    workers: WorkersOption = None,
    exclude: ExcludeOption = None,
    max_megapixels: MegapixelsOption = 200.0,
    rebuild: RebuildOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read the images of a folder into an index, or bring its index up to date."""
    from indexer.build import BuildSettings, build_index, plan_build
    from indexer.lazy import LazyEncoder
    from retrieval.locate import INDEX_FOLDER, choose_model

    threads, globs = workers or os.cpu_count() or 1, tuple(exclude or ())
    settings = BuildSettings(tokens, batch_size, threads, globs, max_megapixels, rebuild)
    place = index_place or folder / INDEX_FOLDER
    if dry_run:
        _print_plan(plan_build(folder, place, settings), as_json)
        return
    name = choose_model(place, model, rebuild)
    progress = _Progress()
    try:
        summary = build_index(
            folder, place, LazyEncoder(name, lambda: _load_encoder(name, device)), settings, progress
        )
    finally:
        progress.close()
    _print_summary(summary, as_json)


SEARCH_EPILOG = """\b
One image a line, best first: score<TAB>path. Paths open from where you stand: relative to the
current folder where the image lies below it, absolute elsewhere. A byte that would break the
line is shown as \\xNN; -0 and --json give every name as it is.

\b
Examples:
  fwd2bot search a red bicycle in the snow
  fwd2bot search -k 100 --min-score 0.3 --json sunset
  fwd2bot search -0 -k 20 cats | xargs -0 cp -t cats/
  fwd2bot search --paths birthday cake | head -1"""


@app.command(epilog=SEARCH_EPILOG)
def search(
    query: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What the image shows.")],
    index_dir: IndexOption = None,
    count: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images.")] = 10,
    paths_only: Annotated[bool, typer.Option("--paths", help="Print paths without scores.")] = False,
    null: Annotated[bool, typer.Option("-0", help="Print raw paths, each followed by a NUL.")] = False,
    as_json: JsonOption = False,
    min_score: Annotated[float, typer.Option(metavar="X", help="Leave out images that score less.")] = -1.0,
) -> None:
    """Find the images that fit a sentence best."""
    from retrieval.listing import Form, format_hit
    from retrieval.locate import find_index
    from retrieval.query import clean_query
    from retrieval.search import Searcher

    text = clean_query(query)  # before the model, which takes seconds
    searcher = Searcher.open(find_index(Path.cwd(), index_dir))
    hits = [hit for hit in searcher.search(text, count) if hit.score >= min_score]
    form: Form = "json" if as_json else "null" if null else "paths" if paths_only else "lines"
    _print(format_hit(rank, hit, searcher.root, form) for rank, hit in enumerate(hits, 1))


ASK_EPILOG = """\b
The answer comes from the tokens stored in the index: the image itself may be gone.

\b
Examples:
  fwd2bot caption holiday/img_0042.jpg
  fwd2bot ask img_0042.jpg "How many people are there?"
"""


@app.command(epilog=ASK_EPILOG)
def caption(image: ImageArgument, index_dir: IndexOption = None) -> None:
    """Describe an image from its stored tokens."""
    from retrieval import ask
    from retrieval.locate import find_index

    _print([ask.caption(find_index(Path.cwd(), index_dir), image) + "\n"])


@app.command(epilog=ASK_EPILOG)
def ask(
    image: ImageArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="One question, in quotes.")],
    index_dir: IndexOption = None,
) -> None:
    """Ask an image something, from its stored tokens."""
    from retrieval import ask
    from retrieval.locate import find_index

    _print([ask.ask(find_index(Path.cwd(), index_dir), image, question) + "\n"])


@app.command(epilog="\b\nExamples:\n  fwd2bot info\n  fwd2bot info --index ~/archive-index --json")
def info(index_dir: IndexOption = None, as_json: JsonOption = False) -> None:
    """Say what the index is made of."""
    from indexer.audit import describe_index
    from retrieval.locate import find_index

    facts = describe_index(find_index(Path.cwd(), index_dir))._asdict()
    lines = (
        [json.dumps(facts)] if as_json else [f"{name.replace('_', ' ')}: {v}" for name, v in facts.items()]
    )
    _print(f"{line}\n" for line in lines)


@app.command(epilog="\b\nExamples:\n  fwd2bot verify\n  fwd2bot verify --index ~/archive-index")
def verify(index_dir: IndexOption = None) -> None:
    """Read every byte of the index and name what is damaged."""
    from indexer.audit import audit_index
    from retrieval.locate import find_index

    place = find_index(Path.cwd(), index_dir)
    faults = list(audit_index(place))
    for fault in faults:
        _complain(fault)
    if faults:
        raise typer.Exit(1)
    _print([f"{place} is whole\n"])


class _Progress:
    """Shows a run on stderr: a bar where somebody watches, a line for each file skipped."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, total: int) -> None:
        """See BuildObserver."""
        from tqdm import tqdm

        if total:
            self._bar = tqdm(total=total, unit="image", disable=None)

    def advance(self, count: int) -> None:
        """See BuildObserver."""
        self._bar.update(count)

    def skip(self, path: str, reason: str) -> None:
        """See BuildObserver."""
        from tqdm import tqdm

        from indexer.paths import show_path, unescape_path

        tqdm.write(f"skipped {show_path(unescape_path(path))}: {reason}", file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def _load_encoder(name: str, device: str) -> "Encoder":
    from encoders.load import load_encoder  # torch and transformers come with it

    return load_encoder(name, device)


def _print_plan(plan: "BuildPlan", as_json: bool) -> None:
    from retrieval.listing import format_step

    steps = [("index", file.path) for file in plan.fresh] + [("remove", path) for path in plan.removed]
    _print(format_step(action, path, as_json) for action, path in steps)
    counts = f"would index {len(plan.fresh):,}, reuse {plan.reused:,}, remove {len(plan.removed):,}"
    typer.echo(f"{counts}, leave {plan.skipped_before:,} skipped", err=True)


def _print_summary(summary: "BuildSummary", as_json: bool) -> None:
    if as_json:
        _print([json.dumps(summary._asdict()) + "\n"])
    typer.echo(", ".join(f"{name} {count:,}" for name, count in summary._asdict().items()), err=True)


def _print(pieces: Iterable[str]) -> None:
    """Write results to stdout as bytes, so that names which are no text come out as they are."""
    stdout = sys.stdout.buffer
    try:
        for piece in pieces:
            stdout.write(piece.encode("utf-8", "surrogateescape"))
        stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; nothing may be flushed at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(sentence: str) -> None:
    typer.echo(f"fwd2bot: {' '.join(sentence.split())}", err=True)


def main() -> None:
    """Run the command line; every failure that was foreseen is one line on stderr and exit code 1."""
    try:
        app(prog_name="fwd2bot")
    except OSError as error:  # a full disk, a folder that cannot be written
        place = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            _complain(f"no space left on the disk{place}: make room and run it again, what is done is kept")
        else:
            _complain(f"{error.strerror or error}{place}")
    except Exception as error:
        from encoders.base import Fwd2BotError

        if not isinstance(error, Fwd2BotError):
            raise
        _complain(str(error))
    sys.exit(1)


if __name__ == "__main__":
    main()
