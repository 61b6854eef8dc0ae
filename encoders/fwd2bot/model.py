"""Fwd2Bot: one LVLM, run twice. Pass 1 condenses an image into k summary tokens, pass 2 answers from them.

    pass 1, adapter `compress`    [ . ; . ; H_c ] = LLM([ H_v ; H_p ; H_r ])
    pass 2, adapter `generate`    p(answer)       = LLM([ H_c ; instruction ; answer ])

Bulat, Ouali, Tzimiropoulos, "Fwd2Bot" (arXiv 2503.21757), section 3.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel

from encoders.base import EncoderMismatch, first_line
from encoders.fwd2bot.adapters import AdapterSettings as AdapterSettings
from encoders.fwd2bot.adapters import add_adapters, find_base_model, fold_adapter
from encoders.fwd2bot.families import find_family
from encoders.fwd2bot.last_layer import read_summaries_alone
from encoders.shortage import is_shortage

IGNORED = -100  # the label of positions that the loss ignores
_COMPILED_FORMS = 64  # recompile limit: every layer of both passes, with and without gradients
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class ImageTokens(NamedTuple):
    """The image features that the LLM reads for a batch.

    features: H_v, (tokens of all images in reading order, width). deep: features of the same shape, one per
    layer, added after each of the LLM's first layers (DeepStack); empty for most families.
    """

    features: Tensor
    deep: list[Tensor]


class Answers(NamedTuple):
    """The answers that pass 2 is trained on: inputs and labels (n, length) of `InputBuilder.answers`.

    sources: int64 (n,), for each answer the row of the step's sources whose summary tokens it is given.
    """

    sources: Tensor
    inputs: BatchEncoding
    labels: Tensor


class JointOutput(NamedTuple):
    """The output of one training forward, over all parts of the step.

    sources, targets: (rows, k, width) summaries. images: (images, width), the mean of each image's H_v.
    answer_loss: scalar, mean cross-entropy (nats per token) of pass 2.
    """

    sources: Tensor
    targets: Tensor
    images: Tensor
    answer_loss: Tensor


class Fwd2Bot(nn.Module):
    """An LVLM of a supported family, k learned summary tokens, and the adapted trees of the two passes."""

    def __init__(
        self, lvlm: PreTrainedModel, summary_count: int, adapters: AdapterSettings | None = None
    ) -> None:
        super().__init__()
        self.family = find_family(lvlm.config.model_type)
        self.adapters = adapters or AdapterSettings()
        self.lvlm = lvlm
        self.compressor, self.generator = add_adapters(lvlm, self.adapters)
        # Summary tokens are inputs alongside word embeddings, so they start at the same scale.
        words: Tensor = lvlm.get_input_embeddings().weight.data  # type: ignore[assignment]
        start = torch.randn(summary_count, words.shape[1]) * words.float().std().cpu()
        self.summary_tokens = nn.Parameter(start.to(words.device))

    @property
    def summary_shape(self) -> tuple[int, int]:
        """(k, width)."""
        return self.summary_tokens.shape[0], self.summary_tokens.shape[1]

    @property
    def device(self) -> torch.device:
        """The device that inputs must be on."""
        return self.summary_tokens.device

    @property
    def image_token(self) -> int:
        """The id of the placeholder for an image token or, in pass 2, for a summary token."""
        return int(self.lvlm.config.image_token_id)

    def compress(self, inputs: BatchEncoding) -> Tensor:
        """Pass 1 over left-padded prompts, with images if there are pixel_values: H_c, (batch, k, width)."""
        return self._compress(inputs, self._look(inputs) if "pixel_values" in inputs else None)

    def _compress(self, inputs: BatchEncoding, seen: ImageTokens | None) -> Tensor:
        embeddings = self._embed(inputs["input_ids"])  # (batch, length, width)
        if seen is not None:
            embeddings = self.place(seen.features, inputs["input_ids"], embeddings)
        return self._read_summaries(embeddings, inputs, seen.deep if seen else [])

    def image_features(self, inputs: BatchEncoding) -> Tensor:
        """H_v of the batch: projected image tokens in reading order, (tokens of all images, width)."""
        return self._look(inputs).features

    def _look(self, inputs: BatchEncoding) -> ImageTokens:
        pixels = {
            name: value.to(self.lvlm.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
            if name not in _TEXT_INPUTS
        }
        with _of_one_make():
            output = self.lvlm.get_image_features(**pixels, return_dict=True)  # type: ignore[operator]
        deep = output.deepstack_features if self.family.deep_features else []
        return ImageTokens(_join_images(output.pooler_output), [_join_images(layer) for layer in deep])

    def place(self, features: Tensor, input_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Put features (n, width) on the prompts' image placeholders; EncoderMismatch unless there are n."""
        mask = input_ids == self.image_token
        if int(mask.sum()) != features.shape[0]:
            raise EncoderMismatch(
                f"The prompts hold {int(mask.sum())} places for {features.shape[0]} image or summary tokens: "
                "processor, model and index must be of one make"
            )
        return embeddings.masked_scatter(mask.unsqueeze(-1), features.to(embeddings.dtype))

    def _embed(self, input_ids: Tensor) -> Tensor:
        embeddings: Tensor = self.lvlm.get_input_embeddings()(input_ids)
        return embeddings

    def _read_summaries(self, embeddings: Tensor, inputs: BatchEncoding, deep: list[Tensor]) -> Tensor:
        batch, (count, _) = embeddings.shape[0], self.summary_shape
        tokens = self.summary_tokens.to(embeddings.dtype).expand(batch, -1, -1)
        mask = _append(inputs["attention_mask"], count, 1)
        images = {}
        if deep:
            places = inputs["input_ids"] == self.image_token
            images = {"visual_pos_masks": _append(places, count, 0), "deepstack_visual_embeds": deep}
        hidden = _language_model(self.compressor)(
            inputs_embeds=torch.cat([embeddings, tokens], dim=1),
            attention_mask=mask,
            position_ids=self._positions(inputs, mask),
            use_cache=False,
            **images,
        ).last_hidden_state
        summaries: Tensor = hidden[:, -count:]  # lm_head is not run
        return summaries

    def _positions(self, inputs: BatchEncoding, mask: Tensor) -> Tensor:
        """Position ids of pass 1: summary tokens continue the count, as words would."""
        if not self.family.spatial_positions or "pixel_values" not in inputs:
            return _text_positions(mask)
        count = self.summary_shape[0]
        positions: Tensor = self.lvlm.model.get_rope_index(
            _append(inputs["input_ids"], count, 0),
            _append(inputs["mm_token_type_ids"], count, 0),
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=mask,
        )[0]
        return positions  # (3, batch, length): time, height, width

    def pass_two_inputs(self, summaries: Tensor, input_ids: Tensor) -> Tensor:
        """Embed prompts, with summaries (batch, k, width) on their k placeholders: (batch, length, width)."""
        return self.place(summaries.flatten(0, 1), input_ids, self._embed(input_ids))

    def answer_hidden(self, summaries: Tensor, inputs: BatchEncoding) -> Tensor:
        """Pass 2 over left-padded prompts with k placeholders: last hidden states (batch, length, width)."""
        mask = inputs["attention_mask"]
        output = _language_model(self.generator)(
            inputs_embeds=self.pass_two_inputs(summaries, inputs["input_ids"]),
            attention_mask=mask,
            position_ids=_text_positions(mask),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def token_losses(self, summaries: Tensor, inputs: BatchEncoding, labels: Tensor) -> Tensor:
        """Cross-entropy (nats) per token of pass 2: float32 (batch, length - 1), 0 where unlabelled."""
        hidden = self.answer_hidden(summaries, inputs)[:, :-1]
        wanted = labels[:, 1:]
        answered = wanted != IGNORED
        head = self.lvlm.get_output_embeddings()
        assert head is not None  # every LVLM that generates has one
        logits = head(hidden[answered])  # only at labelled positions
        losses = torch.zeros(wanted.shape, device=hidden.device)
        return losses.masked_scatter(
            answered, nn.functional.cross_entropy(logits.float(), wanted[answered], reduction="none")
        )

    def forward(
        self, sources: Sequence[BatchEncoding], targets: Sequence[BatchEncoding], answers: Sequence[Answers]
    ) -> JointOutput:
        """Both passes of one training step, in one forward, as DDP requires.

        Each sequence holds the parts of one global batch, so that long and short texts need not be padded to
        one length. Sources with images come first.
        """
        summaries, images = [], []
        for inputs in sources:
            seen = self._look(inputs) if "pixel_values" in inputs else None
            summaries.append(self._compress(inputs, seen))
            if seen is not None:
                images.append(self.average_features(seen.features, inputs))
        none = self.summary_tokens.new_empty(0, *self.summary_shape)
        source_summaries = torch.cat(summaries or [none])
        target_summaries = torch.cat([self.compress(inputs) for inputs in targets] or [none])
        losses = [
            self.token_losses(source_summaries[part.sources], part.inputs, part.labels) for part in answers
        ]
        tokens = sum(int((part.labels[:, 1:] != IGNORED).sum()) for part in answers)
        answer_loss = torch.stack([part.sum() for part in losses] or [none.sum()]).sum() / max(tokens, 1)
        means = torch.cat(images or [none[:, 0]])
        return JointOutput(source_summaries, target_summaries, means, answer_loss)

    def average_features(self, features: Tensor, inputs: BatchEncoding) -> Tensor:
        """Average each image's features: (tokens of all images, width) to float32 (images, width)."""
        places = inputs["input_ids"] == self.image_token
        rows = places.nonzero()[:, 0]  # which image each feature belongs to
        features = features.float()  # a sum in bfloat16 would drop what is small beside it
        sums = features.new_zeros(len(places), features.shape[1]).index_add(0, rows, features)
        means: Tensor = sums / places.sum(dim=1, keepdim=True)
        return means

    @torch.inference_mode()
    def generate(self, summaries: Tensor, inputs: BatchEncoding, **settings: Any) -> Tensor:
        """Generate with pass 2: new token ids (batch, new); `settings` go to transformers' `generate`."""
        new: Tensor = find_base_model(self.generator).generate(
            inputs_embeds=self.pass_two_inputs(summaries, inputs["input_ids"]),
            attention_mask=inputs["attention_mask"],
            **settings,
        )
        return new

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of both passes in the backward pass; gradients stay the same."""
        for tree in (self.compressor, self.generator):
            find_base_model(tree).activation_checkpointing_enable({"use_reentrant": False})

    def prepare_inference(self) -> None:
        """Make inference faster; the model can no longer be trained or saved afterwards.

        Applies `fold_adapter` and, if pass 1 has a tree of its own, `read_summaries_alone`.
        """
        shared = self.generator is self.compressor
        self.compressor = fold_adapter(self.compressor)
        self.generator = self.compressor if shared else fold_adapter(self.generator)
        if not shared:
            read_summaries_alone(_language_model(self.compressor), self.summary_shape[0])

    def compile_layers(self) -> None:
        """Have torch.compile fuse each layer of the LLM, in both passes, for batches of any size."""
        torch.compiler.config.recompile_limit = _COMPILED_FORMS
        for tree in (self.compressor, self.generator):
            for layer in _language_model(tree).layers:  # type: ignore[union-attr]
                layer.compile(dynamic=True)


def pool(summaries: Tensor) -> Tensor:
    """The embedding of each image or text: its mean summary token at unit length, float32 (batch, width)."""
    return nn.functional.normalize(summaries.float().mean(dim=1), dim=-1)


def _language_model(tree: nn.Module) -> nn.Module:
    model: nn.Module = find_base_model(tree).get_decoder()
    return model


def _join_images(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Join features that come as one (images or tiles, tokens, width) or as one (tokens, width) per image."""
    return features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(list(features))


@contextmanager
def _of_one_make() -> Iterator[None]:
    """Turn a vision tower's errors into EncoderMismatch: the pixels were prepared for another model."""
    try:
        yield
    except EncoderMismatch:
        raise
    except (RuntimeError, ValueError) as error:
        if is_shortage(error):
            raise
        raise EncoderMismatch(
            f"The model cannot read what its processor makes of images ({first_line(error)}): both must be "
            "of one make"
        ) from error


def _append(rows: Tensor, count: int, value: int) -> Tensor:
    """Append `count` columns of `value` to rows (batch, length)."""
    return nn.functional.pad(rows, (0, count), value=value)


def _text_positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that padding changes nothing."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
