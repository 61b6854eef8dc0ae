"""What a race needs: an environment for each side, and one CLIP model with random weights for all.

Speed does not depend on what a model has learned. Each side finds the weights where it keeps its downloads,
so no program has to be changed.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from encoders.base import Fwd2BotError

Installs = Sequence[Sequence[str]]  # the arguments of each `pip install`

_OPEN_CLIP = (
    "open_clip_torch==3.3.0",
    "torchvision==0.28.0",
    "timm==1.0.31",
    "ftfy==6.3.1",
    "wcwidth==0.9.4",
)
_EXPORT = ("onnx==1.23.2", "protobuf==7.36.2", "ml_dtypes")
OURS: Installs = (
    ("-c", "constraints.txt", "-e", ".[cpu]"),
    ("--no-deps", *_OPEN_CLIP, *_EXPORT),
)
RCLIP_3: Installs = (("rclip==3.3.0",),)
# It pins a PyTorch build that is on no package index, so it gets the version that fwd2bot is tested with.
_UNDER_RCLIP_2 = ("torch==2.13.0", "numpy<2.2", "pillow<13", "requests", "tqdm", "regex", "safetensors")
RCLIP_2: Installs = (
    (*_UNDER_RCLIP_2, "huggingface_hub", "rawpy", "pillow-heif<2"),
    ("--no-deps", "rclip==2.1.6", *_OPEN_CLIP),
)
# It needs parts of setuptools that were removed in 81, and is built against numpy 1.
CLIP_RETRIEVAL: Installs = (
    ("clip-retrieval==2.45.0", "setuptools<81", "numpy<2", "torch==2.13.0", "torchvision==0.28.0"),
)

# torchvision's wheels are built for CUDA: with a CPU build of PyTorch, they need these two operators declared
# in order to import. That is done when torchvision is first imported, so that programs that do not use it do
# not have to wait for PyTorch.
_DECLARE = """
import runpy, sys
from importlib.metadata import PackageNotFoundError, version
try:
    unlike = version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu")
except PackageNotFoundError:
    unlike = False
class DeclareFirst:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            self.library = torch.library.Library("torchvision", "FRAGMENT")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            declared.append(self)
declared = []  # what is declared lasts as long as its library
if unlike:
    sys.meta_path.insert(0, DeclareFirst())
"""
_TELL_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""
_RUN_MODULE = """
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
# Writes into the hub's cache for open_clip, and into rclip's data folder as ONNX files with rclip 3's names.
_MAKE_WEIGHTS = """
import shutil
from pathlib import Path
import open_clip
import torch
from safetensors.torch import save_file

hub, data, architecture, pretrained = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.manual_seed(0)
model = open_clip.create_model(architecture).eval()
repository = open_clip.pretrained.get_pretrained_cfg(architecture, pretrained)["hf_hub"].strip("/")
cache = hub / "hub" / ("models--" + repository.replace("/", "--"))
revision = "0" * 40
(cache / "refs").mkdir(parents=True, exist_ok=True)
(cache / "refs" / "main").write_text(revision)
(cache / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
save_file(tensors, cache / "snapshots" / revision / "open_clip_model.safetensors")

class Half(torch.nn.Module):
    def __init__(self, encode):
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, input):
        return self.encode(input)

folder = data / f"{architecture}-{pretrained}"
folder.mkdir(parents=True, exist_ok=True)
side = model.visual.image_size[0]
for name, encode, example in (
    ("visual", model.encode_image, torch.zeros(2, 3, side, side)),
    ("textual", model.encode_text, torch.zeros(2, 77, dtype=torch.long)),
):
    torch.onnx.export(
        Half(encode), (example,), str(folder / f"{name}.onnx"), dynamo=False,
        input_names=["input"], output_names=["output"], dynamic_axes={"input": {0: "images"}},
    )
(data / "tokenizer").mkdir(exist_ok=True)
shutil.copy(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"), data / "tokenizer")
"""


def make_environment(folder: Path, installs: Installs) -> Path:
    """The Python of an environment with these installs; creates it if it is not complete yet."""
    python, complete = folder / "bin" / "python", folder / ".complete"
    if not complete.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
        for arguments in installs:
            _run([str(python), "-m", "pip", "install", "--quiet", *arguments])
        complete.touch()
    return python


def write_random_weights(python: Path, hub: Path, data: Path, architecture: str, pretrained: str) -> None:
    """Write one model with random weights to where open_clip and rclip 3 look for downloads."""
    complete = data / ".complete"
    if not complete.exists():
        code = _DECLARE + _MAKE_WEIGHTS
        _run([str(python), "-c", code, str(hub), str(data), architecture, pretrained])
        complete.touch()


def module_command(python: Path, module: str, *arguments: str) -> list[str]:
    """The command line to run a module that may import torchvision."""
    return [str(python), "-c", _DECLARE + _RUN_MODULE, module, *arguments]


def module_script(python: Path, script: str, *arguments: str) -> list[str]:
    """The command line to run a short Python script that may import torchvision."""
    return [str(python), "-c", _DECLARE + script, *arguments]


def find_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions of packages in an environment."""
    versions: dict[str, str] = json.loads(_run([str(python), "-c", _TELL_VERSIONS, *packages]))
    return versions


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise Fwd2BotError(f"{' '.join(command[:4])} ... failed: {said[-1]}")
    return done.stdout
