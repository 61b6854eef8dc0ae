"""Any open_clip model behind the `Encoder` protocol: the baseline, which has no summary tokens."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from encoders.base import (
    EncoderNotFound,
    FloatArray,
    ImageEmbeddings,
    MissingDependency,
    PreparedImage,
    first_line,
)
from encoders.batches import stack_pixels, to_unit_rows
from encoders.imaging import ImageEncoder
from encoders.openclip_reader import remember_weights
from encoders.precision import choose_dtype
from encoders.shortage import is_shortage

_TEXTS_AT_ONCE = 256
_NAMES_SHOWN = 3
_RANDOM = {"normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_"}
_ONE_BUILD = "torch and torchvision must be of one build: pip install --force-reinstall torch torchvision"


class OpenClipEncoder(ImageEncoder):
    """One of `open_clip.list_pretrained()`, named ARCH/PRETRAINED."""

    summary_shape = None

    def __init__(self, name: str, model: nn.Module, preprocess: Any, tokenizer: Any, device: str) -> None:
        super().__init__(name, _fingerprint(model, _list_steps(preprocess)), torch.device(device))
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self._dtype = choose_dtype(self.device.type)
        self.model: Any = model.to(self.device, self._dtype).eval()
        read_class_token_alone(self.model.visual)

    @classmethod
    def load(cls, name: str, model_name: str, device: str) -> "OpenClipEncoder":
        """Load "ARCH/PRETRAINED"; raises MissingDependency or, for an unknown name, EncoderNotFound."""
        try:
            import open_clip
        except (ImportError, RuntimeError) as error:
            # A torchvision built for another version of torch raises RuntimeError.
            remedy = 'pip install "fwd2bot[openclip]"' if isinstance(error, ImportError) else _ONE_BUILD
            raise MissingDependency(
                f"{name} needs open_clip, which does not import ({error}): {remedy}"
            ) from error
        architecture, _, pretrained = model_name.partition("/")
        if (architecture, pretrained) not in open_clip.list_pretrained():
            known = [f"{each}/{tag}" for each, tag in open_clip.list_pretrained() if each == architecture]
            few = ", ".join(known[:_NAMES_SHOWN])
            there = f"it has, for one, {few}" if known else "open_clip.list_pretrained() lists what it has"
            raise EncoderNotFound(f"open_clip has no {model_name!r}: {there}")
        try:
            with _TakeWeights():
                model, _, preprocess = open_clip.create_model_and_transforms(
                    architecture, pretrained=pretrained
                )
        except (OSError, RuntimeError) as error:  # a failed download, or a file that is not a checkpoint
            if is_shortage(error):
                raise
            reason = first_line(error)
            raise EncoderNotFound(
                f"the weights of {name} cannot be had ({reason}): check the network"
            ) from error
        tokenizer = open_clip.get_tokenizer(architecture)
        source = open_clip.get_pretrained_cfg(architecture, pretrained).get("hf_hub", "")
        remember_weights(name, source, _list_steps(preprocess), lambda text: _embed(model, tokenizer, text))
        return cls(name, model, preprocess, tokenizer, device)

    @cached_property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.encode_texts(["a"]).shape[1])

    @property
    def image_size(self) -> int:
        """Shorter side, in pixels, of the vision tower's input."""
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else min(size))

    def prepare_image(self, image: Image.Image) -> FloatArray:
        """Resize, crop and normalise an image: float32 (3, height, width)."""
        return np.asarray(self.preprocess(image), np.float32)

    @torch.inference_mode()
    def _encode(self, prepared: Sequence[PreparedImage]) -> ImageEmbeddings:
        pixels = stack_pixels([np.asarray(image) for image in prepared], self.device)
        pixels = pixels.to(self._dtype)
        return ImageEmbeddings(to_unit_rows(self.model.encode_image(pixels)), None)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts in batches."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
        rows = [self.model.encode_text(self.tokenizer(list(part)).to(self.device)) for part in parts]
        return np.concatenate([to_unit_rows(row) for row in rows])


def _fingerprint(model: nn.Module, preprocess: str) -> str:
    digest = xxhash.xxh3_128(preprocess.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@torch.inference_mode()
def _embed(model: nn.Module, tokenizer: Any, text: str) -> FloatArray:
    """The embedding of a text by a model that has just been read, in float32: (dim,)."""
    encode: Any = model.eval().encode_text
    (row,) = to_unit_rows(encode(tokenizer([text])))
    return np.asarray(row, np.float32)


def _list_steps(preprocess: Any) -> str:
    """How images are prepared, for the fingerprint."""
    # In some versions the repr holds a function's memory address, which differs in every process.
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(preprocess))


class _ClassTokenBlock(nn.Module):
    """The last block of a ViT, computed for the class token alone: its other rows are never read.

    This saves ViT-B/32, which has twelve blocks, a fifteenth of the time per image.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, rows: Tensor, attn_mask: None = None) -> Tensor:
        """Rows (batch, length, width), the class token first, to (batch, 1, width)."""
        block: Any = self.block
        normed = block.ln_1(rows)
        token = rows[:, :1] + block.ls_1(block.attention(normed[:, :1], normed, normed))
        output: Tensor = token + block.ls_2(block.mlp(block.ln_2(token)))
        return output


def read_class_token_alone(tower: Any) -> None:
    """Make a ViT whose embedding is its class token skip the last block's other rows; leave other towers."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if type(tower) is not VisionTransformer or tower.pool_type != "tok":
        return
    if tower.attn_pool is not None or tower.output_tokens or not tower.transformer.batch_first:
        return
    blocks = tower.transformer.resblocks
    if type(blocks[-1]) is ResidualAttentionBlock:
        blocks[-1] = _ClassTokenBlock(blocks[-1])


class _TakeWeights(TorchFunctionMode):
    """While a model is made and its file is read: draws no random weights, and copies none of the file's.

    Drawing would take a second. Each parameter becomes the tensor that it is loaded from, memory-mapped where
    the file is, so that the weights take memory once.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        if name == "copy_" and isinstance(args[0], nn.Parameter) and _are_alike(*args[:2]):
            return args[0].set_(args[1])
        return function(*args, **kwargs)


def _are_alike(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and (one.shape, one.dtype, one.device) == (
        other.shape,
        other.dtype,
        other.device,
    )
