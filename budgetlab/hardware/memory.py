"""Peak memory of a piece of work, and the largest amount of work that fits."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_NO_MEMORY = (
    "can't allocate memory", "could not create a primitive", "could not create a memory object", "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
)  # fmt: skip


@dataclass(frozen=True)
class PeakMemory:
    """The most memory that a piece of work held: by tensors, and by the allocator on their behalf."""

    allocated_bytes: int
    reserved_bytes: int | None
    source: str


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
        _CLEAR.write_text("5")  # the peak starts again from what is resident now
        before = _resident("VmRSS")
    except (OSError, ValueError):
        work()
        return None
    work()
    return PeakMemory(max(0, _resident("VmHWM") - before), None, "rise of the process's resident memory")


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


def _resident(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(key)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU (whose kernels then cannot be set up either)."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in _NO_MEMORY)


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Find the largest number up to `most` for which `fits` holds, to within an eighth; 0 if not even 1 does.

    Where `most` itself fits, that is the answer. Else halved until it fits, then narrowed from below: what is returned
    was tried and did fit, and leaves room for what a trial does not see.

    Examples
    --------
    >>> largest_that_fits(lambda n: n <= 100, 256)
    96
    """
    if most >= 1 and fits(most):
        return most
    low, high = most // 2, most
    while low >= 1 and not fits(low):
        low, high = low // 2, low
    step = max(1, low // 8)
    while low >= 1 and high - low > step:
        middle = low + max(1, (high - low) // (2 * step)) * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
