"""Tests of what a comparison was run and counted with: whether another setting, outcome or currency turns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from budgetlab.decisions.evidence import Question, alternatives, answer_in, answer_of, outcome_words
from budgetlab.fitting.contrast import change
from budgetlab.fitting.crossing import EDGE, Curves
from budgetlab.planner import grid_ends
from budgetlab.resampling import holm
from budgetlab.units import format_amount
from budgetlab.values import Verdict

_SAME = "every answer stays as it is"
CURRENCIES = {
    "required_flops": "required FLOPs", "executed_flops": "executed FLOPs", "device_seconds": "device seconds",
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a test found: whether the assumption is violated, the numbers, and what becomes of the answer without it."""

    violated: bool
    evidence: str
    effect: str = ""
    p_value: float | None = None
    studies: tuple[str, ...] = ()
    how: str = "{}"
    """How it was tested, with the list's own words in the place of the braces."""


def under_another(differs_in: str, arms: str, missing: str, q: Question) -> Found | str:
    """Compare every primary contrast with itself under another setting, in this study or those beside it."""
    found = []
    for verdict in q.primary:
        for other in alternatives(q.own, q.beside, *verdict.contrast, q.y, differs_in=differs_in):
            first = q.own.contrast(*verdict.contrast, q.y, other.own_budget)
            second = other.where.contrast(other.a, other.b, q.y, other.budget)
            moved = None if first is None or second is None else change(first, second)
            if moved is not None and (p := moved.p_value()) is not None:
                found.append((other, first, second, moved, p))
    if not found:
        return missing
    adjusted, level, said, turned = holm([p for *_, p in found]), q.spec.interval_level, [], []
    for (other, first, second, moved, _), p in zip(found, adjusted, strict=True):
        pair = f"{other.a} - {other.b}"
        leads = f"{first.difference:+.3f} -> {second.difference:+.3f}"
        shift = q.amount(moved.difference, moved.interval(level))
        said.append(f"{pair} {leads} with {other.setting} (change {shift}, p = {p:.2g})")
        before, after = (answer_of(c.difference, c.interval(level), (other.a, other.b)) for c in (first, second))
        if before != after:
            turned.append(f"{pair} with {other.setting}: {after}")
    changed = sum(p < q.alpha for p in adjusted)
    at = format_amount(found[0][0].own_budget, q.primary[0].at.unit)
    return Found(
        changed > 0,
        f"{changed} of {len(found)} contrasts change, in {q.unit}: {'; '.join(said)}",
        f"another answer for {'; '.join(turned)}" if turned else _SAME,
        min(adjusted),
        tuple(dict.fromkeys(other.where.study for other, *_ in found if other.where is not q.own)),
        f"{arms}, on {outcome_words(q.y)} at {at}",
    )


def at_tried_rates(q: Question) -> Found | str:
    """Test whether another learning rate gives another answer: arms that differ in it, or the trials of [tuning]."""
    plan = q.own.plan
    missing = "trials of learning rates for every arm ([tuning] learning_rate = [...]), at least three"
    found = under_another("learning_rate", "arms at another learning rate", missing, q)
    if not isinstance(found, str) or not plan.tried:
        return found
    by_arm: dict[str, dict[float, float]] = {}
    for trial in plan.trials:
        if trial.loss is not None:
            by_arm.setdefault(trial.arm, {})[trial.learning_rate] = trial.loss
    outcomes = {trial.arm: trial.outcome for trial in plan.trials}
    at_edge, turned, said = list(grid_ends(plan.trials)), [], []
    for a, b in (verdict.contrast for verdict in q.primary):
        if a not in by_arm or b not in by_arm or outcomes[a] != outcomes[b]:  # two losses have no difference
            continue
        best = min(by_arm[b].values()) - min(by_arm[a].values())
        leads = {rate: by_arm[b][rate] - by_arm[a][rate] for rate in sorted(by_arm[a].keys() & by_arm[b].keys())}
        span = "no rate in common"
        if leads:
            span = f"{min(leads.values()):+.3f} to {max(leads.values()):+.3f} at one rate for both"
        said.append(f"{a} - {b} {best:+.3f} nats at each arm's best rate, {span}")
        turned += [f"{a} - {b} at {rate:g}" for rate, value in leads.items() if (value > 0) != (best > 0)]
    if not said:
        return "trials of both arms of a contrast, on one outcome"
    edge = f"; at the end of the range: {', '.join(at_edge)}" if at_edge else ""
    effect = f"the sign turns: {', '.join(turned)}" if turned else "the sign is the same at every rate"
    rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(trial.learning_rate for trial in plan.trials))
    how = f"the trials of [tuning]: {rates}"
    return Found(bool(at_edge or turned), "; ".join(said) + edge, effect, how=how)


def with_repeated_text(q: Question) -> Found | str:
    """Test whether text that is read more than once gives another answer."""
    passes = [s.passes for s in q.own.plan.schedules if s.feasible and s.passes is not None]
    missing = "the same arms with another corpus.unique_tokens" if passes else "the corpus, so that passes are known"
    read = f"passes over the text: {min(passes):.2g} to {max(passes):.2g}" if passes else ""
    found = under_another("text", "the same arms with another amount of text", missing, q)
    if isinstance(found, Found):
        return replace(found, evidence="; ".join(filter(None, (read, found.evidence))))
    if passes and max(passes) <= 1.0:
        effect, how = "says nothing of limited text", "passes of every arm over the text"
        return Found(False, f"{read}: nothing is read twice", effect, how=how)
    return found


