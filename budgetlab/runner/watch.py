"""Whether a training still is one, and keeps the pace that was planned."""

from __future__ import annotations

import math
from collections.abc import Mapping

from budgetlab.planner.prices import loss_factor
from budgetlab.values import ExecutionSpec

SIGNS = ("gradient_norm", "clipped_fraction")
"""What is logged beside the loss's terms."""
DIVERGED = 10.0
"""A mean loss so many times that of the first point is divergence."""
OTHER_PACE = 1.25


def what_is_wrong(means: Mapping[str, float], first_loss: float | None) -> str | None:
    """Say what makes these means of terms and signs no training; None where nothing does."""
    found = {name: value for name, value in means.items() if name != "clipped_fraction"}
    if not all(map(math.isfinite, found.values())):
        return f"not finite ({', '.join(f'{name} {value:.4g}' for name, value in found.items())})"
    loss = sum(value for name, value in found.items() if name not in SIGNS)
    if first_loss is not None and loss > DIVERGED * abs(first_loss):
        return f"diverged (loss {loss:.4g}, which began at {first_loss:.4g})"
    return None


def other_pace(
    planned_seconds: float | None, execution: ExecutionSpec, seconds_per_step: float, here: str, there: str | None
) -> str | None:
    """Say that a step takes another time than was planned, or was timed elsewhere; None where it was neither."""
    if planned_seconds is None:
        return None
    planned = planned_seconds * loss_factor(execution)
    times = seconds_per_step / planned
    if 1 / OTHER_PACE <= times <= OTHER_PACE and there in (None, here):
        return None
    where = "" if there in (None, here) else f" on {there}"
    milliseconds = f"{1e3 * seconds_per_step:.4g} ms of device time here, {1e3 * planned:.4g} ms were planned{where}"
    return f"a step takes {milliseconds}: {times:.2f} times"
