"""How far all the runs of a plan are, while they go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from budgetlab.runner.units import Unit

SETTLED_SECONDS = 10.0
"""Before that, what is left is not guessed from the pace where nothing was timed before."""
PLANNED_SHARE = 0.1
"""Of all planned seconds: with so much trained, the pace seen counts for as much as the planned one."""


@dataclass(frozen=True)
class Moved:
    """What a training tells: where it stands now."""

    run_id: str
    step: int
    losses: dict[str, float] = field(default_factory=dict)
    """By term; empty where no step was taken yet."""
    tokens_per_second: float | None = None
    utilisation: float | None = None
    """Required FLOPs a second over what the device's maker says of it; None where that is unknown."""
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Progress(Moved):
    """Where a run stands, for whoever shows it."""

    steps: int
    done_fraction: float
    """Of all units together, by their planned seconds."""
    spent_fraction: float
    """Of all units together, by their planned FLOPs."""
    seconds_left: float | None


class ProgressMeter:
    """Adds up what the workers tell into shares and one time left; lines for a person are passed on."""

    def __init__(
        self,
        units: list[Unit],
        todo: list[Unit],
        progress: Callable[[Progress], None],
        say: Callable[[str], None],
        workers: int = 1,
    ) -> None:
        self.units = {unit.run_id: unit for unit in todo}
        self.at = {unit.run_id: unit.first_step for unit in todo}
        self.progress, self.say = progress, say
        self.started: float | None = None
        """When the first step was told; starting a worker is no pace."""
        self.left, self.total = (_cost(some, "price") for some in (todo, units))
        self.flops_left, self.flops = (_cost(some, "flops") for some in (todo, units))
        self.trained = 0.0
        timed = all(unit.cost.seconds_per_step is not None for unit in todo)
        self.planned_pace = 1.0 / max(1, min(workers, len(todo))) if timed else None
        """Seconds by the clock for a planned second of one worker."""

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
        if self.started is None:
            self.started = time.monotonic()
        else:
            self.trained += unit.price.between(*moved)
        self.progress(
            Progress(
                **vars(told),
                steps=unit.last_step,
                done_fraction=1.0 - max(0.0, self.left) / (self.total or 1.0),
                spent_fraction=1.0 - max(0.0, self.flops_left) / (self.flops or 1.0),
                seconds_left=self._seconds_left(),
            )
        )

    def _seconds_left(self) -> float | None:
        """What is left at the planned pace, which gives way to the one seen as more is trained."""
        took = 0.0 if self.started is None else time.monotonic() - self.started
        if self.planned_pace is not None:
            weight = PLANNED_SHARE * self.total
            pace = (weight * self.planned_pace + took) / ((weight + self.trained) or 1.0)
        elif self.trained and took > SETTLED_SECONDS:
            pace = took / self.trained
        else:
            return None
        return max(0.0, self.left * pace)


def _cost(units: list[Unit], currency: str) -> float:
    return sum(getattr(unit, currency).between(unit.first_step, unit.last_step) for unit in units)
