"""Bytes per image on disk for every form of storage, and what each form costs in recall and likelihood.

    python -m benchmarks.storage --json FILE
    python -m benchmarks.storage --dataset dataset_flickr8k.json --images DIR --json FILE

The first command writes Parquet parts of random vectors and tokens, as `fwd2bot index` does, and counts all
their bytes, including names and digests; next to them it lists what other ways of reading an image only once
would store. The second also measures the model's embeddings of a data set: for every form, recall of the
photos by their captions, and the cross-entropy of these captions in pass 2.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

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
from benchmarks.embedding import (
    decode_pictures,
    embed_images,
    embed_texts,
    match_captions,
    pool_summaries,
)
from benchmarks.photos import draw_photo
from benchmarks.recall import report_pairs
from benchmarks.speaking import store_summaries
from encoders.base import Encoder, FloatArray, ImageEmbeddings, can_talk
from encoders.load import load_encoder
from indexer.columns import FileRow, encode_rows
from indexer.manifest import EncoderRecord, Manifest, TokenFormat
from indexer.parts import write_part

_MODULE = "benchmarks.storage"
_TOKENS = (4, 16, 32)
_WIDTHS = (256, 512, 1024, 2048, 4096)
_ROWS = 128
_SEED = 0
_TOKEN_FORMS = ("tokens float32", "tokens float16", "tokens int8")
_FORMS = ("pooled float32", "pooled float16", *_TOKEN_FORMS)

# LLaVA-1.5-7B: 32 layers of keys and values, 4,096 wide, in float16, for each of 576 image tokens.
_IMAGE_TOKENS, _LLM_WIDTH, _TOWER_WIDTH = 576, 4096, 1024
_CACHE_BYTES = 2 * 32 * _LLM_WIDTH * 2


@dataclass(frozen=True)
class Size:
    """Bytes per image of one form; tokens is None if only their mean is stored."""

    form: str
    tokens: int | None
    width: int
    bytes_per_image: float


@dataclass(frozen=True)
class Cost:
    """One form of real photos' embeddings: hit@10 by caption, and nats per token of the true captions."""

    form: str
    bytes_per_image: float
    recall_at_10: float
    cross_entropy: float | None


@dataclass(frozen=True)
class StorageResult:
    """alternatives: bytes per image, by description. data is None, and costs empty, without photos."""

    sizes: list[Size]
    alternatives: dict[str, float]
    data: SplitRecord | None
    costs: list[Cost]


def write_form(folder: Path, form: str, embeddings: ImageEmbeddings) -> float:
    """Write images in one form as a Parquet part; returns its bytes per image."""
    count, dim = len(embeddings.vectors), embeddings.vectors.shape[1]
    shape = None if embeddings.summaries is None else embeddings.summaries.shape[1:]
    kept: TokenFormat = "int8" if form == "tokens int8" else "float16" if form == "tokens float16" else "none"
    record = EncoderRecord("stored", "0" * 32, dim, shape if kept != "none" else None)
    manifest = Manifest("..", record, kept, created="", updated="")
    random = np.random.default_rng(_SEED)  # digests, which do not compress
    rows = [
        FileRow(f"photos/{number:08d}.jpg", 1 << 21, number, random.bytes(16).hex(), 4000, 3000, "ok", "")
        for number in range(count)
    ]
    table = encode_rows(manifest, 0, rows, embeddings)
    if form.endswith("float32"):
        table = _keep_floats(table, embeddings, tokens=form in _TOKEN_FORMS)
    return write_part(folder, "part-000001.parquet", table.schema, [table]).size / count


def _keep_floats(table: pa.Table, embeddings: ImageEmbeddings, tokens: bool) -> pa.Table:
    """The table with float32 instead of what an index would round: the vectors, or an added token column."""
    values = np.asarray(embeddings.summaries if tokens else embeddings.vectors, np.float32)
    cells = pa.array([row.tobytes() for row in values], pa.binary(values[0].nbytes))
    if tokens:
        return table.append_column("summary", cells)
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", cells)


def measure_sizes(tokens: Sequence[int], widths: Sequence[int]) -> Iterator[Size]:
    """Bytes per image of every form, with random values, which compress less than those of a model."""
    random = np.random.default_rng(_SEED)
    with TemporaryDirectory(prefix="fwd2bot-storage-") as place:
        for width in widths:
            for count in tokens:
                summaries = random.standard_normal((_ROWS, count, width), np.float32)
                embeddings = ImageEmbeddings(pool_summaries(summaries), summaries)
                # For one width, the mean takes the same space for any number of tokens.
                for form in _FORMS if count == tokens[0] else _TOKEN_FORMS:
                    size = write_form(Path(place), form, embeddings)
                    yield Size(form, count if form in _TOKEN_FORMS else None, width, size)


