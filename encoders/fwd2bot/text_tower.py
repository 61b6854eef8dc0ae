"""Sentences through pass 1 in NumPy: what a search needs of a small checkpoint, without a wait for torch.

PyTorch, transformers and PEFT take seconds to import, and a sentence takes milliseconds. Where a checkpoint
is not just of the make of the embedded model, `load_text_tower` gives None, and all of it must be loaded.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from encoders.base import FloatArray
from encoders.fwd2bot.folders import (
    ADAPTER_FILE,
    ADAPTER_FOLDERS,
    OWN_BASE,
    TOKENS_FILE,
    fingerprint_checkpoint,
    read_settings,
)
from encoders.fwd2bot.numpy_llm import Layer, Linear, Llm
from encoders.fwd2bot.prompts import PromptFrames, Prompts, clean_text, match_special

LARGEST = 1 << 28  # bytes of weights: beside the reading of more, the wait for torch is short
_BACKEND = "Pil"  # of the image processor, as `load_processor` chooses it: part of the fingerprint
_WEIGHTS_FILE = "model.safetensors"
_PLACE = "model.language_model"
_LLM = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False}
_TOKENIZER = {"tokenizer_class": "TokenizersBackend", "bos_token": None}


class TextTower:
    """A checkpoint's pass 1 over texts: a `TextEncoder`."""

    def __init__(
        self, name: str, fingerprint: str, llm: Llm, tokens: FloatArray, write: Callable[[str], list[int]]
    ) -> None:
        """Take summary tokens (k, width), and what writes the ids of a text's whole prompt."""
        self.name = name
        self.fingerprint = fingerprint
        self._llm = llm
        self._tokens = tokens
        self._write = write

    @property
    def dim(self) -> int:
        """Length of an embedding: the LLM's width."""
        return int(self._tokens.shape[1])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Pass 1 over texts, one by one: float32 (n, dim), rows of unit length."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            prompt = self._llm.words[self._write(text)]
            mean = self._llm.read(np.concatenate([prompt, self._tokens]))[-len(self._tokens) :].mean(axis=0)
            vector[:] = mean / np.linalg.norm(mean)
        return vectors


def load_text_tower(name: str, folder: Path, fingerprint: str) -> TextTower | None:
    """The tower of a checkpoint folder; None where it has another fingerprint, or is of another make."""
    try:
        settings, base = read_settings(folder), folder / OWN_BASE
        prompts, processor = Prompts(**settings["prompts"]), _read_json(base / "processor_config.json")
        backend = processor["image_processor"]["image_processor_type"] + _BACKEND
        if not (
            settings["base"] == OWN_BASE
            and prompts.template  # or else it is the processor's
            and _is_known_make(base)
            and fingerprint_checkpoint(folder, backend) == fingerprint
        ):
            return None
        llm = _WeightReader.open(folder, settings["adapters"]).read_llm()
        tokens = load_file(folder / TOKENS_FILE)["summary_tokens"]
        return TextTower(
            name, fingerprint, llm, tokens, _make_writer(base, prompts, processor["image_token"])
        )
    except Exception:  # whatever is odd about these files, loading all of them says it better
        return None


def _is_known_make(base: Path) -> bool:
    config, tokenizer = _read_json(base / "config.json"), _read_json(base / "tokenizer_config.json")
    text = config["text_config"]
    return (
        config["model_type"] == "fast_vlm"
        and all(text[name] == value for name, value in _LLM.items())
        and text["rope_parameters"]["rope_type"] == "default"
        and all(tokenizer.get(name) == value for name, value in _TOKENIZER.items())
        and (base / _WEIGHTS_FILE).stat().st_size <= LARGEST
    )


def _make_writer(base: Path, prompts: Prompts, image_token: str) -> Callable[[str], list[int]]:
    """What turns a text into the ids of its prompt, as `InputBuilder.texts` does."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder().values()
    special = match_special({*(token.content for token in added if token.special), image_token})
    frames = PromptFrames(image="", text=prompts.template)

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def join(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    def write(text: str) -> list[int]:
        prompt = frames.fill_text(clean_text(text, special, tokenize, join), prompts.text)
        ids: list[int] = tokenizer.encode(prompt).ids
        return ids

    return write


@dataclass(frozen=True)
class _WeightReader:
    """The tensors of a base and of the adapter of pass 1, if there is one, and how much that one counts."""

    config: Mapping[str, Any]
    base: Mapping[str, FloatArray]
    adapter: Mapping[str, FloatArray]
    scale: float

    @classmethod
    def open(cls, folder: Path, mode: str) -> "_WeightReader":
        config = _read_json(folder / OWN_BASE / "config.json")["text_config"]
        base = load_file(folder / OWN_BASE / _WEIGHTS_FILE)
        if not ADAPTER_FOLDERS[mode]:
            return cls(config, base, {}, 0.0)
        place = folder / ADAPTER_FOLDERS[mode][0]
        lora = _read_json(place / "adapter_config.json")
        return cls(config, base, load_file(place / ADAPTER_FILE), lora["lora_alpha"] / lora["r"])

    def read_llm(self) -> Llm:
        return Llm(
            words=self._read("embed_tokens.weight"),
            layers=[self._read_layer(f"layers.{n}") for n in range(self.config["num_hidden_layers"])],
            norm=self._read("norm.weight"),
            heads=self.config["num_attention_heads"],
            key_heads=self.config["num_key_value_heads"],
            epsilon=self.config["rms_norm_eps"],
            theta=self.config["rope_parameters"]["rope_theta"],
        )

    def _read_layer(self, place: str) -> Layer:
        return Layer(
            attention_norm=self._read(f"{place}.input_layernorm.weight"),
            query=self._read_linear(f"{place}.self_attn.q_proj"),
            key=self._read_linear(f"{place}.self_attn.k_proj"),
            value=self._read_linear(f"{place}.self_attn.v_proj"),
            output=self._read_linear(f"{place}.self_attn.o_proj"),
            mlp_norm=self._read(f"{place}.post_attention_layernorm.weight"),
            gate=self._read_linear(f"{place}.mlp.gate_proj"),
            up=self._read_linear(f"{place}.mlp.up_proj"),
            down=self._read_linear(f"{place}.mlp.down_proj"),
        )

    def _read_linear(self, place: str) -> Linear:
        weight = self._read(f"{place}.weight")
        if self.adapter:
            low, high = (
                self.adapter[f"base_model.model.{_PLACE}.{place}.lora_{part}.weight"] for part in "AB"
            )
            weight = weight + self.scale * (high.astype(np.float32) @ low.astype(np.float32))
        has_bias = f"{_PLACE}.{place}.bias" in self.base
        return Linear(weight.astype(np.float32), self._read(f"{place}.bias") if has_bias else 0.0)

    def _read(self, name: str) -> FloatArray:
        return self.base[f"{_PLACE}.{name}"].astype(np.float32)


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
