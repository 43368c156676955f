"""[tuning]: the same learning rates for every arm at the smallest budget, as a plan of its own, and what it chose."""

from __future__ import annotations

import math
from collections.abc import Mapping

from budgetlab.errors import CallerError
from budgetlab.studies import compare_recipes
from budgetlab.units import format_amount
from budgetlab.values import Plan, content_hash

__all__ = ["choose_rates", "trial_plan", "trials_key", "tuning_note"]


def trial_plan(plan: Plan) -> Plan:
    """Return the trials of a plan as a plan that `run` can execute: an arm `ARM~RATE` each, one seed, no ladder."""
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
            "seeds": plan.seeds[:1],
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


def choose_rates(plan: Plan, losses: Mapping[str, float]) -> Plan:
    """Give every arm the rate with which it reached the lowest read-out loss.

    Parameters
    ----------
    plan
        With trials.
    losses
        Read-out loss of each trial, by `ARM~RATE`; one that diverged is missing or not finite.

    Raises
    ------
    CallerError
        When no trial of an arm has a loss.
    """
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    trials = tuple(t.model_copy(update={"readout_loss": finite.get(t.schedule.arm)}) for t in plan.trials)
    arms, lines = dict(plan.arms), []
    for name in dict.fromkeys(trial.arm for trial in trials):
        known = {t.learning_rate: t.readout_loss for t in trials if t.arm == name and t.readout_loss is not None}
        if not known:
            raise CallerError(f"[tuning] of {name}", "every trial failed", "give lower learning rates")
        best = min(known, key=lambda rate: known[rate])
        recipe = arms[name].recipe.model_copy(update={"learning_rate": best})
        arms[name] = arms[name].model_copy(update={"recipe": recipe})
        tried = ", ".join(f"{rate:g} ({loss:.4f} nats)" for rate, loss in known.items())
        edge = ", at the end of the range" if len(known) > 1 and best in (min(known), max(known)) else ""
        lines.append(f"{name}: learning rate {best:g}, the best of {tried}{edge}")
    audit = (*compare_recipes(arms, plan.models), *lines)
    return plan.model_copy(update={"trials": trials, "arms": arms, "audit": audit, "tuned": True})


def tuning_note(plan: Plan) -> str | None:
    """Say what the trials cost, and whether the arms pay for it; None without [tuning]."""
    if not plan.trials:
        return None
    flops = sum(trial.schedule.required_flops for trial in plan.trials)
    charged = any(schedule.tuning_charge for schedule in plan.schedules)
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(trial.learning_rate for trial in plan.trials))
    return (
        f"tuning: every arm tries learning rates {rates} at the smallest budget with seed {plan.seeds[0]}, "
        f"{format_amount(flops, 'required_flops')} in all, {'charged to' if charged else 'outside'} the budgets"
    )
