"""A small checkpoint's two passes over texts and stored tokens, in NumPy: all that an open index needs.

PyTorch, transformers and PEFT take seconds to import, while encoding a sentence takes milliseconds. For a
checkpoint that is not built exactly like the embedded model, `load_numpy_reader` returns None, and the full
encoder must be loaded.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from encoders.base import FloatArray
from encoders.fwd2bot.folders import OWN_BASE, fingerprint_checkpoint, read_settings
from encoders.fwd2bot.numpy_llm import Llm
from encoders.fwd2bot.numpy_weights import WEIGHTS_FILE, CheckpointWeights, read_json
from encoders.fwd2bot.prompts import PromptFrames, Prompts
from encoders.fwd2bot.writer import LONGEST_REPLY, REPEATED, PromptWriter, match_special

LARGEST = 1 << 28  # bytes of weights; reading more takes so long that importing torch hardly matters
_BACKEND = "Pil"  # the image processor backend that `load_processor` chooses: part of the fingerprint
_LLM = {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False}
_TOKENIZER = {"tokenizer_class": "TokenizersBackend", "bos_token": None}
# The keys that transformers itself writes into a generation config; any other may change the answers.
_GENERATION = {"_from_model_config", "transformers_version", "eos_token_id", "pad_token_id", "use_cache"}
_GENERATION |= {"output_attentions", "output_hidden_states"}


class NumpyReader:
    """A checkpoint's two passes over everything but images: a `Talker`."""

    def __init__(
        self,
        name: str,
        fingerprint: str,
        weights: CheckpointWeights,
        tokenizer: Tokenizer,
        writer: PromptWriter,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._weights = weights
        self._tokenizer = tokenizer
        self._writer = writer
        self._compressor = weights.read_llm(0)

    @cached_property
    def _generator(self) -> Llm:
        return self._weights.read_llm(1)

    @property
    def dim(self) -> int:
        """Length of an embedding: the LLM's width."""
        return int(self._weights.tokens.shape[1])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Pass 1 over texts, one by one: float32 (n, dim), rows of unit length."""
        vectors, tokens = np.empty((len(texts), self.dim), np.float32), self._weights.tokens
        for vector, text in zip(vectors, texts, strict=True):
            prompt = self._compressor.words[self._writer.text(text)]
            mean = self._compressor.read(np.concatenate([prompt, tokens]))[-len(tokens) :].mean(axis=0)
            vector[:] = mean / np.linalg.norm(mean)
        return vectors

    def caption(self, summaries: FloatArray) -> list[str]:
        """Pass 2 with the caption prompt."""
        return self.answer(summaries, self._writer.prompts.caption)

    def answer(self, summaries: FloatArray, question: str | Sequence[str]) -> list[str]:
        """Pass 2 with greedy decoding, up to 48 tokens; no 3-gram is repeated."""
        questions = [question] * len(summaries) if isinstance(question, str) else question
        return [
            str(self._tokenizer.decode(self._generate(self._place(tokens, text)))).strip()
            for tokens, text in zip(summaries, questions, strict=True)
        ]

    def match(self, summaries: FloatArray, texts: Sequence[str]) -> FloatArray:
        """Mean log-likelihood (nats per token, end included) of texts[i] as the caption of summaries[i]."""
        scores = np.empty(len(texts), np.float32)
        for text in set(texts):  # usually just one, which makes a single batch
            rows = [place for place, other in enumerate(texts) if other == text]
            scores[rows] = self._judge(summaries[rows], text)
        return scores

    def _place(self, summary: FloatArray, question: str) -> FloatArray:
        """Embed a question, with summary tokens (k, width) on its placeholders: (n, width)."""
        ids = np.array(self._writer.question(question))
        rows: FloatArray = self._generator.words[ids]
        rows[ids == self._tokenizer.token_to_id(self._writer.image_token)] = summary
        return rows

    def _generate(self, rows: FloatArray) -> list[int]:
        said: list[int] = []
        while len(said) < LONGEST_REPLY:
            logits = self._generator.read(rows)[-1] @ self._weights.head.T
            logits[find_repeats(said, REPEATED)] = -np.inf
            word = int(logits.argmax())
            if word == self._writer.end:
                break
            said.append(word)
            rows = np.concatenate([rows, self._generator.words[[word]]])
        return said

    def _judge(self, summaries: FloatArray, text: str) -> FloatArray:
        words, caption = self._writer.answer(text), self._writer.prompts.caption
        prompts = np.stack([self._place(summary, caption) for summary in summaries])  # (n, length, width)
        answers = np.broadcast_to(self._generator.words[words], (len(prompts), len(words), self.dim))
        hidden = self._generator.read(np.concatenate([prompts, answers], axis=1))
        logits = hidden[:, prompts.shape[1] - 1 : -1] @ self._weights.head.T  # each predicts the next word
        logits -= logits.max(axis=-1, keepdims=True)
        sums = np.log(np.exp(logits).sum(axis=-1))
        return np.asarray((logits[:, np.arange(len(words)), words] - sums).mean(axis=1), np.float32)


def find_repeats(said: Sequence[int], length: int) -> list[int]:
    """The token ids that, if generated next, would repeat an n-gram of `length` tokens in `said`."""
    start = len(said) - length + 1
    if start < 0:
        return []
    last = said[start:]
    return [said[n + length - 1] for n in range(start) if said[n : n + length - 1] == last]


def load_numpy_reader(name: str, folder: Path, fingerprint: str) -> NumpyReader | None:
    """The reader of a checkpoint folder; None if its fingerprint differs or it is built in another way."""
    try:
        settings, base = read_settings(folder), folder / OWN_BASE
        prompts, processor = Prompts(**settings["prompts"]), read_json(base / "processor_config.json")
        backend = processor["image_processor"]["image_processor_type"] + _BACKEND
        if not (
            settings["base"] == OWN_BASE
            and prompts.template  # if empty, the processor's own template applies
            and _is_known_make(base)
            and fingerprint_checkpoint(folder, backend) == fingerprint
        ):
            return None
        weights = CheckpointWeights.open(folder, settings["adapters"])
        tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        end = read_json(base / "generation_config.json")["eos_token_id"]
        if tokenizer.id_to_token(end) != read_json(base / "tokenizer_config.json")["eos_token"]:
            return None
        writer = _make_writer(tokenizer, prompts, processor["image_token"], len(weights.tokens), end)
        return NumpyReader(name, fingerprint, weights, tokenizer, writer)
    except Exception:  # whatever is wrong with these files, the full loader explains it better
        return None


def _is_known_make(base: Path) -> bool:
    config, tokenizer = read_json(base / "config.json"), read_json(base / "tokenizer_config.json")
    text = config["text_config"]
    return (
        config["model_type"] == "fast_vlm"
        and all(text[name] == value for name, value in _LLM.items())
        and text["rope_parameters"]["rope_type"] == "default"
        and all(tokenizer.get(name) == value for name, value in _TOKENIZER.items())
        and _GENERATION.issuperset(read_json(base / "generation_config.json"))
        and (base / WEIGHTS_FILE).stat().st_size <= LARGEST
    )


def _make_writer(
    tokenizer: Tokenizer, prompts: Prompts, image_token: str, count: int, end: int
) -> PromptWriter:
    added = tokenizer.get_added_tokens_decoder().values()

    def tokenize(text: str, special_tokens: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special_tokens).ids
        return ids

    return PromptWriter(
        frames=PromptFrames.of_template(prompts.template, image_token),
        prompts=prompts,
        tokenize=tokenize,
        join=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
        special=match_special({*(token.content for token in added if token.special), image_token}),
        image_token=image_token,
        summary=image_token * count,
        first=None,
        end=end,
    )
