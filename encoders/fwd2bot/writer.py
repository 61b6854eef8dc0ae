"""Writes texts, questions and answers as token ids, the input of both passes before it becomes tensors."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from encoders.fwd2bot.prompts import PromptFrames, Prompts

LONGEST_TEXT = 128
LONGEST_QUESTION = 512
LONGEST_ANSWER = 256
LONGEST_REPLY = 48  # maximum tokens that pass 2 generates
# No n-gram of this length is generated twice: a small model that loses the thread goes round in circles.
REPEATED = 3


@dataclass(frozen=True)
class PromptWriter:
    """Writes whole prompts with any tokenizer.

    tokenize: a text to ids, with the tokenizer's own special tokens if True. join: ids to a text. special:
    matches the tokens that a user's text must not contain. summary: what replaces the image token in pass 2.
    first: the tokenizer's beginning-of-text token, if it has one. end: the id that ends an answer.
    longest_text, longest_answer: how many of its first tokens a text and an answer keep. A question keeps its
    last LONGEST_QUESTION, because the actual question usually comes at the end.
    """

    frames: PromptFrames
    prompts: Prompts
    tokenize: Callable[[str, bool], list[int]]
    join: Callable[[list[int]], str]
    special: re.Pattern[str]
    image_token: str
    summary: str
    first: str | None
    end: int
    longest_text: int = LONGEST_TEXT
    longest_answer: int = LONGEST_ANSWER

    def text(self, text: str) -> list[int]:
        """Pass 1 over a text."""
        return self._write(self.frames.fill_text(self.clean(text), self.prompts.text))

    def question(self, question: str) -> list[int]:
        """Pass 2 up to where the answer begins, with k image tokens as placeholders of the summary tokens."""
        prompt = self.frames.fill_image(self.clean_question(question))
        return self._write(prompt.replace(self.image_token, self.summary))

    def answer(self, answer: str) -> list[int]:
        """An answer without special tokens, then the end token; a truncated answer has no end token."""
        ids = self._continue_from(self.frames.image[-1:], self.special.sub(" ", answer).strip())
        return [*ids, self.end] if len(ids) <= self.longest_answer else ids[: self.longest_answer]

    def clean(self, text: str) -> str:
        """A user's text without special tokens, truncated to its first `longest_text` tokens."""
        return self._cut(text, slice(self.longest_text))

    def clean_question(self, question: str) -> str:
        """A user's question without special tokens, truncated to its last LONGEST_QUESTION tokens."""
        return self._cut(question, slice(-LONGEST_QUESTION, None))

    def _cut(self, text: str, kept: slice) -> str:
        plain = self.special.sub(" ", text)
        ids = self.tokenize(plain, False)
        return plain if len(ids) == len(ids[kept]) else self.join(ids[kept])

    def _continue_from(self, last: str, text: str) -> list[int]:
        """The tokens of a text that follows a prompt with this last character.

        Tokenized alone, the text would get an extra space from a tokenizer that puts one before every text
        (Llama's).
        """
        text, before = text if last.isspace() else f" {text}", self.tokenize(last, False)
        ids = self.tokenize(last + text, False)
        return ids[len(before) :] if ids[: len(before)] == before else self.tokenize(text, False)

    def wants_special_tokens(self, prompt: str) -> bool:
        """Whether the tokenizer should add its own tokens: not if the template wrote the first already."""
        return self.first is None or not prompt.startswith(self.first)

    def _write(self, prompt: str) -> list[int]:
        return self.tokenize(prompt, self.wants_special_tokens(prompt))


def match_special(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches these tokens in a text, trying the longest first."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
