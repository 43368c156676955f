"""What this machine has for a study."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from typing import Any


def examine() -> dict[str, Any]:
    """Return a flat description of the machine; unknown is None."""
    from budgetlab.hardware import environment, has_bfloat16, pick_device
    from budgetlab.values import ExecutionSpec

    execution = ExecutionSpec()
    device = pick_device(execution)
    found = environment(execution)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = os.cpu_count() or 1
    return {
        "budgetlab": found.budgetlab,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "datasets", "fvcore", "scipy", "pandas")},
        "device": device.type,
        "device_name": found.device_name,
        "cores": cores,
        "load": None if load is None else round(load, 2),
        "bfloat16_hardware": has_bfloat16(device),
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "data_root": os.environ.get("BUDGETLAB_DATA_ROOT"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "advice": "other programs are running: timings will be noisy" if load and load > 0.5 * cores else "none",
    }
