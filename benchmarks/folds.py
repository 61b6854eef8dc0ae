"""Recall averaged over folds of the images, such as COCO "1K": its 5,000 images in five folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.recall import CUTOFFS, IntArray, RecallReport, report_pairs
from encoders.base import DatasetError, FloatArray


@dataclass(frozen=True)
class FoldMeans:
    """One direction of `RecallReport`, each figure averaged over folds."""

    hits: dict[int, float]
    recalls: dict[int, float]
    median_rank: float
    mean_average_precision: float


@dataclass(frozen=True)
class FoldsReport:
    """Both directions, and the number of images in each fold."""

    images: list[int]
    text_to_image: FoldMeans
    image_to_text: FoldMeans


def report_folds(
    image_vectors: FloatArray, text_vectors: FloatArray, image_of_text: IntArray, folds: int
) -> FoldsReport:
    """Cut the images, in order, into folds of nearly equal size, and search each fold separately."""
    if not 1 < folds <= len(image_vectors):
        raise DatasetError(f"{len(image_vectors)} images cannot be cut into {folds} folds: give 2 or more.")
    parts = np.array_split(np.arange(len(image_vectors)), folds)
    reports = []
    for rows in parts:
        first, last = rows[0], rows[-1]
        texts = (image_of_text >= first) & (image_of_text <= last)
        own = (image_of_text[texts] - first).tolist()
        reports.append(report_pairs(image_vectors[rows], text_vectors[texts], own))
    return FoldsReport(
        [len(rows) for rows in parts],
        _average([report.text_to_image for report in reports]),
        _average([report.image_to_text for report in reports]),
    )


def _average(reports: Sequence[RecallReport]) -> FoldMeans:
    return FoldMeans(
        hits={cutoff: float(np.mean([report.hits[cutoff] for report in reports])) for cutoff in CUTOFFS},
        recalls={
            cutoff: float(np.mean([report.recalls[cutoff] for report in reports])) for cutoff in CUTOFFS
        },
        median_rank=float(np.mean([report.median_rank for report in reports])),
        mean_average_precision=float(np.mean([report.mean_average_precision for report in reports])),
    )
