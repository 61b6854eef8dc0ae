"""The `fwd2bot` command: what it can be asked, and how it ends. upkeep.py has the commands that write.

Exit codes: 0 done, 1 failed and said why in a line, 2 wrong usage. Nothing heavy is imported up here, so that
`--help` answers at once.
"""

import errno
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import upkeep
from .options import (
    AnyImageArgument,
    CountOption,
    ImageArgument,
    IndexOption,
    JsonOption,
    NullOption,
    PathsOption,
    RerankOption,
    ScoreOption,
    SinceOption,
    UnderOption,
    UntilOption,
)
from .terminal import complain, print_answer, print_facts, print_note, print_results, read_lines

if TYPE_CHECKING:
    from .filters import Filter
    from .gallery import Gallery
    from .listing import Form

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Find images by a sentence, and ask about them, from what a model read of them once.",
    epilog="\b\nStart with:\n  fwd2bot index ~/Photos\n  cd ~/Photos && fwd2bot search two dogs on a beach",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("fwd2bot")
        except PackageNotFoundError:  # a source tree that is not installed
            number = "unknown"
        print_results([f"fwd2bot {number}\n"])
        raise typer.Exit


@app.callback()
def begin(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Refuse a locale in which names of files are other letters, before any command."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        complain(f"names of files are UTF-8, and this locale reads them as {encoding}: set PYTHONUTF8=1")
        raise typer.Exit(1)


app.command(epilog=upkeep.INDEX_EPILOG)(upkeep.index)


SEARCH_EPILOG = """\b
One image a line, best first: score<TAB>path. The score is the cosine of image and query, at most
1. Paths open from where you stand: relative to the current folder where the image lies below it,
absolute elsewhere. A byte that would break the line is shown as \\xNN; -0 and --json give every
name as it is.

\b
With - as the query, each line of stdin is one, answered before the next is read: the model is
loaded once, and an answer takes milliseconds. An empty line (with -0 an empty name) ends each
answer; with --json an answer is one object, {"query": ..., "hits": [...]}. All answers are of
the index as it was at the start.

\b
With --rerank N the N nearest images are put in order anew by the model itself: it reads their
stored tokens and says how likely the query is as a caption of each, some milliseconds an image.
The scores shown are still the cosines, so they need not fall from line to line.

\b
--since and --until go by the date that the camera wrote into the image, and leave out images
without one.

\b
Examples:
  fwd2bot search a red bicycle in the snow
  fwd2bot search -k 100 --min-score 0.3 --json sunset
  fwd2bot search -0 -k 20 cats | xargs -0 cp -t cats/
  fwd2bot search --paths birthday cake | head -1
  fwd2bot search --rerank 30 two children on a swing
  fwd2bot search --under 2019/italy --since 2019-06 --until 2019-08 a church at night
  fwd2bot search --json - < queries.txt"""


@app.command(epilog=SEARCH_EPILOG)
def search(
    query: Annotated[list[str], typer.Argument(metavar="QUERY", help="What the image shows; - reads stdin.")],
    index_dir: IndexOption = None,
    count: CountOption = 10,
    paths_only: PathsOption = False,
    null: NullOption = False,
    as_json: JsonOption = False,
    rerank: RerankOption = 0,
    min_score: ScoreOption = -1.0,
    under: UnderOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """Find the images that fit a sentence best."""
    from retrieval.filters import make_filter
    from retrieval.listing import format_answer, format_hits
    from retrieval.locate import find_index
    from retrieval.query import clean_query
    from retrieval.search import Searcher

    form = _choose_form(as_json, null, paths_only, min_score)
    _note_mistake(query)
    many = query == ["-"]
    # What may be refused comes before the model, which takes seconds.
    texts = read_lines("search: ") if many else iter([clean_query(query)])
    wanted = make_filter(under, since, until)
    searcher = Searcher.open(find_index(index_dir), wanted)
    _note_emptiness(searcher, wanted)

    def answer(text: str) -> str:
        found = searcher.search(text, count, rerank) if text else []
        hits = [hit for hit in found if hit.score >= min_score]
        if many:
            return format_answer(text, hits, searcher.root, form)
        return format_hits(hits, searcher.root, form)

    print_results((answer(text.strip()) for text in texts), at_once=many)


def _note_mistake(query: list[str]) -> None:
    """Name the other command where the only word is an image file."""
    if len(query) > 1 or not os.path.isfile(query[0]):  # noqa: PTH113 - a sentence may be too long for a Path
        return
    from indexer.images import is_image_name

    if is_image_name(query[0]):
        print_note(f"searched as words; for images like it: fwd2bot similar {shlex.quote(query[0])}")


def _note_emptiness(gallery: "Gallery", wanted: "Filter") -> None:
    if len(gallery):
        return
    if any(wanted):
        print_note(f"no image of {gallery.root} was taken then, by the dates that cameras wrote into them")
    else:
        print_note(f"the index of {gallery.root} holds no images: see `fwd2bot info`")


def _choose_form(as_json: bool, null: bool, paths_only: bool, min_score: float) -> "Form":
    """How hits are to be printed; options that contradict one another, or say nothing, are wrong usage."""
    if as_json and (null or paths_only):
        raise typer.BadParameter("--json is a form of its own: leave out -0 and --paths, or --json")
    if min_score != min_score:
        raise typer.BadParameter("--min-score is no number: give one from -1 to 1")
    return "json" if as_json else "null" if null else "paths" if paths_only else "lines"


SIMILAR_EPILOG = """\b
Printed as by `fwd2bot search`, without the image itself. One of the index is compared by what is
stored of it: its file may be gone, and no model is loaded. Any other image file is read by the
model that made the index. Copies score 1.

\b
Examples:
  fwd2bot similar holiday/img_0042.jpg
  fwd2bot similar img_0042.jpg --min-score 0.98
  fwd2bot similar ~/Downloads/poster.png --index ~/Photos -k 3"""


@app.command(epilog=SIMILAR_EPILOG)
def similar(
    image: AnyImageArgument,
    index_dir: IndexOption = None,
    count: CountOption = 10,
    paths_only: PathsOption = False,
    null: NullOption = False,
    as_json: JsonOption = False,
    min_score: ScoreOption = -1.0,
    under: UnderOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
) -> None:
    """Find the images most like another."""
    from retrieval.filters import make_filter
    from retrieval.gallery import Gallery
    from retrieval.listing import format_hits
    from retrieval.locate import find_index

    form = _choose_form(as_json, null, paths_only, min_score)
    wanted = make_filter(under, since, until)
    gallery = Gallery.open(find_index(index_dir), wanted)
    _note_emptiness(gallery, wanted)
    hits = [hit for hit in gallery.search_image(image, count) if hit.score >= min_score]
    print_results([format_hits(hits, gallery.root, form)])


ASK_EPILOG = """\b
The answer comes from the tokens stored in the index: the image itself may be gone. (The next
`fwd2bot index` of its folder drops it.)

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

    print_answer(ask.caption(find_index(index_dir), image))


@app.command(epilog=ASK_EPILOG)
def ask(
    image: ImageArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="One question, in quotes.")],
    index_dir: IndexOption = None,
) -> None:
    """Ask an image something, from its stored tokens."""
    from retrieval import ask
    from retrieval.locate import find_index

    print_answer(ask.ask(find_index(index_dir), image, question))


@app.command(epilog="\b\nExamples:\n  fwd2bot info\n  fwd2bot info --index ~/archive-index --json")
def info(index_dir: IndexOption = None, as_json: JsonOption = False) -> None:
    """Say what the index is made of."""
    from indexer.audit import describe_index
    from retrieval.locate import find_index

    facts = describe_index(find_index(index_dir))
    print_facts(facts._asdict(), as_json)
    if facts.faiss == "behind":
        print_note("a search is slow until `fwd2bot index` has run to its end")


app.command(epilog=upkeep.VERIFY_EPILOG)(upkeep.verify)
app.command(epilog=upkeep.COMPACT_EPILOG)(upkeep.compact)
app.command(epilog=upkeep.MERGE_EPILOG)(upkeep.merge)


def main() -> None:
    """Run the command line; every failure that was foreseen is one line on stderr and exit code 1."""
    # Closed by the caller (`2>&-`), its number would go to the next file, and complaints into that.
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115 - open to the end
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its notes would drown the command's own lines
    try:
        app(prog_name="fwd2bot")
    except OSError as error:  # a full disk, a folder that cannot be written
        place = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            complain(f"no space left on the disk{place}: make room and run it again, what is done is kept")
        elif error.errno == errno.EFBIG:
            complain(f"over the limit on the size of a file{place}: raise it (`ulimit -f`) and run it again")
        elif error.errno == errno.ENOENT and not error.filename:  # only getcwd names none
            complain("the current folder was removed: go to another one, or give whole paths")
        else:
            complain(f"{error.strerror or error}{place}")
    except Exception as error:
        from encoders.base import Fwd2BotError

        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            complain(
                "the GPU's memory is full: free it, or run without it (CUDA_VISIBLE_DEVICES= fwd2bot ...)"
            )
        elif isinstance(error, Fwd2BotError):
            complain(str(error))
        else:
            raise
    sys.exit(1)


if __name__ == "__main__":
    main()
