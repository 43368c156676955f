"""The what-if planner of the page: every arm's prices as plain JSON, and what the form offers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError
from budgetlab.planner import MATCHES, trial_plan
from budgetlab.planner.match import WARMUP_FRACTION, fewest_steps
from budgetlab.planner.prices import charge_share, device_seconds, step_price, teacher_cost
from budgetlab.strategies import build_strategy
from budgetlab.units import format_quantity, parse_amount
from budgetlab.values import Arm, ModelSpec, Plan, StrategySpec

_UNITS = tuple(MATCHES.values())
_MOST_LOGITS = 64
"""Of a cached teacher where the study does not say how many."""
_OWN_TOKENS = 1 + 1e-9
"""Keeps an arm's own tokens from being rounded down to one step less, as in the planner."""
_SCALES = {
    "required_flops": ((1e18, " EFLOP"), (1e15, " PFLOP"), (1e12, " TFLOP"), (1e9, " GFLOP"), (1.0, " FLOP")),
    "executed_flops": ((1.0, " executed flops"),),
    "device_seconds": ((3600.0, " device-hours"), (60.0, " device-min"), (1.0, " device_seconds")),
    "joules": ((1.0, " J"),),
    "usd": ((1.0, " usd"),),
    "tokens": ((1e9, "B tokens"), (1e6, "M tokens"), (1.0, " tokens")),
}
"""In what the budget's field is written, largest first."""
_CURRENCIES = dict(
    zip(MATCHES, ("required FLOPs", "executed FLOPs", "time", "energy", "US dollars", "equal tokens"), strict=True)
)
_CHARGES = {"none": "not charged", "inference": "its forward pass", "pretraining": "forward pass and pretraining"}
_CACHED = {"planned": "as planned", "possible": "wherever it can be", "none": "nowhere"}
_HEADS = (
    "arm", "tokens", "ratio", "steps", "passes", "worth in\nfresh tokens", "teacher's bill\n% of budget",
    "unspent\n%", "required\nFLOPs", "device time,\npredicted",
)  # fmt: skip


def planner_source() -> str:
    """Return the script without the form: units and arithmetic."""
    return Path(__file__).with_name("whatif.js").read_text(encoding="utf-8")


def whatif_form(plan: Plan) -> dict[str, Any]:
    """Return what the page's template makes the form of: the prices, the script, and the options of each choice."""
    data = price_data(plan)
    form = Path(__file__).with_name("whatif_form.js").read_text(encoding="utf-8")
    reader = next((arm["name"] for arm in data["arms"] if arm["teacher"] is None), data["arms"][0]["name"])
    unique = data["unique_tokens"]
    return {
        "prices": data,
        "script": f"{planner_source()}\n{form}",
        "heads": _HEADS,
        "matches": _CURRENCIES | {f"tokens:{arm}": f"FLOPs of the tokens of {arm}" for arm in plan.arms},
        "unpriced": [
            match
            for match, unit in MATCHES.items()
            if all(isinstance(arm["prices"][unit]["inference"], dict) for arm in data["arms"])
        ],
        "charges": _CHARGES,
        "charge": _charge(plan) if charge_share(plan.charge) == 0 else "pretraining",
        "students": plan.charge.partition(":")[2] or "1",
        "texts": {
            "planned": "as planned" if unique is None else f"as planned: {format_quantity(float(unique))}",
            "tokens": "so many tokens",
            "passes": f"so many passes of {reader}",
        },
        "cached": _CACHED,
    }


