"""One budget -> matched token schedules, in integer steps that never cost more."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.planner.checks import warnings
from budgetlab.studies import Study, audit
from budgetlab.units import format_amount, parse_amount
from budgetlab.values import ArmCost, Budget, CostProfile, Plan, Recipe, Schedule, TeacherPlan, Trial

__all__ = ["MATCHES", "charge_share", "effective_tokens", "plan", "price_per_step", "whole_steps"]

MATCHES = {
    "required_flops": "required_flops",
    "executed_flops": "executed_flops",
    "device_seconds": "device_seconds",
    "joules": "joules",
    "usd": "usd",
    "equal_tokens": "tokens",
}
"""What can be matched -> the unit of its budgets; `tokens:ARM` is the required FLOPs of that arm's tokens."""


def plan(
    study: Study,
    profile: CostProfile,
    *,
    corpus_tokens: int | None = None,
    budgets: tuple[str | float, ...] | None = None,
    match: str | None = None,
    teacher_charge: str | None = None,
) -> Plan:
    """Turn a study's budgets into one schedule for each arm and budget.

    Parameters
    ----------
    study
        What was asked.
    profile
        The price of each arm.
    corpus_tokens
        Positions in one pass over the training text, where it is known.
    budgets, match, teacher_charge
        Instead of those in the study.

    Returns
    -------
    plan
        `schedules` by budget (smallest first), then arm. steps = floor(what the teacher leaves / price of a
        step), so that no schedule costs more than its budget; what is left over is `unspent_fraction`.

    Raises
    ------
    CallerError
        For an unknown match or charge, a price that was not measured, a budget of the wrong unit, or budgets that are
        too small for every arm.
    """
    match = match or study.plan.match
    charge = teacher_charge or study.plan.teacher_charge
    costs = {cost.arm: cost for cost in (*profile.arms, *profile.teachers)}
    for arm in study.arms:
        if arm not in costs:
            raise CallerError(f"plan of {study.name}", f"the profile has no arm {arm!r}", "profile this study again")
    amounts = _budgets(study, budgets or study.plan.budgets, match, costs)
    unit = amounts[0].unit
    if study.plan.ladder == "branched" and any(
        a.recipe.schedule not in ("wsd", "inverse_sqrt") for a in study.arms.values()
    ):
        raise CallerError('ladder = "branched"', "needs a schedule that can be cut anywhere", 'use schedule = "wsd"')
    unique = study.corpus.unique_tokens or corpus_tokens
    if corpus_tokens is not None and unique is not None and unique > corpus_tokens:
        asked = f"corpus.unique_tokens = {unique:,}"
        raise CallerError(asked, f"the corpus has {corpus_tokens:,}", "lower it, leave it out, or add text")
    schedules = [
        _schedule(study, arm, costs, budget, rung, amounts[0], charge, unique)
        for rung, budget in enumerate(amounts)
        for arm in study.arms
    ]
    if not any(schedule.feasible for schedule in schedules):
        raise CallerError(
            f"budget {format_amount(amounts[-1].amount, unit)}",
            "too small for one step of any arm",
            schedules[-1].reason or "",
        )
    for schedule in schedules:
        _within_tolerance(schedule, study.plan.tolerance_fraction)
    return Plan(
        study=study.name,
        match=match,
        charge=charge,
        tolerance_fraction=study.plan.tolerance_fraction,
        ladder=study.plan.ladder,
        seeds=study.seeds,
        recipe=_profiled(study.recipe, costs[next(iter(study.arms))]),
        models=study.models,
        arms={
            name: arm.model_copy(update={"recipe": _profiled(arm.recipe, costs[name])})
            for name, arm in study.arms.items()
        },
        costs=costs,
        schedules=tuple(schedules),
        teachers=tuple(_teacher_plan(study, name, costs) for name in study.teacher_names()),
        corpus=study.corpus,
        execution=study.execution,
        audit=audit(study),
        trials=tuple(_trials(study, costs, amounts[0], charge, unique)),
        warnings=warnings(study, profile),
    )


