"""Loads a stock LVLM and its processor from a folder or the hub: only safetensors, never code or pickles."""

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
from encoders.shortage import is_shortage

# Vision towers, projectors and heads, as the families name them: only the LLM is quantized.
_KEPT_WHOLE = ["lm_head", r"model\.(vision_tower|vision_model|visual|multi_modal_projector|connector)"]


class Lvlm(NamedTuple):
    """A stock model, in evaluation mode, and its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin


def load_lvlm(name: str, device: str, dtype: torch.dtype, quantize: str = "none") -> Lvlm:
    """Load a stock LVLM of a known family from a folder or the hub onto a device.

    quantize: "none", or "4bit" for NF4 weights in the LLM, computing in bfloat16 (QLoRA); this needs a CUDA
    GPU and bitsandbytes. Raises EncoderNotFound, EncoderDamaged and MissingDependency.
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
    except ImportError as error:  # transformers' own message names the package
        raise MissingDependency(f"{name} cannot be loaded: {first_line(error)}") from error
    except Exception as error:  # third-party readers may raise anything; the file is at fault
        if is_shortage(error):
            raise
        raise EncoderDamaged(f"{name} cannot be read ({first_line(error)}): fetch it again") from error
    if not quantization:  # quantized weights are on the device already
        model.to(device)
    put_channels_last(model)
    return Lvlm(model.eval(), processor)


def put_channels_last(model: nn.Module) -> None:
    """Store the weights of 2-D convolutions channels-last, as kernels of convolution and pooling prefer."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_processor(place: Path, family: Family) -> ProcessorMixin:
    """Load a processor for images only, with the Pillow backend even if torchvision is installed.

    With torchvision, transformers would choose another backend, and no existing index would match.
    """
    processor: ProcessorMixin = drop_videos(getattr(transformers, family.processor)).from_pretrained(
        place, backend="pil"
    )
    return processor


def drop_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A processor class without its video processor, which needs torchvision even if there is no video."""
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

        def __reduce__(self) -> tuple[Any, ...]:  # pickle finds no such class by name
            return _drop_videos_of, (kind, self.__dict__)

    ImagesOnly.__name__ = kind.__name__  # the name it is saved under
    return ImagesOnly


def _drop_videos_of(kind: type[ProcessorMixin], state: dict[str, Any]) -> ProcessorMixin:
    """Unpickle a processor of a class from `drop_videos`."""
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
