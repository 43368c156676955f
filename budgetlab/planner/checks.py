"""What to know of a plan before it is run: what will not fit, what was priced elsewhere, what a hand has changed."""

from __future__ import annotations

import math

from budgetlab.errors import CallerError, unknown_name
from budgetlab.machine import has_nvidia_driver, processor_name
from budgetlab.planner.prices import (
    device_seconds,
    device_seconds_interval,
    effective_tokens,
    tariff,
    taught_steps,
    taught_tokens,
    tokens_interval,
)
from budgetlab.studies import Study, profile_key
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import ArmCost, CostProfile, Plan, Schedule

_STATE_BYTES_PER_PARAMETER = 16
"""Weights, gradients and the two moments of AdamW, in float32; activations come on top."""


def warnings(study: Study, profile: CostProfile) -> tuple[str, ...]:
    """Say what may be wrong with planning a study on a profile: made for another study, more memory than there is."""
    found = []
    if len(study.seeds) == 1:
        found.append("one run seed resolves no difference: give three or more in seeds")
    if profile.study_key and profile.study_key != profile_key(study):
        made_for = f"the profile was made for other models, recipe or execution (study {profile.study!r})"
        found.append(f"{made_for}: its prices may be wrong")
    if profile.predicted_for is not None:
        found.append(f"the profile's seconds are predicted, not measured: {profile.predicted_for}")
    # A profile that was only counted says nothing of the device that the study will have.
    measured = profile.environment.device_memory_bytes if any(cost.steps_timed for cost in profile.arms) else None
    known = study.execution.device_memory_bytes or measured
    for cost in (*profile.arms, *profile.teachers):
        least, what = _least_memory(cost)
        if known is not None and least > known:
            has, needs = format_quantity(known, "B"), format_quantity(least, "B")
            found.append(f"{cost.arm} will not fit: {what} takes {needs}, the device has {has}")
    return tuple(found)


def _least_memory(cost: ArmCost) -> tuple[float, str]:
    if cost.peak_memory_bytes is not None:
        return cost.peak_memory_bytes, "its step, as measured,"
    return _STATE_BYTES_PER_PARAMETER * cost.num_params_total, "its weights with their AdamW state alone"


def other_machine(profile: CostProfile) -> str | None:
    """Say that seconds were measured on another machine; None where they were not, or it cannot be told."""
    where = profile.environment
    if not any(cost.steps_timed for cost in profile.arms):
        return None
    no_gpu = "no NVIDIA driver" if has_nvidia_driver() is False else None
    here = processor_name() if where.device == "cpu" else no_gpu
    if here is None or here == where.device_name:
        return None
    return f"the profile was timed on {where.device_name}, this machine has {here}: its seconds will be others"


def rereads(plan: Plan) -> str | None:
    """Say that the smallest budget already reads the text more than once, where nobody asked for less text."""
    first = [s for s in plan.schedules if s.rung == 0 and s.passes is not None and s.unique_tokens is not None]
    most = max(first, key=lambda schedule: schedule.passes or 0.0, default=None)
    if plan.corpus.unique_tokens is not None or most is None or (most.passes or 0.0) <= 1:
        return None
    text = f"the text has {format_quantity(most.unique_tokens, 'tokens')}"
    return (
        f"{text}, and {most.arm} reads it {most.passes:.1f} times at the smallest budget already: more text is better"
    )


def checked(plan: Plan) -> Plan:
    """Validate a plan again, for one that was edited by hand: steps rule, and what follows from them is computed anew.

    Parameters
    ----------
    plan
        As read; of a schedule a person may change `budget`, `steps`, `warmup_steps`, `cooldown_steps` and `feasible`.

    Returns
    -------
    plan
        With tokens, FLOPs, seconds and unspent shares that follow from the steps.

    Raises
    ------
    CallerError
        For an arm, model, teacher or price that the plan does not have, a warm-up and cooldown longer than the run,
        rungs of one trunk with different warm-ups, or steps that cost more than the budget.
    """
    teachers = {teacher.model for teacher in plan.teachers}
    for name, arm in plan.arms.items():
        if arm.student not in plan.models:
            raise unknown_name("model", arm.student, plan.models, f"plan, arm {name}")
        if arm.teacher is not None and arm.teacher not in teachers:
            raise unknown_name("teacher", arm.teacher, teachers, f"plan, arm {name}")
    for trial in plan.trials:
        _known_arm(plan, trial.arm)
    schedules = tuple(_checked(plan, schedule) for schedule in plan.schedules)
    for arm in plan.arms if plan.ladder == "branched" else ():
        warmups = {s.warmup_steps for s in schedules if s.arm == arm and s.feasible}
        if len(warmups) > 1:
            asked = f"plan: {arm} with warm-ups of {', '.join(map(str, sorted(warmups)))} steps"
            raise CallerError(asked, "the rungs of one trunk share its warm-up", "give all of them the same")
    return plan.model_copy(update={"schedules": schedules})


def _known_arm(plan: Plan, arm: str) -> None:
    if arm not in plan.arms or arm not in plan.costs:
        raise unknown_name("arm", arm, [name for name in plan.arms if name in plan.costs], "plan, schedule")


def _checked(plan: Plan, schedule: Schedule) -> Schedule:
    _known_arm(plan, schedule.arm)
    if not schedule.feasible:
        return schedule
    cost, steps, budget = plan.costs[schedule.arm], schedule.steps, schedule.budget
    asked = f"plan: {schedule.arm} at {format_amount(budget.amount, budget.unit)}, {steps} steps"
    warmup, cooldown = schedule.warmup_steps, schedule.cooldown_steps
    if steps < 1 or min(warmup, cooldown) < 0 or warmup + cooldown > steps:
        wrong = f"{warmup} warm-up and {cooldown} cooldown steps do not fit into it"
        raise CallerError(asked, wrong, "change them together")
    arm, unique = plan.arms[schedule.arm], schedule.unique_tokens
    taught = taught_steps(arm, unique)
    price = tariff(plan.execution, cost, budget.unit, plan.charge, taught)
    bill = schedule.teacher_charge + schedule.tuning_charge
    unspent = 1.0 - (bill + price.cost(steps)) / budget.amount
    if unspent < -1e-9:
        fit = price.steps(budget.amount, bill)
        raise CallerError(asked, f"{-100 * unspent:.3g} % more than the budget", f"at most {fit} steps fit it")
    tokens = steps * cost.batch_tokens
    targets = round(tokens * cost.target_fraction)
    read = taught_tokens(tokens, unique, arm.recipe.seq_len) if math.isfinite(taught) else None
    return schedule.model_copy(
        update={
            "tokens": tokens,
            "target_tokens": targets,
            "passes": tokens / unique if unique else None,
            "effective_tokens": float(effective_tokens(tokens, unique)) if unique else None,
            "taught_tokens": read,
            "required_flops": cost.required_flops(tokens, targets, read),
            "executed_flops": cost.executed_flops(tokens, targets, read),
            "device_seconds": device_seconds(plan.execution, cost, steps, taught),
            "device_seconds_interval": device_seconds_interval(plan.execution, cost, steps, taught),
            "tokens_interval": tokens_interval(budget, bill, price, cost),
            "unspent_fraction": max(0.0, unspent),
        }
    )
