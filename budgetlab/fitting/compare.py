"""Verdicts: which of two arms is better at the same budget, or how little can be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.contrast import (
    Contrast,
    contrast,
    paired_noise,
    runs_to_resolve,
    signed_values,
    unit_of,
)
from budgetlab.fitting.crossing import Curves, make_curves
from budgetlab.fitting.scores import AGGREGATE, LOSSES, outcome_names, run_values
from budgetlab.resampling import holm
from budgetlab.units import format_amount
from budgetlab.values import Budget, FitSpec, Verdict

__all__ = ["compare", "compare_arms", "reference_arm"]

_PUBLISHED = (0.4, 0.1)
"""Differences in GLUE points that publications report."""
_Word = Literal["a_better", "b_better", "equivalent", "not_resolved"]


@dataclass(frozen=True)
class _Question:
    a: str
    b: str
    y: str
    budget: float
    primary: bool
    contrast: Contrast
    runs: pd.DataFrame


def compare(
    scores: pd.DataFrame,
    *,
    a: str,
    b: str,
    task: str | None = None,
    budget: float | None = None,
    margin: float | None = None,
    interval_level: float = 0.95,
    x: str = "required_flops",
    curves: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """Compare two arms at equal budget.

    Parameters
    ----------
    scores
        The tidy table of the store, of all arms: the other arms help to estimate the noise between runs.
    a, b
        The arms; the difference is A minus B, positive when A is better.
    task
        A task, ``score`` for the mean over tasks, or a loss; by default the read-out loss where there is one.
    budget
        Amount of the budget; by default the largest that both arms have.
    margin
        Equivalence margin, in points (nats for a loss); by default the one of `FitSpec`.
    interval_level
        Nominal coverage; tests are at one minus this.
    x
        Column of compute for multiplier and crossover.
    curves
        Whether to add multiplier, crossover and decomposition.
    resamples, seed
        Of their intervals.

    Returns
    -------
    Verdict
        One of four words with its interval; with one run per arm the interval is None and the sentence speaks of
        these checkpoints.

    Raises
    ------
    CallerError
        For an unknown arm, outcome or budget, or a score that occurs twice.
    """
    y = task or outcome_names(scores)[0]
    spec = FitSpec(x=x, interval_level=interval_level, resamples=resamples, seed=seed)
    if margin is None:
        margin = spec.margin_nats if unit_of(y) == "nats" else spec.margin
    if not margin > 0:
        raise CallerError(f"margin = {margin!r}", "not above zero", f"give one in {unit_of(y)}")
    runs = run_values(scores, y)
    question = _ask(runs, a, b, y, budget, primary=True)
    made = make_curves(runs, y, spec) if curves else None
    return _answer(question, margin, interval_level, None, None, made)


def compare_arms(
    scores: pd.DataFrame, spec: FitSpec, *, reference: str | None = None, primary: str | None = None
) -> tuple[Verdict, ...]:
    """Answer a study: one primary contrast per arm against the reference, and the others under Holm.

    Parameters
    ----------
    scores
        The tidy table of the store.
    spec
        Outcome, margins, level and resampling.
    reference
        The arm to compare with; by default ``no_kd`` (of the same student, for ``minilm@small`` and its like).
    primary
        The outcome of the primary contrasts; by default the study's `y`.

    Returns
    -------
    tuple of Verdict
        Primary ones first: each arm against its reference on the primary outcome at the largest common budget.
        Then, under Holm: the other budgets, the other outcomes at the largest budget, and the other pairs of arms.

    Raises
    ------
    CallerError
        For an unknown reference or outcome, fewer than two arms, or a score that occurs twice.
    """
    y = primary or spec.y
    runs = run_values(scores, y)
    arms = sorted(map(str, runs["arm"].unique()))
    if len(arms) < 2:
        raise CallerError(f"y = {y!r}", f"{len(arms)} arm has a value", "a comparison needs two arms")
    students = {}
    if "student" in runs:
        known = zip(runs["arm"], runs["student"], strict=True)
        students = {str(arm): student for arm, student in known if isinstance(student, str)}
    pairs = [
        (arm, found) for arm in arms if (found := reference_arm(arm, arms, reference, students)) not in (None, arm)
    ]
    main, others = [], []
    for arm, base in pairs:
        budgets = _common_budgets(runs, arm, str(base))
        for rank, amount in enumerate(reversed(budgets)):
            (others if rank else main).append(_ask(runs, arm, str(base), y, amount, primary=rank == 0))
    compared = {frozenset(map(str, pair)) for pair in pairs}
    contenders = [arm for arm, _ in pairs]
    for i, one in enumerate(contenders):
        for other in contenders[i + 1 :]:
            if frozenset((one, other)) not in compared and _common_budgets(runs, one, other):
                others.append(_ask(runs, one, other, y, None, primary=False))
    for outcome in outcome_names(scores):
        if outcome == y:
            continue
        values = run_values(scores, outcome)
        for arm, base in pairs:
            if _common_budgets(values, arm, str(base)):
                others.append(_ask(values, arm, str(base), outcome, None, primary=False))
    differences = iter(holm([p for q in others if (p := q.contrast.p_value()) is not None]))
    margins = {q.y: spec.margin_nats if unit_of(q.y) == "nats" else spec.margin for q in (*main, *others)}
    equivalences = iter(holm([p for q in others if (p := q.contrast.p_equivalence(margins[q.y])) is not None]))
    made = make_curves(runs, y, spec)
    stand_in = (
        ()
        if any(reference_family(arms, reference))
        else (f"no arm is called {reference or 'no_kd'}: the first one stands in",)
    )
    verdicts = [_answer(q, margins[q.y], spec.interval_level, None, None, made, stand_in) for q in main]
    for q in others:
        known = q.contrast.standard_error is not None
        verdicts.append(
            _answer(
                q,
                margins[q.y],
                spec.interval_level,
                next(differences) if known else None,
                next(equivalences) if known else None,
                made if q.y == y and (q.a, q.b) in pairs else None,
            )
        )
    return tuple(verdicts)


def reference_arm(
    arm: str, arms: list[str], asked: str | None = None, students: Mapping[str, str] | None = None
) -> str | None:
    """Return what an arm is compared with: the reference of the same student, or the only reference.

    Examples
    --------
    >>> reference_arm("minilm@small", ["minilm@small", "no_kd@large", "no_kd@small"])
    'no_kd@small'
    """
    word = asked or "no_kd"
    family = reference_family(arms, asked)
    if asked is not None and not family:
        raise unknown_name("arm", asked, arms, f"reference = {asked!r}")
    if word in arms:
        return word
    known = students or {}
    own = known.get(arm, _student_part(arm))
    same = [name for name in family if known.get(name, _student_part(name)) == own]
    taught = [name for name in same if name.partition("+")[2] == arm.partition("+")[2]]
    if same:
        return (taught or same)[0]
    if arm in family:
        return None
    # Without a reference arm the first one serves: a comparison needs something to compare with.
    return family[0] if family else arms[0]


def _student_part(arm: str) -> str:
    """Student in the name of an arm such as `minilm@small+teacher`."""
    return arm.partition("@")[2].partition("+")[0]


def reference_family(arms: list[str], asked: str | None = None) -> list[str]:
    """Return the arms that are the reference, one per student."""
    word = (asked or "no_kd").partition("@")[0].partition("+")[0]
    return [name for name in arms if name.partition("@")[0].partition("+")[0] == word]


def _common_budgets(runs: pd.DataFrame, a: str, b: str) -> list[float]:
    return sorted(set(runs.loc[runs["arm"] == a, "budget_amount"]) & set(runs.loc[runs["arm"] == b, "budget_amount"]))


def _ask(runs: pd.DataFrame, a: str, b: str, y: str, budget: float | None, *, primary: bool) -> _Question:
    arms = sorted(map(str, runs["arm"].unique()))
    for arm in (a, b):
        if arm not in arms:
            raise unknown_name("arm", arm, arms, f"compare {a} with {b} on {y}, arm")
    if a == b:
        raise CallerError(f"compare {a} with {b}", "that is one arm", "name two")
    budgets = _common_budgets(runs, a, b)
    asked = f"compare {a} with {b} on {y}"
    if not budgets:
        raise CallerError(asked, "they have no budget in common", "run both at one budget")
    amount = budgets[-1] if budget is None else min(budgets, key=lambda value: abs(value - budget))
    if budget is not None and abs(amount - budget) > 1e-9 * budget:
        shown = ", ".join(f"{value:g}" for value in budgets)
        raise CallerError(f"{asked} at {budget:g}", "not a budget that both arms have", f"choose one of {shown}")
    signed = signed_values(runs, y)
    found = contrast(signed, a, b, amount, paired_noise(signed, amount))
    assert found is not None
    return _Question(a, b, y, amount, primary, found, runs)


def _answer(
    question: _Question,
    margin: float,
    level: float,
    adjusted: float | None,
    adjusted_equivalence: float | None,
    curves: Curves | None,
    notes: Sequence[str] = (),
) -> Verdict:
    q, found = question, question.contrast
    p, p_equal = found.p_value(), found.p_equivalence(margin)
    p_used = p if adjusted is None else adjusted
    p_equal_used = p_equal if adjusted_equivalence is None else adjusted_equivalence
    word: _Word = "not_resolved"
    if p_used is not None and p_used < 1 - level:
        word = "a_better" if found.difference > 0 else "b_better"
    elif p_equal_used is not None and p_equal_used < 1 - level:
        word = "equivalent"
    here = q.runs[(q.runs["budget_amount"] == q.budget) & q.runs["arm"].isin([q.a, q.b])]
    unit = unit_of(q.y)
    one_teacher = "teachers" in here and int(here["teachers"].max()) <= 1 and bool((here["teachers"] > 0).any())
    budget = Budget(amount=q.budget, unit=str(here["budget_unit"].iloc[0]))
    notes = [*notes, *([q.runs.attrs["definition"]] if q.runs.attrs.get("definition") else [])]
    if not found.paired:
        notes.append("no run seed in common: the difference is not paired")
    if found.noise is not None and found.noise.cells > 1:
        notes.append("too few runs at this budget: the scatter between runs is pooled over all budgets")
    if missing := q.runs.attrs.get("missing"):
        notes.append(f"{missing} runs lack a task and are left out of the mean over tasks")
    return Verdict(
        contrast=(q.a, q.b),
        at=budget,
        y=q.y,
        unit=unit,  # type: ignore[arg-type]
        difference=found.difference,
        interval=found.interval(level),
        interval_level=level,
        verdict=word,
        minimum_detectable_difference=found.detectable(level),
        margin=margin,
        num_pairs=found.num_pairs,
        primary=q.primary,
        p_value=p,
        p_value_adjusted=adjusted,
        p_value_equivalence=p_equal_used,
        standard_error=found.standard_error,
        degrees_of_freedom=found.degrees_of_freedom,
        run_sd=None if found.noise is None else found.noise.sd,
        num_seeds_to_resolve={} if unit == "nats" else {f"{d:g}": runs_to_resolve(found, d, level) for d in _PUBLISHED},
        num_finetune_seeds=None if q.y in LOSSES else int(here["finetune_seeds"].min()),
        one_teacher=one_teacher,
        compute_multiplier=None if curves is None else curves.multiplier(q.a, q.b, q.budget),
        crossover=None if curves is None else curves.crossover(q.a, q.b),
        decomposition=None if curves is None else curves.decomposition(q.a, q.b, q.budget),
        notes=tuple(notes),
        sentence=_sentence(q, found, word, budget, margin, level, one_teacher, adjusted),
    )


def _sentence(
    q: _Question,
    found: Contrast,
    word: _Word,
    at: Budget,
    margin: float,
    level: float,
    one_teacher: bool,
    adjusted: float | None,
) -> str:
    unit, where = unit_of(q.y), f"At {format_amount(at.amount, at.unit)}"
    what = {"readout_loss": "the read-out loss", "mlm_loss": "the masked-LM loss", AGGREGATE: "the mean score"}.get(
        q.y, q.y
    )
    digits = 4 if unit == "nats" else 2
    size = f"{abs(found.difference):.{digits}f} {unit}"
    signed = f"{found.difference:+.{digits}f} {unit}"
    ends = found.interval(level)
    if ends is None:
        return (
            f"{where}, these checkpoints differ on {what} by {signed} ({q.a} minus {q.b}, positive when {q.a} is "
            f"better); with one run per arm nothing is known about other runs, so the contrast is not resolved."
        )
    interval = f"{100 * level:g} % interval {ends[0]:+.{digits}f} to {ends[1]:+.{digits}f}"
    runs = f"{found.num_pairs} paired runs" if found.paired else "unpaired runs"
    if found.num_pairs == 1:
        runs = "1 paired run"
    basis = f"{interval}, {runs}, {found.degrees_of_freedom:.3g} degrees of freedom"
    if adjusted is not None:
        basis += f", Holm-adjusted p = {adjusted:.2g}"
    scope = ", for this teacher" if one_teacher else ""
    detectable = found.detectable(level) or 0.0
    if word in ("a_better", "b_better"):
        better, worse = (q.a, q.b) if word == "a_better" else (q.b, q.a)
        small = f", less than the margin of {margin:g} {unit}" if abs(found.difference) < margin else ""
        return f"{where}, {better} is better than {worse} on {what} by {size}{small} ({basis}){scope}."
    if word == "equivalent":
        return f"{where}, {q.a} and {q.b} are equivalent on {what} within {margin:g} {unit}: {signed} ({basis}){scope}."
    return (
        f"{where}, the difference between {q.a} and {q.b} on {what} is not resolved: {signed} ({basis}){scope}; this "
        f"design resolves {detectable:.{digits}f} {unit} four times in five."
    )
