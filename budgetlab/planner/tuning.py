"""[tuning]: the same learning rates for every arm, as a plan of its own, and what it chose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

from budgetlab.errors import CallerError
from budgetlab.planner.match import warmup_tokens
from budgetlab.planner.words import compare_recipes
from budgetlab.units import format_amount
from budgetlab.values import Plan, Score, Trial, content_hash


def trial_plan(plan: Plan) -> Plan:
    """Return the trials of a plan as a plan that `run` can execute: an arm `ARM~RATE` each, no ladder."""
    arms, costs = {}, {}
    for trial in plan.trials:
        arm, name = plan.arms[trial.arm], trial.schedule.arm
        recipe = arm.recipe.model_copy(update={"learning_rate": trial.learning_rate})
        arms[name] = arm.model_copy(update={"name": name, "recipe": recipe})
        costs[name] = plan.costs[trial.arm]
    return plan.model_copy(
        update={
            "arms": arms,
            "costs": costs,
            "schedules": tuple(trial.schedule for trial in plan.trials),
            "ladder": "separate",
            "seeds": next((trial.seeds for trial in plan.trials), ()) or plan.seeds[:1],
            "trials": (),
        }
    )


def trials_key(plan: Plan, *further: object) -> str:
    """Hash of what decides the losses of the trials, `further` how they are scored; others decide nothing."""
    trials = trial_plan(plan)
    lengths = [(s.arm, s.steps, s.warmup_steps, s.cooldown_steps) for s in trials.schedules]
    arms = [arm.model_dump(mode="json") for arm in trials.arms.values()]
    models = {name: spec.identity().model_dump(mode="json") for name, spec in sorted(plan.models.items())}
    teachers = [teacher.model_dump(mode="json") for teacher in plan.teachers]
    return content_hash(lengths, arms, models, trials.seeds, plan.corpus, plan.recipe, teachers, *further)


def trial_losses(plan: Plan, scores: Iterable[Score]) -> dict[str, float]:
    """Return the mean loss over seeds of each trial, by `ARM~RATE`; one that lacks a seed, which diverged, is missing.

    Parameters
    ----------
    plan
        With trials.
    scores
        Of the runs of `trial_plan`.
    """
    outcomes = {trial.schedule.arm: trial.outcome for trial in plan.trials}
    found: dict[str, dict[int, float]] = {}
    for score in scores:
        if score.subject == "run" and score.run_seed is not None and score.task == outcomes.get(score.arm):
            found.setdefault(score.arm, {})[score.run_seed] = score.value
    seeds = set(trial_plan(plan).seeds)
    return {name: statistics.fmean(losses.values()) for name, losses in found.items() if set(losses) == seeds}


def choose_rates(plan: Plan, losses: Mapping[str, float]) -> Plan:
    """Give every arm the rate with which it reached the lowest loss.

    Parameters
    ----------
    plan
        With trials.
    losses
        Of each trial, by `ARM~RATE`, a mean over seeds; one that diverged is missing or not finite.

    Returns
    -------
    plan
        `tuned` where the best rate of every arm lies between two that were tried; else the audit says which end of
        the grid to extend.

    Raises
    ------
    CallerError
        When no trial of an arm has a loss.
    """
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    trials = tuple(t.model_copy(update={"loss": finite.get(t.schedule.arm)}) for t in plan.trials)
    arms, lines = dict(plan.arms), []
    ends = grid_ends(trials)
    for name in dict.fromkeys(trial.arm for trial in trials):
        known = {t.learning_rate: t.loss for t in trials if t.arm == name and t.loss is not None}
        if not known:
            raise CallerError(f"[tuning] of {name}", "every trial failed", "give lower learning rates")
        best = min(known, key=lambda rate: known[rate])
        recipe = arms[name].recipe.model_copy(update={"learning_rate": best})
        arms[name] = arms[name].model_copy(update={"recipe": recipe})
        tried = ", ".join(f"{rate:g} ({loss:.4f} nats)" for rate, loss in known.items())
        edge = f"; at the end of the range, not tuned: extend the grid {ends[name]}" if name in ends else ""
        lines.append(f"{name}: learning rate {best:g}, the best of {tried}{edge}")
    untried = [name for name in arms if name not in {trial.arm for trial in trials}]
    lines += [f"{name}: learning rate {arms[name].recipe.learning_rate:g}, not tuned" for name in untried]
    audit = (*compare_recipes(arms, plan.models, warmup_tokens(plan.schedules, arms)), *lines)
    tuned = not ends and not untried
    return plan.model_copy(update={"trials": trials, "arms": arms, "audit": audit, "tuned": tuned})


def grid_ends(trials: Iterable[Trial]) -> dict[str, str]:
    """Say of each arm whose best rate is at an end of those tried where its grid is to be extended.

    A rate that diverged was tried: the best below it is not at the end.
    """
    tried: dict[str, dict[float, float]] = {}
    for trial in trials:
        tried.setdefault(trial.arm, {})[trial.learning_rate] = math.inf if trial.loss is None else trial.loss
    found = {}
    for arm, losses in tried.items():
        best, low, high = min(losses, key=lambda rate: losses[rate]), min(losses), max(losses)
        if best in (low, high):
            words = [f"below {low:g}"] * (best == low) + [f"above {high:g}"] * (best == high)
            found[arm] = " and ".join(words)
    return found


def tuning_note(plan: Plan) -> str | None:
    """Say what the trials cost, and whether the arms pay for it; None without [tuning]."""
    if not plan.trials:
        return None
    seeds = trial_plan(plan).seeds
    flops = sum(unit.required_flops for unit in plan.units() if unit.kind == "trial")
    charged = any(schedule.tuning_charge for schedule in plan.schedules)
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(trial.learning_rate for trial in plan.trials))
    share = plan.tuning_share
    where = "the smallest budget" if share is None else f"{share:g} of the largest budget"
    with_seeds = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return (
        f"tuning: every arm tries learning rates {rates} at {where} with {with_seeds}, "
        f"{format_amount(flops, 'required_flops')} in all, {'charged to' if charged else 'outside'} the budgets"
    )
