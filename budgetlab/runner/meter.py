"""Where a run stands, added up from what its workers tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from budgetlab.runner.units import Unit

SETTLED_SECONDS = 10.0
"""Before that, what is left is not guessed from the pace."""


@dataclass(frozen=True)
class Moved:
    """What a training tells: where it stands now."""

    run_id: str
    step: int
    losses: dict[str, float]
    tokens_per_second: float | None = None
    utilisation: float | None = None
    """Required FLOPs a second over what the device's maker says of it; None where that is unknown."""
    resumed: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    run_id: str
    step: int
    steps: int
    losses: dict[str, float]
    """By term; empty where no step was taken yet."""
    tokens_per_second: float | None
    utilisation: float | None
    """Required FLOPs a second over what the device's maker says of it; None where that is unknown."""
    done_fraction: float
    """Of all units together, by their planned seconds."""
    spent_fraction: float
    """Of all units together, by their planned FLOPs."""
    seconds_left: float | None


class Meter:
    """Adds up what the workers tell into shares and one time left; lines for a person are passed on."""

    def __init__(
        self, units: list[Unit], todo: list[Unit], progress: Callable[[Progress], None], say: Callable[[str], None]
    ) -> None:
        self.units = {unit.run_id: unit for unit in todo}
        self.at = {unit.run_id: unit.first_step for unit in todo}
        self.progress, self.say, self.started = progress, say, time.monotonic()
        self.left = sum(unit.price.between(unit.first_step, unit.last_step) for unit in todo)
        self.flops_left = sum(unit.flops.between(unit.first_step, unit.last_step) for unit in todo)
        self.total = sum(unit.price.between(unit.first_step, unit.last_step) for unit in units) or 1.0
        self.flops = sum(unit.flops.between(unit.first_step, unit.last_step) for unit in units) or 1.0
        self.trained = 0.0

    def __call__(self, told: Moved | str) -> None:
        """Take in what a worker tells."""
        if isinstance(told, str):
            self.say(told)
            return
        unit = self.units[told.run_id]
        moved = self.at[told.run_id], told.step
        self.at[told.run_id] = told.step
        self.left -= unit.price.between(*moved)
        self.flops_left -= unit.flops.between(*moved)
        if told.resumed:
            return
        self.trained += unit.price.between(*moved)
        took = time.monotonic() - self.started
        self.progress(
            Progress(
                told.run_id,
                told.step,
                unit.last_step,
                told.losses,
                told.tokens_per_second,
                told.utilisation,
                done_fraction=1.0 - max(0.0, self.left) / self.total,
                spent_fraction=1.0 - max(0.0, self.flops_left) / self.flops,
                seconds_left=max(0.0, self.left * took / self.trained)
                if self.trained and took > SETTLED_SECONDS
                else None,
            )
        )
