"""The LLM that `training` builds from scratch, in NumPy: Qwen2 (arXiv 2407.10671, section 2.2)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from encoders.base import FloatArray


class Linear(NamedTuple):
    """A linear layer. weight: (out, in). bias: (out,), or 0 if it has none."""

    weight: FloatArray
    bias: FloatArray | float

    def apply(self, rows: FloatArray) -> FloatArray:
        """Rows (..., in) to (..., out), in one matrix product."""
        flat = rows.reshape(-1, rows.shape[-1]) @ self.weight.T + self.bias
        return np.asarray(flat.reshape(*rows.shape[:-1], -1), np.float32)


class Layer(NamedTuple):
    """One layer of the LLM: both norms, attention and the gated MLP."""

    attention_norm: FloatArray
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    mlp_norm: FloatArray
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Llm:
    """The LLM, one pass's adapter merged in. words: (vocabulary, width). norm: (width,), the final one."""

    words: FloatArray
    layers: list[Layer]
    norm: FloatArray
    heads: int
    key_heads: int
    epsilon: float
    theta: float

    def read(self, rows: FloatArray) -> FloatArray:
        """Input embeddings (..., n, width) to last hidden states of the same shape, with causal attention."""
        for layer in self.layers:
            rows = rows + self._attend(layer, self._normalize(rows, layer.attention_norm))
            seen = self._normalize(rows, layer.mlp_norm)
            gate = layer.gate.apply(seen)
            gate = gate / 2 * (1 + np.tanh(gate / 2))  # SiLU, without an exponential that overflows
            rows = rows + layer.down.apply(gate * layer.up.apply(seen))
        return self._normalize(rows, self.norm)

    def _normalize(self, rows: FloatArray, weight: FloatArray) -> FloatArray:
        scale = np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        return np.asarray(rows / scale * weight, np.float32)

    def _attend(self, layer: Layer, rows: FloatArray) -> FloatArray:
        # Each (..., heads, n, head width).
        queries = self._rotate(_split_heads(layer.query.apply(rows), self.heads))
        shared = self.heads // self.key_heads  # query heads per key head
        keys = np.repeat(self._rotate(_split_heads(layer.key.apply(rows), self.key_heads)), shared, axis=-3)
        values = np.repeat(_split_heads(layer.value.apply(rows), self.key_heads), shared, axis=-3)
        scores = queries @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(queries.shape[-1]))
        scores = scores + np.triu(np.full(scores.shape[-2:], -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = weights / weights.sum(axis=-1, keepdims=True) @ values
        return layer.output.apply(attended.swapaxes(-2, -3).reshape(*rows.shape[:-1], -1))

    def _rotate(self, heads: FloatArray) -> FloatArray:
        """Rotary positions: each pair (one value from either half of a head) is rotated by its own angle."""
        length, width = heads.shape[-2:]
        speeds = self.theta ** (-np.arange(0, width, 2) / width)
        angles = np.arange(length)[:, None] * speeds  # (n, head width / 2)
        turn = np.asarray(np.cos(angles) + 1j * np.sin(angles), np.complex64)
        turned = (heads[..., : width // 2] + 1j * heads[..., width // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)


def _split_heads(rows: FloatArray, heads: int) -> FloatArray:
    """(..., n, heads x head width) to (..., heads, n, head width)."""
    return rows.reshape(*rows.shape[:-1], heads, -1).swapaxes(-2, -3)
