"""What can be said of this machine without torch: its processor, its memory, whether it has an NVIDIA driver."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["has_nvidia_driver", "memory_bytes", "processor_name"]


def processor_name() -> str:
    """Name the processor as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_bytes() -> int | None:
    """Return the machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def has_nvidia_driver() -> bool | None:
    """Say whether an NVIDIA driver is loaded; None where that cannot be told."""
    return Path("/proc/driver/nvidia").exists() if platform.system() == "Linux" else None
