"""What to know of a plan before it is run: what will not fit, what was priced elsewhere, what a hand has changed."""

from __future__ import annotations

from budgetlab.errors import CallerError, unknown_name
from budgetlab.machine import has_nvidia_driver, processor_name
from budgetlab.studies import Study, profile_key
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import ArmCost, CostProfile, Plan, Schedule

__all__ = ["checked", "other_machine", "warnings"]

_STATE_BYTES_PER_PARAMETER = 16
"""Weights, gradients and the two moments of AdamW, in float32; activations come on top."""


def warnings(study: Study, profile: CostProfile) -> tuple[str, ...]:
    """Say what may be wrong with planning a study on a profile: made for another study, more memory than there is."""
    found = []
    if profile.study_key and profile.study_key != profile_key(study):
        made_for = f"the profile was made for other models, recipe or execution (study {profile.study!r})"
        found.append(f"{made_for}: its prices may be wrong")
    known = study.execution.device_memory_bytes or profile.environment.device_memory_bytes
    for cost in profile.arms:
        least, what = _least_memory(cost)
        if known is not None and least > known:
            has, needs = format_quantity(known, "B"), format_quantity(least, "B")
            found.append(f"{cost.arm} will not fit: {what} takes {needs}, the device has {has}")
    return tuple(found)


def _least_memory(cost: ArmCost) -> tuple[float, str]:
    if cost.peak_memory_bytes is not None:
        return cost.peak_memory_bytes, "its step, as measured,"
    return _STATE_BYTES_PER_PARAMETER * cost.num_params_total, "the student with its AdamW state alone"


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


def checked(plan: Plan) -> Plan:
    """Validate a plan again, for one that was edited by hand: steps rule, and what follows from them is recomputed.

    Parameters
    ----------
    plan
        As read; of a schedule a person may change `steps`, `warmup_steps`, `cooldown_steps` and `feasible`.

    Returns
    -------
    plan
        With tokens, FLOPs, seconds and unspent shares that follow from the steps.

    Raises
    ------
    CallerError
        For an arm, model or price that the plan does not have, a warm-up and cooldown longer than the run, or steps
        that cost more than the budget.
    """
    for name, arm in plan.arms.items():
        for model in (arm.student, arm.teacher):
            if model is not None and model not in plan.models:
                raise unknown_name("model", model, plan.models, f"plan, arm {name}")
    return plan.model_copy(update={"schedules": tuple(_checked(plan, schedule) for schedule in plan.schedules)})


def _checked(plan: Plan, schedule: Schedule) -> Schedule:
    if schedule.arm not in plan.arms or schedule.arm not in plan.costs:
        raise unknown_name("arm", schedule.arm, [a for a in plan.arms if a in plan.costs], "plan, schedule")
    if not schedule.feasible:
        return schedule
    cost, steps = plan.costs[schedule.arm], schedule.steps
    asked = f"plan: {schedule.arm} at {format_amount(schedule.budget.amount, schedule.budget.unit)}, {steps} steps"
    if steps < 1 or schedule.warmup_steps + schedule.cooldown_steps > steps or schedule.warmup_steps < 0:
        wrong = f"{schedule.warmup_steps} warm-up and {schedule.cooldown_steps} cooldown steps do not fit into it"
        raise CallerError(asked, wrong, "change them together")
    # What is left of the budget says what a step was priced at, in whatever unit and under whatever charge.
    planned = round(schedule.tokens / cost.batch_tokens)
    if steps == planned:
        return schedule
    bills = schedule.teacher_charge + schedule.tuning_charge
    spent = (1.0 - schedule.unspent_fraction) * schedule.budget.amount - bills
    unspent = 1.0 - (bills + spent / planned * steps) / schedule.budget.amount
    if unspent < -1e-9:
        raise CallerError(asked, f"{-100 * unspent:.3g} % more than the budget", f"at most {planned} steps fit it")
    tokens = steps * cost.batch_tokens
    targets = round(tokens * cost.target_fraction)
    return schedule.model_copy(
        update={
            "tokens": tokens,
            "target_tokens": targets,
            "tokens_interval": None,
            "passes": None if schedule.unique_tokens is None else tokens / schedule.unique_tokens,
            "effective_tokens": None,
            "required_flops": cost.required_flops(tokens, targets),
            "executed_flops": cost.executed_flops(tokens, targets),
            "device_seconds": None if cost.seconds_per_step is None else cost.seconds_per_step * steps,
            "device_seconds_interval": None,
            "unspent_fraction": max(0.0, unspent),
        }
    )
