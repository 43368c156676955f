"""The device under the measurement: its name, its versions, its clock; unknown is None, never a guess."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import torch

from budgetlab.errors import CallerError
from budgetlab.machine import memory_bytes, processor_name
from budgetlab.values import Environment, ExecutionSpec

__all__ = ["device_clock", "environment", "peak_memory_bytes", "pick_device", "prepare"]


def pick_device(execution: ExecutionSpec) -> torch.device:
    """Turn `execution.device` into a device that is here.

    Raises
    ------
    CallerError
        When it is no device name, or not on this machine.
    """
    if execution.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(execution.device)
    except RuntimeError:
        raise CallerError(
            f"execution.device = {execution.device!r}", "no such device", 'use "auto", "cpu" or "cuda"'
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CallerError(f"execution.device = {execution.device!r}", "torch sees no GPU here", 'use "auto" or "cpu"')
    if device.type not in ("cpu", "cuda"):
        raise CallerError(f"execution.device = {execution.device!r}", "not supported", 'use "auto", "cpu" or "cuda"')
    return device


def prepare(execution: ExecutionSpec) -> torch.device:
    """Pick the device and set the number of threads."""
    device = pick_device(execution)
    torch.set_num_threads(execution.threads)
    return device


def environment(execution: ExecutionSpec) -> Environment:
    """Describe this machine and its versions."""
    device = pick_device(execution)
    return Environment(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory
        if device.type == "cuda"
        else memory_bytes(),
        devices=execution.devices,
        threads=execution.threads,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=version("transformers"),
        budgetlab=version("budgetlab"),
    )


def device_clock(device: torch.device) -> Callable[[], float]:
    """Return a monotonic clock in seconds that waits for the device before it reads."""
    if device.type != "cuda":
        return time.perf_counter

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak memory that tensors took on a GPU since the last call, else None.

    A CPU process has one peak for all that it did, which cannot be told apart by arm.
    """
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
