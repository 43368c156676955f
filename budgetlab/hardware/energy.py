"""Energy from a counter of the device, where there is one that may be read; else n/a, never a model of it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class EnergyCounter:
    """A counter that only grows.

    `joules` reads it; `source` names it; `window_seconds` is the shortest stretch worth measuring, as counters are
    updated a few tens of times a second.
    """

    joules: Callable[[], float]
    source: str
    window_seconds: float


def find_energy_counter(device: torch.device, rapl: Path = RAPL) -> EnergyCounter | None:
    """Find the counter of a device: NVML for an NVIDIA GPU (package nvidia-ml-py), RAPL for a CPU, else None."""
    if device.type == "cuda":
        return _nvml_counter(device)
    return _rapl_counter(rapl)


def throttled(device: torch.device) -> str | None:
    """Say why a GPU runs slower than it could right now; None where it does not, or where that cannot be asked."""
    found = _nvml(device)
    if found is None:
        return None
    nvml, handle = found
    try:
        reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (nvml.NVMLError, AttributeError):
        return None
    named = {
        "power cap": "nvmlClocksEventReasonSwPowerCap",
        "thermal limit": "nvmlClocksEventReasonSwThermalSlowdown",
        "hardware slowdown": "nvmlClocksThrottleReasonHwSlowdown",
    }
    seen = [name for name, bit in named.items() if reasons & getattr(nvml, bit, 0)]
    return " and ".join(seen) or None


@functools.cache
def _nvml(device: torch.device) -> tuple[Any, Any] | None:
    """NVML and its handle of the device, found by its UUID: NVML does not know CUDA_VISIBLE_DEVICES."""
    if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
        return None
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
    except (nvml.NVMLError, AttributeError):
        return None


def _nvml_counter(device: torch.device) -> EnergyCounter | None:
    found = _nvml(device)
    if found is None:
        return None
    nvml, handle = found

    def read() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    try:
        read()
    except nvml.NVMLError:  # before Volta, or a slice of a GPU
        return None
    return EnergyCounter(read, "NVML total energy counter of the GPU", 5.0)


def _rapl_counter(folder: Path) -> EnergyCounter | None:
    """All processor packages together; only root may read them on most systems, and virtual machines have none."""
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    readers = []
    for zone in zones:
        try:
            # "psys" is the whole platform, with the packages in it.
            if (zone / "name").read_text().startswith("package"):
                readers.append(_Rapl(zone))
        except (OSError, ValueError):
            return None
    if not readers:
        return None
    return EnergyCounter(lambda: sum(reader.joules() for reader in readers), "RAPL counters of the processor", 2.0)


class _Rapl:
    """One package's counter, made to grow for ever: it starts anew at its range."""

    def __init__(self, package: Path) -> None:
        self.file = package / "energy_uj"
        self.range = int((package / "max_energy_range_uj").read_text())
        self.last, self.sum = int(self.file.read_text()), 0

    def joules(self) -> float:
        now = int(self.file.read_text())
        self.sum += (now - self.last) % (self.range + 1)
        self.last = now
        return self.sum / 1e6
