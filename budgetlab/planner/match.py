"""One budget -> matched token schedules, in integer steps that never cost more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from budgetlab.errors import CallerError
from budgetlab.planner.caches import planned_caches, reads_cache
from budgetlab.planner.checks import warnings
from budgetlab.planner.prices import (
    ArmPrice,
    charge_share,
    device_seconds,
    shared,
    step_cost,
    step_price,
    taught_steps,
    teacher_cost,
)
from budgetlab.planner.standing import compiled_prices, decide_compiling, decide_packing
from budgetlab.planner.words import compare_recipes
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study
from budgetlab.units import MATCHES, format_amount, parse_amount
from budgetlab.values import Arm, ArmCost, Budget, CostProfile, Plan, PlannedCache, Recipe, Schedule, TeacherPlan, Trial

WARMUP_FRACTION = 0.06
"""Of the fewest tokens that an arm reads at its smallest budget, where a study does not say how long a warm-up is."""

_MOST_FEWEST = 10_000


def plan(
    study: Study,
    profile: CostProfile,
    *,
    corpus_tokens: int | None = None,
    budgets: tuple[str | float, ...] | None = None,
    match: str | None = None,
    teacher_charge: str | None = None,
    before: Plan | None = None,
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
    before
        An earlier plan: where this one has the same budgets, seeds and charge, caches keep their number of readers, so
        that an arm that is added changes no other arm's tokens.

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
    made = _planned(study, profile, corpus_tokens, before)
    compiled, why = decide_compiling(study.execution.compile, made)
    if compiled:
        made = _planned(study, compiled_prices(profile), corpus_tokens, before)
    execution, packed = decide_packing(made.execution, profile.packing)
    update = {"compiled": compiled, "compile_reason": why, "execution": execution, "packing_reason": packed}
    return made.model_copy(update=update)


def _planned(study: Study, profile: CostProfile, corpus_tokens: int | None, before: Plan | None) -> Plan:
    costs, of_teachers = ({cost.arm: cost for cost in found} for found in (profile.arms, profile.teachers))
    _check(study, costs, of_teachers, corpus_tokens)
    spec, unique = study.plan, study.corpus.unique_tokens or corpus_tokens
    amounts, unit = study.amounts(), MATCHES.get(spec.match, "required_flops")
    if spec.match.startswith("tokens:"):
        first = costs[spec.match.removeprefix("tokens:")]
        price = step_price(study.execution, first, unit, spec.teacher_charge) / first.batch_tokens
        # One part in 1e9 keeps an arm's own tokens from being rounded down to one step less.
        amounts = [amount * price * (1 + 1e-9) for amount in amounts]
    budgets = [Budget(amount=amount, unit=unit) for amount in amounts]
    caches = planned_caches(study, costs, budgets, unique, before)
    prices = {
        name: _price(study, arm, costs[name], of_teachers, budgets, unique, caches) for name, arm in study.arms.items()
    }
    warmups = _shared_warmups(study.arms, {arm: price.first_steps for arm, price in prices.items()})
    schedules = tuple(
        _schedule(study, price, budget, rung, spec.ladder, warmups[arm])
        for rung, budget in enumerate(budgets)
        for arm, price in prices.items()
    )
    if not any(schedule.feasible for schedule in schedules):
        asked = f"budget {format_amount(budgets[-1].amount, budgets[-1].unit)}"
        raise CallerError(asked, "too small for one step of any arm", schedules[-1].reason or "")
    for schedule in schedules:
        if schedule.feasible and schedule.unspent_fraction > spec.tolerance_fraction:
            raise CallerError(
                f"{schedule.arm} at {format_amount(schedule.budget.amount, schedule.budget.unit)}",
                f"{schedule.steps} whole steps leave {100 * schedule.unspent_fraction:.2g} % unspent, more than "
                f"plan.tolerance_fraction = {spec.tolerance_fraction:g}",
                "raise the budget, lower recipe.batch_tokens, or allow more",
            )
    execution = study.execution
    if execution.micro_batch_sequences == "auto" and profile.micro_batch_sequences is not None:
        execution = execution.model_copy(update={"micro_batch_sequences": profile.micro_batch_sequences})
    arms = {name: arm.model_copy(update={"recipe": _profiled(arm.recipe, costs[name])})
            for name, arm in study.arms.items()}  # fmt: skip
    timed = profile.arms_have_seconds
    return Plan(
        study=study.name,
        match=spec.match,
        charge=spec.teacher_charge,
        tolerance_fraction=spec.tolerance_fraction,
        ladder=spec.ladder,
        seeds=study.seeds,
        recipe=_profiled(study.recipe, costs[next(iter(study.arms))]),
        models=study.models,
        arms=arms,
        costs=costs,
        teacher_costs=of_teachers,
        schedules=schedules,
        teachers=tuple(_teacher_plan(study, name, of_teachers.get(name)) for name in study.teacher_names()),
        corpus=study.corpus,
        execution=execution,
        audit=compare_recipes(study.arms, study.models, warmup_tokens(schedules, study.arms)),
        trials=tuple(_trials(study, prices)),
        tuning_share=None if study.tuning is None else study.tuning.budget_share,
        device_name=profile.environment.device_name if timed else None,
        device=profile.environment.device if timed else None,
        caches=caches,
        warnings=warnings(study, profile),
    )


def _check(
    study: Study, costs: Mapping[str, ArmCost], of_teachers: Mapping[str, ArmCost], corpus_tokens: int | None
) -> None:
    asked, again = f"plan of {study.name}", "profile this study again"
    for arm in study.arms:
        if arm not in costs:
            raise CallerError(asked, f"the profile has no arm {arm!r}", again)
    for name in study.teacher_names():
        if study.models[name].pretrain is not None and name not in of_teachers:
            raise CallerError(asked, f"the profile has no price of pretraining the teacher {name!r}", again)
    recipes = [arm.recipe for arm in study.arms.values()]
    if study.plan.ladder == "branched" and not all(r.cools_down or r.schedule == "inverse_sqrt" for r in recipes):
        raise CallerError('ladder = "branched"', "needs a schedule that can be cut anywhere", 'use schedule = "wsd"')
    unique = study.corpus.unique_tokens
    if corpus_tokens is not None and unique is not None and unique > corpus_tokens:
        wrong = f"the corpus has {corpus_tokens:,}"
        raise CallerError(f"corpus.unique_tokens = {unique:,}", wrong, "lower it, leave it out, or add text")


def _price(
    study: Study,
    arm: Arm,
    cost: ArmCost,
    of_teachers: Mapping[str, ArmCost],
    budgets: list[Budget],
    unique: int | None,
    caches: tuple[PlannedCache, ...],
) -> ArmPrice:
    unit, charge, execution, tuning = budgets[0].unit, study.plan.teacher_charge, study.execution, study.tuning
    teacher = teacher_cost(execution, study.models, arm.teacher, of_teachers, unit, charge)
    cache = reads_cache(caches, arm.name)
    per_step = step_cost(execution, cost, unit, charge, taught_steps(arm, unique, charge, cached=cache is not None))
    readers = 1 if cache is None or charge != "cache" else cache.readers
    shares, fewest = shared(per_step, readers), fewest_steps(arm.recipe)
    price = ArmPrice(execution, arm, cost, shares, unique, teacher, fewest_steps=fewest, readers=readers)
    charged = 0 if tuning is None else tuning.charged_trials
    if tuning is None or tuning.budget_share is None:
        # Charged trials are as long as the run that is left beside them at the smallest budget.
        each = replace(price, per_step=shares.times(charged + 1))
        lengths = [each.steps(budget.amount) for budget in budgets]
    else:
        lengths = [price.steps(teacher + tuning.budget_share * (budgets[-1].amount - teacher))]
    trial_steps = next((steps for steps in lengths if steps >= price.fewest_steps), 0)
    price = replace(price, tuning=charged * float(shares.cost(trial_steps)), trial_steps=trial_steps)
    firsts = [price.steps(budget.amount) for budget in budgets] if trial_steps or not charged else []
    return replace(price, first_steps=next((steps for steps in firsts if steps >= price.fewest_steps), 0))


def _schedule(
    study: Study, price: ArmPrice, budget: Budget, rung: int, ladder: str, shared_warmup: int | None
) -> Schedule:
    recipe, steps = price.arm.recipe, price.steps(budget.amount)
    warmup = shared_warmup
    if warmup is None:
        warmup = warmup_steps(recipe, price.first_steps if ladder == "branched" else steps)
    cooldown = cooldown_steps(recipe, steps)
    feasible = price.first_steps > 0 and price.fewest_steps <= steps and warmup + cooldown <= steps
    reason = None if feasible else _why_infeasible(study, price, budget, steps)
    bought = price.bought(steps if feasible else 0, budget)
    return Schedule(
        arm=price.arm.name,
        budget=budget,
        rung=rung,
        feasible=feasible,
        reason=reason,
        unique_tokens=price.unique_tokens,
        warmup_steps=warmup if feasible else 0,
        cooldown_steps=cooldown if feasible else 0,
        interval_level=price.cost.interval_level,
        teacher_charge=price.teacher,
        tuning_charge=price.tuning,
        **bought if feasible else {**bought, "tokens_interval": None, "unspent_fraction": 1.0},
    )


def _why_infeasible(study: Study, price: ArmPrice, budget: Budget, steps: int) -> str:
    charged = 0 if study.tuning is None else study.tuning.charged_trials
    share = None if study.tuning is None else study.tuning.budget_share
    own = float(price.per_step.cost(price.fewest_steps))
    if share is None:  # trials at the smallest feasible budget would be as long as its run
        enough = price.teacher + (charged + 1) * own
    else:
        enough = price.upfront + own if price.trial_steps else price.teacher + own / share
    reason = f"{price.arm.name} can take {steps} of at least {price.fewest_steps} steps; the smallest feasible "
    reason += f"budget is {format_amount(enough, budget.unit)}"
    if charged:
        reason += f", with {charged} trials of learning rates"
    elif price.teacher and budget.amount > own:
        students = math.ceil(price.teacher / (charge_share(study.plan.teacher_charge) * (budget.amount - own)))
        reason += f", or share the teacher among {students} students (amortised:{students})"
    return reason


def _trials(study: Study, prices: Mapping[str, ArmPrice]) -> Iterator[Trial]:
    """Yield the same learning rates for every arm, each a whole run at its smallest feasible budget, or at a share."""
    tuning = study.tuning
    if tuning is None:
        return
    unit = MATCHES.get(study.plan.match, "required_flops")
    heads = {name: build_strategy(arm.strategy, name).trains_head for name, arm in study.arms.items()}
    shared = _shared_warmups(study.arms, {arm: price.trial_steps for arm, price in prices.items()})
    for arm, price in prices.items():
        if not price.trial_steps:
            continue
        alone = replace(price, teacher=0.0, tuning=0.0, trial_steps=0, first_steps=price.trial_steps)
        # Half a step more, so that rounding does not take one away.
        spent = Budget(amount=float(price.per_step.cost(price.trial_steps + 0.5)), unit=unit)
        schedule = _schedule(study, alone, spent, 0, "separate", shared[arm])
        # What decides between trials: without a head of its own, how well the whole network adapts to a new one; of
        # causal arms that all train a head, that is what they are compared by.
        outcome = "readout_loss" if heads[arm] else "adapted_loss"
        outcome = "lm_loss" if study.recipe.causal and all(heads.values()) else outcome
        for rate in tuning.learning_rate:
            named = schedule.model_copy(update={"arm": f"{arm}~{rate:g}", "unspent_fraction": 0.0})
            yield Trial(arm=arm, learning_rate=rate, schedule=named, seeds=tuning.seeds, outcome=outcome)


def _teacher_plan(study: Study, name: str, cost: ArmCost | None) -> TeacherPlan:
    spec, recipe = study.models[name], study.recipe
    steps = math.ceil((spec.pretraining_tokens or 0) / recipe.batch_tokens)
    flops = 0.0 if cost is None else cost.train_required_flops_per_token * steps * recipe.batch_tokens
    if spec.pretrain is None:
        if spec.pretrained_for is not None and cost is None:
            amount, unit = parse_amount(spec.pretrained_for, "tokens")
            flops = amount if unit == "required_flops" else 0.0
        return TeacherPlan(model=name, weights=spec.weights, required_flops=flops)
    cooldown = min(steps, max(1, round(recipe.cooldown_fraction * steps)))
    # A teacher trains longer than the students: their warm-up, a few steps, can leave it on a plateau for good.
    own = recipe.model_copy(update={"warmup_tokens": None})
    warmup = max(warmup_steps(recipe, steps), warmup_steps(own, steps))
    return TeacherPlan(
        model=name,
        tokens=steps * recipe.batch_tokens,
        steps=steps,
        warmup_steps=min(warmup, steps - cooldown),
        cooldown_steps=cooldown,
        seed=spec.pretrain.seed,
        required_flops=flops,
        device_seconds=None if cost is None else device_seconds(study.execution, cost, steps),
    )


def _profiled(recipe: Recipe, cost: ArmCost) -> Recipe:
    """The recipe with the precision and attention that were profiled."""
    return Recipe.model_validate({**recipe.model_dump(), "dtype": cost.dtype, "attention": cost.attention})


def fewest_steps(recipe: Recipe) -> int:
    """Return the fewest steps that hold a warm-up and a cooldown."""
    stays = 1.0 - (recipe.cooldown_fraction if recipe.cools_down else 0.0)
    least = 2 if recipe.warmup_tokens is None else max(2, math.floor((warmup_steps(recipe, 0) - 0.5) / stays))
    counts = range(least, least + _MOST_FEWEST)
    fitting = (n for n in counts if warmup_steps(recipe, n) + cooldown_steps(recipe, n) <= n)
    return next(fitting, counts[-1] + 1)


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Return the steps of a warm-up: of the tokens that were asked for, or a share of so many steps."""
    if recipe.warmup_tokens is not None:
        return math.ceil(recipe.warmup_tokens / recipe.batch_tokens)
    return math.ceil((WARMUP_FRACTION if recipe.warmup_fraction is None else recipe.warmup_fraction) * steps)


