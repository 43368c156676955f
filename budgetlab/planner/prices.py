"""The budget arithmetic: what steps cost in each currency, and how many a budget buys, for one arm or a million."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.strategies import build_strategy
from budgetlab.units import MATCHES, parse_amount, parse_charge
from budgetlab.values import Arm, ArmCost, Budget, ExecutionSpec, ModelSpec

DATA_HALF_LIFE_PASSES = 15.387756
"""R_D* of the data-constrained law, of causal models on C4 (Muennighoff et al. 2023, arXiv 2305.16264)."""


NEVER_AGAIN = 2.0**53
"""Steps of a first pass over text that is not known to end."""


@dataclass(frozen=True)
class StepCost:
    """What steps cost: `first` each, and `later` each once a cached teacher has read all; numbers, or arrays alike."""

    first: Any
    later: Any
    teacher_steps: Any = math.inf
    """Steps of the first pass, where the teacher is cached; infinite where it is not."""

    def cost(self, steps: Any) -> Any:
        """Return the price of so many steps from the beginning."""
        taught = np.minimum(steps, self.teacher_steps)
        return taught * self.first + (steps - taught) * self.later

    def between(self, one: float, other: float) -> float:
        """Return the price of the steps from one to the other."""
        return self.cost(other) - self.cost(one)

    def steps(self, amount: Any, upfront: Any) -> Any:
        """Return the steps that an amount pays for after what is due before the first: whole, never costing more."""
        steps = whole_steps(amount, upfront, self.first)
        cached = np.isfinite(self.teacher_steps)
        # Within the first pass a cached teacher costs as one that reads along; beyond, it has been paid for.
        saved = np.where(cached, self.teacher_steps, 0.0) * (self.first - self.later)
        beyond = whole_steps(amount, upfront + saved, self.later)
        return np.where(cached & (beyond >= self.teacher_steps), beyond, steps)

    def times(self, factor: Any) -> StepCost:
        """Return the same at so many times the price."""
        return StepCost(self.first * factor, self.later * factor, self.teacher_steps)


def shared(price: StepCost, readers: int) -> StepCost:
    """Return what steps cost where so many runs share the teacher's work of the first pass."""
    return replace(price, first=price.later + (price.first - price.later) / readers)


def whole_steps(amount: Any, upfront: Any, price: Any) -> Any:
    """Return the steps that an amount pays for: whole, never costing more, at least 0; arrays broadcast."""
    steps = np.maximum(0.0, np.floor((np.asarray(amount, dtype=float) - upfront) / price))
    return np.where((steps > 0) & (upfront + steps * price > amount), steps - 1.0, steps)


def loss_factor(execution: ExecutionSpec) -> float:
    """Device time of a step on the study's devices over that on one: what several of them lose to each other."""
    return 1.0 / execution.scaling_efficiency if execution.devices > 1 else 1.0


def step_price(execution: ExecutionSpec, cost: ArmCost, unit: str, charge: str = "inference") -> float:
    """Return what one step costs on the study's devices, in a budget's unit.

    What several devices lose to each other is paid in time, money and energy. With `charge = "none"` the teacher's
    forward pass is left out.

    Raises
    ------
    CallerError
        When that price was not measured.
    """
    teacher, free = cost.phases["teacher_forward"], charge == "none"
    has_teacher = teacher.required_flops_per_token > 0
    match unit:
        case "tokens":
            return float(cost.batch_tokens)
        case "required_flops":
            forward = teacher.required_flops_per_token if free else 0.0
            return (cost.train_required_flops_per_token - forward) * cost.batch_tokens
        case "executed_flops":
            forward = teacher.executed_flops_per_token if free else 0.0
            return (cost.train_executed_flops_per_token - forward) * cost.batch_tokens
        case "joules":
            if cost.joules_per_token is None:
                raise CallerError("match = joules", f"no energy was measured for {cost.arm}", "profile where it can be")
            if free and has_teacher:
                asked, wrong = f"{cost.arm} without its teacher, by joules", "its energy was not measured by phase"
                raise CallerError(asked, wrong, "charge inference, and do not cache the teacher")
            return cost.joules_per_token * cost.batch_tokens * loss_factor(execution)
        case "device_seconds" | "usd":
            if cost.seconds_per_step is None:
                wrong = f"{cost.arm} was counted, not timed"
                raise CallerError(f"match by {unit}", wrong, "profile without --count-only")
            if free and has_teacher and teacher.seconds_per_step is None:
                asked = f"{cost.arm} without its teacher, by {unit}"
                raise CallerError(asked, "it was not timed by phase", "profile it here")
            seconds = cost.seconds_per_step - ((teacher.seconds_per_step or 0.0) if free else 0.0)
            if unit == "device_seconds":
                return seconds * loss_factor(execution)
            if execution.usd_per_device_hour is None:
                raise CallerError("match = usd", "no price of a device hour", "set execution.usd_per_device_hour")
            return seconds / 3600.0 * execution.usd_per_device_hour * loss_factor(execution)
    raise unknown_name("unit", unit, list(MATCHES.values()), f"the price of {cost.arm}, unit")


def step_cost(
    execution: ExecutionSpec, cost: ArmCost, unit: str, charge: str = "inference", teacher_steps: float = math.inf
) -> StepCost:
    """Return what the steps of an arm cost on the study's devices; `teacher_steps` as in `StepCost`."""
    first = step_price(execution, cost, unit, charge)
    return StepCost(
        first, first if math.isinf(teacher_steps) else step_price(execution, cost, unit, "none"), teacher_steps
    )


