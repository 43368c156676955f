"""How far runs of a plan are, from the files alone: share by planned time, time left, compute spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from budgetlab.values import Plan, RunRecord

__all__ = ["Standing", "standing"]


@dataclass(frozen=True)
class Standing:
    """Where the runs of a plan stand.

    Attributes
    ----------
    done_fraction
        Of all steps, each by its planned price.
    seconds_left
        On the plan's workers, at the pace of the steps so far, or as planned before any; None where steps were not
        timed.
    pace
        Seconds of the steps so far over what was planned for them; None before any.
    spent_required_flops, planned_required_flops
        In the arms' own runs, by their schedules, and in pretraining teachers.
    running
        Units that have begun and not ended: (run_id, steps done, steps in all, the last loss).
    """

    done_fraction: float
    seconds_left: float | None
    pace: float | None
    spent_required_flops: float
    planned_required_flops: float
    running: tuple[tuple[str, int, int, float | None], ...]


@dataclass(frozen=True)
class _Work:
    """Steps of one unit that are its own: a branch's begin where its trunk is left."""

    first: int
    last: int
    seconds_per_step: float | None
    flops_per_step: float
    record: RunRecord | None
    counted: bool
    """Whether its compute is that of a schedule or a teacher; a trunk's is in its branches."""

    @property
    def at(self) -> int:
        record = self.record
        if record is None:
            return self.first
        reached = record.points[-1].step if record.points else record.steps
        return min(self.last, max(self.first, self.last if record.status == "complete" else reached))

    @property
    def price(self) -> float:
        return self.seconds_per_step or self.flops_per_step


def standing(plan: Plan, records: Iterable[RunRecord]) -> Standing:
    """Say how far the runs of a plan are.

    Parameters
    ----------
    plan
        What is to be done.
    records
        Of its runs that have begun, with their points.
    """
    records = list(records)
    work = [*_teachers(plan, records), *_arms(plan, records)]
    failed = {id(unit) for unit in work if unit.record is not None and unit.record.status == "failed"}
    total = sum((unit.last - unit.first) * unit.price for unit in work)
    left = sum((unit.last - unit.at) * unit.price for unit in work if id(unit) not in failed)
    running = [
        (r.run_id, unit.at, unit.last, r.points[-1].losses.get("loss") if r.points else None)
        for unit in work
        if (r := unit.record) is not None and r.status == "running"
    ]
    pace = _pace(work)
    timed = all(unit.seconds_per_step is not None for unit in work)
    return Standing(
        done_fraction=1.0 - left / total if total else 1.0,
        seconds_left=left * (1.0 if pace is None else pace) / plan.execution.workers if timed else None,
        pace=pace,
        spent_required_flops=sum(_steps_done(unit) * unit.flops_per_step for unit in work if unit.counted),
        planned_required_flops=sum(unit.last * unit.flops_per_step for unit in work if unit.counted),
        running=tuple(running),
    )


def _steps_done(unit: _Work) -> int:
    """Of a whole run: a branch has its trunk's steps behind it once it has begun."""
    return 0 if unit.record is None else unit.at


def _pace(work: list[_Work]) -> float | None:
    """Seconds that steps took over what was planned for them; None before the first."""
    took = planned = 0.0
    for unit in work:
        points = unit.record.points if unit.record is not None else ()
        if points and unit.seconds_per_step:
            took += points[-1].device_seconds
            planned += points[-1].step * unit.seconds_per_step
    return took / planned if planned else None


def _teachers(plan: Plan, records: list[RunRecord]) -> list[_Work]:
    found = []
    for teacher in plan.teachers:
        if teacher.weights is not None or not teacher.steps:
            continue
        record = next((r for r in records if r.kind == "teacher" and r.student == teacher.model), None)
        cost = plan.costs[teacher.model]
        per_step = teacher.required_flops / teacher.steps
        found.append(_Work(0, teacher.steps, cost.seconds_per_step, per_step, record, counted=True))
    return found


def _arms(plan: Plan, records: list[RunRecord]) -> list[_Work]:
    found = []
    for name in plan.arms:
        schedules = [s for s in plan.schedules if s.arm == name and s.feasible]
        if not schedules:
            continue
        seconds = plan.costs[name].seconds_per_step
        per_step = schedules[0].required_flops / schedules[0].steps
        branched = plan.ladder == "branched"
        for seed in plan.seeds:
            own = [r for r in records if r.arm == name and r.run_seed == seed]
            if branched:
                trunk = next((r for r in own if r.kind == "trunk"), None)
                last = max(s.steps - s.cooldown_steps for s in schedules)
                ended = all(_rung(own, s.steps) is not None for s in schedules) and trunk is None
                found += [] if ended else [_Work(0, last, seconds, per_step, trunk, counted=False)]
            for s in schedules:
                first = s.steps - s.cooldown_steps if branched else 0
                found.append(_Work(first, s.steps, seconds, per_step, _rung(own, s.steps), counted=True))
    return found


def _rung(records: list[RunRecord], steps: int) -> RunRecord | None:
    return next((r for r in records if r.kind == "rung" and r.schedule is not None and r.schedule.steps == steps), None)
