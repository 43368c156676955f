"""One budget -> matched token schedules, in integer steps that never cost more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from budgetlab.errors import CallerError
from budgetlab.planner.checks import warnings
from budgetlab.planner.compiling import compiled_prices, decide_compiling, decide_packing
from budgetlab.planner.prices import (
    Tariff,
    charge_share,
    device_seconds,
    device_seconds_interval,
    effective_tokens,
    price_per_step,
    tariff,
    taught_steps,
    taught_tokens,
    teacher_bill,
    tokens_interval,
)
from budgetlab.planner.warmup import cooldown_steps, fewest_steps, shared_warmups, warmup_steps, warmup_tokens
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study, compare_recipes
from budgetlab.units import MATCHES, format_amount, parse_amount, parse_budget
from budgetlab.values import (
    Arm,
    ArmCost,
    Budget,
    CostProfile,
    ExecutionSpec,
    Plan,
    Recipe,
    Schedule,
    TeacherPlan,
    Trial,
)


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
    study = study.asked(budgets=budgets, match=match, teacher_charge=teacher_charge)
    budgets, match, charge = study.plan.budgets, study.plan.match, study.plan.teacher_charge
    made = _planned(study, profile, corpus_tokens, budgets, match, charge)
    compiled, why = decide_compiling(study, made, profile)
    if compiled:
        made = _planned(study, compiled_prices(profile), corpus_tokens, budgets, match, charge)
    execution, packed = decide_packing(study, profile)
    update = {"compiled": compiled, "compile_reason": why, "execution": execution, "packing_reason": packed}
    return made.model_copy(update=update)


def _planned(
    study: Study,
    profile: CostProfile,
    corpus_tokens: int | None,
    budgets: tuple[str | float, ...],
    match: str,
    charge: str,
) -> Plan:
    costs, of_teachers = ({cost.arm: cost for cost in found} for found in (profile.arms, profile.teachers))
    for arm in study.arms:
        if arm not in costs:
            raise CallerError(f"plan of {study.name}", f"the profile has no arm {arm!r}", "profile this study again")
    for name in study.teacher_names():
        if study.models[name].pretrain is not None and name not in of_teachers:
            asked, wrong = f"plan of {study.name}", f"the profile has no price of pretraining the teacher {name!r}"
            raise CallerError(asked, wrong, "profile this study again")
    amounts = _budgets(study, budgets, match, charge, costs)
    unit = amounts[0].unit
    if study.plan.ladder == "branched" and any(
        not a.recipe.cools_down and a.recipe.schedule != "inverse_sqrt" for a in study.arms.values()
    ):
        raise CallerError('ladder = "branched"', "needs a schedule that can be cut anywhere", 'use schedule = "wsd"')
    unique = study.corpus.unique_tokens or corpus_tokens
    if corpus_tokens is not None and unique is not None and unique > corpus_tokens:
        asked = f"corpus.unique_tokens = {unique:,}"
        raise CallerError(asked, f"the corpus has {corpus_tokens:,}", "lower it, leave it out, or add text")
    bills = {arm: _bill(study, arm, costs[arm], of_teachers, amounts, charge, unique) for arm in study.arms}
    warmups = shared_warmups(study.arms, {arm: bill.first_steps for arm, bill in bills.items()})
    schedules = [
        _schedule(study, arm, costs[arm], bills[arm], warmups[arm], budget, rung, charge, unique)
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
        teacher_costs=of_teachers,
        schedules=tuple(schedules),
        teachers=tuple(_teacher_plan(study, name, of_teachers) for name in study.teacher_names()),
        corpus=study.corpus,
        execution=_that_fits(study.execution, profile),
        audit=compare_recipes(study.arms, study.models, warmup_tokens(schedules, study.arms)),
        trials=tuple(_trials(study, costs, bills, amounts, charge, unique)),
        tuning_share=None if study.tuning is None else study.tuning.budget_share,
        device_name=profile.environment.device_name if profile.arms_have_seconds else None,
        device=profile.environment.device if profile.arms_have_seconds else None,
        warnings=warnings(study, profile),
    )


def _budgets(
    study: Study, asked: tuple[str | float, ...], match: str, charge: str, costs: dict[str, ArmCost]
) -> list[Budget]:
    amounts = [parse_budget(text, match, devices=study.execution.devices) for text in asked]
    unit = MATCHES.get(match, "required_flops")
    if match.startswith("tokens:"):
        first = costs[match.removeprefix("tokens:")]
        price = price_per_step(first, "required_flops", charge=charge) / first.batch_tokens
        # One part in 1e9 keeps an arm's own tokens from being rounded down to one step less.
        amounts = [amount * price * (1 + 1e-9) for amount in amounts]
    budgets = [Budget(amount=amount, unit=unit) for amount in amounts]
    return sorted(budgets, key=lambda budget: budget.amount)


@dataclass(frozen=True)
class _Bill:
    """What an arm pays before its first step, and what a step costs it; all in the budgets' unit."""

    teacher: float
    tuning: float
    price: Tariff
    fewest_steps: int
    trial_steps: int
    """Of each trial of a learning rate; 0 where the arm is feasible nowhere."""
    first_steps: int
    """At the smallest budget at which the arm is feasible: rungs of one trunk share that run's warm-up."""

    @property
    def whole(self) -> float:
        return self.teacher + self.tuning


