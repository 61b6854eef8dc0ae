"""Reads the weights of a small checkpoint with NumPy, and merges in each pass's adapter."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from encoders.base import FloatArray
from encoders.fwd2bot.folders import ADAPTER_FILE, ADAPTER_FOLDERS, OWN_BASE, TOKENS_FILE
from encoders.fwd2bot.numpy_llm import Layer, Linear, Llm

WEIGHTS_FILE = "model.safetensors"
_PLACE = "model.language_model"


@dataclass(frozen=True)
class CheckpointWeights:
    """The weights of a checkpoint.

    config: the base's settings of its LLM. base: its tensors by name. adapters: the folders of the two
    passes' adapters, one if they share it, none if the LLM itself was trained. tokens: summary tokens
    (k, width). head: (vocabulary, width).
    """

    config: Mapping[str, Any]
    base: Mapping[str, FloatArray]
    adapters: tuple[Path, ...]
    tokens: FloatArray
    head: FloatArray

    @classmethod
    def open(cls, folder: Path, mode: str) -> "CheckpointWeights":
        """Read a checkpoint folder; errors of the file readers are passed on."""
        base = load_file(folder / OWN_BASE / WEIGHTS_FILE)
        return cls(
            config=read_json(folder / OWN_BASE / "config.json")["text_config"],
            base=base,
            adapters=tuple(folder / name for name in ADAPTER_FOLDERS[mode]),
            tokens=load_file(folder / TOKENS_FILE)["summary_tokens"],
            head=base.get("lm_head.weight", base[f"{_PLACE}.embed_tokens.weight"]).astype(np.float32),
        )

    def read_llm(self, number: int) -> Llm:
        """The LLM of the first pass (number 0) or the second (number 1)."""
        reader = _LlmReader.open(self, self.adapters[number % len(self.adapters)] if self.adapters else None)
        rope = self.config["rope_parameters"]
        return Llm(
            words=reader.read("embed_tokens.weight"),
            layers=[reader.read_layer(f"layers.{n}") for n in range(self.config["num_hidden_layers"])],
            norm=reader.read("norm.weight"),
            heads=self.config["num_attention_heads"],
            key_heads=self.config["num_key_value_heads"],
            epsilon=self.config["rms_norm_eps"],
            theta=rope["rope_theta"],
        )


@dataclass(frozen=True)
class _LlmReader:
    """The tensors of a base and of one adapter, empty if there is none, and the adapter's scale."""

    base: Mapping[str, FloatArray]
    adapter: Mapping[str, FloatArray]
    scale: float

    @classmethod
    def open(cls, weights: CheckpointWeights, adapter: Path | None) -> "_LlmReader":
        if adapter is None:
            return cls(weights.base, {}, 0.0)
        lora = read_json(adapter / "adapter_config.json")
        return cls(weights.base, load_file(adapter / ADAPTER_FILE), lora["lora_alpha"] / lora["r"])

    def read_layer(self, place: str) -> Layer:
        return Layer(
            attention_norm=self.read(f"{place}.input_layernorm.weight"),
            query=self._read_linear(f"{place}.self_attn.q_proj"),
            key=self._read_linear(f"{place}.self_attn.k_proj"),
            value=self._read_linear(f"{place}.self_attn.v_proj"),
            output=self._read_linear(f"{place}.self_attn.o_proj"),
            mlp_norm=self.read(f"{place}.post_attention_layernorm.weight"),
            gate=self._read_linear(f"{place}.mlp.gate_proj"),
            up=self._read_linear(f"{place}.mlp.up_proj"),
            down=self._read_linear(f"{place}.mlp.down_proj"),
        )

    def read(self, name: str) -> FloatArray:
        return self.base[f"{_PLACE}.{name}"].astype(np.float32)

    def _read_linear(self, place: str) -> Linear:
        weight = self.read(f"{place}.weight")
        if self.adapter:
            low, high = (
                self.adapter[f"base_model.model.{_PLACE}.{place}.lora_{part}.weight"].astype(np.float32)
                for part in "AB"
            )
            weight = weight + np.float32(self.scale) * (high @ low)
        has_bias = f"{_PLACE}.{place}.bias" in self.base
        return Linear(weight, self.read(f"{place}.bias") if has_bias else 0.0)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
