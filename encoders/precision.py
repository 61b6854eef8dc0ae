"""The dtype that embeddings are computed in: bfloat16 on machines that multiply it in hardware."""

from contextlib import AbstractContextManager

import torch

_HARDWARE = ("avx512_bf16", "amx_bf16")


def choose_dtype(device: str) -> torch.dtype:
    """bfloat16 on a GPU, and on a CPU with instructions for it, where it is twice as fast; else float32.

    An embedding in bfloat16 has a cosine of at least 0.999 with the one in float32, so an index made on one
    machine can be searched on another.
    """
    return torch.bfloat16 if device != "cpu" or _has_bfloat16() else torch.float32


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """For training with float32 weights: compute products, but not sums, in the dtype of `choose_dtype`."""
    wanted = choose_dtype(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted is torch.bfloat16)


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in _HARDWARE)
