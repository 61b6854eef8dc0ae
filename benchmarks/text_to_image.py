"""Retrieval of photos by their captions and of captions by their photos.

    python -m benchmarks.text_to_image --dataset dataset_flickr8k.json --images DIR --index-forms --json FILE
    python -m benchmarks.text_to_image --dataset dataset_coco.json --images DIR --folds 5

Reads Karpathy's JSON, NoCaps' JSON, tables and WebDataset shards (see `benchmarks.datasets`). Prints hit@1, 5
and 10 (called Recall@K in papers), true recall, median rank and mAP, as defined in `benchmarks.recall`, with
95 % intervals, from the exact matrix of all scores. --index-forms adds the same figures for an index written
by `fwd2bot index`, for the kind of index it writes for many images, and for embeddings recomputed from int8
tokens; --rerank N adds figures after the model has reranked the N nearest by their stored tokens. In the
JSON, `clip_benchmark` holds the exact matrix's figures under CLIP_benchmark's names.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.cache import EmbeddingCache, digest_photos, digest_texts, find_user_cache
from benchmarks.command import (
    SplitRecord,
    add_dataset_options,
    at_least,
    describe_missing,
    describe_run,
    make_parser,
    read_split,
    refuse_overwriting,
    run_command,
    write_result,
)
from benchmarks.datasets import CaptionedImage
from benchmarks.embedding import decode_pictures, embed_image_vectors, embed_texts
from benchmarks.folds import FoldMeans, FoldsReport, report_folds
from benchmarks.intervals import SEED, Interval
from benchmarks.recall import CUTOFFS, PairReport, RecallReport, report_pairs
from benchmarks.reranking import RerankReport, describe_reranking, measure_reranking
from benchmarks.stored_forms import Captions, index_images, measure_stored_forms, refuse_used_folder
from benchmarks.text_table import render_rows, show_percent
from encoders.base import CannotAnswer, Encoder, FloatArray
from encoders.load import load_encoder

_MODULE = "benchmarks.text_to_image"
_MATRIX = "exact matrix"


@dataclass(frozen=True)
class RetrievalResult:
    """The data set, and recall by the exact matrix, by stored forms, over folds, and after reranking."""

    data: SplitRecord
    recall: PairReport
    clip_benchmark: dict[str, float]
    stored: dict[str, PairReport]
    folds: FoldsReport | None
    reranked: RerankReport | None


def embed_split(
    encoder: Encoder, images: Sequence[CaptionedImage], cache: EmbeddingCache
) -> tuple[FloatArray, Captions]:
    """Embed photos (images, dim) and all their captions, or take them from the cache."""
    texts = [caption for image in images for caption in image.captions]
    rows = np.repeat(np.arange(len(images)), [len(image.captions) for image in images])

    def embed_photos() -> FloatArray:
        pictures = decode_pictures((image.path for image in images), encoder.image_size)
        return embed_image_vectors(encoder, pictures, len(images))

    photos = cache.load_or_make("images", digest_photos(images), len(images), embed_photos)
    vectors = cache.load_or_make(
        "texts", digest_texts(texts), len(texts), lambda: embed_texts(encoder, texts)
    )
    return photos, Captions(vectors, rows, texts)


def name_for_clip_benchmark(recall: PairReport) -> dict[str, float]:
    """hit@K under CLIP_benchmark's names; its "image retrieval" is text to image."""
    return {
        f"{kind}_retrieval_recall@{cutoff}": hit
        for kind, report in (("image", recall.text_to_image), ("text", recall.image_to_text))
        for cutoff, hit in report.hits.items()
    }


def render_table(result: RetrievalResult) -> str:
    """Both directions in per cent, a column per way of scoring; intervals and chance for the exact matrix."""
    columns = {_MATRIX: result.recall} | result.stored
    header = ["", f"{_MATRIX} (95 % interval)", *result.stored, *(["mean of folds"] if result.folds else [])]
    rows = []
    for title, direction in (("text to image", "text_to_image"), ("image to text", "image_to_text")):
        reports = [getattr(each, direction) for each in columns.values()]
        folds = [getattr(result.folds, direction)] if result.folds else []
        rows += _render_direction(title, reports, folds)
    return render_rows([*header, "chance"], rows)