def list_alternatives(photos: Sequence[Path]) -> dict[str, float]:
    """Bytes per image of other ways to read it only once (calculated), and of the photo itself."""
    sizes = [path.stat().st_size for path in photos if path.is_file()]  # not those in archives
    given = {"the photos given, mean": float(np.mean(sizes))} if sizes else {}
    return {
        "KV cache, LLaVA-1.5-7B, 576 image tokens": float(_IMAGE_TOKENS * _CACHE_BYTES),
        "KV cache of 16 tokens": float(16 * _CACHE_BYTES),
        "patch features after the projector, float16": float(_IMAGE_TOKENS * _LLM_WIDTH * 2),
        "patch features of CLIP L/14-336, float16": float(_IMAGE_TOKENS * _TOWER_WIDTH * 2),
        "JPEG of 12 megapixels, drawn": float(len(draw_photo(0, 12))),
        "JPEG of 1 megapixel, drawn": float(len(draw_photo(0, 1))),
    } | given


def measure_costs(encoder: Encoder, images: Sequence[CaptionedImage]) -> list[Cost]:
    """Bytes, recall and cross-entropy of every form in which the embeddings of real photos can be stored."""
    pictures = decode_pictures((image.path for image in images), encoder.image_size)
    batches = list(embed_images(encoder, pictures, len(images)))
    vectors = np.concatenate([batch.vectors for batch in batches])
    summaries = [batch.summaries for batch in batches if batch.summaries is not None]
    embeddings = ImageEmbeddings(vectors, np.concatenate(summaries) if summaries else None)
    texts = embed_texts(encoder, [caption for image in images for caption in image.captions])
    owners = [row for row, image in enumerate(images) for _ in image.captions]
    costs = []
    with TemporaryDirectory(prefix="fwd2bot-storage-") as place:
        for form in _FORMS if summaries else _FORMS[:2]:
            stored, tokens = _restore(form, embeddings)
            recall = report_pairs(stored, texts, owners).text_to_image.hits[10]
            entropy = None
            if tokens is not None and can_talk(encoder):
                entropy = match_captions(encoder, tokens, images)
            costs.append(Cost(form, write_form(Path(place), form, embeddings), recall, entropy))
    return costs


def _restore(form: str, embeddings: ImageEmbeddings) -> tuple[FloatArray, FloatArray | None]:
    """Vectors and tokens as read back from storage; with tokens, vectors are recomputed from them."""
    vectors, summaries = embeddings
    if form.startswith("pooled") or summaries is None:
        kept = vectors if form.endswith("float32") else vectors.astype(np.float16).astype(np.float32)
        return kept, None
    tokens = store_summaries(summaries, form.removeprefix("tokens "))
    return pool_summaries(tokens), tokens


def render_table(result: StorageResult) -> str:
    """Bytes by width and tokens; the alternatives; with photos, the recall and cross-entropy of each form."""
    widths = sorted({size.width for size in result.sizes})
    lines = [f"{'bytes an image; width':<28}" + "".join(f"{width:>12,}" for width in widths)]
    for form, tokens in dict.fromkeys((size.form, size.tokens) for size in result.sizes):
        row = [size for size in result.sizes if (size.form, size.tokens) == (form, tokens)]
        title = form if tokens is None else f"{tokens} {form}"
        lines.append(f"{title:<28}" + "".join(f"{size.bytes_per_image:>12,.0f}" for size in row))
    lines += ["", "what else could be kept, or is there anyway"]
    lines += [f"{words:<48}{size:>14,.0f}" for words, size in result.alternatives.items()]
    if result.data:
        lines += ["", f"{result.data.dataset}, {result.data.split}: {result.data.images:,} photos"]
        lines += [f"{'form':<20}{'bytes an image':>16}{'R@10':>9}{'nats a token':>15}"]
    for cost in result.costs:
        entropy = "-" if cost.cross_entropy is None else f"{cost.cross_entropy:.4f}"
        lines.append(
            f"{cost.form:<20}{cost.bytes_per_image:>16,.0f}{100 * cost.recall_at_10:>9.2f}{entropy:>15}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Bytes per image on disk, by form, and what each form costs in recall and likelihood."""
    parser = make_parser(_MODULE, main.__doc__)
    add_dataset_options(parser, required=False)
    options = parser.parse_args(arguments)

    def measure() -> None:
        refuse_overwriting(options.json, options.force)
        encoder, record, costs, photos = None, None, list[Cost](), list[Path]()
        if options.dataset:
            images, record = read_split(options)
            encoder = load_encoder(options.model, device=options.device)
            costs, photos = measure_costs(encoder, images), [image.path for image in images]
        sizes = list(measure_sizes(_TOKENS, _WIDTHS))
        result = StorageResult(sizes, list_alternatives(photos), record, costs)
        print(render_table(result))
        write_result(options.json, describe_run(_MODULE, arguments, encoder, _SEED), result)

    return run_command(measure)


if __name__ == "__main__":
    sys.exit(main())