def price_per_step(
    cost: ArmCost, unit: str, *, charge: str = "inference", usd_per_device_hour: float | None = None
) -> float:
    """Return what one step costs, in the budget's unit.

    With `charge = "none"` the teacher's forward pass is left out.

    Raises
    ------
    CallerError
        When that price was not measured.
    """
    teacher = cost.phases["teacher_forward"]
    free = charge == "none"
    if unit == "tokens":
        return float(cost.batch_tokens)
    if unit == "required_flops":
        flops = cost.train_required_flops_per_token - (teacher.required_flops_per_token if free else 0.0)
        return flops * cost.batch_tokens
    if unit == "executed_flops":
        flops = cost.train_executed_flops_per_token - (teacher.executed_flops_per_token if free else 0.0)
        return flops * cost.batch_tokens
    if unit == "joules":
        if cost.joules_per_token is None:
            raise CallerError("match = joules", f"no energy was measured for {cost.arm}", "profile where it can be")
        return cost.joules_per_token * cost.batch_tokens
    if cost.seconds_per_step is None:
        raise CallerError(f"match by {unit}", f"{cost.arm} was counted, not timed", "profile without --count-only")
    if free and teacher.seconds_per_step is None:
        raise CallerError(f"teacher_charge = none by {unit}", f"{cost.arm} was not timed by phase", "profile it here")
    seconds = cost.seconds_per_step - ((teacher.seconds_per_step or 0.0) if free else 0.0)
    if unit == "usd":
        if usd_per_device_hour is None:
            raise CallerError("match = usd", "no price of a device hour", "set execution.usd_per_device_hour")
        return seconds / 3600.0 * usd_per_device_hour
    return seconds


def _budgets(study: Study, asked: tuple[str | float, ...], match: str, costs: dict[str, ArmCost]) -> list[Budget]:
    if match.startswith("tokens:"):
        arm = match.removeprefix("tokens:")
        if arm not in study.arms:
            raise unknown_name("arm", arm, study.arms, f"match = {match!r}, arm")
        wanted, price = "tokens", costs[arm].train_required_flops_per_token
    elif match in MATCHES:
        wanted, price = MATCHES[match], 1.0
    else:
        raise unknown_name("match", match, [*MATCHES, "tokens:ARM"], "plan.match")
    budgets = []
    for text in asked:
        amount, unit = parse_amount(text, wanted, f"{study.name}: plan.budgets")
        if unit == "wall_seconds":
            amount, unit = amount * study.execution.devices, "device_seconds"
        if unit != wanted:
            raise CallerError(
                f"budget {text!r} with match = {match!r}",
                f"it is in {unit}, the match in {wanted}",
                "change one of them",
            )
        # One part in 1e9 keeps an arm's own tokens from being rounded down to one step less.
        budgets.append(
            Budget(amount=amount * price * (1 + 1e-9), unit="required_flops")
            if match.startswith("tokens:")
            else Budget(amount=amount, unit=unit)
        )
    return sorted(budgets, key=lambda budget: budget.amount)


def charge_share(charge: str) -> float:
    """Share of the teacher's pretraining that one schedule is billed: 0, 1, or 1/K of "amortised:K"."""
    if charge in ("none", "inference"):
        return 0.0
    if charge == "pretraining":
        return 1.0
    found = re.fullmatch(r"amortised:([1-9]\d*)", charge)
    if found is None:
        raise unknown_name("charge", charge, ["none", "inference", "pretraining", "amortised:K"], "plan.teacher_charge")
    return 1.0 / int(found.group(1))


def _price(study: Study, cost: ArmCost, unit: str, charge: str) -> float:
    """Price of a step on the study's devices; what several of them lose to each other is paid in their time."""
    execution = study.execution
    price = price_per_step(cost, unit, charge=charge, usd_per_device_hour=execution.usd_per_device_hour)
    loses = execution.devices > 1 and unit in ("device_seconds", "usd", "joules")
    return price / execution.scaling_efficiency if loses else price