def step_costs(
    execution: ExecutionSpec, cost: ArmCost, teacher_steps: float = math.inf
) -> tuple[StepCost | None, StepCost]:
    """Return what an arm's steps cost in device time, summed over devices, and in required FLOPs.

    The time is None where steps, or of a cached teacher the phases, were not timed.
    """
    known = cost.seconds_per_step, cost.phases["teacher_forward"].seconds_per_step
    timed = None not in known[: 2 if math.isfinite(teacher_steps) else 1]
    seconds = step_cost(execution, cost, "device_seconds", teacher_steps=teacher_steps) if timed else None
    return seconds, step_cost(execution, cost, "required_flops", teacher_steps=teacher_steps)


def device_seconds(
    execution: ExecutionSpec, cost: ArmCost, steps: int, teacher_steps: float = math.inf
) -> float | None:
    """Device time of so many steps, summed over devices; None where it is not known, as in `step_costs`."""
    seconds = step_costs(execution, cost, teacher_steps)[0]
    return None if seconds is None else float(seconds.cost(steps))


def taught_steps(arm: Arm, unique_tokens: int | None, charge: str = "inference", *, cached: bool = False) -> float:
    """Return the steps after which a cached teacher has read all of the text; infinite for others.

    `cached`: by the plan, beside those that their strategy keeps.
    """
    if not (cached or build_strategy(arm.strategy, arm.name).keeps_teacher):
        return math.inf
    if unique_tokens is None and charge == "cache":
        return NEVER_AGAIN
    if unique_tokens is None:
        wrong = "how much text there is, hence how often it is read, is not known yet"
        asked = f"arms.{arm.name}.cache" if cached else f"{arm.name}: cached = true"
        raise CallerError(asked, wrong, "set corpus.unique_tokens")
    return unique_tokens // arm.recipe.seq_len / arm.recipe.batch_sequences


def charge_share(charge: str) -> float:
    """Share of the teacher's pretraining that one schedule pays for: 0, 1, or 1/K of "amortised:K"."""
    return 0.0 if charge in ("none", "inference", "cache") else 1.0 / parse_charge(charge)


def teacher_cost(
    execution: ExecutionSpec,
    models: Mapping[str, ModelSpec],
    teacher: str | None,
    costs: Mapping[str, ArmCost],
    unit: str,
    charge: str,
) -> float:
    """Return what of a teacher's pretraining one schedule pays for, in the budget's unit."""
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


@dataclass(frozen=True)
class ArmPrice:
    """What an arm pays before its first step, and what a step costs it, in the unit of the budgets."""

    execution: ExecutionSpec
    arm: Arm
    cost: ArmCost
    per_step: StepCost
    unique_tokens: int | None
    teacher: float = 0.0
    """Of the teacher's pretraining."""
    tuning: float = 0.0
    fewest_steps: int = 1
    trial_steps: int = 0
    """Of each trial of a learning rate; 0 where the arm is feasible nowhere."""
    readers: int = 1
    """Runs that share the teacher's work where it is kept."""
    first_steps: int = 0
    """At the smallest budget at which the arm is feasible: rungs of one trunk share that run's warm-up."""

    @property
    def upfront(self) -> float:
        """All that is due before the first step."""
        return self.teacher + self.tuning

    def steps(self, amount: float) -> int:
        """Return the whole steps that an amount pays for."""
        return int(self.per_step.steps(amount, self.upfront))

    def bought(self, steps: int, budget: Budget) -> dict[str, Any]:
        """Return the fields of a `Schedule` that follow from its steps."""
        cost, unique, cached = self.cost, self.unique_tokens, math.isfinite(self.per_step.teacher_steps)
        tokens = steps * cost.batch_tokens
        targets = round(tokens * cost.target_fraction)
        once = min(float(tokens), self.per_step.teacher_steps * cost.batch_tokens)
        read = math.ceil(round(once) / self.readers) if cached else None
        taught = self.per_step.teacher_steps if read is None or self.readers == 1 else read / cost.batch_tokens
        seconds = device_seconds(self.execution, cost, steps, taught)
        of_seconds = of_tokens = None
        if cost.seconds_per_step and cost.seconds_per_step_interval is not None:
            ends = cost.seconds_per_step_interval
            of_seconds = None if seconds is None else tuple(seconds * end / cost.seconds_per_step for end in ends)
            if budget.unit in ("device_seconds", "usd"):  # at the slow end, and at the fast one
                prices = [self.per_step.times(end / cost.seconds_per_step) for end in reversed(ends)]
                of_tokens = tuple(float(p.steps(budget.amount, self.upfront)) * cost.batch_tokens for p in prices)
        return {
            "steps": steps,
            "tokens": tokens,
            "target_tokens": targets,
            "taught_tokens": read,
            "tokens_interval": of_tokens,
            "passes": tokens / unique if unique else None,
            "effective_tokens": float(effective_tokens(tokens, unique)) if unique else None,
            "required_flops": cost.required_flops(tokens, targets, read),
            "executed_flops": cost.executed_flops(tokens, targets, read),
            "device_seconds": seconds,
            "device_seconds_interval": of_seconds,
            "unspent_fraction": 1.0 - float(self.upfront + self.per_step.cost(steps)) / budget.amount,
        }


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
