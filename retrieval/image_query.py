"""Embeds a query image: from its stored embedding if it is in the index, otherwise with the model."""

import os
from pathlib import Path

from encoders.base import FloatArray, QueryError
from indexer.manifest import Manifest, require_same_encoder
from indexer.table import EmbeddingTable

from .find_image import find_image, find_path


def embed_query_image(index_dir: Path, image: str | Path | int) -> tuple[FloatArray, int | None]:
    """The embedding (1, dim) of an image of the index and its id, or of any other image file and None.

    An existing file takes precedence over an image of the index whose path merely ends with its name.
    """
    table, name = EmbeddingTable.open(index_dir), str(image)
    is_file = os.path.isfile(name) and not name.isdecimal()  # noqa: PTH113 - accepts whatever is typed
    if is_file and find_path(table, name) is None:
        return _embed_file(Path(name), table.manifest), None
    image_id = find_image(table, image)
    return table.read_embeddings([image_id]), image_id


def _embed_file(path: Path, manifest: Manifest) -> FloatArray:
    # These import torch, transformers and Pillow, which no other query need wait for.
    from encoders.load import load_encoder
    from indexer.decode import DEFAULT_MAX_MEGAPIXELS, PIXELS_OPTION, quiet_pillow, read_photo
    from indexer.images import make_image_file
    from indexer.sources import open_source

    encoder = load_encoder(manifest.encoder.name)
    require_same_encoder(encoder, manifest)
    status = path.stat()
    file = make_image_file(path.name, status.st_size, status.st_mtime_ns)
    with quiet_pillow():
        photo = read_photo(open_source(path.parent), file, encoder.image_size, DEFAULT_MAX_MEGAPIXELS)
    if photo.image is None:
        reason = photo.error.removesuffix(PIXELS_OPTION)  # which only `index` has
        raise QueryError(f"{path} cannot be read as an image ({reason}): give another")
    return encoder.encode_images([photo.image]).vectors
