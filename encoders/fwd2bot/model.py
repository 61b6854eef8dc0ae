"""Fwd2Bot: one LVLM read twice. Pass 1 condenses an image into k summary tokens, pass 2 answers from them.

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

IGNORED = -100  # the label of a position that no loss looks at
_COMPILED_FORMS = 64  # every layer of both passes, with gradients and without
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class ImageTokens(NamedTuple):
    """What the LLM is shown of a batch of images.

    features: H_v, (tokens of all images in reading order, width). deep: what is added to them after each of
    the LLM's first layers, of the same shape (DeepStack); mostly nothing.
    """

    features: Tensor
    deep: list[Tensor]


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
    """An LVLM of a known family, k learned summary tokens, and the adapted trees of the two passes."""

    def __init__(
        self, lvlm: PreTrainedModel, summary_count: int, adapters: AdapterSettings | None = None
    ) -> None:
        super().__init__()
        self.family = find_family(lvlm.config.model_type)
        self.adapters = adapters or AdapterSettings()
        self.lvlm = lvlm
        self.compressor, self.generator = add_adapters(lvlm, self.adapters)
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

    @property
    def image_token(self) -> int:
        """The id of the placeholder of an image token or, in pass 2, of a summary token."""
        return int(self.lvlm.config.image_token_id)

    def compress(self, inputs: BatchEncoding) -> Tensor:
        """Pass 1 over left-padded prompts, with images where there are pixels: H_c, (batch, k, width)."""
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
        """Put features (n, width) where the prompts hold n image placeholders; raises EncoderMismatch."""
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
        """Positions of pass 1: summary tokens count on, as words do."""
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
        """Prompts whose k placeholders hold summaries (batch, k, width): (batch, length, width)."""
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
        """Mean of each image's features (tokens, width), however many it has: (images, width)."""
        places = inputs["input_ids"] == self.image_token
        rows = places.nonzero()[:, 0]  # which image each feature belongs to
        sums = features.new_zeros(len(places), features.shape[1]).index_add(0, rows, features)
        means: Tensor = sums / places.sum(dim=1, keepdim=True)
        return means

    @torch.inference_mode()
    def generate(self, summaries: Tensor, inputs: BatchEncoding, **settings: Any) -> Tensor:
        """Pass 2, freely: new token ids (batch, new); `settings` go to transformers' `generate`."""
        new: Tensor = find_base_model(self.generator).generate(
            inputs_embeds=self.pass_two_inputs(summaries, inputs["input_ids"]),
            attention_mask=inputs["attention_mask"],
            **settings,
        )
        return new

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of both passes in the backward; gradients stay the same."""
        for tree in (self.compressor, self.generator):
            find_base_model(tree).activation_checkpointing_enable({"use_reentrant": False})

    def prepare_inference(self) -> None:
        """Make a model faster, which cannot be trained or saved from then on.

        See `fold_adapter`, for a small one, and `read_summaries_alone`, where pass 1 has a tree of its own.
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
    """Embedding of each image or text: mean of its k summary tokens, unit length; float32 (batch, width)."""
    return nn.functional.normalize(summaries.float().mean(dim=1), dim=-1)


def _language_model(tree: nn.Module) -> nn.Module:
    model: nn.Module = find_base_model(tree).get_decoder()
    return model


def _join_images(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Families give one tensor (images or tiles, tokens, width), or one (tokens, width) for each image."""
    return features.flatten(0, 1) if isinstance(features, Tensor) else torch.cat(list(features))


@contextmanager
def _of_one_make() -> Iterator[None]:
    """Pixels that a tower cannot read were prepared for another one: EncoderMismatch."""
    try:
        yield
    except (EncoderMismatch, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError) as error:
        raise EncoderMismatch(
            f"The model cannot read what its processor makes of images ({first_line(error)}): both must be "
            "of one make"
        ) from error


def _append(rows: Tensor, count: int, value: int) -> Tensor:
    """Rows (batch, length) with `count` columns more."""
    return nn.functional.pad(rows, (0, count), value=value)


def _text_positions(attention_mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that padding changes nothing."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
