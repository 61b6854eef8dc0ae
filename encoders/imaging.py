"""What encoders have in common: images are prepared one by one, in any thread, and encoded together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from encoders.base import Encoder, FloatArray, ImageEmbeddings, PreparedImage
from encoders.batches import MemoryLimit, find_batch_size, open_lanes
from encoders.load import load_encoder


class ImageEncoder(ABC):
    """The image half of an `Encoder`: a subclass prepares single images and encodes batches of them."""

    def __init__(self, name: str, fingerprint: str, device: torch.device) -> None:
        self.name, self.fingerprint, self.device = name, fingerprint, device
        self._memory = MemoryLimit()

    @property
    @abstractmethod
    def dim(self) -> int:
        """See Encoder."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """See Encoder."""

    @property
    @abstractmethod
    def summary_shape(self) -> tuple[int, int] | None:
        """See Encoder."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """See Encoder."""

    @abstractmethod
    def prepare_image(self, image: Image.Image) -> PreparedImage:
        """See Encoder."""

    @abstractmethod
    def _encode(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Embed prepared images in one batch, whatever memory that takes."""

    @cached_property
    def batch_size(self) -> int:
        """See Encoder."""
        example = self.prepare_image(Image.new("RGB", (self.image_size, self.image_size)))
        return find_batch_size(self._encode, example, self.device)

    def lanes(self) -> AbstractContextManager[Sequence[Encoder]]:
        """This encoder once per batch to run concurrently, and a copy on each further GPU."""
        return open_lanes(self, self.device, lambda device: load_encoder(self.name, device))

    def encode_images(self, images: Sequence[Image.Image]) -> ImageEmbeddings:
        """Embed RGB images of any size, all in one batch if they fit in memory."""
        if not images:
            summaries = np.empty((0, *self.summary_shape), np.float32) if self.summary_shape else None
            return ImageEmbeddings(np.empty((0, self.dim), np.float32), summaries)
        return self.encode_prepared([self.prepare_image(image) for image in images])

    def encode_prepared(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        """Embed outputs of `prepare_image`, in as few pieces as fit in memory."""
        return self._memory.encode(self._encode, prepared)
