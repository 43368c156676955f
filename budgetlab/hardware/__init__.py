"""The device under the measurement: name, versions, clocks, memory, energy, peaks; unknown is None, never a guess."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from budgetlab.errors import CallerError
from budgetlab.hardware.clocks import PhaseClock, PhaseMeter, StepTime, waited_seconds
from budgetlab.hardware.energy import EnergyCounter, find_energy_counter, throttled
from budgetlab.hardware.memory import (
    PeakMemory,
    is_out_of_memory,
    keep_memory,
    largest_that_fits,
    peak_memory,
    release_memory,
)
from budgetlab.hardware.peaks import PEAKS, Peak, find_peak
from budgetlab.hardware.precision import emulated_bfloat16, has_bfloat16
from budgetlab.machine import memory_bytes, processor_name
from budgetlab.values import Environment, ExecutionSpec

__all__ = [
    "PEAKS",
    "EnergyCounter",
    "Peak",
    "PeakMemory",
    "PhaseClock",
    "PhaseMeter",
    "StepTime",
    "emulated_bfloat16",
    "environment",
    "find_energy_counter",
    "find_peak",
    "has_bfloat16",
    "is_out_of_memory",
    "largest_that_fits",
    "peak_memory",
    "pick_device",
    "prepare",
    "release_memory",
    "throttled",
    "waited_seconds",
]


def pick_device(execution: ExecutionSpec, local_rank: int = 0) -> torch.device:
    """Turn `execution.device` into a device that is here; of several GPUs, that of the process of this number.

    Raises
    ------
    CallerError
        When it is no device name, or not on this machine.
    """
    name = execution.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CallerError(
            f"execution.device = {execution.device!r}", "no such device", 'use "auto", "cpu" or "cuda"'
        ) from None
    if device.type == "cuda" and execution.devices > 1:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CallerError(f"execution.device = {execution.device!r}", "torch sees no GPU here", 'use "auto" or "cpu"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise CallerError(f"execution.device = {execution.device!r}", f"there are {count} GPUs here", "use one of them")
    if device.type not in ("cpu", "cuda"):
        raise CallerError(f"execution.device = {execution.device!r}", "not supported", 'use "auto", "cpu" or "cuda"')
    return device


def prepare(execution: ExecutionSpec, local_rank: int = 0) -> torch.device:
    """Pick the device, set the number of threads, and keep memory from going back and forth."""
    device = pick_device(execution, local_rank)
    keep_memory()
    torch.set_num_threads(execution.threads)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and streams are those of the current device
    return device


def environment(execution: ExecutionSpec, local_rank: int = 0) -> Environment:
    """Describe this machine and its versions."""
    device = pick_device(execution, local_rank)
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
