"""An adapter per pass, a shared one, or none: what is trained, and how it loads from a folder or the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from encoders.base import DatasetError, EncoderDamaged
from encoders.fwd2bot import adapters
from encoders.fwd2bot.adapters import MODES, AdapterSettings, fold_adapter
from encoders.fwd2bot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from encoders.fwd2bot.folders import fingerprint_checkpoint
from encoders.fwd2bot.model import Fwd2Bot
from encoders.fwd2bot.prompts import Prompts
from encoders.load import load_encoder
from tests.tiny_families import TinyLvlm, make_lvlm_of
from tests.tiny_models import SUMMARIES, make_pictures

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def tiny() -> TinyLvlm:
    torch.manual_seed(0)
    return make_lvlm_of("llava")


@pytest.fixture(scope="module")
def base(tiny: TinyLvlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.model.save_pretrained(folder)
    tiny.builder.processor.save_pretrained(folder)
    return folder


def make_model(tiny: TinyLvlm, mode: str) -> Fwd2Bot:
    torch.manual_seed(1)
    model = Fwd2Bot(tiny.model, SUMMARIES, AdapterSettings(4, 8, mode)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_checkpoint(tiny: TinyLvlm, mode: str) -> Checkpoint:
    return Checkpoint(make_model(tiny, mode), tiny.builder.processor, Prompts(caption="Say what you see."))


def run_passes(model: Fwd2Bot, tiny: TinyLvlm) -> torch.Tensor:
    """The hidden states of both passes, concatenated."""
    summaries = model.compress(tiny.builder.images(make_pictures()))
    hidden = model.answer_hidden(summaries, tiny.builder.questions([QUESTION] * len(summaries)))
    return torch.cat([summaries, hidden], dim=1)


def count_trained(model: Fwd2Bot) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_what_is_trained_is_the_adapters_or_the_llm_and_the_summary_tokens(tiny: TinyLvlm) -> None:
    tokens = SUMMARIES * 32
    per_pass, shared = (count_trained(make_model(tiny, mode)) - tokens for mode in ("per_pass", "shared"))
    assert per_pass == 2 * shared > 0
    llm = [*tiny.model.get_decoder().parameters(), *tiny.model.get_output_embeddings().parameters()]
    assert count_trained(make_model(tiny, "none")) == tokens + sum(part.numel() for part in llm)


@pytest.mark.parametrize("mode", MODES)
def test_a_backward_through_both_passes_reaches_all_that_is_trained(tiny: TinyLvlm, mode: str) -> None:
    model = make_model(tiny, mode)
    inputs, labels = tiny.builder.answers([QUESTION] * 3, ["a dog", "a red bird", "snow"])
    model.token_losses(model.compress(tiny.builder.images(make_pictures())), inputs, labels).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
    model.zero_grad()


def test_a_shared_adapter_serves_both_passes(tiny: TinyLvlm) -> None:
    model = make_model(tiny, "shared")
    assert model.compressor is model.generator
    assert isinstance(model.compressor, PeftModel)


def count_lora_layers(model: Fwd2Bot) -> int:
    return sum(isinstance(part, LoraLayer) for part in model.modules())


@pytest.mark.parametrize("mode", MODES)
def test_folded_adapters_say_the_same_and_leave_the_base_as_it_was(tiny: TinyLvlm, mode: str) -> None:
    model = make_model(tiny, mode)
    base = {name: value.clone() for name, value in model.lvlm.state_dict().items()}
    with torch.no_grad():
        expected = run_passes(model, tiny)
        assert (count_lora_layers(model) > 0) == (mode != "none")
        model.prepare_inference()
        assert count_lora_layers(model) == 0
        torch.testing.assert_close(run_passes(model, tiny), expected, atol=1e-5, rtol=1e-4)
    assert (model.generator is model.compressor) == (mode != "per_pass")
    for name, value in model.lvlm.state_dict().items():
        assert torch.equal(value, base[name]), name


def test_an_adapter_over_a_large_llm_or_one_of_four_bits_is_not_folded(
    tiny: TinyLvlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_model(tiny, "shared").compressor
    layer = next(part for part in tree.modules() if isinstance(part, LoraLayer))
    weight = layer.get_base_layer().weight
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "LARGEST_COPY", 1)
        assert fold_adapter(tree) is tree
    packed = torch.nn.Parameter(torch.zeros(weight.numel() // 2, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr(layer.get_base_layer(), "weight", packed)
    assert fold_adapter(tree) is tree and isinstance(tree, PeftModel)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_checkpointing_changes_no_gradient_in_any_mode(tiny: TinyLvlm, mode: str) -> None:
    found = []
    for checkpointed in (False, True):
        model = make_model(tiny, mode).train()
        if checkpointed:
            model.enable_gradient_checkpointing()
        run_passes(model, tiny).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)
    tiny.model.activation_checkpointing_disable()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_every_mode_comes_back_with_its_base_beside_it_or_elsewhere(
    tiny: TinyLvlm, base: Path, tmp_path: Path, mode: str, where: str
) -> None:
    checkpoint = make_checkpoint(tiny, mode)._replace(base="base" if where == "beside" else str(base))
    save_checkpoint(tmp_path, checkpoint, dtype=torch.float32)
    loaded = load_checkpoint(tmp_path, "cpu")
    expected = AdapterSettings(mode=mode) if mode == "none" else AdapterSettings(4, 8, mode)
    assert loaded.model.adapters == expected
    assert (loaded.prompts, loaded.model.family.model_type) == (checkpoint.prompts, "llava")
    with torch.no_grad():
        torch.testing.assert_close(
            run_passes(loaded.model, tiny), run_passes(checkpoint.model, tiny), atol=1e-5, rtol=1e-4
        )
    # A fully trained LLM is no longer the base's, so it is saved here.
    assert (tmp_path / "base").exists() == (where == "beside" or mode == "none")
    assert (tmp_path / "processor").exists() == (where == "elsewhere" and mode != "none")
    assert load_encoder(str(tmp_path), "cpu").summary_shape == (SUMMARIES, 32)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # raised by PEFT
def test_peft_alone_loads_a_shared_adapter(tiny: TinyLvlm, base: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tiny, "shared")
    save_checkpoint(tmp_path, checkpoint._replace(base=str(base)))
    stock = AutoModelForImageTextToText.from_pretrained(base)
    theirs = PeftModel.from_pretrained(stock, str(tmp_path / "shared")).eval().get_base_model()
    words = torch.randn(1, 5, 32)
    with torch.no_grad():
        ours = checkpoint.model.compressor.get_base_model().get_decoder()(inputs_embeds=words)
        got = theirs.get_decoder()(inputs_embeds=words)
    torch.testing.assert_close(got.last_hidden_state, ours.last_hidden_state)


def test_the_fingerprint_is_of_a_shared_adapter_and_of_the_processor_too(
    tiny: TinyLvlm, base: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, make_checkpoint(tiny, "shared")._replace(base=str(base)))
    before = fingerprint_checkpoint(tmp_path, "Pil")
    for name in ("shared/adapter_config.json", "processor/chat_template.jinja"):
        original = (tmp_path / name).read_text()
        (tmp_path / name).write_text(original + " ")
        assert fingerprint_checkpoint(tmp_path, "Pil") != before
        (tmp_path / name).write_text(original)
    assert fingerprint_checkpoint(tmp_path, "Pil") == before


def test_a_base_of_another_family_than_it_was_trained_over_is_refused(
    tiny: TinyLvlm, base: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, make_checkpoint(tiny, "per_pass")._replace(base=str(base)))
    settings = json.loads((tmp_path / "fwd2bot.json").read_text())
    (tmp_path / "fwd2bot.json").write_text(json.dumps(settings | {"family": "qwen2_vl"}))
    with pytest.raises(EncoderDamaged, match="over a qwen2_vl and its base is now a llava"):
        load_checkpoint(tmp_path, "cpu")


def test_a_mode_that_is_not_there_names_those_that_are(tiny: TinyLvlm, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'both'.*per_pass, shared, none"):
        AdapterSettings(mode="both")
    save_checkpoint(tmp_path, make_checkpoint(tiny, "shared"))
    settings = json.loads((tmp_path / "fwd2bot.json").read_text())
    (tmp_path / "fwd2bot.json").write_text(json.dumps(settings | {"adapters": "both"}))
    with pytest.raises(EncoderDamaged, match=r"both.*again"):
        load_checkpoint(tmp_path, "cpu")


@pytest.mark.parametrize("mode", MODES)
def test_the_card_says_what_a_checkpoint_is_made_of(tiny: TinyLvlm, tmp_path: Path, mode: str) -> None:
    save_checkpoint(tmp_path, make_checkpoint(tiny, mode)._replace(base="somebody/a-model"))
    card = (tmp_path / "README.md").read_text()
    for part in ("llava", f"| summary tokens | {SUMMARIES} |", "Say what you see.", "fwd2bot index"):
        assert part in card
    assert ("base_model: somebody/a-model" in card) == (mode != "none")
    assert ("rank 4, alpha 8" in card) == (mode != "none")
    (tmp_path / "README.md").write_text("mine")
    save_checkpoint(tmp_path, make_checkpoint(tiny, mode)._replace(base="somebody/a-model"))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_is_pushed_to_the_hub_is_what_comes_back_from_it(
    tiny: TinyLvlm, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is made of folders: a download gives what was uploaded under the same name."""
    hub = {"somebody/base": base}

    class Api:
        def create_repo(self, name: str, exist_ok: bool) -> None:
            assert exist_ok
            hub[name] = tmp_path / name

        def file_exists(self, repo_id: str, filename: str) -> bool:
            return (hub[repo_id] / filename).exists()

        def upload_folder(self, repo_id: str, folder_path: str, ignore_patterns: list[str] | None) -> str:
            ignore = shutil.ignore_patterns(*ignore_patterns or ())
            shutil.copytree(folder_path, hub[repo_id], ignore=ignore, dirs_exist_ok=True)
            return f"hub/{repo_id}"

    def download(name: str, **_: Any) -> str:
        return str(hub[name])

    monkeypatch.setattr("encoders.fwd2bot.checkpoint.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    checkpoint = make_checkpoint(tiny, "per_pass")._replace(base="somebody/base", recipe=b'{"seed": 1}')
    assert checkpoint.push_to_hub("somebody/mine") == "hub/somebody/mine"
    tokens = load_file(hub["somebody/mine"] / "summary_tokens.safetensors")["summary_tokens"]
    assert torch.equal(tokens, checkpoint.model.summary_tokens)
    encoder: Any = load_encoder("somebody/mine", "cpu")
    with torch.no_grad():
        torch.testing.assert_close(
            run_passes(encoder.model, tiny), run_passes(checkpoint.model, tiny), atol=1e-5, rtol=1e-4
        )
    # Pushed again: the base is still only referred to, and a card that its author wrote is kept.
    (hub["somebody/mine"] / "README.md").write_text("mine")
    loaded = Checkpoint.from_pretrained("somebody/mine")
    assert loaded.base == "somebody/base"
    (hub["somebody/mine"] / "training" / "settings.json").unlink()
    loaded.push_to_hub("somebody/mine")
    assert not (hub["somebody/mine"] / "base").exists()
    assert (hub["somebody/mine"] / "training" / "settings.json").read_text() == '{"seed": 1}'
    assert (hub["somebody/mine"] / "README.md").read_text() == "mine"
    # A base in a local folder cannot be found by others, so it is uploaded as well.
    loaded._replace(base=str(base)).push_to_hub("somebody/whole")
    assert (hub["somebody/whole"] / "base" / "model.safetensors").exists()
