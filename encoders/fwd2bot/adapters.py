"""The trainable weights of the two passes: one adapter each, a shared one, or the LLM's own weights.

`compressor` and `generator` are two module trees that share every base tensor with the LVLM and hold one
adapter each. With both adapters in one tree, switching them between the passes would lose gradients, and
gradient checkpointing would recompute pass 1 with the adapter of pass 2.
"""

import copy
import re
import warnings
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from encoders.base import DatasetError
from encoders.fwd2bot.folders import NONE as NONE
from encoders.fwd2bot.folders import PER_PASS as PER_PASS
from encoders.fwd2bot.folders import SHARED as SHARED

MODES = (PER_PASS, SHARED, NONE)
LARGEST_COPY = 1 << 30  # bytes; an adapter is folded only if a copy of the weights it adapts fits in this


@dataclass(frozen=True)
class AdapterSettings:
    """LoRA on every linear layer of the LLM.

    mode: "per_pass" for one adapter per pass, "shared" for one in both, "none" to train the LLM itself.
    """

    rank: int = 16
    alpha: int = 16
    mode: str = PER_PASS

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DatasetError(f"There is no adapter mode {self.mode!r}: choose {', '.join(MODES)}")


def add_adapters(lvlm: PreTrainedModel, settings: AdapterSettings) -> tuple[nn.Module, nn.Module]:
    """The module trees of pass 1 and pass 2 over one LVLM, frozen except for what `settings` trains."""
    lvlm.requires_grad_(False)
    if settings.mode == NONE:
        head = lvlm.get_output_embeddings()
        for part in (lvlm.get_decoder(), head):
            part.requires_grad_(True)
        return lvlm, lvlm
    compressor = _add_adapter(_share_tensors(lvlm), settings)
    if settings.mode == SHARED:
        return compressor, compressor
    return compressor, _add_adapter(_share_tensors(lvlm), settings)


def fold_adapter(tree: nn.Module) -> nn.Module:
    """Merge a tree's adapter into a copy of the weights; if those are large or quantized, change nothing.

    For inference. An adapter costs little arithmetic, but its two small matrix products and a sum for every
    linear layer take a sixth of the embedded model's time.
    """
    layers: list[Any] = [part for part in tree.modules() if isinstance(part, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    large = sum(weight.nbytes for weight in weights) > LARGEST_COPY
    if not layers or large or not all(weight.is_floating_point() for weight in weights):
        return tree
    for layer, weight in zip(layers, weights, strict=True):
        layer.get_base_layer().weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    folded: nn.Module = tree.merge_and_unload()  # type: ignore[operator]
    return folded


def list_adapter_weights(tree: nn.Module) -> list[nn.Parameter]:
    """The weights of a tree's adapter; in mode "per_pass", no other tree shares them."""
    return [weight for name, weight in tree.named_parameters() if "lora_" in name]


def find_base_model(tree: nn.Module) -> Any:
    """The LVLM inside a tree, without the PEFT wrapper; the tree's adapter, if any, stays in its layers."""
    return tree.get_base_model() if isinstance(tree, PeftModel) else tree


def _share_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def _add_adapter(model: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    decoder = model.get_decoder()
    place = next(name for name, part in model.named_modules() if part is decoder)
    kinds = {name.rsplit(".", 1)[-1] for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
    targets = rf"{re.escape(place)}\..*\.({'|'.join(sorted(map(re.escape, kinds)))})"
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers 6 will remove; nothing here can change that.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(
            model, LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets)
        )
