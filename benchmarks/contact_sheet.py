"""An HTML page for inspecting a model's errors: queries, their top hits, and the right photo marked.

    python -m benchmarks.contact_sheet --dataset dataset_flickr8k.json --images DIR --out sheet.html

draws captions at random and shows each with its top hits, sorted by the rank of the right photo, worst first.
The page is one self-contained HTML file, which opens in any browser without a network.
"""

import base64
import html
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from benchmarks.command import (
    add_dataset_options,
    at_least,
    describe_run,
    make_parser,
    read_split,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import decode_pictures, embed_image_vectors, embed_texts
from encoders.base import Encoder
from encoders.load import load_encoder

_MODULE = "benchmarks.contact_sheet"
_SHOWN = 6
_SIDE = 144  # pixels of a thumbnail
_PAGE = Template("""<!doctype html>
<meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px sans-serif; margin: 2em; }
figure { display: inline-block; margin: 4px; vertical-align: top; width: ${side}px; }
img { width: ${side}px; height: ${side}px; object-fit: contain; background: #eee; outline: 4px solid #ddd; }
.right img { outline-color: #1a7f37; }
figcaption { font-size: 11px; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 1.5em 0 0.3em; }
</style>
<h1>$title</h1>
<p>The right photo has a green frame; where it is not among those found first, it stands last.</p>
$rows
""")


@dataclass(frozen=True)
class Row:
    """One query: its text, the index of the right photo, that photo's rank from 1, and the top hits."""

    query: str
    right: int
    rank: int
    found: list[int]


@dataclass(frozen=True)
class Sheet:
    """All queries on the page, worst first."""

    rows: list[Row]


def find_rows(encoder: Encoder, images: Sequence[CaptionedImage], count: int, seed: int) -> list[Row]:
    """Rank all images for `count` captions drawn at random; worst queries first."""
    captions = [(caption, place) for place, image in enumerate(images) for caption in image.captions]
    order = np.random.default_rng(seed).permutation(len(captions))[:count]
    drawn = [captions[number] for number in order]
    pictures = decode_pictures((image.path for image in images), encoder.image_size)
    vectors = embed_image_vectors(encoder, pictures, len(images))
    scores = embed_texts(encoder, [caption for caption, _ in drawn]) @ vectors.T
    rows = []
    for (caption, right), own in zip(drawn, scores, strict=True):
        places = np.argsort(-own, kind="stable")
        rank = 1 + int(np.flatnonzero(places == right)[0])
        rows.append(Row(caption, right, rank, places[:_SHOWN].tolist()))
    return sorted(rows, key=lambda row: -row.rank)


def render_page(title: str, rows: Sequence[Row], images: Sequence[CaptionedImage]) -> str:
    """Render the page; each photo on it is decoded once."""
    wanted = sorted({place for row in rows for place in (*row.found, row.right)})
    pictures = decode_pictures((images[place].path for place in wanted), _SIDE)
    sources = dict(zip(wanted, map(_encode_picture, pictures), strict=True))
    body = "\n".join(_render_row(row, images, sources) for row in rows)
    return _PAGE.substitute(title=html.escape(title), side=_SIDE, rows=body)


def _render_row(row: Row, images: Sequence[CaptionedImage], sources: dict[int, str]) -> str:
    shown = row.found if row.right in row.found else [*row.found, row.right]
    places = [*range(1, len(row.found) + 1), row.rank]
    figures = (
        f'<figure{" class=right" if image == row.right else ""}><img alt="" src="{sources[image]}">'
        f"<figcaption>{place}: {html.escape(images[image].path.name)}</figcaption></figure>"
        for place, image in zip(places, shown, strict=False)
    )
    return f"<h2>{html.escape(row.query)} (place {row.rank:,})</h2>\n" + "\n".join(figures)


def _encode_picture(picture: Image.Image) -> str:
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def describe_ranks(rows: Sequence[Row]) -> str:
    """How many right photos came first, and how many are among those shown."""
    first, shown = sum(row.rank == 1 for row in rows), sum(row.rank <= _SHOWN for row in rows)
    return f"{len(rows)} queries: the right photo first {first}, among the first {_SHOWN} {shown}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write queries and their top hits as one HTML page."""
    parser = make_parser(_MODULE, main.__doc__)
    add_dataset_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--count", type=at_least(1), default=50, help="of queries (default: %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0)
    options = parser.parse_args(arguments)

    def measure() -> None:
        for path in (options.json, options.out):
            refuse_overwriting(path, options.force)
        images, record = read_split(options)
        encoder = load_encoder(options.model, device=options.device)
        rows = find_rows(encoder, images, options.count, options.seed)
        title = f"{record.dataset}, {record.split}, by {encoder.name}"
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(render_page(title, rows, images), encoding="utf-8")
        print(describe_ranks(rows))
        write_result(options.json, describe_run(_MODULE, arguments, encoder, options.seed), Sheet(rows))

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
