"""What is varied, and what each variant computes: Fwd2Bot over image features, with one thing changed."""

import copy
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
    """One row of the ablation; the defaults are those of `joint`, which all others are compared with.

    summaries: k, 0 for that of the settings. trained: an adapter a pass, one for both of twice the rank (so
    that as many weights are trained), the LLM itself, or the summary tokens alone. reading: what the answer
    is read from: summary tokens in a second forward, the same in the one forward that makes them, or the
    image tokens.
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
    """What pass 1 makes of n rows: summaries (n, k, width), and what answers are read from, (n, ...)."""

    summaries: Tensor
    memory: Tensor


class AblatedModel(Fwd2Bot):
    """Fwd2Bot that is shown image features, made once by a frozen tower, in the place of images."""

    def __init__(self, stock: PreTrainedModel, variant: Variant, summaries: int, rank: int) -> None:
        """stock: copied, and left as it is."""
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
        """What is compared, float32 (n, width), rows of unit length: by `pooling`."""
        if self.variant.pooling == "last":
            return normalize(summaries[:, -1].float(), dim=-1)
        if self.variant.pooling == "attention":
            summaries = summaries.float()
            scores = summaries @ self.query / self.query.shape[0] ** 0.5  # (n, k)
            return normalize((scores.softmax(dim=1)[:, :, None] * summaries).sum(dim=1), dim=-1)
        return pool(summaries)

    def embed_texts(self, parts: Sequence[BatchEncoding]) -> Tensor:
        """Texts to rows of unit length."""
        return torch.cat([self.embed(self.read(inputs).summaries) for inputs in parts])

    def open_answer(self, memory: Tensor, inputs: BatchEncoding) -> tuple[Tensor, Tensor, DynamicCache]:
        """What pass 2 starts with: embeddings, a mask over the cache and these, and the cache."""
        embeddings = self.pass_two_inputs(memory, inputs["input_ids"])
        return embeddings, inputs["attention_mask"], DynamicCache()

    def answer_hidden(self, summaries: Tensor, inputs: BatchEncoding) -> Tensor:
        """Pass 2 from what is kept: last hidden states (batch, length, width)."""
        return self._continue(*self.open_answer(summaries, inputs))

    @torch.no_grad()
    def say(self, memory: Tensor, inputs: BatchEncoding, longest: int, end: int) -> Tensor:
        """Greedily, the most likely token each time: ids (n, up to `longest`), `end` after the end."""
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
        hidden: Tensor = (
            find_base_model(self.generator)
            .get_decoder()(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            .last_hidden_state
        )
        return hidden


class SingleForward(AblatedModel):
    """The answer stands behind the summary tokens in one forward, and sees nothing before them.

    That mask is what comes of keeping the keys and values of the summary tokens alone, so an image is read
    once for all its answers, and these are what would be stored: (n, 2 * layers, heads, k, head width).
    """

    def read(self, inputs: BatchEncoding, features: Tensor | None = None) -> Reading:
        """Pass 1, in which positions are counted from the first summary token on."""
        embeddings, (count, _) = self._embed(inputs["input_ids"]), self.summary_shape
        if features is not None:
            embeddings = self.place(features.flatten(0, 1), inputs["input_ids"], embeddings)
        tokens = self.summary_tokens.expand(len(embeddings), -1, -1)
        mask = nn.functional.pad(inputs["attention_mask"], (0, count), value=1)
        cache = DynamicCache()
        hidden = (
            find_base_model(self.compressor)
            .get_decoder()(
                inputs_embeds=torch.cat([embeddings, tokens], dim=1),
                attention_mask=mask,
                position_ids=torch.arange(mask.shape[1]).expand_as(mask) - (mask.shape[1] - count),
                past_key_values=cache,
            )
            .last_hidden_state
        )
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
        """The features as they are."""
        assert features is not None  # it is never asked to embed a text
        return Reading(features, features)


_KINDS = {"double": AblatedModel, "single": SingleForward, "image": Uncompressed}


def make_model(stock: PreTrainedModel, variant: Variant, summaries: int, rank: int) -> AblatedModel:
    """A variant over a copy of the stock LVLM; summaries: k, where the variant has none of its own."""
    return _KINDS[variant.reading](stock, variant, variant.summaries or summaries, rank)


def count_placeholders(variant: Variant, summaries: int, image_tokens: int) -> int:
    """How many places for what is kept a prompt of pass 2 has."""
    return {"double": variant.summaries or summaries, "single": 0, "image": image_tokens}[variant.reading]
