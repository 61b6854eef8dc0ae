"""Searches an index by a sentence: a ranked list of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoders.base import CannotAnswer, Talker, TextEncoder, can_talk
from indexer.columns import decode_summaries
from indexer.faiss_index import FaissIndex
from indexer.faiss_search import Selection
from indexer.manifest import Manifest, require_same_encoder
from indexer.parts import trust_nothing
from indexer.table import list_token_columns

from .filters import ALL, Filter
from .gallery import Gallery, Hit, open_index, require_results
from .query import clean_query
from .rerank import judge_images, rank_again


class Searcher(Gallery):
    """An index open for search by sentences, with the model that made it."""

    def __init__(
        self,
        index_dir: Path,
        manifest: Manifest,
        neighbours: FaissIndex,
        encoder: TextEncoder,
        only: Selection | None = None,
    ) -> None:
        super().__init__(index_dir, manifest, neighbours, only)
        self.encoder = encoder

    @classmethod
    def open(cls, index_dir: str | Path, wanted: Filter = ALL) -> "Searcher":
        """Open an index as a gallery, with the encoder that made it; EncoderMismatch if that has changed."""
        place, manifest, neighbours, only = open_index(index_dir, wanted)
        return cls(place, manifest, neighbours, load_matching_reader(manifest), only)

    def search(self, text: str, k: int = 10, rerank: int = 0) -> list[Hit]:
        """The k images that fit the text best, best first, once the `rerank` nearest have been reranked."""
        require_results(k)
        text, rerank = clean_query(text), max(rerank, 0)
        (hits,) = self.search_vectors(self.encoder.encode_texts([text]), max(k, rerank))
        return [*self.rerank(text, hits[:rerank]), *hits[rerank:]][:k]

    def rerank(self, text: str, hits: Sequence[Hit]) -> list[Hit]:
        """Reorder hits by cosine combined with how likely the text is as a caption of their stored tokens.

        Their scores stay the cosines. Raises CannotAnswer if the model or the index keeps no tokens.
        """
        if not hits:
            return []
        talker, columns = require_talker(self.encoder), list_token_columns(self.index_dir, self.manifest)
        rows = self._find_rows([hit.id for hit in hits], columns)
        kept = {hit.id: hit for hit in hits}
        hits = [kept[image_id] for image_id in rows["id"].to_pylist()]  # a compaction may have dropped some
        with trust_nothing(self.index_dir):
            summaries = decode_summaries(self.manifest, rows)
        likelihoods = judge_images(talker, summaries, text)
        order = rank_again(np.array([hit.score for hit in hits], np.float32), likelihoods)
        return [hits[place] for place in order]


def load_matching_reader(manifest: Manifest) -> TextEncoder:
    """Load a reader of texts and tokens for an index's encoder; EncoderMismatch if fingerprints differ."""
    from encoders.load import load_reader  # torch and transformers may come with it

    reader = load_reader(manifest.encoder.name, manifest.encoder.fingerprint)
    require_same_encoder(reader, manifest)
    return reader


def require_talker(encoder: TextEncoder) -> Talker:
    """Return the encoder itself; CannotAnswer if it has no summary tokens."""
    if not can_talk(encoder):
        raise CannotAnswer(f"the model {encoder.name} cannot talk: index with one that can, such as tiny")
    return encoder
