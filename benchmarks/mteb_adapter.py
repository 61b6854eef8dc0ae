"""Evaluate any encoder on the image-text tasks of MTEB and MIEB, with the `mteb` package.

    python -m benchmarks.mteb_adapter --model DIR --tasks Flickr30kT2IRetrieval Flickr30kI2TRetrieval

downloads the tasks' data from the hub. Finished tasks are cached by mteb (in the folder MTEB_CACHE, else
~/.cache/mteb) under the fingerprint, so an interrupted run resumes, and different weights start afresh.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.command import describe_run, make_parser, refuse_overwriting, run_command, write_result
from benchmarks.text_table import render_rows
from encoders.base import DatasetError, Encoder, FloatArray, MissingDependency
from encoders.load import load_encoder
from indexer.images import describe_error

_MODULE = "benchmarks.mteb_adapter"

_NETWORK = ("httpx", "httpcore")  # packages whose network errors are not OSErrors

Batch = Mapping[str, Sequence[Any]]  # from mteb's loader: lists of texts and of images


@dataclass(frozen=True)
class TaskScore:
    """A task's main score, and all its scores by split; see the task's page in mteb."""

    main_score: float
    scores: dict[str, Any]


@dataclass(frozen=True)
class MtebResult:
    """Scores by task."""

    tasks: dict[str, TaskScore]


class MtebEncoder:
    """An encoder with mteb's `EncoderProtocol`. Task prompts are ignored: the encoder has its own."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.mteb_model_meta = _describe(encoder)

    def encode(self, inputs: Iterable[Batch], **_: object) -> FloatArray:
        """Embed a loader's batches: float32 (n, dim); for a text with an image, the sum of both."""
        return np.concatenate([self._encode_batch(batch) for batch in inputs])

    def similarity(self, one: Any, other: Any) -> Any:
        """Cosines of all pairs of rows, (n, dim) and (m, dim): (n, m)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(one, other)

    def similarity_pairwise(self, one: Any, other: Any) -> Any:
        """Cosines of corresponding rows: (n,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(one, other)

    def _encode_batch(self, batch: Batch) -> FloatArray:
        parts = []
        if "text" in batch:
            parts.append(self.encoder.encode_texts(list(batch["text"])))
        if "image" in batch:
            parts.append(
                self.encoder.encode_images([image.convert("RGB") for image in batch["image"]]).vectors
            )
        if not parts:
            raise DatasetError(
                f"A task of {', '.join(batch)} cannot be evaluated: choose one of texts and images."
            )
        total: FloatArray = np.sum(parts, axis=0, dtype=np.float32)
        return total


def evaluate_tasks(encoder: Encoder, names: Sequence[str]) -> dict[str, TaskScore]:
    """Run tasks by name; raises MissingDependency, and DatasetError if one is unknown or unavailable."""
    try:
        import mteb
    except ImportError as error:
        raise MissingDependency(f"MTEB's tasks need mteb ({error}): pip install mteb") from error
    try:
        tasks = [mteb.get_task(name) for name in names]
    except KeyError as error:
        raise DatasetError(f"mteb has no such task: {str(error.args[0]).splitlines()[0]}") from error
    try:
        results = mteb.evaluate(MtebEncoder(encoder), tasks).task_results
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _NETWORK:
            raise
        raise DatasetError(
            f"mteb could not fetch or keep {', '.join(names)} ({describe_error(error)}): "
            "it needs the network the first time, and a disk with room."
        ) from error
    return {each.task_name: TaskScore(float(each.get_score()), each.scores) for each in results}


def render_table(scores: Mapping[str, TaskScore]) -> str:
    """A line for each task, times 100 as on the leaderboard."""
    rows = [[name, f"{100 * score.main_score:.2f}"] for name, score in scores.items()]
    return render_rows(["task", "main score"], rows)


def _describe(encoder: Encoder) -> Any:
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    # mteb needs organisation/name, and uses it as a folder name.
    name = "fwd2bot/" + "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in encoder.name)
    known = {
        "name": name,
        "revision": encoder.fingerprint,
        "embed_dim": encoder.dim,
        "similarity_fn_name": ScoringFunction.COSINE,
        "modalities": ["text", "image"],
    }
    return ModelMeta.create_empty(overwrites=known)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate an encoder on tasks of MTEB and MIEB."""
    parser = make_parser(_MODULE, main.__doc__)
    parser.add_argument("--tasks", nargs="+", metavar="NAME", required=True, help="names that mteb knows")
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        encoder = load_encoder(options.model, device=options.device)
        scores = evaluate_tasks(encoder, options.tasks)
        print(render_table(scores))
        write_result(options.json, describe_run(_MODULE, arguments, encoder), MtebResult(scores))

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
