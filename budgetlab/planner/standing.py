"""What the units of a plan say: how far its runs are, what it all costs, whether compiling and packing pay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from budgetlab.planner.prices import StepCost, step_costs
from budgetlab.units import format_amount, format_seconds
from budgetlab.values import ArmCost, CostProfile, EvaluateSpec, ExecutionSpec, Packing, Plan, PlanUnit, RunRecord

_WORTH_PACKING = 1.1


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


def standing(plan: Plan, records: Iterable[RunRecord]) -> Standing:
    """Say how far the runs of a plan are.

    Parameters
    ----------
    plan
        What is to be done.
    records
        Of its runs that have begun, with their points.
    """
    by_id = {_unit_id(record): record for record in records}
    units = [unit for unit in plan.units() if unit.kind != "trial"]
    # Where all branches are there, their trunk was, whether or not its folder still is.
    awaited = {need for unit in units if unit.id not in by_id for need in unit.needs}
    wanted = {*by_id, *awaited}
    units = [unit for unit in units if unit.kind != "trunk" or unit.id in wanted]
    reached = {unit.id: _reached(unit, by_id.get(unit.id)) for unit in units}
    costs = {unit.id: step_costs(plan.execution, unit.cost, unit.teacher_steps) for unit in units}
    flops = {name: cost for name, (_, cost) in costs.items()}
    seconds = {name: cost for name, (cost, _) in costs.items() if cost is not None}
    # All by seconds, or all by FLOPs: the two do not add up.
    timed = len(seconds) == len(units)

    def total(prices: dict[str, StepCost], done: bool) -> float:
        ends = ((unit, reached[unit.id] if done else unit.last_step) for unit in units)
        return float(sum(prices[unit.id].between(unit.first_step, end) for unit, end in ends))

    took = planned = left = 0.0
    running = []
    failed = {name for name, record in by_id.items() if record.status == "failed"}
    for unit in units:
        record = by_id.get(unit.id)
        points = record.points if record is not None else ()
        if record is not None and record.status == "running":
            loss = points[-1].losses.get("loss") if points else None
            running.append((record.run_id, reached[unit.id], unit.last_step, loss))
        if unit.id in seconds:
            took += points[-1].device_seconds if points else 0.0
            planned += float(seconds[unit.id].cost(points[-1].step)) if points else 0.0
            if not failed & {unit.id, *unit.needs}:
                left += float(seconds[unit.id].between(reached[unit.id], unit.last_step))
    pace = took / planned if planned else None
    shared = seconds if timed else flops
    side_by_side = plan.execution.side_by_side * plan.execution.devices
    return Standing(
        done_fraction=total(shared, done=True) / total(shared, done=False) if total(shared, done=False) else 1.0,
        seconds_left=left * (1.0 if pace is None else pace) / side_by_side if timed else None,
        pace=pace,
        spent_required_flops=total(flops, done=True),
        planned_required_flops=total(flops, done=False),
        running=tuple(running),
    )


@dataclass(frozen=True)
class Workload:
    """What is left to train.

    Attributes
    ----------
    units
        How many trainings.
    device_seconds
        Of their steps, on all devices together; None where they were not timed.
    longest_seconds
        By the clock, of the longest chain of trainings that each need the one before: more workers do not help.
    """

    units: int
    device_seconds: float | None
    longest_seconds: float | None


def workload(plan: Plan, records: Iterable[RunRecord]) -> Workload:
    """Say what is left to train, whoever does it.

    Parameters
    ----------
    plan
        What is to be done.
    records
        Of its runs that have begun, with their points.
    """
    by_id = {_unit_id(record): record for record in records}
    ended = {name for name, record in by_id.items() if record.status != "running"}
    todo = [unit for unit in plan.units() if unit.kind != "trial" and unit.id not in ended]
    total, reaches = 0.0, dict[str, float]()
    for unit in todo:
        price = step_costs(plan.execution, unit.cost, unit.teacher_steps)[0]
        if price is None:
            return Workload(len(todo), None, None)
        took = float(price.between(_reached(unit, by_id.get(unit.id)), unit.last_step))
        before = max((reaches.get(need, 0.0) for need in unit.needs), default=0.0)
        total, reaches[unit.id] = total + took, before + took / plan.execution.devices
    return Workload(len(todo), total, max(reaches.values(), default=0.0))


def _unit_id(record: RunRecord) -> str:
    """Return the id of the unit that a record is of: its run_id without the hash, where the runner wrote it."""
    if record.kind == "teacher":
        return f"{record.student}-s{record.run_seed}"
    part = "trunk" if record.schedule is None else f"{record.schedule.steps}"
    return f"{record.arm}-{part}-s{record.run_seed}"


def _reached(unit: PlanUnit, record: RunRecord | None) -> int:
    if record is None:
        return unit.first_step
    steps = max(record.steps, record.points[-1].step if record.points else 0)
    return min(unit.last_step, max(unit.first_step, steps))


def ladder_costs(plan: Plan) -> dict[str, dict[str, float | None]]:
    """Sum the arms' cost over budgets and seeds, trained as one trunk with branches, or each budget by itself.

    Returns
    -------
    dict
        For "branched" and "separate": `required_flops` and `device_seconds`, None where it is not known, and for
        branches where a schedule has no cooldown to branch off for.
    """
    found: dict[str, dict[str, float | None]] = {}
    for ladder in ("branched", "separate"):
        if ladder == "branched" != plan.ladder and not all(s.cooldown_steps for s in plan.schedules if s.feasible):
            found[ladder] = {"required_flops": None, "device_seconds": None}
            continue
        units = [unit for unit in plan.units(ladder) if unit.kind in ("trunk", "branch", "run")]
        costs = [step_costs(plan.execution, unit.cost, unit.teacher_steps)[0] for unit in units]
        seconds = [
            None if cost is None else float(cost.between(unit.first_step, unit.last_step))
            for cost, unit in zip(costs, units, strict=True)
        ]
        found[ladder] = {
            "required_flops": sum(unit.required_flops for unit in units),
            "device_seconds": None if None in seconds else sum(filter(None, seconds)),
        }
    return found


def ladder_note(plan: Plan) -> str | None:
    """Say what the ladder costs, and what the other one would; None where there is one budget."""
    if len({schedule.rung for schedule in plan.schedules}) < 2:
        return None
    costs = {name: cost["required_flops"] for name, cost in ladder_costs(plan).items()}
    other = "separate" if plan.ladder == "branched" else "branched"
    shown = {name: "n/a" if value is None else format_amount(value, "required_flops") for name, value in costs.items()}
    return f"the {plan.ladder} ladder trains {shown[plan.ladder]} in the arms; {other} it would be {shown[other]}"


def predicted_times(plan: Plan, spec: EvaluateSpec) -> str | None:
    """Say how long the runs and their losses will take on the plan's workers; None where steps were not timed.

    The losses are predicted from the seconds that a token takes in the cheapest arm's training, with the shares that
    were measured on the demo's students: 0.6 for a read-out and 1 for an adapted loss. Fine-tuned tasks are not in it,
    and of causal studies, whose losses take little, training alone is said.
    """
    left = standing(plan, []).seconds_left
    rates = [cost.seconds_per_step / cost.batch_tokens for cost in plan.costs.values() if cost.seconds_per_step]
    if left is None or not rates:
        return None
    training = f"about {format_seconds(left)} of training"
    if all(arm.recipe.causal for arm in plan.arms.values()):
        return training
    top = max(schedule.rung for schedule in plan.schedules)
    runs = [schedule for schedule in plan.schedules if schedule.feasible for _ in plan.seeds]
    others = len(plan.teachers) + len(plan.seeds) * len({arm.student for arm in plan.arms.values()})
    adapted = [run for run in runs if "adapted_loss" not in spec.largest_budget_only or run.rung == top]
    tokens = 0.6 * spec.readout_tokens * (len(runs) + others) + spec.adapted_tokens * (len(adapted) + others)
    losses = tokens * min(rates) / plan.execution.side_by_side
    further = f", then {len(spec.tasks)} tasks" if spec.tasks else ""
    return f"{training} and {format_seconds(losses)} of measuring losses{further}"


def decide_compiling(asked: str, plan: Plan) -> tuple[bool, str]:
    """Say whether a plan's networks are to be compiled, and why.

    With `execution.compile = "auto"` they are where the seconds that faster steps save, at the unfavourable end of the
    measured interval, are more than those of compiling each training anew.
    """
    if asked != "auto":
        return asked == "always", f"as asked: execution.compile = {asked}"
    if any(cost.compiled is None for cost in (*plan.costs.values(), *plan.teacher_costs.values())):
        return False, "not measured: a CPU gains little from it (execution.compile = always measures and uses it)"
    saves = takes = 0.0
    for unit in plan.units():
        if unit.steps and unit.kind != "trial" and unit.cost.compiled is not None:
            ratio = unit.cost.compiled.seconds_ratio
            worst = ratio.value if ratio.interval is None else ratio.interval[1]
            saves += unit.steps * (unit.cost.seconds_per_step or 0.0) * (1.0 - worst)
            takes += unit.cost.compiled.compile_seconds
    saved = format_seconds(max(0.0, saves))
    return saves > takes, f"faster steps save {saved} of device time, compiling takes {format_seconds(takes)}"


def compiled_prices(profile: CostProfile) -> CostProfile:
    """Return the prices of compiled steps, where they were measured; FLOPs, memory and energy stay."""

    def faster(cost: ArmCost) -> ArmCost:
        if cost.compiled is None or cost.seconds_per_step is None:
            return cost
        ratio, ends, rate = cost.compiled.seconds_ratio.value, cost.seconds_per_step_interval, cost.tokens_per_second
        phases = dict(cost.phases)
        for name, price in cost.phases.items():
            if price.seconds_per_step is not None:
                phases[name] = price.model_copy(update={"seconds_per_step": price.seconds_per_step * ratio})
        return cost.model_copy(
            update={
                "phases": phases,
                "seconds_per_step": cost.seconds_per_step * ratio,
                "seconds_per_step_interval": None if ends is None else (ends[0] * ratio, ends[1] * ratio),
                "tokens_per_second": None if rate is None else rate / ratio,
            }
        )

    arms, teachers = (tuple(map(faster, costs)) for costs in (profile.arms, profile.teachers))
    return profile.model_copy(update={"arms": arms, "teachers": teachers})


def decide_packing(execution: ExecutionSpec, packing: tuple[Packing, ...] | None) -> tuple[ExecutionSpec, str]:
    """Say how many trainings go side by side on the device, and why; a number that was asked for stays.

    With `execution.workers = "auto"` it is the number at which their steps were fastest together, if that is by a
    tenth faster than one alone.
    """
    if execution.workers != "auto":
        return execution, ""
    best = max(packing or (), key=lambda found: found.speed_ratio, default=None)
    if execution.devices > 1:
        best, why = None, "each training has several"
    elif packing is None:
        why = "not measured"
    elif best is None:
        why = "it has no room for more"
    else:
        why = f"{best.processes} take {best.speed_ratio:.2f} times the steps a second of one"
    workers = best.processes if best is not None and best.speed_ratio >= _WORTH_PACKING else 1
    return execution.model_copy(update={"workers": workers}), why
