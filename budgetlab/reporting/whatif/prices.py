"""What the what-if planner of the page computes with: every arm's prices, as plain JSON."""

from __future__ import annotations

import math
from typing import Any

from budgetlab.errors import CallerError
from budgetlab.planner import MATCHES, trial_plan
from budgetlab.planner.match import WARMUP_FRACTION
from budgetlab.planner.prices import device_seconds, step_price, teacher_bill
from budgetlab.strategies import build_strategy
from budgetlab.values import Arm, ModelSpec, Plan, StrategySpec

_UNITS = tuple(MATCHES.values())
_LARGEST = 64
"""Logits that a teacher is assumed to be cut off after where its answers are kept and the study does not say."""


def price_data(plan: Plan) -> dict[str, Any]:
    """Return the prices of a plan's arms and the settings that it was made with.

    Parameters
    ----------
    plan
        As it is run: with the prices of compiled steps where the networks are compiled.

    Returns
    -------
    dict
        Plain JSON. A price that is not known is `{"error": why}`, in the planner's words. Prices are a step's on the
        study's devices, in the unit of each currency; `bills` are a teacher's whole pretraining.
    """
    top = max(plan.schedules, key=lambda schedule: schedule.rung)
    trials = trial_plan(plan)
    each = max((sum(trial.arm == arm for trial in plan.trials) for arm in plan.arms), default=0) * len(trials.seeds)
    return {
        "study": plan.study,
        "match": plan.match,
        "charge": plan.charge,
        "budget": top.budget.model_dump(),
        "matches": dict(MATCHES),
        "tolerance_fraction": plan.tolerance_fraction,
        "devices": plan.execution.devices,
        "charged_trials": each if any(schedule.tuning_charge for schedule in plan.schedules) else 0,
        "trial_share": plan.tuning_share,
        "warmup_share": WARMUP_FRACTION,
        # A script's numbers count to 2^53; digits have no such end.
        "unique_tokens": None if top.unique_tokens is None else str(top.unique_tokens),
        "arms": [_arm(plan, arm) for arm in plan.arms.values()],
    }


def _arm(plan: Plan, arm: Arm) -> dict[str, Any]:
    cost, recipe = plan.costs[arm.name], arm.recipe
    teacher = None if arm.teacher is None else plan.models[arm.teacher]
    why_not = _why_not_cached(arm, teacher)
    return {
        "name": arm.name,
        "teacher": arm.teacher,
        "batch_tokens": cost.batch_tokens,
        "batch_sequences": recipe.batch_sequences,
        "seq_len": recipe.seq_len,
        "warmup_tokens": recipe.warmup_tokens,
        "warmup_fraction": recipe.warmup_fraction,
        "cooldown_fraction": recipe.cooldown_fraction,
        "cools_down": recipe.cools_down,
        "target_fraction": cost.target_fraction,
        "required_flops_per_position": cost.required_flops_per_position,
        "required_flops_per_target_token": cost.required_flops_per_target_token,
        "teacher_forward_required_flops_per_token": cost.phases["teacher_forward"].required_flops_per_token,
        "seconds_per_step": cost.seconds_per_step,
        "seconds_per_step_interval": cost.seconds_per_step_interval,
        "timed": device_seconds(plan.execution, cost, 1) is not None,
        "teacher_timed": device_seconds(plan.execution, cost, 1, 1.0) is not None,
        "cached": any(s.taught_tokens is not None for s in plan.schedules if s.arm == arm.name),
        "why_not_cached": why_not,
        "cached_needs": [] if why_not else _cached_needs(plan, arm),
        "prices": {
            unit: {charge: _price(plan, arm.name, unit, charge) for charge in ("inference", "none")} for unit in _UNITS
        },
        "bills": {} if arm.teacher is None else {unit: _bill(plan, arm.teacher, unit) for unit in _UNITS},
    }


def _price(plan: Plan, arm: str, unit: str, charge: str) -> float | dict[str, str]:
    try:
        return step_price(plan.execution, plan.costs[arm], unit, charge)
    except CallerError as error:
        return {"error": str(error)}


def _bill(plan: Plan, teacher: str, unit: str) -> dict[str, Any]:
    """Return what a share of the pretraining is taken of, in the factors that the planner multiplies."""
    try:
        whole = teacher_bill(plan.execution, plan.models, teacher, plan.teacher_costs, unit, "pretraining")
    except CallerError as error:
        return {"error": str(error)}
    tokens = plan.models[teacher].pretraining_tokens
    if tokens is None or teacher not in plan.teacher_costs or unit == "tokens":
        return {"amount": whole}
    cost = plan.teacher_costs[teacher]
    return {
        "steps": math.ceil(tokens / cost.batch_tokens),
        "price": step_price(plan.execution, cost, unit, "inference"),
    }


def _why_not_cached(arm: Arm, teacher: ModelSpec | None) -> str | None:
    """Say why a teacher's answers cannot be kept; None where they can."""
    if teacher is None:
        return "it has no teacher"
    stated = {name: value for name, value in arm.strategy.settings.items() if value is not None}
    settings = {"top_k": min(_LARGEST, teacher.vocab_size or _LARGEST), **stated, "cached": True}
    try:
        kept = build_strategy(StrategySpec(name=arm.strategy.name, **settings), arm.name).keeps_teacher
    except CallerError:
        kept = False
    return None if kept else "its strategy cannot be taught from kept answers"


def _cached_needs(plan: Plan, arm: Arm) -> list[str]:
    """Say what the study would have to set beside `cached`."""
    needs = []
    if plan.corpus.masking != "static":
        needs.append('corpus.masking = "static"')
    if arm.strategy.settings.get("top_k") is None:
        needs.append("top_k")
    if arm.recipe.execute == "everything":
        needs.append('recipe.execute = "lean"')
    return needs