def _bill(
    study: Study,
    arm: str,
    cost: ArmCost,
    of_teachers: dict[str, ArmCost],
    amounts: list[Budget],
    charge: str,
    unique: int | None,
) -> _Bill:
    unit, recipe, execution = amounts[0].unit, study.arms[arm].recipe, study.execution
    teacher = teacher_bill(execution, study.models, study.arms[arm].teacher, of_teachers, unit, charge)
    price = tariff(execution, cost, unit, charge, taught_steps(study.arms[arm], unique))
    fewest = fewest_steps(recipe)
    charged = 0 if study.tuning is None else study.tuning.charged_trials
    share = None if study.tuning is None else study.tuning.budget_share
    if share is None:  # charged trials are as long as the run that is left beside them at the smallest budget
        lengths = [price.times(charged + 1).steps(budget.amount, teacher) for budget in amounts]
    else:
        lengths = [price.steps(teacher + share * (amounts[-1].amount - teacher), teacher)]
    trial_steps = next((steps for steps in lengths if steps >= fewest), 0)
    tuning = charged * price.cost(trial_steps)
    firsts = (price.steps(budget.amount, teacher + tuning) for budget in amounts)
    affordable = trial_steps or not charged
    first = next((s for s in firsts if s >= fewest), 0) if affordable else 0
    return _Bill(teacher, tuning, price, fewest, trial_steps, first)


def _schedule(
    study: Study,
    arm: str,
    cost: ArmCost,
    bill: _Bill,
    shared_warmup: int | None,
    budget: Budget,
    rung: int,
    charge: str,
    unique: int | None,
) -> Schedule:
    recipe, execution = study.arms[arm].recipe, study.execution
    steps = bill.price.steps(budget.amount, bill.whole)
    warmup = shared_warmup
    if warmup is None:
        warmup = warmup_steps(recipe, bill.first_steps if study.plan.ladder == "branched" else steps)
    cooldown = cooldown_steps(recipe, steps)
    feasible = bill.first_steps > 0 and bill.fewest_steps <= steps and warmup + cooldown <= steps
    reason = None if feasible else _why_infeasible(study, arm, bill, budget, steps, charge)
    if not feasible:
        steps = warmup = cooldown = 0
    tokens = steps * cost.batch_tokens
    targets, taught = round(tokens * cost.target_fraction), bill.price.taught_steps
    read = taught_tokens(tokens, unique, recipe.seq_len) if math.isfinite(taught) else None
    return Schedule(
        arm=arm,
        budget=budget,
        rung=rung,
        feasible=feasible,
        reason=reason,
        tokens=tokens,
        target_tokens=targets,
        taught_tokens=read,
        steps=steps,
        tokens_interval=tokens_interval(budget, bill.whole, bill.price, cost) if feasible else None,
        passes=tokens / unique if unique else None,
        effective_tokens=float(effective_tokens(tokens, unique)) if unique else None,
        unique_tokens=unique,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        required_flops=cost.required_flops(tokens, targets, read),
        executed_flops=cost.executed_flops(tokens, targets, read),
        device_seconds=device_seconds(execution, cost, steps, taught),
        device_seconds_interval=device_seconds_interval(execution, cost, steps, taught),
        interval_level=cost.interval_level,
        teacher_charge=bill.teacher,
        tuning_charge=bill.tuning,
        unspent_fraction=1.0 - (bill.whole + bill.price.cost(steps)) / budget.amount if feasible else 1.0,
    )