def _charge(plan: Plan) -> str:
    """Return the plan's charge; the form does not divide a cache among its readers."""
    return "inference" if plan.charge == "cache" else plan.charge


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
        study's devices, in the unit of each currency; `pretraining` is a teacher's whole pretraining.
    """
    top = max(plan.schedules, key=lambda schedule: schedule.rung)
    trials = trial_plan(plan)
    each = max((sum(trial.arm == arm for trial in plan.trials) for arm in plan.arms), default=0) * len(trials.seeds)
    return {
        "match": plan.match,
        "charge": _charge(plan),
        "budget": top.budget.model_dump(),
        "budgets": {match: _budget(plan, match) for match in (*MATCHES, *(f"tokens:{arm}" for arm in plan.arms))},
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


def _budget(plan: Plan, match: str) -> str | None:
    """Write the largest budget in a currency: what the first feasible arm that is priced there spends on its tokens."""
    top = max(schedule.rung for schedule in plan.schedules)
    unit, own = MATCHES.get(match, "tokens"), match.removeprefix("tokens:")
    if match == plan.match:
        budget = next(schedule.budget for schedule in plan.schedules if schedule.rung == top)
        if own == match:
            return _written(budget.amount, unit)
        price = step_price(plan.execution, plan.costs[own], "required_flops", plan.charge)
        return _written(budget.amount / (price / plan.costs[own].batch_tokens) / _OWN_TOKENS, unit)
    for schedule in plan.schedules:
        if schedule.rung == top and schedule.feasible:
            price = _price(plan, schedule.arm, unit, plan.charge)
            if not isinstance(price, dict):
                return _written(schedule.steps * price * _OWN_TOKENS, unit)
    return None


def _written(amount: float, unit: str) -> str:
    """Write an amount so that it is read back as it is, or, in six digits, as no less: no step is lost to rounding."""
    scale, name = next((size for size in _SCALES[unit] if amount >= size[0]), _SCALES[unit][-1])
    number = amount / scale
    exact = f"{number:.15g}{name}"
    if len(exact) < 18 and parse_amount(exact)[0] == amount:
        return exact
    last = 10.0 ** (math.floor(math.log10(number)) - 5)
    shown = float(f"{number:.6g}")
    return f"{shown if shown >= number else shown + last:.6g}{name}"


def _arm(plan: Plan, arm: Arm) -> dict[str, Any]:
    cost, recipe = plan.costs[arm.name], arm.recipe
    why_not = _why_not_cached(arm, None if arm.teacher is None else plan.models[arm.teacher])
    return {
        "name": arm.name,
        "teacher": arm.teacher,
        **{name: getattr(recipe, name) for name in ("batch_sequences", "seq_len", "warmup_tokens", "warmup_fraction",
                                                    "cooldown_fraction", "cools_down")},
        **{name: getattr(cost, name) for name in ("batch_tokens", "target_fraction", "required_flops_per_position",
                                                  "required_flops_per_target_token", "seconds_per_step",
                                                  "seconds_per_step_interval")},
        "teacher_forward_required_flops_per_token": cost.phases["teacher_forward"].required_flops_per_token,
        "fewest_steps": fewest_steps(recipe),
        "timed": device_seconds(plan.execution, cost, 1) is not None,
        "teacher_timed": device_seconds(plan.execution, cost, 1, 1.0) is not None,
        "cached": any(s.taught_tokens is not None for s in plan.schedules if s.arm == arm.name),
        "why_not_cached": why_not,
        "cached_needs": [] if why_not else _cached_needs(plan, arm),
        "prices": {
            unit: {charge: _price(plan, arm.name, unit, charge) for charge in ("inference", "none")} for unit in _UNITS
        },
        "pretraining": {} if arm.teacher is None else {unit: _pretraining(plan, arm.teacher, unit) for unit in _UNITS},
    }  # fmt: skip


def _price(plan: Plan, arm: str, unit: str, charge: str) -> float | dict[str, str]:
    try:
        return step_price(plan.execution, plan.costs[arm], unit, charge)
    except CallerError as error:
        return {"error": str(error)}


def _pretraining(plan: Plan, teacher: str, unit: str) -> dict[str, Any]:
    """Return what a share of the pretraining is taken of, in the factors that the planner multiplies."""
    try:
        whole = teacher_cost(plan.execution, plan.models, teacher, plan.teacher_costs, unit, "pretraining")
    except CallerError as error:
        return {"error": str(error)}
    tokens, cost = plan.models[teacher].pretraining_tokens, plan.teacher_costs.get(teacher)
    if tokens is None or cost is None or unit == "tokens":
        return {"amount": whole}
    price = step_price(plan.execution, cost, unit, "inference")
    return {"steps": math.ceil(tokens / cost.batch_tokens), "price": price}


def _why_not_cached(arm: Arm, teacher: ModelSpec | None) -> str | None:
    """Say why a teacher's answers cannot be cached; None where they can."""
    if teacher is None:
        return "it has no teacher"
    stated = {name: value for name, value in arm.strategy.settings.items() if value is not None}
    settings = {"top_k": min(_MOST_LOGITS, teacher.vocab_size or _MOST_LOGITS), **stated, "cached": True}
    try:
        cached = build_strategy(StrategySpec(name=arm.strategy.name, **settings), arm.name).keeps_teacher
    except CallerError:
        cached = False
    return None if cached else "its strategy cannot be taught from a cache"


def _cached_needs(plan: Plan, arm: Arm) -> list[str]:
    """Say what the study would have to set beside `cached`."""
    needs = {
        'corpus.masking = "static"': plan.corpus.masking != "static",
        "top_k": arm.strategy.settings.get("top_k") is None,
        'recipe.execute = "lean"': arm.recipe.execute == "everything",
    }
    return [setting for setting, missing in needs.items() if missing]
