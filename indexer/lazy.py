"""An encoder that is loaded only when more than its name is needed."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

from PIL import Image

from encoders.base import Encoder, FloatArray, ImageEmbeddings, PreparedImage


class LazyEncoder:
    """Stands in for the encoder called `name`; `load` is called on first use.

    A run over an unchanged folder needs only the name, and so never waits for torch.
    """

    def __init__(self, name: str, load: Callable[[], Encoder]) -> None:
        self.name = name
        self._load = load

    @cached_property
    def _encoder(self) -> Encoder:
        return self._load()

    @property
    def fingerprint(self) -> str:
        """See Encoder."""
        return self._encoder.fingerprint

    @property
    def dim(self) -> int:
        """See Encoder."""
        return self._encoder.dim

    @property
    def image_size(self) -> int:
        """See Encoder."""
        return self._encoder.image_size

    @property
    def summary_shape(self) -> tuple[int, int] | None:
        """See Encoder."""
        return self._encoder.summary_shape

    @property
    def batch_size(self) -> int:
        """See Encoder."""
        return self._encoder.batch_size

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """See Encoder."""
        return self._encoder.encode_images(images)

    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """See Encoder."""
        return self._encoder.prepare_image(image)

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """See Encoder."""
        return self._encoder.encode_prepared(prepared)

    def lanes(self) -> AbstractContextManager[Sequence[Encoder]]:
        """See Encoder."""
        return self._encoder.lanes()

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """See Encoder."""
        return self._encoder.encode_texts(texts)