def _render_direction(
    title: str, reports: Sequence[RecallReport], folds: Sequence[FoldMeans]
) -> list[list[str]]:
    matrix, rows = reports[0], []
    every: list[RecallReport | FoldMeans] = [*reports, *folds]
    for cutoff in CUTOFFS:
        cells = [show_percent(report.hits[cutoff]) for report in every]
        cells[0] = _show_interval(matrix.hits[cutoff], matrix.hit_intervals[cutoff])
        rows.append([f"{title}, hit@{cutoff}", *cells, show_percent(matrix.chance[cutoff])])
    for cutoff in CUTOFFS if matrix.recalls != matrix.hits else ():
        cells = [show_percent(report.recalls[cutoff]) for report in every]
        cells[0] = _show_interval(matrix.recalls[cutoff], matrix.recall_intervals[cutoff])
        rows.append([f"{title}, recall@{cutoff}", *cells, ""])
    ranks = ["-" if report.median_rank is None else f"{report.median_rank:g}" for report in every]
    rows.append([f"{title}, median rank", *ranks, ""])
    means = [show_percent(report.mean_average_precision) for report in every]
    rows.append([f"{title}, mAP", *means, ""])
    return rows


def _show_interval(share: float, interval: Interval) -> str:
    return f"{show_percent(share)} ({show_percent(interval.low)} to {show_percent(interval.high)})"


def add_options(parser: ArgumentParser) -> None:
    """Add the options that only this benchmark has."""
    parser.add_argument(
        "--folds", type=at_least(2), metavar="N", help="also the mean over N parts of the images (COCO 1K: 5)"
    )
    parser.add_argument("--index-forms", action="store_true", help="also score by what an index keeps")
    parser.add_argument(
        "--rerank",
        type=at_least(2),
        metavar="N",
        help="also rank each caption's N nearest photos again by their tokens, as `search --rerank` does",
    )
    parser.add_argument(
        "--keep-index",
        type=Path,
        metavar="DIR",
        help="as --index-forms, and keep the index in this new folder",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=find_user_cache(),
        metavar="DIR",
        help="where embeddings are kept between runs (default: %(default)s)",
    )


def measure_retrieval(
    encoder: Encoder, images: Sequence[CaptionedImage], record: SplitRecord, options: Namespace
) -> RetrievalResult:
    """Embed a split and measure everything that the options ask for."""
    if options.rerank and encoder.summary_shape is None:
        raise CannotAnswer(f"{encoder.name} keeps no summary tokens to rank again by: drop --rerank.")
    photos, captions = embed_split(encoder, images, EmbeddingCache(options.cache, encoder))
    recall = report_pairs(photos, captions.vectors, captions.image_rows.tolist())
    folds = options.folds and report_folds(photos, captions.vectors, captions.image_rows, options.folds)
    stored, reranked = {}, None
    if options.index_forms or options.keep_index or options.rerank:
        with TemporaryDirectory() as scratch:
            index = index_images(encoder, images, options.keep_index or Path(scratch))
            stored = measure_stored_forms(index, captions, len(images))
            reranked = options.rerank and measure_reranking(
                encoder, index, captions, len(images), options.rerank
            )
    names = name_for_clip_benchmark(recall)
    return RetrievalResult(record, recall, names, stored, folds or None, reranked or None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Recall of images by captions and of captions by images."""
    parser = make_parser(_MODULE, main.__doc__)
    add_dataset_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        refuse_used_folder(options.keep_index)
        images, record = read_split(options)
        encoder = load_encoder(options.model, device=options.device)
        result = measure_retrieval(encoder, images, record, options)
        print(
            f"{record.dataset}, {record.split}: {record.images:,} images{describe_missing(record.missing)},"
        )
        print(f"{record.captions:,} captions, by {encoder.name}; per cent\n")
        print(render_table(result))
        if result.reranked:
            print(f"\n{describe_reranking(result.reranked)}")
        write_result(options.json, describe_run(_MODULE, arguments, encoder, SEED), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
