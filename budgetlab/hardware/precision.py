"""Whether a device has instructions for bfloat16, or torch emulates it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable

import torch

from budgetlab.machine import processor_name

_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITH_BFLOAT16 = ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10")
"""Parts of the names of oneDNN's instruction sets that have it; AVX512_CORE_FP16 comes after AVX512_CORE_BF16."""


def has_bfloat16(device: torch.device) -> bool | None:
    """Say whether a device multiplies bfloat16 matrices in hardware; None where torch cannot tell.

    A processor's instructions count as far as oneDNN, which multiplies the matrices, is allowed to use them
    (`ONEDNN_MAX_CPU_ISA`).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cap = next((os.environ[name].upper() for name in _CAPS if os.environ.get(name)), "DEFAULT")
    if not any(part in cap for part in _WITH_BFLOAT16):
        return False
    try:
        if platform.machine().lower() in ("aarch64", "arm64"):
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except (AttributeError, RuntimeError):
        return None


def emulated_bfloat16(dtypes: Iterable[str], device: torch.device) -> str | None:
    """Say that some of these precisions are emulated on the device; None where they are not, or it cannot be told."""
    if "bfloat16" not in dtypes or has_bfloat16(device) is not False:
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return (
        f"bfloat16 is emulated on {name}, which has no instructions for it: steps may take ten times as long; "
        'recipe.dtype = "auto" or "float32" takes what the device has'
    )