def cooldown_steps(recipe: Recipe, steps: int) -> int:
    """Return the steps of a cooldown at the end of so many."""
    return max(1, round(recipe.cooldown_fraction * steps)) if recipe.cools_down and steps else 0


def _shared_warmups(arms: Mapping[str, Arm], first_steps: Mapping[str, int]) -> dict[str, int | None]:
    """Return the warm-up steps of each arm, the same tokens in all; None: by its fraction."""
    fewest = min((arms[arm].recipe.batch_tokens * steps for arm, steps in first_steps.items() if steps), default=0)
    shared: dict[str, int | None] = {}
    for name, recipe in ((name, arm.recipe) for name, arm in arms.items()):
        tokens = WARMUP_FRACTION * fewest if recipe.warmup_tokens is None else recipe.warmup_tokens
        shared[name] = None if recipe.warmup_fraction is not None else math.ceil(tokens / recipe.batch_tokens)
    return shared


def warmup_tokens(schedules: Iterable[Schedule], arms: Mapping[str, Arm]) -> dict[str, int]:
    """Return the tokens of each arm's warm-up at its smallest feasible budget."""
    firsts = {s.arm: s for s in sorted(schedules, key=lambda s: s.rung, reverse=True) if s.feasible}
    return {arm: firsts[arm].warmup_steps * arms[arm].recipe.batch_tokens for arm in arms if arm in firsts}
