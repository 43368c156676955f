"""How far runs of a plan are, from the files alone: share by planned time, time left, compute spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from budgetlab.planner.prices import Tariff, tariffs, taught_steps
from budgetlab.values import Plan, RunRecord


@dataclass(frozen=True)
class Standing:
    """Where the runs of a plan stand.

    Attributes
    ----------
    done_fraction
        Of all steps, each by its planned seconds; by its FLOPs where not all were timed.
    seconds_left
        On the plan's workers and devices, at the pace of the steps so far, or as planned before any; None where steps
        were not timed.
    pace
        Seconds of the steps so far over what was planned for them; None before any.
    spent_required_flops, planned_required_flops
        Of every step that is taken once: a trunk's are its own, not those of each of its branches.
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
    seconds: Tariff | None
    flops: Tariff
    record: RunRecord | None
    name: str
    needs: tuple[str, ...] = ()
    """Names of the units without which it cannot begin: its teacher, its trunk."""

    @property
    def at(self) -> int:
        record = self.record
        if record is None:
            return self.first
        reached = max(record.steps, record.points[-1].step if record.points else 0)
        return min(self.last, max(self.first, reached))


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
    # All by seconds, or all by FLOPs: the two do not add up.
    timed = all(unit.seconds is not None for unit in work)
    prices = [unit.seconds if timed and unit.seconds is not None else unit.flops for unit in work]
    total = sum(price.between(unit.first, unit.last) for unit, price in zip(work, prices, strict=True))
    done = sum(price.between(unit.first, unit.at) for unit, price in zip(work, prices, strict=True))
    lost = {unit.name for unit in work if unit.record is not None and unit.record.status == "failed"}
    waiting = [not lost & {unit.name, *unit.needs} for unit in work]
    left = sum(p.between(u.at, u.last) for u, p, can in zip(work, prices, waiting, strict=True) if can)
    running = [
        (r.run_id, unit.at, unit.last, r.points[-1].losses.get("loss") if r.points else None)
        for unit in work
        if (r := unit.record) is not None and r.status == "running"
    ]
    pace = _pace(work)
    side_by_side = plan.execution.side_by_side * plan.execution.devices
    return Standing(
        done_fraction=done / total if total else 1.0,
        seconds_left=left * (1.0 if pace is None else pace) / side_by_side if timed else None,
        pace=pace,
        spent_required_flops=sum(unit.flops.between(unit.first, unit.at) for unit in work),
        planned_required_flops=sum(unit.flops.between(unit.first, unit.last) for unit in work),
        running=tuple(running),
    )


def _pace(work: list[_Work]) -> float | None:
    """Seconds that steps took over what was planned for them; None before the first."""
    took = planned = 0.0
    for unit in work:
        points = unit.record.points if unit.record is not None else ()
        if points and unit.seconds is not None:
            took += points[-1].device_seconds
            planned += unit.seconds.cost(points[-1].step)
    return took / planned if planned else None


def _teachers(plan: Plan, records: list[RunRecord]) -> list[_Work]:
    found = []
    for teacher in plan.teachers:
        if teacher.weights is not None or not teacher.steps:
            continue
        record = next((r for r in records if r.kind == "teacher" and r.student == teacher.model), None)
        cost = plan.teacher_costs[teacher.model]
        prices = tariffs(plan.execution, cost)
        found.append(_Work(0, teacher.steps, *prices, record, teacher.model))
    return found


def _arms(plan: Plan, records: list[RunRecord]) -> list[_Work]:
    found = []
    for name in plan.arms:
        schedules = [s for s in plan.schedules if s.arm == name and s.feasible]
        if not schedules:
            continue
        prices = tariffs(plan.execution, plan.costs[name], taught_steps(plan.arms[name], schedules[0].unique_tokens))
        branched = plan.ladder == "branched"
        for seed in plan.seeds:
            own = [r for r in records if r.arm == name and r.run_seed == seed]
            needs = tuple(filter(None, [plan.arms[name].teacher]))
            if branched:
                trunk = next((r for r in own if r.kind == "trunk"), None)
                last = max(s.steps - s.cooldown_steps for s in schedules)
                # Where all branches are there, their trunk was, whether or not its folder still is.
                if trunk is not None or any(_rung(own, s.steps) is None for s in schedules):
                    found.append(_Work(0, last, *prices, trunk, f"{name} {seed} trunk", needs))
                needs = (*needs, f"{name} {seed} trunk")
            for s in schedules:
                first = s.steps - s.cooldown_steps if branched else 0
                rung = _rung(own, s.steps)
                found.append(_Work(first, s.steps, *prices, rung, f"{name} {seed} {s.steps}", needs))
    return found


def _rung(records: list[RunRecord], steps: int) -> RunRecord | None:
    return next((r for r in records if r.kind == "rung" and r.schedule is not None and r.schedule.steps == steps), None)
