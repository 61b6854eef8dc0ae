"""The text half of a plain CLIP model of open_clip, in NumPy: all that a query needs.

PyTorch, torchvision and open_clip take seconds to import, and the image tower is most of the file. So
`OpenClipEncoder.load` leaves a note in the user's cache of where the weights are and how images are prepared.
Nothing in it is trusted: the fingerprint is computed anew from every weight of that file. A note that is
damaged, stale or of another model gives another fingerprint, and the model is loaded whole.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xxhash

from encoders.base import FloatArray
from encoders.openclip_tokens import END, ClipTokenizer

PROBE = "A man's 2 Dogs &amp; ﬁsh 🐕 on the beach"  # what tokenizers are most likely to disagree about
_SAME = 1e-5  # rounding in float32, over all layers
# The settings of a plain CLIP. Any other, by its mere name, may be of another text tower.
_PLAIN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}
_WEIGHTS_FILE = "open_clip_model.safetensors"
_EPSILON = 1e-5
_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}  # NumPy has no bfloat16
_GRID = np.linspace(-6, 6, 1 << 14)
_ERF = [math.erf(x) for x in _GRID]  # beyond the grid it is 1, and between its points off by less than 1e-7


@dataclass(frozen=True)
class ClipReader:
    """CLIP's text transformer (arXiv 2103.00020, section 2.4): a `TextEncoder`.

    weights: open_clip's tensors by name, in float32, those of the image tower left out.
    """

    name: str
    fingerprint: str
    weights: Mapping[str, FloatArray]
    tokenizer: ClipTokenizer
    layers: int
    heads: int
    quick_gelu: bool

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.weights["text_projection"].shape[1])

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts, one by one: float32 (n, dim), rows of unit length."""
        vectors = np.empty((len(texts), self.dim), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            ids = self.tokenizer.encode(text)
            # The first end is where open_clip looks, and nothing before it sees what follows.
            raw = self._read(ids[: ids.index(END) + 1])
            vector[:] = raw / np.linalg.norm(raw)
        return vectors

    def _read(self, ids: Sequence[int]) -> FloatArray:
        """The embedding at the last of some token ids, not normalised: float32 (dim,)."""
        weights = self.weights
        rows = weights["token_embedding.weight"][list(ids)] + weights["positional_embedding"][: len(ids)]
        for layer in (f"transformer.resblocks.{number}" for number in range(self.layers)):
            rows = rows + self._attend(f"{layer}.attn", self._normalize(f"{layer}.ln_1", rows))
            seen = self._apply(f"{layer}.mlp.c_fc.", self._normalize(f"{layer}.ln_2", rows))
            rows = rows + self._apply(f"{layer}.mlp.c_proj.", self._activate(seen))
        return np.asarray(self._normalize("ln_final", rows[-1]) @ weights["text_projection"], np.float32)

    def _apply(self, place: str, rows: FloatArray) -> FloatArray:
        return np.asarray(rows @ self.weights[f"{place}weight"].T + self.weights[f"{place}bias"], np.float32)

    def _normalize(self, place: str, rows: FloatArray) -> FloatArray:
        rows = rows - rows.mean(axis=-1, keepdims=True)
        rows = rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + np.float32(_EPSILON))
        return np.asarray(rows * self.weights[f"{place}.weight"] + self.weights[f"{place}.bias"], np.float32)

    def _activate(self, rows: FloatArray) -> FloatArray:
        if self.quick_gelu:
            share = (1 + np.tanh(0.851 * rows)) / 2  # the logistic function of 1.702 times the rows
        else:
            share = (1 + np.interp(rows / math.sqrt(2), _GRID, _ERF)) / 2
        return np.asarray(rows * share, np.float32)

    def _attend(self, place: str, rows: FloatArray) -> FloatArray:
        both = self._apply(f"{place}.in_proj_", rows).reshape(len(rows), 3, self.heads, -1)
        queries, keys, values = both.transpose(1, 2, 0, 3)  # each (heads, n, head width)
        scores = queries @ keys.swapaxes(-1, -2) / np.float32(math.sqrt(queries.shape[-1]))
        scores = scores + np.triu(np.full(scores.shape[-2:], -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = weights / weights.sum(axis=-1, keepdims=True) @ values
        return self._apply(f"{place}.out_proj.", attended.swapaxes(0, 1).reshape(rows.shape))


def load_clip_reader(name: str, fingerprint: str) -> ClipReader | None:
    """Load a reader of this name and fingerprint; None if there is no note of one, or only a wrong one."""
    try:
        note = json.loads(_place_note(name).read_bytes())
        reader = _open_reader(name, Path(note["weights"]), note["steps"])
    except Exception:  # whatever is wrong, loading the whole model explains it better
        return None
    return reader if reader.fingerprint == fingerprint else None


def remember_weights(name: str, source: str, steps: str, embed: Callable[[str], FloatArray]) -> None:
    """Leave a note for `load_clip_reader`, if its reader embeds `PROBE` as open_clip does.

    source: where on the hub open_clip has just found the weights. steps: how it prepares images, as in the
    fingerprint. embed: the whole model's embedding of a text, in float32: (dim,). Nothing is raised.
    """
    with suppress(Exception):  # a model of another kind, or a cache that cannot be written
        from huggingface_hub import try_to_load_from_cache

        weights = Path(str(try_to_load_from_cache(source.strip("/"), _WEIGHTS_FILE)))
        note = json.dumps({"weights": str(weights.absolute()), "steps": steps}).encode()
        place = _place_note(name)
        if place.exists() and place.read_bytes() == note:
            return
        vector = _open_reader(name, weights, steps).encode_texts([PROBE])[0]
        if np.allclose(vector, embed(PROBE), rtol=0, atol=_SAME):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(note)


def _place_note(name: str) -> Path:
    """Where the note of a model is: another version of open_clip may make another model of the same file."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    key = f"{name} open_clip {version('open_clip_torch')}"
    # Hashed, because a name from an index may hold anything, a path too.
    return Path(HF_ASSETS_CACHE) / "fwd2bot" / f"{xxhash.xxh3_128_hexdigest(key.encode())}.json"


def _open_reader(name: str, path: Path, steps: str) -> ClipReader:
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("open_clip")
    package, architecture = Path(spec.origin).parent, name.partition(":")[2].partition("/")[0]
    config = json.loads((package / "model_configs" / f"{architecture}.json").read_text(encoding="utf-8"))
    text = config["text_cfg"]
    if not (set(config) <= _PLAIN and set(text) == _PLAIN_TEXT):
        raise ValueError(f"{architecture} is no plain CLIP")
    fingerprint, weights = _read_weights(path, steps, "text." if config.get("custom_text") else "")
    tokenizer = ClipTokenizer(package / "bpe_simple_vocab_16e6.txt.gz", text["context_length"])
    layers, heads = text["layers"], text["heads"]
    return ClipReader(name, fingerprint, weights, tokenizer, layers, heads, config.get("quick_gelu", False))


def _read_weights(path: Path, steps: str, prefix: str) -> tuple[str, dict[str, FloatArray]]:
    """The fingerprint of a whole model, as `OpenClipEncoder` computes it, and its text tower's tensors."""
    digest, kept = xxhash.xxh3_128(steps.encode()), dict[str, FloatArray]()
    for name, values in _map_tensors(path):
        digest.update(name.encode())
        digest.update(values.data)
        if name.startswith(prefix) and not name.startswith("visual."):
            kept[name.removeprefix(prefix)] = values
    return digest.hexdigest(), kept


def _map_tensors(path: Path) -> Iterator[tuple[str, FloatArray]]:
    """The tensors of a safetensors file in the order of their names, in float32.

    Where the file holds float32, an array is the file's own pages: safetensors copies each tensor, which
    takes three times as long as hashing it.
    """
    pages = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(pages[:8].tobytes(), "little")
    header = json.loads(pages[8:start].tobytes())
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items()):
        count, place = math.prod(entry["shape"]), start + entry["data_offsets"][0]
        values = np.frombuffer(pages, _DTYPES[entry["dtype"]], count, place)  # never beyond the file
        yield name, values.astype(np.float32, copy=False).reshape(entry["shape"])
