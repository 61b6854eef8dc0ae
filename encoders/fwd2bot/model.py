"""Fwd2Bot: one LVLM read twice. Pass 1 condenses an image into k summary tokens, pass 2 answers from them.

    pass 1, adapter `compress`    [ . ; . ; H_c ] = LLM([ H_v ; H_p ; H_r ])
    pass 2, adapter `generate`    p(answer)       = LLM([ H_c ; instruction ; answer ])

Bulat, Ouali, Tzimiropoulos, "Fwd2Bot" (arXiv 2503.21757), section 3.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel

IGNORED = -100  # the label of a position that no loss looks at
_COMPILED_FORMS = 64  # every layer of both passes, with gradients and without
_TEXT_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class AdapterSettings:
    """LoRA on every linear layer of the LLM, the same for both passes."""

    rank: int = 16
    alpha: int = 16


class Answers(NamedTuple):
    """What pass 2 must say: inputs and labels (n, length) as `InputBuilder.answers` writes them.

    sources: int64 (n,), the rows of the step's sources whose summary tokens each one is given.
    """

    sources: Tensor
    inputs: BatchEncoding
    labels: Tensor


class JointOutput(NamedTuple):
    """What one training forward returns, over all parts of the step.

    sources, targets: (rows, k, width) summaries. images: (images, width), the mean of each image's H_v.
    answer_loss: scalar, mean cross-entropy (nats a token) after pass 2.
    """

    sources: Tensor
    targets: Tensor
    images: Tensor
    answer_loss: Tensor


class Fwd2Bot(nn.Module):
    """An LVLM, k learned summary tokens, and two LoRA adapters over the same base weights.

    `compressor` and `generator` are two module trees that share every base tensor with `lvlm` and hold one
    adapter each. With both adapters in one tree, switching them between the passes loses gradients, and
    gradient checkpointing recomputes pass 1 with the adapter of pass 2.
    """

    def __init__(
        self, lvlm: PreTrainedModel, summary_count: int, adapters: AdapterSettings | None = None
    ) -> None:
        super().__init__()
        self.lvlm = lvlm
        settings = adapters or AdapterSettings()
        self.compressor = _add_adapter(_share_tensors(lvlm), settings)
        self.generator = _add_adapter(_share_tensors(lvlm), settings)
        # As inputs, summary tokens stand beside word embeddings, so they start at the same scale.
        words: Tensor = lvlm.get_input_embeddings().weight.data  # type: ignore[assignment]
        start = torch.randn(summary_count, words.shape[1]) * words.float().std().cpu()
        self.summary_tokens = nn.Parameter(start.to(words.device))

    @property
    def summary_shape(self) -> tuple[int, int]:
        """(k, width)."""
        return self.summary_tokens.shape[0], self.summary_tokens.shape[1]

    @property
    def device(self) -> torch.device:
        """Where inputs belong."""
        return self.summary_tokens.device

    def compress(self, inputs: BatchEncoding) -> Tensor:
        """Pass 1 over left-padded prompts, with images where there are pixels: H_c, (batch, k, width)."""
        features = self.image_features(inputs) if "pixel_values" in inputs else None
        return self._compress(inputs, features)

    def _compress(self, inputs: BatchEncoding, features: Tensor | None) -> Tensor:
        embeddings = self._embed(inputs["input_ids"])  # (batch, length, width)
        if features is not None:
            embeddings = self.place(features, inputs["input_ids"], embeddings)
        return self._read_summaries(embeddings, inputs["attention_mask"])

    def image_features(self, inputs: BatchEncoding) -> Tensor:
        """H_v of the batch: projected image tokens in reading order, (tokens of all images, width)."""
        pixels = {name: value for name, value in inputs.items() if name not in _TEXT_INPUTS}
        features = self.lvlm.get_image_features(**pixels, return_dict=True).pooler_output  # type: ignore[operator]
        if isinstance(features, Tensor):
            return features.flatten(0, 1)
        return torch.cat(list(features))

    def place(self, features: Tensor, input_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Put features (n, width) where the prompt holds its n image placeholders."""
        mask = input_ids == self.lvlm.config.image_token_id
        if int(mask.sum()) != features.shape[0]:
            raise ValueError(f"{int(mask.sum())} places for {features.shape[0]} image or summary tokens")
        return embeddings.masked_scatter(mask.unsqueeze(-1), features.to(embeddings.dtype))

    def _embed(self, input_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.lvlm.get_input_embeddings()(input_ids)
        return embeddings

    def _read_summaries(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        batch, (count, _) = embeddings.shape[0], self.summary_shape
        tokens = self.summary_tokens.to(embeddings.dtype).expand(batch, -1, -1)
        mask = torch.cat([attention_mask, attention_mask.new_ones(batch, count)], dim=1)
        hidden = _language_model(self.compressor)(
            inputs_embeds=torch.cat([embeddings, tokens], dim=1),
            attention_mask=mask,
            position_ids=_positions(mask),
            use_cache=False,
        ).last_hidden_state
        summaries: Tensor = hidden[:, -count:]  # lm_head is not run
        return summaries

    def pass_two_inputs(self, summaries: Tensor, input_ids: Tensor) -> Tensor:
        """Prompts whose k placeholders hold summaries (batch, k, width): (batch, length, width)."""
        return self.place(summaries.flatten(0, 1), input_ids, self._embed(input_ids))

    def answer_hidden(self, summaries: Tensor, inputs: BatchEncoding) -> Tensor:
        """Pass 2 over left-padded prompts with k placeholders: last hidden states (batch, length, width)."""
        mask = inputs["attention_mask"]
        output = _language_model(self.generator)(
            inputs_embeds=self.pass_two_inputs(summaries, inputs["input_ids"]),
            attention_mask=mask,
            position_ids=_positions(mask),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def token_losses(self, summaries: Tensor, inputs: BatchEncoding, labels: Tensor) -> Tensor:
        """Cross-entropy (nats) a token after pass 2: float32 (batch, length - 1), 0 where unlabelled."""
        hidden = self.answer_hidden(summaries, inputs)[:, :-1]
        wanted = labels[:, 1:]
        answered = wanted != IGNORED
        head = self.lvlm.get_output_embeddings()
        assert head is not None  # every LVLM that generates has one
        logits = head(hidden[answered])  # only where a token is asked for
        losses = torch.zeros(wanted.shape, device=hidden.device)
        return losses.masked_scatter(
            answered, nn.functional.cross_entropy(logits.float(), wanted[answered], reduction="none")
        )

    def forward(
        self, sources: Sequence[BatchEncoding], targets: Sequence[BatchEncoding], answers: Sequence[Answers]
    ) -> JointOutput:
        """Both passes of one training step, in one forward, as DDP wants it.

        Each sequence holds the parts of one global batch, so that long and short texts need not be padded to
        one length. Sources with images come first.
        """
        summaries, images = [], []
        for inputs in sources:
            features = self.image_features(inputs) if "pixel_values" in inputs else None
            summaries.append(self._compress(inputs, features))
            if features is not None:
                images.append(self.average_features(features, inputs))
        source_summaries = torch.cat(summaries)
        target_summaries = torch.cat([self.compress(inputs) for inputs in targets])
        losses = [
            self.token_losses(source_summaries[part.sources], part.inputs, part.labels) for part in answers
        ]
        tokens = sum(int((part.labels[:, 1:] != IGNORED).sum()) for part in answers)
        answer_loss = torch.stack([part.sum() for part in losses]).sum() / max(tokens, 1)
        means = torch.cat(images) if images else source_summaries.new_empty(0, self.summary_shape[1])
        return JointOutput(source_summaries, target_summaries, means, answer_loss)

    def average_features(self, features: Tensor, inputs: BatchEncoding) -> Tensor:
        """Mean of each image's features (tokens, width), however many it has: (images, width)."""
        places = inputs["input_ids"] == self.lvlm.config.image_token_id
        rows = places.nonzero()[:, 0]  # which image each feature belongs to
        sums = features.new_zeros(len(places), features.shape[1]).index_add(0, rows, features)
        means: Tensor = sums / places.sum(dim=1, keepdim=True)
        return means

    @torch.inference_mode()
    def generate(self, summaries: Tensor, inputs: BatchEncoding, **settings: Any) -> Tensor:
        """Pass 2, freely: new token ids (batch, new); `settings` go to transformers' `generate`."""
        new: Tensor = self.generator.get_base_model().generate(  # type: ignore[operator]
            inputs_embeds=self.pass_two_inputs(summaries, inputs["input_ids"]),
            attention_mask=inputs["attention_mask"],
            **settings,
        )
        return new

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of both passes in the backward; gradients stay the same."""
        for tree in (self.compressor, self.generator):
            tree.get_base_model().activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]

    def compile_layers(self) -> None:
        """Have torch.compile fuse each layer of the LLM, in both passes, for batches of any size."""
        torch.compiler.config.recompile_limit = _COMPILED_FORMS
        for tree in (self.compressor, self.generator):
            for layer in _language_model(tree).layers:  # type: ignore[union-attr]
                layer.compile(dynamic=True)


def pool(summaries: Tensor) -> Tensor:
    """Embedding of each image or text: mean of its k summary tokens, unit length; float32 (batch, width)."""
    return nn.functional.normalize(summaries.float().mean(dim=1), dim=-1)


def _share_tensors(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the very same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def _add_adapter(model: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    language_model: nn.Module = model.model.language_model
    kinds = {
        name.rsplit(".", 1)[-1]
        for name, part in language_model.named_modules()
        if isinstance(part, nn.Linear)
    }
    targets = rf"model\.language_model\..*\.({'|'.join(sorted(map(re.escape, kinds)))})"
    with warnings.catch_warnings():
        # PEFT asks transformers for a name that is to go in version 6; nobody here can act on it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(
            model, LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets)
        )


def _language_model(tree: PeftModel) -> nn.Module:
    model: nn.Module = tree.get_base_model().model.language_model  # type: ignore[assignment, union-attr]
    return model


def _positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that padding changes nothing."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
