"""The commands that find images: search, similar."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    AnyImageArgument,
    CountOption,
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
from .terminal import print_note, print_results, read_lines

if TYPE_CHECKING:
    from .filters import Filter
    from .gallery import Gallery
    from .listing import Form

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
    # All that may be refused is checked before the model is loaded, which takes seconds.
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


SIMILAR_EPILOG = """\b
Prints what `fwd2bot search` prints, the image itself left out; copies of it score 1, or less by a
rounding. An image of the index is compared by what is stored of it: its file may be gone, and no
model is loaded. Any other image file is read by the model that made the index.

\b
Examples:
  fwd2bot similar holiday/img_0042.jpg
  fwd2bot similar img_0042.jpg --min-score 0.98
  fwd2bot similar ~/Downloads/poster.png --index ~/Photos -k 3"""


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


def _note_mistake(query: list[str]) -> None:
    """Point to `similar` if the only word of the query is an image file."""
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
    """The form to print hits in; BadParameter for contradictory options, or a NaN as `min_score`."""
    if as_json and (null or paths_only):
        raise typer.BadParameter("--json is a form of its own: leave out -0 and --paths, or --json")
    if min_score != min_score:
        raise typer.BadParameter("--min-score is not a number: give one from -1 to 1")
    return "json" if as_json else "null" if null else "paths" if paths_only else "lines"
