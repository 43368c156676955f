"""What a step costs in each currency, what of a teacher is billed, and how many whole steps a budget pays for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.strategies import build_strategy
from budgetlab.units import MATCHES, parse_amount, parse_charge
from budgetlab.values import Arm, ArmCost, Budget, ExecutionSpec, ModelSpec
from budgetlab.values.base import Interval


def price_per_step(
    cost: ArmCost, unit: str, *, charge: str = "inference", usd_per_device_hour: float | None = None
) -> float:
    """Return what one step costs on one device, in the budget's unit.

    With `charge = "none"` the teacher's forward pass is left out.

    Raises
    ------
    CallerError
        When that price was not measured.
    """
    if unit not in MATCHES.values():
        raise unknown_name("unit", unit, list(MATCHES.values()), f"the price of {cost.arm}, unit")
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
    has_teacher = teacher.required_flops_per_token > 0
    if unit == "joules":
        if cost.joules_per_token is None:
            raise CallerError("match = joules", f"no energy was measured for {cost.arm}", "profile where it can be")
        if free and has_teacher:
            asked, wrong = f"{cost.arm} without its teacher, by joules", "its energy was not measured by phase"
            raise CallerError(asked, wrong, "charge inference, and do not cache the teacher")
        return cost.joules_per_token * cost.batch_tokens
    if cost.seconds_per_step is None:
        raise CallerError(f"match by {unit}", f"{cost.arm} was counted, not timed", "profile without --count-only")
    if free and has_teacher and teacher.seconds_per_step is None:
        raise CallerError(f"{cost.arm} without its teacher, by {unit}", "it was not timed by phase", "profile it here")
    seconds = cost.seconds_per_step - ((teacher.seconds_per_step or 0.0) if free else 0.0)
    if unit == "usd":
        if usd_per_device_hour is None:
            raise CallerError("match = usd", "no price of a device hour", "set execution.usd_per_device_hour")
        return seconds / 3600.0 * usd_per_device_hour
    return seconds


def loss_factor(execution: ExecutionSpec) -> float:
    """Device time of a step on the study's devices over that on one: what several of them lose to each other."""
    return 1.0 / execution.scaling_efficiency if execution.devices > 1 else 1.0


def step_price(execution: ExecutionSpec, cost: ArmCost, unit: str, charge: str) -> float:
    """Return what a step costs on the study's devices; their losses are paid in time, money and energy."""
    price = price_per_step(cost, unit, charge=charge, usd_per_device_hour=execution.usd_per_device_hour)
    return price * loss_factor(execution) if unit in ("device_seconds", "usd", "joules") else price


@dataclass(frozen=True)
class Tariff:
    """What an arm's steps cost: `first` each, and `later` each once a teacher whose answers are kept has read all."""

    first: float
    later: float
    taught_steps: float = math.inf
    """Steps of the first pass, where the teacher's answers are kept."""

    def cost(self, steps: float) -> float:
        """Return the price of so many steps from the beginning."""
        taught = min(steps, self.taught_steps)
        return taught * self.first + (steps - taught) * self.later

    def between(self, one: float, other: float) -> float:
        """Return the price of the steps from one to the other."""
        return self.cost(other) - self.cost(one)

    def steps(self, amount: float, bill: float) -> int:
        """Return the whole steps that an amount pays for after the bill."""
        steps = int(whole_steps(amount, bill, self.first))
        if math.isinf(self.taught_steps):
            return steps
        beyond = int(whole_steps(amount, bill + self.taught_steps * (self.first - self.later), self.later))
        return beyond if beyond >= self.taught_steps else steps

    def times(self, factor: float) -> Tariff:
        """Return the same at so many times the price."""
        return Tariff(self.first * factor, self.later * factor, self.taught_steps)


def taught_steps(arm: Arm, unique_tokens: int | None) -> float:
    """Return the steps after which a teacher whose answers are kept has read all of the text; infinite for others."""
    if not build_strategy(arm.strategy, arm.name).keeps_teacher:
        return math.inf
    if unique_tokens is None:
        wrong = "how much text there is, hence how often it is read, is not known yet"
        raise CallerError(f"{arm.name}: cached = true", wrong, "set corpus.unique_tokens")
    recipe = arm.recipe
    return unique_tokens // recipe.seq_len / recipe.batch_sequences


