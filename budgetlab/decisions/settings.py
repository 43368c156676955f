"""Assumptions about what a comparison was run with, tested on the same arms under another setting."""

from __future__ import annotations

from collections.abc import Mapping

from budgetlab.decisions.evidence import Alternative, Shift, alternatives, lead
from budgetlab.decisions.question import Question, amount_words, answer_words, outcome_words, tested_row, untested_row
from budgetlab.fitting.contrast import unit_of
from budgetlab.planner import grid_ends
from budgetlab.resampling import holm
from budgetlab.units import format_amount
from budgetlab.values import Assumption, Plan, Trial


def learning_rate_row(question: Question) -> Assumption:
    """Test whether another learning rate gives another answer: arms that differ in it, or the trials of [tuning]."""
    name = "learning rate"
    found = _row_of_settings(question, name, "learning_rate", "arms at another learning rate")
    if found is not None:
        return found
    plan = question.own.plan
    if plan.tried:
        return _trials_row(name, question, plan)
    missing = "trials of learning rates for every arm ([tuning] learning_rate = [...]), at least three"
    return untested_row(name, "every arm tuned alike, and the contrasts at the other rates", missing)


def _trials_row(name: str, question: Question, plan: Plan) -> Assumption:
    """The contrasts at every rate that both arms tried, beside those at each arm's best."""
    by_arm: dict[str, dict[float, float]] = {}
    for trial in plan.trials:
        if trial.loss is not None:
            by_arm.setdefault(trial.arm, {})[trial.learning_rate] = trial.loss
    outcomes = {trial.arm: trial.outcome for trial in plan.trials}
    at_edge, reversed_at, said = list(grid_ends(plan.trials)), [], []
    for verdict in question.primary:
        a, b = verdict.contrast
        if a not in by_arm or b not in by_arm or outcomes[a] != outcomes[b]:  # two losses have no difference
            continue
        best = min(by_arm[b].values()) - min(by_arm[a].values())
        common = sorted(set(by_arm[a]) & set(by_arm[b]))
        leads = {rate: by_arm[b][rate] - by_arm[a][rate] for rate in common}
        said.append(f"{a} - {b} {best:+.3f} nats at each arm's best rate, " + _range_words(leads))
        reversed_at += [f"{a} - {b} at {rate:g}" for rate, value in leads.items() if (value > 0) != (best > 0)]
    if not said:
        return untested_row(name, "the trials of [tuning]", "trials of both arms of a contrast, on one outcome")
    edge = f"; at the end of the range: {', '.join(at_edge)}" if at_edge else ""
    return tested_row(
        name,
        f"the trials of [tuning]: {_rates(plan.trials)}",
        bool(at_edge or reversed_at),
        "; ".join(said) + edge,
        effect=f"the sign turns: {', '.join(reversed_at)}" if reversed_at else "the sign is the same at every rate",
    )


def _rates(trials: tuple[Trial, ...]) -> str:
    return ", ".join(f"{rate:g}" for rate in dict.fromkeys(trial.learning_rate for trial in trials))


def _range_words(leads: Mapping[float, float]) -> str:
    if not leads:
        return "no rate in common"
    return f"{min(leads.values()):+.3f} to {max(leads.values()):+.3f} at one rate for both"


def schedule_row(question: Question) -> Assumption:
    """Test whether another learning-rate schedule gives another answer."""
    name = "schedule"
    found = _row_of_settings(question, name, "schedule", "arms under another schedule of the learning rate")
    missing = 'the same arms with [arms.X.recipe] schedule = "linear", at one of these budgets'
    return found or untested_row(name, "the contrasts under another schedule", missing)


def shape_row(question: Question) -> Assumption:
    """Test whether a student of another depth and width, and the same size, gives another answer."""
    name = "shape at equal N"
    found = _row_of_settings(question, name, "student", "students of another depth and width, within 5 % of N")
    missing = "a second student of the same number of parameters without embeddings, and another depth and width"
    return found or untested_row(name, "the contrasts with a student of another shape and equal N", missing)


def teacher_row(question: Question) -> Assumption:
    """Test whether another teacher gives another answer."""
    name = "another teacher"
    found = _row_of_settings(question, name, "teacher", "arms that learn from another teacher")
    missing = "a second teacher (another pretraining seed, budget or size)"
    return found or untested_row(name, "the contrasts with another teacher", missing)


