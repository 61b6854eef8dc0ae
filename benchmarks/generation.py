"""What storing summary tokens costs the language model: cross-entropy of true captions, nats a token.

    python -m benchmarks.generation --dataset dataset_flickr8k.json --images DIR --json FILE

The same captions are scored from the tokens as the encoder gave them, as float16 and int8 (as an index stores
them), and from another photo's tokens: by how much that last figure is higher, the tokens know the image.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
from benchmarks.embedding import decode_pictures, embed_images, match_texts
from encoders.base import CannotAnswer, DatasetError, Encoder, FloatArray, TalkingEncoder
from encoders.load import load_encoder
from indexer.quantize import dequantize_summaries, quantize_summaries

_MODULE = "benchmarks.generation"


@dataclass(frozen=True)
class GenerationResult:
    """Mean cross-entropy over captions by form of the tokens, and its ratio to that of the float tokens."""

    data: SplitRecord
    cross_entropy: dict[str, float]
    ratio: dict[str, float]


def measure_cross_entropy(encoder: Encoder, images: Sequence[CaptionedImage]) -> dict[str, float]:
    """Mean cross-entropy of all captions, nats a token, by form of the tokens they are read from."""
    if not isinstance(encoder, TalkingEncoder):
        raise CannotAnswer(f"{encoder.name} keeps no summary tokens, so it gives no caption a likelihood.")
    if len(images) < 2:
        raise DatasetError("One image has no other photo's tokens to be compared with: give two or more.")
    pictures = decode_pictures((image.path for image in images), encoder.image_size)
    batches = [batch.summaries for batch in embed_images(encoder, pictures, len(images))]
    summaries = np.concatenate([batch for batch in batches if batch is not None])
    rows = [row for row, image in enumerate(images) for _ in image.captions]
    captions = [caption for image in images for caption in image.captions]
    return {
        form: -float(match_texts(encoder, tokens[rows], captions).mean())
        for form, tokens in _store_summaries(summaries).items()
    }


def _store_summaries(summaries: FloatArray) -> dict[str, FloatArray]:
    return {
        "float": summaries,
        "float16": summaries.astype(np.float16).astype(np.float32),
        "int8": dequantize_summaries(*quantize_summaries(summaries)),
        "another photo's": np.roll(summaries, 1, axis=0),
    }


def compare_forms(cross_entropy: dict[str, float]) -> dict[str, float]:
    """Each cross-entropy over that of the float tokens."""
    return {form: value / cross_entropy["float"] for form, value in cross_entropy.items()}


def render_table(result: GenerationResult) -> str:
    """One line for each form of the tokens."""
    lines = [f"{'tokens':<18}nats a token   ratio"]
    for form, value in result.cross_entropy.items():
        lines += [f"{form:<18}{value:>12.4f}{result.ratio[form]:>8.4f}"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Cross-entropy of true captions given stored summary tokens."""
    parser = make_parser(_MODULE, main.__doc__)
    add_dataset_options(parser)
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        images, record = read_split(options)
        encoder = load_encoder(options.model, device=options.device)
        cross_entropy = measure_cross_entropy(encoder, images)
        result = GenerationResult(record, cross_entropy, compare_forms(cross_entropy))
        print(render_table(result))
        write_result(options.json, describe_run(_MODULE, arguments, encoder), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
