"""Texts, questions and answers as token ids: what both passes are given, before any tensor is made."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from encoders.fwd2bot.prompts import PromptFrames, Prompts

LONGEST_TEXT = 128
LONGEST_QUESTION = 512
LONGEST_ANSWER = 256
LONGEST_REPLY = 48  # tokens that pass 2 says
# So many in a row are not said twice: a small model that has lost the thread goes round in circles.
REPEATED = 3


@dataclass(frozen=True)
class PromptWriter:
    """Writes whole prompts with any tokenizer.

    tokenize: a text to ids, with what the tokenizer itself puts around it if True. join: ids to a text.
    special: finds the tokens that a user's text may not hold. summary: what pass 2 has in the place of the
    image token. first: the token that the tokenizer begins with, if it does. end: the id that an answer ends
    with. longest_text, longest_answer: tokens kept of a text and of an answer, the first ones; of a question
    the last ones, where it mostly says what is asked.
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
        """Pass 2 up to where the answer begins, with k image tokens for the summary tokens."""
        prompt = self.frames.fill_image(self.clean_question(question))
        return self._write(prompt.replace(self.image_token, self.summary))

    def answer(self, answer: str) -> list[int]:
        """What follows a question, in which no token has a special meaning; if cut, it has no end."""
        ids = self._continue_from(self.frames.image[-1:], self.special.sub(" ", answer).strip())
        return [*ids, self.end] if len(ids) <= self.longest_answer else ids[: self.longest_answer]

    def clean(self, text: str) -> str:
        """A user's text, not too long, in which no token has a special meaning."""
        return self._cut(text, slice(self.longest_text))

    def clean_question(self, question: str) -> str:
        """The same of a question."""
        return self._cut(question, slice(-LONGEST_QUESTION, None))

    def _cut(self, text: str, kept: slice) -> str:
        plain = self.special.sub(" ", text)
        ids = self.tokenize(plain, False)
        return plain if len(ids) == len(ids[kept]) else self.join(ids[kept])

    def _continue_from(self, last: str, text: str) -> list[int]:
        """The tokens that a text has behind the last letter of a prompt.

        Alone, it would begin with one space more for a tokenizer that begins every text with one (Llama's).
        """
        text, before = text if last.isspace() else f" {text}", self.tokenize(last, False)
        ids = self.tokenize(last + text, False)
        return ids[len(before) :] if ids[: len(before)] == before else self.tokenize(text, False)

    def wants_special_tokens(self, prompt: str) -> bool:
        """Whether the tokenizer is to add its own: not where the chat template wrote the first already."""
        return self.first is None or not prompt.startswith(self.first)

    def _write(self, prompt: str) -> list[int]:
        return self.tokenize(prompt, self.wants_special_tokens(prompt))


def match_special(tokens: Iterable[str]) -> re.Pattern[str]:
    """What finds these tokens in a text, the longest first."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
