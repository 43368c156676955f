"""What to know of a plan before it is run: what will not fit, what was priced elsewhere, what a hand has changed."""

from __future__ import annotations

from budgetlab.errors import CallerError, unknown_name
from budgetlab.machine import has_nvidia_driver, processor_name
from budgetlab.planner.prices import ArmPrice, shared, step_cost, taught_steps
from budgetlab.studies import Study, profile_key
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import CostProfile, Plan, Schedule

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
        least, what = _STATE_BYTES_PER_PARAMETER * cost.num_params_total, "its weights with their AdamW state alone"
        if cost.peak_memory_bytes is not None:
            least, what = cost.peak_memory_bytes, "its step, as measured,"
        if known is not None and least > known:
            has, needs = format_quantity(known, "B"), format_quantity(least, "B")
            found.append(f"{cost.arm} will not fit: {what} takes {needs}, the device has {has}")
    return tuple(found)


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
    priced = [name for name in plan.arms if name in plan.costs]
    for arm in (item.arm for item in (*plan.trials, *plan.schedules)):
        if arm not in priced:
            raise unknown_name("arm", arm, priced, "plan, schedule")
    schedules = tuple(_checked(plan, schedule) if schedule.feasible else schedule for schedule in plan.schedules)
    for arm in plan.arms if plan.ladder == "branched" else ():
        warmups = {s.warmup_steps for s in schedules if s.arm == arm and s.feasible}
        if len(warmups) > 1:
            asked = f"plan: {arm} with warm-ups of {', '.join(map(str, sorted(warmups)))} steps"
            raise CallerError(asked, "the rungs of one trunk share its warm-up", "give all of them the same")
    return plan.model_copy(update={"schedules": schedules})


def _checked(plan: Plan, schedule: Schedule) -> Schedule:
    arm, cost, budget = plan.arms[schedule.arm], plan.costs[schedule.arm], schedule.budget
    steps, warmup, cooldown = schedule.steps, schedule.warmup_steps, schedule.cooldown_steps
    asked = f"plan: {schedule.arm} at {format_amount(budget.amount, budget.unit)}, {steps} steps"
    if steps < 1 or min(warmup, cooldown) < 0 or warmup + cooldown > steps:
        wrong = f"{warmup} warm-up and {cooldown} cooldown steps do not fit into it"
        raise CallerError(asked, wrong, "change them together")
    unique = schedule.unique_tokens
    cache, readers, taught = plan.cache_of(schedule.arm), 1, plan.teacher_steps(schedule.arm, schedule)
    if cache is not None and plan.charge == "cache":
        readers, taught = cache.readers, taught_steps(arm, unique, plan.charge, cached=True)
    per_step = shared(step_cost(plan.execution, cost, budget.unit, plan.charge, taught), readers)
    charges = schedule.teacher_charge, schedule.tuning_charge
    price = ArmPrice(plan.execution, arm, cost, per_step, unique, *charges, readers=readers)
    bought = price.bought(steps, budget)
    unspent = bought["unspent_fraction"]
    if unspent < -1e-9:
        wrong = f"{-100 * unspent:.3g} % more than the budget"
        raise CallerError(asked, wrong, f"at most {price.steps(budget.amount)} steps fit it")
    return schedule.model_copy(update={**bought, "unspent_fraction": max(0.0, unspent)})