def _why_infeasible(study: Study, arm: str, bill: _Bill, budget: Budget, steps: int, charge: str) -> str:
    charged = 0 if study.tuning is None else study.tuning.charged_trials
    share = None if study.tuning is None else study.tuning.budget_share
    own = bill.price.cost(bill.fewest_steps)
    if share is None:  # trials at the smallest feasible budget would be as long as its run
        enough = bill.teacher + (charged + 1) * own
    elif bill.trial_steps:
        enough = bill.whole + own
    else:
        enough = bill.teacher + own / share
    reason = f"{arm} can take {steps} of at least {bill.fewest_steps} steps; the smallest feasible budget is "
    reason += format_amount(enough, budget.unit)
    if charged:
        reason += f", with {charged} trials of learning rates"
    elif bill.teacher and budget.amount > own:
        students = math.ceil(bill.teacher / (charge_share(charge) * (budget.amount - own)))
        reason += f", or share the teacher among {students} students (amortised:{students})"
    return reason


def _within_tolerance(schedule: Schedule, tolerance: float) -> None:
    if schedule.feasible and schedule.unspent_fraction > tolerance:
        raise CallerError(
            f"{schedule.arm} at {format_amount(schedule.budget.amount, schedule.budget.unit)}",
            f"{schedule.steps} whole steps leave {100 * schedule.unspent_fraction:.2g} % unspent, more than "
            f"plan.tolerance_fraction = {tolerance:g}",
            "raise the budget, lower recipe.batch_tokens, or allow more",
        )


def _trials(
    study: Study,
    costs: dict[str, ArmCost],
    bills: dict[str, _Bill],
    amounts: list[Budget],
    charge: str,
    unique: int | None,
) -> Iterator[Trial]:
    """Yield the same learning rates for every arm, each a whole run at its smallest feasible budget, or at a share."""
    if study.tuning is None:
        return
    bare = study.model_copy(update={"plan": study.plan.model_copy(update={"ladder": "separate"})})
    warmups = shared_warmups(study.arms, {arm: bill.trial_steps for arm, bill in bills.items()})
    for arm, bill in bills.items():
        if not bill.trial_steps:
            continue
        alone = _Bill(0.0, 0.0, bill.price, bill.fewest_steps, 0, bill.trial_steps)
        # Half a step more, so that rounding does not take one away.
        spent = Budget(amount=bill.price.cost(bill.trial_steps + 0.5), unit=amounts[0].unit)
        schedule = _schedule(bare, arm, costs[arm], alone, warmups[arm], spent, 0, charge, unique)
        for rate in study.tuning.learning_rate:
            named = schedule.model_copy(update={"arm": f"{arm}~{rate:g}", "unspent_fraction": 0.0})
            yield Trial(
                arm=arm, learning_rate=rate, schedule=named, seeds=study.tuning.seeds, outcome=_outcome(study.arms[arm])
            )


def _outcome(arm: Arm) -> str:
    """What decides between trials: without a head of its own, how well the whole network adapts to a new one."""
    return "readout_loss" if build_strategy(arm.strategy, arm.name).trains_head else "adapted_loss"


def _teacher_plan(study: Study, name: str, of_teachers: dict[str, ArmCost]) -> TeacherPlan:
    spec, recipe, cost = study.models[name], study.recipe, of_teachers.get(name)
    steps = math.ceil((spec.pretraining_tokens or 0) / recipe.batch_tokens)
    flops = 0.0 if cost is None else cost.train_required_flops_per_token * steps * recipe.batch_tokens
    if spec.pretrain is None:
        if spec.pretrained_for is not None and cost is None:
            amount, unit = parse_amount(spec.pretrained_for, "tokens")
            flops = amount if unit == "required_flops" else 0.0
        return TeacherPlan(model=name, weights=spec.weights, required_flops=flops)
    cooldown = min(steps, max(1, round(recipe.cooldown_fraction * steps)))
    return TeacherPlan(
        model=name,
        tokens=steps * recipe.batch_tokens,
        steps=steps,
        warmup_steps=min(warmup_steps(recipe, steps), steps - cooldown),
        cooldown_steps=cooldown,
        seed=spec.pretrain.seed,
        required_flops=flops,
        device_seconds=None if cost is None else device_seconds(study.execution, cost, steps),
    )


def _that_fits(execution: ExecutionSpec, profile: CostProfile) -> ExecutionSpec:
    """Where "auto" was asked and the whole batch did not fit, what the profile found to fit."""
    if execution.micro_batch_sequences != "auto" or profile.micro_batch_sequences is None:
        return execution
    return execution.model_copy(update={"micro_batch_sequences": profile.micro_batch_sequences})


def _profiled(recipe: Recipe, cost: ArmCost) -> Recipe:
    """The recipe with the precision and attention that were profiled."""
    return Recipe.model_validate({**recipe.model_dump(), "dtype": cost.dtype, "attention": cost.attention})