def taught_tokens(tokens: int, unique_tokens: int | None, seq_len: int) -> int:
    """Return what a teacher whose answers are kept reads of so many tokens: each sample once."""
    return tokens if unique_tokens is None else min(tokens, unique_tokens // seq_len * seq_len)


def tariff(execution: ExecutionSpec, cost: ArmCost, unit: str, charge: str, taught: float = math.inf) -> Tariff:
    """Return what the steps of an arm cost on the study's devices; `taught` as in `Tariff`."""
    first = step_price(execution, cost, unit, charge)
    return Tariff(first, first if math.isinf(taught) else step_price(execution, cost, unit, "none"), taught)


def device_seconds(execution: ExecutionSpec, cost: ArmCost, steps: int, taught: float = math.inf) -> float | None:
    """Device time of so many steps, summed over devices; None where steps, or the phases needed, were not timed."""
    if cost.seconds_per_step is None or (
        math.isfinite(taught) and cost.phases["teacher_forward"].seconds_per_step is None
    ):
        return None
    return tariff(execution, cost, "device_seconds", "inference", taught).cost(steps)


def tariffs(execution: ExecutionSpec, cost: ArmCost, taught: float = math.inf) -> tuple[Tariff | None, Tariff]:
    """Return the steps of an arm in seconds, None where `device_seconds` is, and in required FLOPs."""
    timed = device_seconds(execution, cost, 1, taught) is not None
    seconds = tariff(execution, cost, "device_seconds", "inference", taught) if timed else None
    return seconds, tariff(execution, cost, "required_flops", "inference", taught)


def device_seconds_interval(
    execution: ExecutionSpec, cost: ArmCost, steps: int, taught: float = math.inf
) -> Interval | None:
    """Interval of `device_seconds`, from that of a step's time."""
    middle = device_seconds(execution, cost, steps, taught)
    if middle is None or not cost.seconds_per_step or cost.seconds_per_step_interval is None:
        return None
    low, high = (middle * end / cost.seconds_per_step for end in cost.seconds_per_step_interval)
    return low, high


def tokens_interval(budget: Budget, bill: float, price: Tariff, cost: ArmCost) -> Interval | None:
    """What a budget of time or money would buy at either end of the step time's interval; None for other budgets."""
    if budget.unit not in ("device_seconds", "usd") or not cost.seconds_per_step or not cost.seconds_per_step_interval:
        return None
    fast, slow = (price.times(end / cost.seconds_per_step) for end in cost.seconds_per_step_interval)
    low, high = (float(end.steps(budget.amount, bill)) * cost.batch_tokens for end in (slow, fast))
    return low, high


def charge_share(charge: str) -> float:
    """Share of the teacher's pretraining that one schedule is billed: 0, 1, or 1/K of "amortised:K"."""
    if charge in ("none", "inference"):
        return 0.0
    return 1.0 if charge == "pretraining" else 1.0 / parse_charge(charge)


def teacher_bill(
    execution: ExecutionSpec,
    models: Mapping[str, ModelSpec],
    teacher: str | None,
    costs: Mapping[str, ArmCost],
    unit: str,
    charge: str,
) -> float:
    """Return what of a teacher's pretraining one schedule is billed, in the budget's unit."""
    share = charge_share(charge)
    if teacher is None or share == 0.0 or unit == "tokens":
        return 0.0
    spec = models[teacher]
    tokens = spec.pretraining_tokens
    if tokens is not None and teacher in costs:
        steps = math.ceil(tokens / costs[teacher].batch_tokens)
        return share * steps * step_price(execution, costs[teacher], unit, "inference")
    asked = f"teacher_charge = {charge!r}"
    if spec.pretrained_for is None:
        known = f'set models.{teacher}.pretrained_for = "137B tokens" or the like, or use inference or none'
        raise CallerError(asked, f"the pretraining cost of {teacher!r} is unknown", known)
    amount, stated = parse_amount(spec.pretrained_for, "tokens")
    if stated != unit:
        wrong = f"the cost of {teacher!r} is stated in {stated}, the budget is in {unit}"
        raise CallerError(asked, wrong, f"state it in tokens (and profile again) or in {unit}")
    return share * amount


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
