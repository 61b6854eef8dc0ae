"""The model card of a checkpoint: what it is made of, and how to use it."""

from pathlib import Path

from encoders.fwd2bot.adapters import NONE, SHARED
from encoders.fwd2bot.model import Fwd2Bot
from encoders.fwd2bot.prompts import Prompts

_CARD = """---
library_name: fwd2bot
pipeline_tag: image-feature-extraction
tags:
- fwd2bot
- image-search
{base_model}---

# A Fwd2Bot checkpoint

One vision-language model condenses an image into {count} summary tokens of width {width}. Their mean finds
the image by a sentence; the tokens answer questions about it afterwards, without the image
(arXiv 2503.21757).

| | |
|---|---|
| base | {base} (`{family}`) |
| summary tokens | {count} |
| adapters | {adapters} |
| prompt over an image | {image} |
| prompt over a text | {text} |
| prompt for a caption | {caption} |

    fwd2bot index ~/Photos --model NAME      # this folder, or its hub name
    fwd2bot search a dog on a beach

The adapters are PEFT folders, which `PeftModel.from_pretrained` loads over the base. What the model was
trained on, and so what it may be used for, is for its maker to say here.
"""


def write_card(folder: Path, model: Fwd2Bot, prompts: Prompts, base: str | None) -> None:
    """Write README.md unless it exists. base: the base's path or hub name; None if it is in `folder`."""
    path = folder / "README.md"
    if path.exists():
        return
    settings = model.adapters
    lora = f"LoRA of rank {settings.rank}, alpha {settings.alpha}, on every linear layer of the LLM"
    adapters = {NONE: "none: the LLM itself was trained", SHARED: f"one for both passes: {lora}"}
    on_hub = base is not None and not Path(base).exists()
    count, width = model.summary_shape
    card = _CARD.format(
        base_model=f"base_model: {base}\n" if on_hub else "",
        base=base or "in the folder `base`",
        family=model.family.model_type,
        count=count,
        width=width,
        adapters=adapters.get(settings.mode, f"one for each pass: {lora}"),
        image=prompts.image,
        text=prompts.text,
        caption=prompts.caption,
    )
    path.write_text(card, encoding="utf-8")
