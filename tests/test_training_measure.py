"""Measuring a recipe, on small models and without data."""

import json
from pathlib import Path

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen2VLConfig

from training.measure import main

CONFIGS = Path(__file__).parent.parent / "training" / "configs"


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    """A folder that holds nothing but the configuration of a small LLaVA."""
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, hidden_size=24, **sizes)
    text = LlamaConfig(vocab_size=400, hidden_size=32, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=399, image_seq_length=4)
    config.save_pretrained(tmp_path)
    return tmp_path


def test_a_recipe_is_measured_by_one_command(shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(CONFIGS / "llava-1.5-7b-k16.toml")
    assert main([recipe, "--steps", "2", "--rows", "3", "--set", f"lvlm.base={shape}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3 and found["device"] == "cpu"
    # Pass 1: image, instruction, k; and instruction, caption, k. Pass 2: k, instruction, answer.
    tokens = (4 + 20 + 16) + (20 + 30 + 16) + (16 + 20 + 100)
    assert found["tokens_per_second"] / found["images_per_second"] == pytest.approx(tokens, rel=0.01)
    assert 0 < found["flops_share"] < 100


def test_the_same_work_counts_the_same_in_chunks(shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [
        str(CONFIGS / "llava-1.5-7b-k4.toml"),
        "--steps",
        "1",
        "--rows",
        "4",
        "--set",
        f"lvlm.base={shape}",
    ]
    done = []
    for chunk_size in (0, 1):
        assert main([*recipe, "--set", f"chunk_size={chunk_size}"]) == 0
        found = json.loads(capsys.readouterr().out)
        done.append(found["model_teraflops_per_second"] / found["images_per_second"])
    assert done[0] > 0 and done[0] == pytest.approx(done[1], rel=0.05)


def test_a_family_of_varying_image_sizes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Qwen2VLConfig().save_pretrained(tmp_path)
    recipe = str(CONFIGS / "llava-1.5-7b-k16.toml")
    assert main([recipe, "--steps", "1", "--rows", "1", "--set", f"lvlm.base={tmp_path}"]) == 1
    assert "for a llava or a fast_vlm, not for qwen2_vl" in capsys.readouterr().err


@pytest.mark.parametrize("count", ["--steps", "--rows"])
def test_nothing_is_not_measured(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIGS / "tiny.toml"), count, "0"]) == 1
    assert "take 1 or more" in capsys.readouterr().err