def _teacher_bill(study: Study, arm: str, costs: dict[str, ArmCost], unit: str, charge: str) -> float:
    teacher = study.arms[arm].teacher
    share = charge_share(charge)
    if teacher is None or share == 0.0 or unit == "tokens":
        return 0.0
    spec = study.models[teacher]
    tokens = spec.pretraining_tokens
    if tokens is not None and teacher in costs:
        return (
            share * math.ceil(tokens / costs[teacher].batch_tokens) * _price(study, costs[teacher], unit, "inference")
        )
    asked = f"teacher_charge = {charge!r}"
    if spec.pretrained_for is None:
        known = f'set models.{teacher}.pretrained_for = "137B tokens" or the like, or use inference or none'
        raise CallerError(asked, f"the pretraining cost of {teacher!r} is unknown", known)
    amount, stated = parse_amount(spec.pretrained_for, "tokens")
    if stated != unit:
        wrong = f"the cost of {teacher!r} is stated in {stated}, the budget is in {unit}"
        raise CallerError(asked, wrong, f"state it in tokens (and profile again) or in {unit}")
    return share * amount


def _schedule(
    study: Study,
    arm: str,
    costs: dict[str, ArmCost],
    budget: Budget,
    rung: int,
    smallest: Budget,
    charge: str,
    unique: int | None,
) -> Schedule:
    cost, recipe = costs[arm], study.arms[arm].recipe
    teacher_bill = _teacher_bill(study, arm, costs, budget.unit, charge)
    price = _price(study, cost, budget.unit, charge)
    first_steps = int(whole_steps(smallest.amount, teacher_bill, price))
    tried = len(study.tuning.learning_rate) if study.tuning is not None and study.tuning.charge else 0
    bill = teacher_bill + tried * first_steps * price
    steps = int(whole_steps(budget.amount, bill, price))
    # Rungs of one trunk share its warm-up, which is therefore a share of the smallest rung.
    warmup = math.ceil(recipe.warmup_fraction * (first_steps if study.plan.ladder == "branched" else steps))
    cooldown = max(1, round(recipe.cooldown_fraction * steps)) if recipe.schedule == "wsd" and steps else 0
    needed = max(2, warmup + cooldown)
    feasible = steps >= needed and first_steps > 0
    reason = None
    if not feasible:
        enough = format_amount(bill + 2 * price, budget.unit)
        reason = f"{arm} can take {steps} steps; the smallest feasible budget is {enough}"
        if tried:
            reason += (
                f", of which {tried} trials of learning rates take {format_amount(bill - teacher_bill, budget.unit)}"
            )
        elif teacher_bill and budget.amount > 2 * price:
            share = charge_share(charge) * (budget.amount - 2 * price) / teacher_bill
            reason += f", or share the teacher among {math.ceil(1 / share)} students (amortised:{math.ceil(1 / share)})"
        steps = warmup = cooldown = 0
    tokens = steps * cost.batch_tokens
    targets = round(tokens * cost.target_fraction)
    seconds, interval = cost.seconds_per_step, cost.seconds_per_step_interval
    by_time = budget.unit in ("device_seconds", "usd") and interval is not None and seconds is not None and feasible
    return Schedule(
        arm=arm,
        budget=budget,
        rung=rung,
        feasible=feasible,
        reason=reason,
        tokens=tokens,
        target_tokens=targets,
        steps=steps,
        tokens_interval=_tokens_interval(budget.amount, bill, price, cost) if by_time else None,
        passes=tokens / unique if unique else None,
        effective_tokens=float(effective_tokens(tokens, unique)) if unique else None,
        unique_tokens=unique,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        required_flops=cost.required_flops(tokens, targets),
        executed_flops=cost.executed_flops(tokens, targets),
        device_seconds=None if seconds is None else seconds * steps,
        device_seconds_interval=None if interval is None else (interval[0] * steps, interval[1] * steps),
        interval_level=cost.interval_level,
        teacher_charge=teacher_bill,
        tuning_charge=bill - teacher_bill,
        unspent_fraction=1.0 - (bill + steps * price) / budget.amount if feasible else 1.0,
    )


def _within_tolerance(schedule: Schedule, tolerance: float) -> None:
    if schedule.feasible and schedule.unspent_fraction > tolerance:
        raise CallerError(
            f"{schedule.arm} at {format_amount(schedule.budget.amount, schedule.budget.unit)}",
            f"{schedule.steps} whole steps leave {100 * schedule.unspent_fraction:.2g} % unspent, more than "
            f"plan.tolerance_fraction = {tolerance:g}",
            "raise the budget, lower recipe.batch_tokens, or allow more",
        )


