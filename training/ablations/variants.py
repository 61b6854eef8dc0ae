"""The variants and what each computes: Fwd2Bot over image features, with one thing changed."""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import BatchEncoding, DynamicCache, PreTrainedModel

from encoders.fwd2bot.adapters import NONE, PER_PASS, SHARED, find_base_model
from encoders.fwd2bot.model import AdapterSettings, Fwd2Bot, ImageTokens, pool


@dataclass(frozen=True)
class Variant:
    """One row of the ablation; the defaults are those of the baseline `joint`.

    summaries: k, or 0 for that of the settings. trained: an adapter for each pass ("adapters"), one of twice
    the rank for both ("shared", with as many trained weights), the LLM itself, or only the summary tokens.
    reading: where answers are read from: summary tokens in a second forward ("double"), summary tokens in the
    forward that makes them ("single", which can have only one adapter), or the image tokens ("image").
    """

    name: str
    summaries: int = 0
    contrastive: bool = True
    answer: bool = True
    trained: Literal["adapters", "shared", "llm", "tokens"] = "adapters"
    reading: Literal["double", "single", "image"] = "double"
    pooling: Literal["mean", "last", "attention"] = "mean"


JOINT = "joint"
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(JOINT),
        Variant("contrastive_only", answer=False),
        Variant("answer_only", contrastive=False),
        Variant("shared_adapter", trained="shared"),
        Variant("whole_llm", trained="llm"),
        Variant("no_adapters", trained="tokens"),
        Variant("single_forward", trained="shared", reading="single"),
        Variant("k1", summaries=1),
        Variant("k2", summaries=2),
        Variant("k4", summaries=4),
        Variant("k16", summaries=16),
        Variant("k32", summaries=32),
        Variant("last_token", pooling="last"),
        Variant("attention", pooling="attention"),
        Variant("uncompressed", contrastive=False, reading="image"),
    )
}


class Reading(NamedTuple):
    """Pass 1's output for n rows: summaries (n, k, width), and memory (n, ...), which pass 2 reads."""

    summaries: Tensor
    memory: Tensor


