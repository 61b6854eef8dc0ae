"""Settings and data for training runs that take seconds, from scratch and on a base model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from encoders.fwd2bot.model import AdapterSettings
from tests.tiny_models import LVLM, make_builder
from training.data_settings import KarpathySettings
from training.settings import BaseSettings, BatchSettings, TrainingSettings, read_settings

CONFIG = Path(__file__).parent.parent / "training" / "configs" / "tiny.toml"
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


def write_colours(folder: Path) -> Path:
    """Sixteen noisy pictures of four colours, laid out as the shipped settings expect."""
    images = folder / "flickr8k" / "images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    records = []
    for number in range(16):
        colour = list(COLOURS)[number % 4]
        pixels = np.clip(np.array(COLOURS[colour]) + random.integers(-20, 20, (24, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number}.png")
        sentences = [{"raw": f"a {colour} wall"}, {"raw": f"the wall is {colour}"}]
        split = "val" if number >= 12 else "train" if number else "restval"
        records.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
    (folder / "flickr8k" / "dataset_flickr8k.json").write_text(json.dumps({"images": records}))
    groups = [{"captions": [f"a {colour} door", f"the door is {colour}"]} for colour in COLOURS]
    (folder / "flickr30k_text").mkdir()
    lines = "".join(json.dumps(group) + "\n" for group in groups)
    (folder / "flickr30k_text" / "captions_train.jsonl").write_text(lines)
    return folder


def write_tested_colours(folder: Path) -> Path:
    """The same, with the photos of val also listed as test photos."""
    write_colours(folder)
    path = folder / "flickr8k" / "dataset_flickr8k.json"
    records = json.loads(path.read_text())["images"]
    tests = [{**record, "split": "test"} for record in records if record["split"] == "val"]
    path.write_text(json.dumps({"images": records + tests}))
    return folder


def make_settings(steps: int) -> TrainingSettings:
    settings = read_settings(CONFIG)
    optimizer = replace(settings.optimizer, learning_rate=3e-3, warmup_steps=2, cooldown_steps=2)
    return replace(
        settings,
        lvlm=LVLM,
        summary_tokens=2,
        adapters=AdapterSettings(4, 4),
        optimizer=optimizer,
        batches=(
            BatchSettings(1, {"groups": 4}),
            BatchSettings(1, {"photos": 4, "scenes": 2, "families": 4}, tower_only=True),
            BatchSettings(steps - 2, {"photos": 4, "scenes": 2, "families": 4, "groups": 1}),
        ),
        validate_every=max(3, steps // 2),
        checkpoint_seconds=0,
        compiled=False,
    )


def read_log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def make_base(folder: Path) -> LlavaForConditionalGeneration:
    """A random LLaVA, saved with its processor as if downloaded from the hub."""
    builder = make_builder()
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    lvlm = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=16, patch_size=8, hidden_size=24, **sizes),
            text_config=LlamaConfig(vocab_size=len(builder.tokenizer), hidden_size=32, **sizes),
            image_token_index=builder.tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=4,
        )
    )
    lvlm.save_pretrained(folder)
    builder.processor.vision_feature_select_strategy = "default"
    builder.processor.num_additional_image_tokens = 1
    builder.processor.save_pretrained(folder)
    return lvlm


def settle_on(base: Path, settings: TrainingSettings, rows: int) -> TrainingSettings:
    """The same run with adapters on a base model, on the photos alone, in chunks of two."""
    photos = settings.sources["photos"]
    assert isinstance(photos, KarpathySettings)
    return replace(
        settings,
        lvlm=BaseSettings(str(base), "none"),
        sources={"photos": replace(photos, in_memory=False)},
        batches=(BatchSettings(settings.total_steps, {"photos": rows}),),
        augmentation=None,
        feature_weight=0.0,
        word_weight=0.0,
        contrastive_loss="sigmoid",
        chunk_size=2,
        gradient_checkpointing=True,
    )
