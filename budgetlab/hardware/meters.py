"""What a piece of work takes of the device: seconds by phase, waiting, peak memory, energy where a counter has it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.util
import itertools
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_PENDING_STEPS = 100
_BETWEEN_WAITS_SECONDS = 0.1


@dataclass
class StepTime:
    """Seconds of each phase of one step.

    `device`: time on the device, which on a CPU is wall time. `cpu`: processor time of this process, summed over its
    threads; on a GPU empty.
    """

    device: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.device.values())

    @property
    def cpu_seconds(self) -> float:
        """Of the whole step."""
        return sum(self.cpu.values())

    def __truediv__(self, steps: int) -> StepTime:
        """Return the mean of so many steps."""
        return StepTime(*({name: took / steps for name, took in of.items()} for of in (self.device, self.cpu)))


class PhaseMeter:
    """Adds up the seconds of each phase over steps, and waits for the device in none of them.

    `begin()` at the start of a step, then the meter itself as the step's `on_phase`, and `collect()` now and then. A
    GPU stamps events itself; on a CPU there are two clocks.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._on_gpu = device.type == "cuda"
        self._steps: deque[list[tuple[str, Any]]] = deque()
        self._sums = StepTime()

    def begin(self) -> None:
        """A step begins; what came since the last one ended is none of any phase."""
        if len(self._steps) > _PENDING_STEPS:
            self._add_up(self._steps.popleft())  # which the device has long passed
        self._steps.append([])
        self("")

    def __call__(self, phase: str) -> None:
        """A phase ends; one that comes again (micro-batches) adds up."""
        if self._on_gpu:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter(), time.process_time()
        self._steps[-1].append((phase, stamp))

    def collect(self) -> dict[str, float]:
        """Return the device's seconds of each phase since the last call, of steps that ended; waits for the device."""
        return self._take().device

    def time(
        self,
        step: Callable[[Callable[[str], None]], object],
        while_busy: Callable[[], None] = lambda: None,
        *,
        steps: int = 1,
    ) -> StepTime:
        """Run `step(on_phase)` so many times and return its mean; `while_busy` is called once all is launched."""
        if self._on_gpu:
            torch.cuda.synchronize(self.device)
        for _ in range(steps):
            self.begin()
            step(self)
        while_busy()
        return self._take() / steps

    def steps_at_once(self, seconds: float) -> int:
        """Return how many steps of so many seconds go between two waits of the processor: on a CPU there is none.

        A GPU that had nothing to do when a step began would wait for each of its launches, as it does not in a run.
        """
        return (
            max(1, min(_PENDING_STEPS // 2, round(_BETWEEN_WAITS_SECONDS / max(seconds, 1e-6)))) if self._on_gpu else 1
        )

    def _take(self) -> StepTime:
        while self._steps:
            self._add_up(self._steps.popleft())
        found, self._sums = self._sums, StepTime()
        return found

    def _add_up(self, stamps: list[tuple[str, Any]]) -> None:
        if self._on_gpu:
            stamps[-1][1].synchronize()
        wall, cpu = self._sums.device, self._sums.cpu
        for (_, before), (phase, after) in itertools.pairwise(stamps):
            if self._on_gpu:
                wall[phase] = wall.get(phase, 0.0) + before.elapsed_time(after) / 1e3
            else:
                wall[phase] = wall.get(phase, 0.0) + after[0] - before[0]
                cpu[phase] = cpu.get(phase, 0.0) + after[1] - before[1]


def waited_seconds() -> tuple[float, float] | None:
    """Seconds that the threads of this process ran, and that they were ready but had no core; None off Linux."""
    ran = waited = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            numbers = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except (OSError, ValueError, IndexError):
        return None
    return ran / 1e9, waited / 1e9


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NO_MEMORY = re.compile(
    "can't allocate memory|could not create a (primitive|memory object)|out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED"
)


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a piece of work held: by tensors, and by the allocator on their behalf."""

    peak_memory_bytes: int
    reserved_memory_bytes: int | None
    memory_source: str


def peak_memory(work: Callable[[], object], device: torch.device) -> PeakMemory | None:
    """Run `work` and return the most memory it took; None where the system does not say.

    On a GPU the allocator says. On a CPU it is by how much the resident memory of this process rose, after memory that
    lay free was handed back to the system, so that none of it is used unseen.
    """
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        allocated = torch.cuda.max_memory_allocated(device) - before
        return PeakMemory(allocated, torch.cuda.max_memory_reserved(device), "the device's allocator")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before = _resident_bytes("VmRSS")
    except (OSError, ValueError):
        work()
        return None
    work()
    return PeakMemory(max(0, _resident_bytes("VmHWM") - before), None, "rise of the process's resident memory")


def _resident_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(key)


def release_memory(device: torch.device) -> None:
    """Hand memory that nothing uses any more back to the device, or to the system where its allocator can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Have the C library keep what a step frees for the next one.

    glibc hands free memory at the top of its heap back to the system, and takes it anew, page by page, at the next
    step: a tenth to a fifth of a small network's step, or nothing, by how its heap happens to be laid out.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU (whose kernels then cannot be set up either)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)) is not None


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Find the largest number up to `most` for which `fits` holds, to within an eighth; 0 if not even 1 does.

    Where `most` itself fits, that is the answer. Else one is doubled until it does not fit, then narrowed from below:
    what is returned was tried and did fit, and leaves room for what a trial does not see.

    Examples
    --------
    >>> largest_that_fits(lambda n: n <= 100, 256)
    96
    """
    if most >= 1 and fits(most):
        return most
    low, high = 0, 1
    while high < most and fits(high):
        low, high = high, min(2 * high, most)
    step = max(1, low // 8)
    while low >= 1 and high - low > step:
        middle = low + max(1, (high - low) // (2 * step)) * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class EnergyCounter:
    """A counter that only grows.

    `joules` reads it; `source` names it; `window_seconds` is the shortest stretch worth measuring, as counters are
    updated a few tens of times a second.
    """

    joules: Callable[[], float]
    source: str
    window_seconds: float


def find_energy_counter(device: torch.device, rapl: Path = Path("/sys/class/powercap")) -> EnergyCounter | None:
    """Find the counter of a device: NVML for an NVIDIA GPU (package nvidia-ml-py), RAPL for a CPU, else None."""
    return _nvml_counter(device) if device.type == "cuda" else _rapl_counter(rapl)


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


def _nvml_counter(device: torch.device) -> EnergyCounter | None:
    found = _nvml(device)
    if found is None:
        return None
    nvml, handle = found

    def joules() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

    try:
        joules()
    except nvml.NVMLError:  # before Volta, or a slice of a GPU
        return None
    return EnergyCounter(joules, "NVML total energy counter of the GPU", 5.0)


def _rapl_counter(folder: Path) -> EnergyCounter | None:
    """All processor packages together; only root may read them on most systems, and virtual machines have none."""
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        # "psys" is the whole platform, with the packages in it.
        packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        ranges = {package: int((package / "max_energy_range_uj").read_text()) + 1 for package in packages}
        last = {package: int((package / "energy_uj").read_text()) for package in packages}
    except (OSError, ValueError):
        return None
    if not packages:
        return None
    total = 0

    def joules() -> float:
        nonlocal total
        for package, before in last.items():
            last[package] = int((package / "energy_uj").read_text())
            total += (last[package] - before) % ranges[package]  # a counter starts anew at its range
        return total / 1e6

    return EnergyCounter(joules, "RAPL counters of the processor", 2.0)