class AblatedModel(Fwd2Bot):
    """Fwd2Bot that reads image features, computed once by a frozen tower, instead of images."""

    def __init__(self, stock: PreTrainedModel, variant: Variant, summaries: int, rank: int) -> None:
        """stock: is copied, and not changed."""
        mode = {"adapters": PER_PASS, "shared": SHARED}.get(variant.trained, NONE)
        rank = 2 * rank if mode == SHARED else rank
        super().__init__(copy.deepcopy(stock), summaries, AdapterSettings(rank, rank, mode))
        if variant.trained == "tokens":
            self.lvlm.requires_grad_(False)
        self.variant = variant
        if variant.pooling == "attention":
            self.query = nn.Parameter(torch.zeros(self.summary_shape[1]))

    def read(self, inputs: BatchEncoding, features: Tensor | None = None) -> Reading:
        """Pass 1 over texts, or over prompts with the features (n, tokens, width) of their images."""
        seen = None if features is None else ImageTokens(features.flatten(0, 1), [])
        summaries = self._compress(inputs, seen)
        return Reading(summaries, summaries)

    def embed(self, summaries: Tensor) -> Tensor:
        """The embeddings, pooled according to `pooling`: float32 (n, width), rows of unit length."""
        if self.variant.pooling == "last":
            return normalize(summaries[:, -1].float(), dim=-1)
        if self.variant.pooling == "attention":
            summaries = summaries.float()
            scores = summaries @ self.query / self.query.shape[0] ** 0.5  # (n, k)
            return normalize((scores.softmax(dim=1)[:, :, None] * summaries).sum(dim=1), dim=-1)
        return pool(summaries)

    def embed_texts(self, parts: Sequence[BatchEncoding]) -> Tensor:
        """Embed texts as rows of unit length: float32 (n, width)."""
        return torch.cat([self.embed(self.read(inputs).summaries) for inputs in parts])

    def open_answer(self, memory: Tensor, inputs: BatchEncoding) -> tuple[Tensor, Tensor, DynamicCache]:
        """Pass 2's initial state: input embeddings, attention mask over cache and inputs, and the cache."""
        embeddings = self.pass_two_inputs(memory, inputs["input_ids"])
        return embeddings, inputs["attention_mask"], DynamicCache()

    def answer_hidden(self, summaries: Tensor, inputs: BatchEncoding) -> Tensor:
        """Pass 2 given the memory: last hidden states (batch, length, width)."""
        return self._continue(*self.open_answer(summaries, inputs))

    @torch.no_grad()
    def say(self, memory: Tensor, inputs: BatchEncoding, longest: int, end: int) -> Tensor:
        """Decode greedily: token ids (n, up to `longest`), padded with `end`."""
        embeddings, mask, cache = self.open_answer(memory, inputs)
        said = torch.empty(len(mask), 0, dtype=torch.long)
        while said.shape[1] < longest and not (said == end).any(dim=1).all():
            head: Any = self.lvlm.get_output_embeddings()
            token = head(self._continue(embeddings, mask, cache)[:, -1]).argmax(dim=-1, keepdim=True)
            token = token.masked_fill((said == end).any(dim=1, keepdim=True), end)
            said = torch.cat([said, token], dim=1)
            embeddings, mask = self._embed(token), torch.cat([mask, torch.ones_like(token)], dim=1)
        return said

    def _continue(self, embeddings: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        return _extend_cache(
            find_base_model(self.generator).get_decoder(), embeddings, mask, positions, cache
        )


class SingleForward(AblatedModel):
    """The answer follows the summary tokens in one forward, and cannot attend to anything before them.

    Caching only the summary tokens' keys and values has the effect of that mask, so an image is read once for
    all its answers; an index would store these keys and values: (n, 2 * layers, heads, k, head width).
    """

    def read(self, inputs: BatchEncoding, features: Tensor | None = None) -> Reading:
        """Pass 1; position 0 is the first summary token, and the positions before it are negative."""
        embeddings, (count, _) = self._embed(inputs["input_ids"]), self.summary_shape
        if features is not None:
            embeddings = self.place(features.flatten(0, 1), inputs["input_ids"], embeddings)
        tokens = self.summary_tokens.expand(len(embeddings), -1, -1)
        mask = nn.functional.pad(inputs["attention_mask"], (0, count), value=1)
        cache = DynamicCache()
        positions = torch.arange(mask.shape[1]).expand_as(mask) - (mask.shape[1] - count)
        llm = find_base_model(self.compressor).get_decoder()
        hidden = _extend_cache(llm, torch.cat([embeddings, tokens], dim=1), mask, positions, cache)
        layers: Any = cache.layers
        kept = [part[:, :, -count:] for layer in layers for part in (layer.keys, layer.values)]
        return Reading(hidden[:, -count:], torch.stack(kept, dim=1))

    def open_answer(self, memory: Tensor, inputs: BatchEncoding) -> tuple[Tensor, Tensor, DynamicCache]:
        """See AblatedModel; the prompts hold no placeholders."""
        kept = memory.unbind(dim=1)
        mask = nn.functional.pad(inputs["attention_mask"], (self.summary_shape[0], 0), value=1)
        cache = DynamicCache(list(zip(kept[::2], kept[1::2], strict=True)))
        return self._embed(inputs["input_ids"]), mask, cache


class Uncompressed(AblatedModel):
    """The upper bound of generation: pass 2 reads the image tokens themselves."""

    def read(self, inputs: BatchEncoding, features: Tensor | None = None) -> Reading:
        """The features, unchanged."""
        assert features is not None  # never used to embed texts
        return Reading(features, features)


def _extend_cache(
    llm: Any, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> Tensor:
    """Run the LLM behind what the cache holds, and add to it: last hidden states (batch, length, width)."""
    is_new = "cache" in inspect.signature(llm.forward).parameters  # its name from transformers 5.24 on
    kept = {"cache" if is_new else "past_key_values": cache}
    hidden: Tensor = llm(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, **kept
    ).last_hidden_state
    return hidden


_KINDS = {"double": AblatedModel, "single": SingleForward, "image": Uncompressed}


def make_model(stock: PreTrainedModel, variant: Variant, summaries: int, rank: int) -> AblatedModel:
    """A variant over a copy of the stock LVLM; summaries: k, unless the variant sets its own."""
    return _KINDS[variant.reading](stock, variant, variant.summaries or summaries, rank)


def count_placeholders(variant: Variant, summaries: int, image_tokens: int) -> int:
    """How many placeholders a prompt of pass 2 has for the memory."""
    return {"double": variant.summaries or summaries, "single": 0, "image": image_tokens}[variant.reading]
