"""Measurements that end early, for tests of what is done with their numbers; the numbers have tests of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def hurry(put: Callable[[object, str, object], None] = setattr) -> None:
    """Train read-outs for 60 steps, not 780, adapt on 8,192 tokens at most, time a profile's steps for moments,
    and take two processes to be no faster than one, which is found out in fresh processes.

    `put` sets an attribute: `setattr`, or one that puts the old one back.
    """
    import budgetlab.profiler as profiler
    from budgetlab.evaluation import jobs
    from budgetlab.values import Packing

    adapted_loss = jobs.adapted_loss

    def adapted(*given: Any, tokens: int, **further: Any) -> Any:
        return adapted_loss(*given, tokens=min(tokens, 8192), **further)

    readout_loss = jobs.readout_loss

    def readout(*given: Any, least_steps: int, **further: Any) -> Any:
        return readout_loss(*given, least_steps=min(least_steps, 60), **further)

    put(jobs, "readout_loss", readout)
    put(jobs, "adapted_loss", adapted)
    effort = profiler.Effort
    put(profiler, "Effort", lambda *given, **further: effort(*given, **further) if given else effort(6, 0.0))
    put(profiler, "measure_packing", lambda *_, **__: (Packing(processes=2, speed_ratio=1.0),))