def _trials(
    study: Study, costs: dict[str, ArmCost], smallest: Budget, charge: str, unique: int | None
) -> Iterator[Trial]:
    """Yield the same learning rates for every arm, each a whole run of its own at the smallest budget."""
    if study.tuning is None:
        return
    bare = study.model_copy(update={"tuning": None, "plan": study.plan.model_copy(update={"ladder": "separate"})})
    for arm in study.arms:
        schedule = _schedule(bare, arm, costs, smallest, 0, smallest, charge, unique)
        for rate in study.tuning.learning_rate if schedule.feasible else ():
            name = f"{arm}~{rate:g}"
            yield Trial(arm=arm, learning_rate=rate, schedule=schedule.model_copy(update={"arm": name}))


def _tokens_interval(amount: float, bill: float, price: float, cost: ArmCost) -> tuple[float, float]:
    """What the budget would buy at either end of the step time's interval."""
    assert cost.seconds_per_step is not None and cost.seconds_per_step_interval is not None
    fast, slow = (price * end / cost.seconds_per_step for end in cost.seconds_per_step_interval)
    low, high = (float(whole_steps(amount, bill, end)) * cost.batch_tokens for end in (slow, fast))
    return low, high


def whole_steps(amount: Any, bill: Any, price: Any) -> Any:
    """Steps that a budget pays for after the bill: whole, never costing more, at least 0; arrays broadcast."""
    steps = np.maximum(0.0, np.floor((np.asarray(amount, dtype=float) - bill) / price))
    return np.where((steps > 0) & (bill + steps * price > amount), steps - 1.0, steps)


DATA_HALF_LIFE_PASSES = 15.387756
"""R_D* of the data-constrained law, of causal models on C4 (Muennighoff et al. 2023, arXiv 2305.16264)."""


def effective_tokens(tokens: Any, unique_tokens: Any) -> Any:
    """Tokens of fresh text that would be worth as much as reading `unique_tokens` of text again and again.

    D' = U + U R* (1 - exp(-R / R*)) with U unique tokens read and R = D / U - 1 repetitions (Muennighoff et al. 2023,
    arXiv 2305.16264, equation 5). Fitted on causal models; for masked ones it is an indication.

    Parameters
    ----------
    tokens, unique_tokens
        Read in all, and in one pass; arrays broadcast.
    """
    tokens = np.asarray(tokens, dtype=float)
    unique = np.minimum(tokens, unique_tokens)
    repeats = np.divide(tokens, unique, out=np.ones_like(tokens + unique), where=unique > 0) - 1.0
    return unique * (1.0 + DATA_HALF_LIFE_PASSES * -np.expm1(-repeats / DATA_HALF_LIFE_PASSES))


def _teacher_plan(study: Study, name: str, costs: dict[str, ArmCost]) -> TeacherPlan:
    spec, recipe, cost = study.models[name], study.recipe, costs.get(name)
    steps = math.ceil((spec.pretraining_tokens or 0) / recipe.batch_tokens)
    flops = 0.0 if cost is None else cost.train_required_flops_per_token * steps * recipe.batch_tokens
    if spec.pretrain is None:
        if spec.pretrained_for is not None and cost is None:
            amount, unit = parse_amount(spec.pretrained_for, "tokens")
            flops = amount if unit == "required_flops" else 0.0
        return TeacherPlan(model=name, weights=spec.weights, required_flops=flops)
    return TeacherPlan(
        model=name,
        tokens=steps * recipe.batch_tokens,
        steps=steps,
        warmup_steps=math.ceil(recipe.warmup_fraction * steps),
        cooldown_steps=min(steps, max(1, round(recipe.cooldown_fraction * steps))),
        seed=spec.pretrain.seed,
        required_flops=flops,
        device_seconds=None if cost is None or cost.seconds_per_step is None else cost.seconds_per_step * steps,
    )


def _profiled(recipe: Recipe, cost: ArmCost) -> Recipe:
    """The recipe with the precision and attention that were profiled."""
    return Recipe.model_validate({**recipe.model_dump(), "dtype": cost.dtype, "attention": cost.attention})
