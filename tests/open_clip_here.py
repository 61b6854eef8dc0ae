"""open_clip where it is installed, with torchvision ready to be imported; elsewhere the tests are skipped."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

# torchvision's wheels are built for CUDA torch: beside a CPU build, importing them needs these schemas.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

REVISION = "0" * 40


def make_model(architecture: str) -> Any:
    """A model of this architecture with random weights, none of them zero."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.03)
    return model


def publish(model: torch.nn.Module, architecture: str, hub: Path, patch: pytest.MonkeyPatch) -> str:
    """Put a model into a cache of the hub, from where open_clip loads it by the name that is returned."""
    from open_clip import pretrained

    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    patch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(hub / "assets"))
    tag = pretrained._pcfg(hf_hub="some/model/", quick_gelu=architecture.endswith("quickgelu"))
    patch.setitem(pretrained._PRETRAINED, architecture, {"mine": tag})
    folder = hub / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    (folder / "snapshots" / REVISION).mkdir(parents=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, find_weights(hub))
    return f"openclip:{architecture}/mine"


def find_weights(hub: Path) -> Path:
    """The file of the model that was published."""
    return hub / "models--some--model" / "snapshots" / REVISION / "open_clip_model.safetensors"
