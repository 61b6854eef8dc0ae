"""A stock LVLM and its processor, from a folder or the hub: safetensors alone, never code or pickles."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils.import_utils import is_bitsandbytes_available

from encoders.base import EncoderDamaged, EncoderNotFound, Fwd2BotError, MissingDependency, first_line
from encoders.fwd2bot.families import Family, find_family
from encoders.fwd2bot.folders import fetch_lvlm

# Towers, projectors and heads, under the names that the families give them: only the LLM is quantized.
_KEPT_WHOLE = ["lm_head", r"model\.(vision_tower|vision_model|visual|multi_modal_projector|connector)"]


class Lvlm(NamedTuple):
    """A stock model, in evaluation mode, and its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin


def load_lvlm(name: str, device: str, dtype: torch.dtype, quantize: str = "none") -> Lvlm:
    """Load a stock LVLM of a known family from a folder or the hub onto a device.

    quantize: "none", or "4bit" for an LLM of NF4 weights that computes in bfloat16 (QLoRA), which needs a GPU
    and bitsandbytes. Raises EncoderNotFound, EncoderDamaged and MissingDependency.
    """
    quantization = _read_quantization(quantize, device)
    place = fetch_lvlm(name)
    try:
        family = find_family(AutoConfig.from_pretrained(place).model_type)
        processor = load_processor(place, family)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            place, dtype=dtype, use_safetensors=True, **_placement(quantization, device)
        )
    except Fwd2BotError as error:
        raise type(error)(f"{name}: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:  # transformers' own sentence names the package
        raise MissingDependency(f"{name} cannot be loaded: {first_line(error)}") from error
    except Exception as error:  # whatever a reader of a foreign file raises, the file is what is wrong
        raise EncoderDamaged(f"{name} cannot be read ({first_line(error)}): fetch it again") from error
    if not quantization:  # those are where they belong already
        model.to(device)
    put_channels_last(model)
    return Lvlm(model.eval(), processor)


def put_channels_last(model: nn.Module) -> None:
    """Lay out the weights of convolutions over pictures as their kernels, and those of pooling, want them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_processor(place: Path, family: Family) -> ProcessorMixin:
    """Load a processor that prepares images with Pillow, and no videos, whether torchvision is there or not.

    With torchvision, transformers would take another backend, and every index would be of another model.
    """
    processor: ProcessorMixin = drop_videos(getattr(transformers, family.processor)).from_pretrained(
        place, backend="pil"
    )
    return processor


def drop_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class less its video processor, which asks for torchvision even if no video comes."""
    parts = kind.get_attributes()
    if "video_processor" not in parts:
        return kind

    class ImagesOnly(kind):  # type: ignore[misc, valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in parts if part != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **settings: Any) -> Any:
            return super().from_args_and_dict(args, {**processor_dict, "video_processor": None}, **settings)

        def __reduce__(self) -> tuple[Any, ...]:  # to a process that knows no name for this class
            return _drop_videos_of, (kind, self.__dict__)

    ImagesOnly.__name__ = kind.__name__  # under which it is saved
    return ImagesOnly


def _drop_videos_of(kind: type[ProcessorMixin], state: dict[str, Any]) -> ProcessorMixin:
    """A processor of such a class, as it was in another process."""
    processor = object.__new__(drop_videos(kind))
    processor.__dict__.update(state)
    return processor


def _read_quantization(quantize: str, device: str) -> BitsAndBytesConfig | None:
    if quantize == "none":
        return None
    if quantize != "4bit":
        raise EncoderNotFound(f"There is no quantization {quantize!r}: choose none or 4bit")
    if device == "cpu":
        raise MissingDependency("Weights in 4 bits need a CUDA GPU: load them with quantize none, or on one")
    if not is_bitsandbytes_available():
        raise MissingDependency("Weights in 4 bits need bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=_KEPT_WHOLE,
    )


def _placement(quantization: BitsAndBytesConfig | None, device: str) -> dict[str, Any]:
    return {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