def repetition_row(question: Question) -> Assumption:
    """Test whether text that is read more than once gives another answer."""
    name = "repeated data"
    found = _row_of_settings(question, name, "text", "the same arms with another amount of text")
    plan = question.own.plan
    passes = [schedule.passes for schedule in plan.schedules if schedule.feasible and schedule.passes is not None]
    read = f"passes over the text: {min(passes):.2g} to {max(passes):.2g}" if passes else ""
    if found is not None:
        evidence = "; ".join(filter(None, (read, found.evidence)))
        return found.model_copy(update={"evidence": evidence})
    if passes and max(passes) <= 1.0:
        return tested_row(name, "passes of every arm over the text", False, f"{read}: nothing is read twice",
                          effect="says nothing of limited text")  # fmt: skip
    missing = "the same arms with another corpus.unique_tokens" if passes else "the corpus, so that passes are known"
    return untested_row(name, "the contrasts with text that is repeated and with text that is not", missing)


def outcomes_row(question: Question) -> Assumption:
    """Test whether every outcome gives the answer of the primary one."""
    name = "one answer for all outcomes"
    tested = "verdicts of every other outcome at the largest budget, under Holm's correction"
    against, others = [], 0
    for verdict in question.primary:
        a, b = verdict.contrast
        for other in question.verdicts:
            if other.contrast != verdict.contrast or other.y == verdict.y or other.at != verdict.at:
                continue
            others += 1
            if {verdict.verdict, other.verdict} == {"a_better", "b_better"}:
                better = a if other.verdict == "a_better" else b
                size = amount_words(abs(other.difference or 0.0), other.y, signed=False)
                against.append(f"{better} better than {a if better == b else b} on {outcome_words(other.y)} by {size} "
                               f"{unit_of(other.y)}")  # fmt: skip
    if not others:
        return untested_row(name, tested, "a second outcome, such as fine-tuned tasks")
    evidence = f"{others} verdicts on other outcomes, {len(against)} of them resolved the other way"
    effect = f"the answer turns: {'; '.join(against)}" if against else "no resolved verdict speaks against the answer"
    return tested_row(name, tested, bool(against), evidence, effect=effect)


def _row_of_settings(question: Question, name: str, differs_in: str, tested: str) -> Assumption | None:
    """Compare every primary contrast with itself under the other setting; None without such runs."""
    found: list[tuple[Alternative, Shift, float]] = []
    for verdict in question.primary:
        a, b = verdict.contrast
        for other in alternatives(question.own, question.beside, a, b, question.y, differs_in=differs_in):
            first = lead(question.own, a, b, question.y, other.own_budget)
            second = lead(other.where, other.a, other.b, question.y, other.budget)
            if first is None or second is None:
                continue
            shift = Shift(first, second)
            if (p := shift.p_value()) is not None:
                found.append((other, shift, p))
    if not found:
        return None
    adjusted = holm([p for _, _, p in found])
    unit, said, turned = unit_of(question.y), [], []
    for other, shift, p in ((o, s, p) for (o, s, _), p in zip(found, adjusted, strict=True)):
        pair = f"{other.a} - {other.b}"
        change = amount_words(shift.value, question.y, shift.interval(question.level))
        leads = f"{shift.first.difference:+.3f} -> {shift.second.difference:+.3f}"
        said.append(f"{pair} {leads} with {other.setting} (change {change}, p = {p:.2g})")
        before = answer_words(shift.first.difference, shift.first.interval(question.level), "a", "b")
        after = answer_words(shift.second.difference, shift.second.interval(question.level), "a", "b")
        if before != after:
            words = {"a better": f"{other.a} better", "b better": f"{other.b} better"}.get(after, after)
            turned.append(f"{pair} with {other.setting}: {words}")
    first = found[0][0]
    at = format_amount(first.own_budget, question.primary[0].at.unit)
    changed = sum(p < question.alpha for p in adjusted)
    effect = f"another answer for {'; '.join(turned)}" if turned else "every answer stays as it is"
    return tested_row(
        name,
        f"{tested}, on {outcome_words(question.y)} at {at}",
        changed > 0,
        f"{changed} of {len(found)} contrasts change, in {unit}: {'; '.join(said)}",
        effect=effect,
        p_value=min(adjusted),
        studies=[other.where.study for other, _, _ in found if other.where is not question.own],
    )