def in_all_outcomes(q: Question) -> Found | str:
    """Test whether every outcome gives the answer of the primary one."""
    others = [
        (verdict, other)
        for verdict in q.primary
        for other in q.verdicts
        if other.contrast == verdict.contrast and other.y != verdict.y and other.at == verdict.at
    ]
    if not others:
        return "a second outcome, such as fine-tuned tasks"
    against = []
    for verdict, other in others:
        if {verdict.verdict, other.verdict} == {"a_better", "b_better"}:
            a, b = other.contrast if other.verdict == "a_better" else other.contrast[::-1]
            size = f"{abs(other.difference or 0.0):.{1 if other.unit == 'points' else 3}f} {other.unit}"
            against.append(f"{a} better than {b} on {outcome_words(other.y)} by {size}")
    evidence = f"{len(others)} verdicts on other outcomes, {len(against)} of them resolved the other way"
    effect = f"the answer turns: {'; '.join(against)}" if against else "no resolved verdict speaks against the answer"
    return Found(bool(against), evidence, effect)


def other_currency(x: str, own: str) -> str:
    """Return the column that a test of one currency looks at: that one, or required FLOPs where it is the study's."""
    return "required_flops" if own == x else x


def in_currency(x: str, q: Question) -> Found | str:
    """Test whether another count of compute gives another answer; for a study in that one, required FLOPs."""
    x = other_currency(x, q.spec.x)
    runs, words = q.own.runs(q.y), CURRENCIES[x]
    if x not in runs or not (runs[x] > 0).all():
        return f"{words} of every run"
    by = CURRENCIES.get(q.spec.x, q.spec.x)
    if runs.groupby("arm")["budget_amount"].nunique().min() < 2:
        ratio = runs[x] / runs[q.spec.x] if q.spec.x in runs else None
        if ratio is not None and ratio.std() / ratio.mean() < 1e-9:
            return Found(False, f"{ratio.mean():.4g} in every run", _SAME, how=f"{words} over {by} of every run")
        return "a second budget"
    curves, asked, apart = q.own.curves(q.y, q.spec.model_copy(update={"x": x}), replicates=True), [], []
    for verdict in q.primary:
        both = [curve for arm in verdict.contrast if (curve := curves.of(arm)) is not None]
        top = min((curve.high for curve in both), default=0.0)
        if len(both) < 2 or top < max(curve.low for curve in both):
            apart.append(" - ".join(verdict.contrast))
        else:
            asked.append((verdict, dict.fromkeys(verdict.contrast, top)))
    if not asked:
        return f"arms whose {words} overlap"
    found = _read_off(q, curves, asked, f" by {by}")
    return replace(found, evidence=f"{found.evidence}; no common range: {', '.join(apart)}") if apart else found


def with_teacher_charged(q: Question) -> Found | str:
    """Test whether charging the teacher's pretraining to one student gives another answer."""
    plan, curves, asked, lacking = q.own.plan, None, [], []
    if plan.charge == "pretraining":
        return Found(False, "its pretraining is charged", "nothing to add", how="the study's own charge")
    if q.spec.x != "required_flops" or "required_flops" not in q.own.runs(q.y):
        return "a study matched in required FLOPs"
    bills = {teacher.model: teacher.required_flops for teacher in plan.teachers if teacher.weights is None}
    for verdict in q.primary:
        a, b = verdict.contrast
        teacher = plan.arms[a].teacher if a in plan.arms else None
        if teacher is None:
            continue
        if not (bill := bills.get(teacher)):
            lacking.append(f"the cost of {teacher}'s pretraining")
            continue
        curves = curves or q.own.curves(q.y, q.spec, replicates=True)
        one, other = curves.of(a), curves.of(b)
        if one is None or other is None:
            lacking.append("a second budget")
        elif one.high + bill > other.high * EDGE:
            need, have = (format_amount(amount, "required_flops") for amount in (one.high + bill, other.high))
            lacking.append(f"a run of {b} at {need}, which is {a} with its teacher (the largest is {have})")
        else:
            asked.append((verdict, {a: one.high, b: one.high + bill}))
    if curves is None or not asked:
        return next(iter(lacking), "a distilled arm")
    return _read_off(q, curves, asked, "")


def _read_off(q: Question, curves: Curves, asked: list[tuple[Verdict, Mapping[str, float]]], by: str) -> Found:
    """Read contrasts off curves, and compare their answers with the verdicts."""
    said, turned = [], []
    for verdict, at in asked:
        a, b = verdict.contrast
        value, ends = curves.difference(a, b, at)
        word, real = answer_of(value, ends, (a, b)), answer_in(verdict)
        said.append(f"{a} - {b} {q.amount(value, ends)} at {format_amount(at[b], curves.spec.x)}")
        if word != real:
            turned.append(f"{a} - {b}: {word}, {real}{by}" if by else f"{a} - {b}: {word}")
    effect = f"another answer: {'; '.join(turned)}" if turned else _SAME
    return Found(bool(turned), f"in {q.unit}: {'; '.join(said)}", effect)
