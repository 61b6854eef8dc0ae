"""Answers of an LVLM that reads all tokens of an image: the reference for answers from summary tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from encoders.fwd2bot.inputs import InputBuilder
from encoders.fwd2bot.writer import LONGEST_REPLY


@torch.inference_mode()
def answer_from_pixels(
    lvlm: Any, builder: InputBuilder, images: Sequence[Image.Image], questions: Sequence[str]
) -> list[str]:
    """Answer questions[i] about images[i] with greedy decoding, and with the adapter in `lvlm`, if any."""
    inputs = builder.image_questions(images, questions).to(lvlm.device)
    read = {name: each.to(lvlm.dtype) if each.is_floating_point() else each for name, each in inputs.items()}
    ids = lvlm.generate(**read, max_new_tokens=LONGEST_REPLY, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    answers: list[str] = builder.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in answers]
