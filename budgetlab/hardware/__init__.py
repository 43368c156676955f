"""The device under the measurement: which one, what it can do, its clocks, memory and energy; unknown is None."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

import torch

from budgetlab.errors import CallerError
from budgetlab.hardware.meters import (
    EnergyCounter,
    PhaseMeter,
    find_energy_counter,
    is_out_of_memory,
    keep_memory,
)
from budgetlab.hardware.peaks import find_peak
from budgetlab.machine import memory_bytes, processor_name
from budgetlab.values import Environment, ExecutionSpec

__all__ = [
    "EnergyCounter",
    "PhaseMeter",
    "emulated_bfloat16",
    "environment",
    "find_energy_counter",
    "find_peak",
    "has_bfloat16",
    "is_out_of_memory",
    "pick_device",
    "prepare",
]


def pick_device(execution: ExecutionSpec, local_rank: int = 0) -> torch.device:
    """Turn `execution.device` into a device that is here; of several GPUs, that of the process of this number.

    A CallerError where it is no device's name, or not on this machine.
    """
    asked, remedy = f"execution.device = {execution.device!r}", 'use "auto", "cpu" or "cuda"'
    name = execution.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CallerError(asked, "no such device", remedy) from None
    if device.type not in ("cpu", "cuda"):
        raise CallerError(asked, "not supported", remedy)
    if device.type == "cuda":
        if execution.devices > 1:
            device = torch.device("cuda", local_rank)
        if not torch.cuda.is_available():
            raise CallerError(asked, "torch sees no GPU here", 'use "auto" or "cpu"')
        if (count := torch.cuda.device_count()) <= (device.index or 0):
            raise CallerError(asked, f"there are {count} GPUs here", "use one of them")
    return device


def prepare(execution: ExecutionSpec, local_rank: int = 0) -> torch.device:
    """Pick the device, set the number of threads, and keep memory from going back and forth."""
    device = pick_device(execution, local_rank)
    keep_memory()
    torch.set_num_threads(execution.threads)
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)  # events and streams are those of the current device
        torch.set_float32_matmul_precision("high" if execution.tf32 else "highest")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = execution.bfloat16_sums
        if execution.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it is first used
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        torch.use_deterministic_algorithms(execution.deterministic)
    return device


def environment(execution: ExecutionSpec, local_rank: int = 0) -> Environment:
    """Describe this machine and its versions."""
    device, numerics = pick_device(execution, local_rank), {}
    if device.type == "cuda":
        numerics = {name: getattr(execution, name) for name in ("deterministic", "tf32", "bfloat16_sums")}
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    else:
        name, memory = processor_name(), memory_bytes()
    return Environment(
        device=device.type,
        device_name=name,
        device_memory_bytes=memory,
        devices=execution.devices,
        threads=execution.threads,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        budgetlab=version("budgetlab"),
        **numerics,
    )


_WITH_BFLOAT16 = ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10")
"""Parts of the names of oneDNN's instruction sets that have it; AVX512_CORE_FP16 comes after AVX512_CORE_BF16."""


def has_bfloat16(device: torch.device) -> bool | None:
    """Say whether a device multiplies bfloat16 matrices in hardware; None where torch cannot tell.

    A processor's instructions count as far as oneDNN, which multiplies the matrices, is allowed to use them
    (`ONEDNN_MAX_CPU_ISA`).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    if not any(part in cap.upper() for part in _WITH_BFLOAT16):
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
