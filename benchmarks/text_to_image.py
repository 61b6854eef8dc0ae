"""Retrieval of photos by their captions and of captions by their photos, on any split in Karpathy's form.

    python -m benchmarks.text_to_image --dataset dataset_flickr8k.json --images DIR --json FILE

prints Recall@1, 5 and 10 as papers define them (see `benchmarks.recall`) and the median rank, chance below.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.command import (
    SplitRecord,
    add_dataset_options,
    describe_run,
    make_parser,
    read_split,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import decode_pictures, embed_image_vectors, embed_texts
from benchmarks.recall import CUTOFFS, PairReport, RecallReport, report_pairs
from encoders.base import Encoder
from encoders.load import load_encoder

_MODULE = "benchmarks.text_to_image"


@dataclass(frozen=True)
class RetrievalResult:
    """What was measured, on what."""

    data: SplitRecord
    recall: PairReport


def measure_retrieval(encoder: Encoder, images: Sequence[CaptionedImage]) -> PairReport:
    """Rank all images for each caption and all captions for each image."""
    pictures = decode_pictures((image.path for image in images), encoder.image_size)
    image_vectors = embed_image_vectors(encoder, pictures, len(images))
    text_vectors = embed_texts(encoder, [caption for image in images for caption in image.captions])
    image_of_text = [row for row, image in enumerate(images) for _ in image.captions]
    return report_pairs(image_vectors, text_vectors, image_of_text)


def render_table(recall: PairReport) -> str:
    """Both directions in percent, chance below each."""
    lines = [" " * 15 + "".join(f"{f'R@{cutoff}':>8}" for cutoff in CUTOFFS) + "   median rank"]
    for title, report in (("text to image", recall.text_to_image), ("image to text", recall.image_to_text)):
        lines += [f"{title:<15}{_render_rates(report, report.hits)}{report.median_rank:>14g}"]
        lines += [f"{'  chance':<15}{_render_rates(report, report.chance)}"]
    return "\n".join(lines)


def _render_rates(report: RecallReport, rates: dict[int, float]) -> str:
    return "".join(f"{100 * rates[cutoff]:8.2f}" for cutoff in report.hits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Recall of images by captions and of captions by images."""
    parser = make_parser(_MODULE, main.__doc__)
    add_dataset_options(parser)
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        images, record = read_split(options)
        encoder = load_encoder(options.model, device=options.device)
        result = RetrievalResult(record, measure_retrieval(encoder, images))
        print(
            f"{record.dataset}, {record.split}: {record.images:,} images ({record.missing:,} more missing),"
        )
        print(f"{record.captions:,} captions, by {encoder.name}\n")
        print(render_table(result.recall))
        write_result(options.json, describe_run(_MODULE, arguments, encoder), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
