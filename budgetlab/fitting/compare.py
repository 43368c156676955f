"""Verdicts: which of two arms is better at the same budget, or how little can be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.contrast import Contrast, contrast
from budgetlab.fitting.crossing import Curves
from budgetlab.fitting.scores import LOSSES, OUTCOMES, outcome_names, run_values
from budgetlab.resampling import holm, holm_levels
from budgetlab.units import format_amount
from budgetlab.values import Budget, FitSpec, Verdict
from budgetlab.values.base import Interval
from budgetlab.values.scoring import CONVERGED_NATS
from budgetlab.values.specs import reference_arm, reference_family

_PUBLISHED = (0.4, 0.1)
"""Differences in GLUE points that publications report."""
MOST_PRIMARIES = 3
"""More primary contrasts than these are said: at three seeds eleven make intervals of ten standard deviations."""
_Word = Literal["a_better", "b_better", "equivalent", "not_resolved"]


class Verdicts(tuple[Verdict, ...]):
    """The verdicts of a study, primary ones first, and the curves that they were read from."""

    curves: Curves | None = None


@dataclass(frozen=True)
class _Question:
    a: str
    b: str
    of: Curves
    budget: float
    contrast: Contrast
    margin: float
    curves: bool
    """Whether to add what follows from curves."""

    @property
    def hypothesis(self) -> tuple[object, ...]:
        """What is asked: contrasts of arms whose runs have the same values are one question."""
        panel = self.of.panel
        return self.of.y, self.budget, *(panel.at(arm, self.budget).tobytes() for arm in (self.a, self.b))


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
        The tidy table of the store; arms but these two are ignored.
    a, b
        The arms; the difference is A minus B, positive when A is better.
    task
        A task, ``score`` for the mean over tasks, or a loss; by default the read-out loss where there is one.
    budget
        Amount of the budget; by default the largest that both arms have.
    margin
        Equivalence margin, in points (nats for a loss); by default the one of `FitSpec`, and none for a loss of
        another unit, such as ``perplexity``.
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
    outcome = Curves(run_values(scores, y), y, spec)
    if margin is not None and not margin > 0:
        raise CallerError(f"margin = {margin!r}", "not above zero", f"give one in {outcome.unit}")
    question = _ask(outcome, a, b, budget, margin=margin, curves=curves)
    return _answers([question], interval_level, primary=True, alone=True)[0]


def compare_arms(
    scores: pd.DataFrame,
    spec: FitSpec,
    *,
    reference: str | None = None,
    y: str | None = None,
    tuned: bool | None = None,
) -> Verdicts:
    """Answer a study: its primary contrasts, and all others, each family under Holm's procedure.

    Parameters
    ----------
    scores
        The tidy table of the store.
    spec
        Outcome, primary contrasts, margins, level and resampling. Without named primaries: each arm against its
        reference, at the largest budget that both have.
    reference
        The arm to compare with; by default ``no_kd`` (of the same student, for ``minilm@small`` and its like).
    y
        The outcome of the primary contrasts; by default the study's.
    tuned
        Whether the learning rate of every arm was tried; None where that is unknown.

    Returns
    -------
    tuple of Verdict
        Primary ones first. Then the other budgets, the other outcomes at the largest budget, and the other pairs. Its
        `curves` are those that the primary outcome was read from.

    Raises
    ------
    CallerError
        For an unknown arm or outcome, fewer than two arms, or a score that occurs twice.
    """
    y = y or spec.y
    outcome = Curves(run_values(scores, y), y, spec)
    runs, arms = outcome.runs, list(outcome.panel.arms)
    if len(arms) < 2:
        raise CallerError(f"y = {y!r}", f"{len(arms)} arm has a value", "a comparison needs two arms")
    known = zip(runs["arm"], runs["student"], strict=True) if "student" in runs else ()
    students = {str(arm): student for arm, student in known if isinstance(student, str)}
    bases = {arm: reference_arm(arm, arms, reference, students) for arm in arms}
    pairs = [(arm, base) for arm, base in bases.items() if base is not None and base != arm]
    named, common = spec.primary_pairs, outcome.panel.common_budgets
    main = [_ask(outcome, a, b, curves=True) for a, b in named]
    others: list[_Question] = []
    for pair in pairs:
        for rank, amount in enumerate(reversed(common(*pair))):
            if pair not in named or rank:
                (others if rank or named else main).append(_ask(outcome, *pair, amount, curves=True))
    asked = {frozenset((q.a, q.b)) for q in (*main, *others)}
    others += [
        _ask(outcome, one, other)
        for (one, _), (other, _) in combinations(pairs, 2)
        if frozenset((one, other)) not in asked and common(one, other)
    ]
    for name in outcome_names(scores):
        if name != y:
            further = Curves(run_values(scores, name), name, spec)
            others += [
                _ask(further, *pair)
                for pair in dict.fromkeys((*named, *pairs))
                if set(pair) <= set(further.panel.arms) and further.panel.common_budgets(*pair)
            ]
    notes = []
    if not any(reference_family(arms, reference)) and not named:
        notes.append(f"no arm is called {reference or 'no_kd'}: the first one stands in")
    if len(main) > MOST_PRIMARIES and not named:
        notes.append(
            f'{len(main)} primary contrasts, none of them named: [fit] primary = ["{main[0].a} - {main[0].b}", ...] '
            f"names the {MOST_PRIMARIES} or fewer that the study is about, and their intervals are narrower"
        )
    found = Verdicts((
        *_answers(main, spec.interval_level, primary=True, notes=notes, tuned=tuned),
        *_answers(others, spec.interval_level, primary=False, tuned=tuned),
    ))  # fmt: skip
    found.curves = outcome
    return found


def _ask(
    outcome: Curves,
    a: str,
    b: str,
    budget: float | None = None,
    *,
    margin: float | None = None,
    curves: bool = False,
) -> _Question:
    """Contrast two arms at a budget, by default the largest that both have."""
    panel, y = outcome.panel, outcome.y
    for arm in (a, b):
        if arm not in panel.arms:
            raise unknown_name("arm", arm, panel.arms, f"compare {a} with {b} on {y}, arm")
    if a == b:
        raise CallerError(f"compare {a} with {b}", "that is one arm", "name two")
    budgets = panel.common_budgets(a, b)
    asked = f"compare {a} with {b} on {y}"
    if not budgets:
        raise CallerError(asked, "they have no budget in common", "run both at one budget")
    amount = budgets[-1] if budget is None else min(budgets, key=lambda value: abs(value - budget))
    if budget is not None and abs(amount - budget) > 1e-9 * budget:
        shown = ", ".join(f"{value:g}" for value in budgets)
        raise CallerError(f"{asked} at {budget:g}", "not a budget that both arms have", f"choose one of {shown}")
    found = contrast(panel, a, b, amount)
    assert found is not None
    # Of an unknown unit nothing is small.
    margins = {"nats": outcome.spec.margin_nats, "points": outcome.spec.margin, "units": 0.0, "bits": 0.0}
    return _Question(a, b, outcome, amount, found, margin or margins[outcome.unit], curves)


def _answers(
    questions: Sequence[_Question],
    level: float,
    *,
    primary: bool,
    notes: Sequence[str] = (),
    tuned: bool | None = None,
    alone: bool = False,
) -> list[Verdict]:
    """Answer a family of contrasts; `alone` is a contrast that nothing is adjusted for."""
    # Arms of identical scores ask one question, and a difference that is zero by construction asks none.
    family = {
        q.hypothesis: p
        for q in questions
        if not alone and not q.contrast.identical and (p := q.contrast.p_value()) is not None
    }
    p_values = list(family.values())
    adjusted = dict(zip(family, holm(p_values), strict=True))
    levels = dict(zip(family, holm_levels(p_values, 1 - level), strict=True))
    answers = []
    for q in questions:
        step = (adjusted.get(q.hypothesis), levels.get(q.hypothesis, level))
        answers.append(_answer(q, level, *step, family=len(family), primary=primary, notes=notes, tuned=tuned))
    return answers


def _answer(
    q: _Question,
    level: float,
    adjusted_p: float | None,
    own_level: float,
    *,
    family: int,
    primary: bool,
    notes: Sequence[str],
    tuned: bool | None,
) -> Verdict:
    """Answer one contrast at its own step of Holm's procedure."""
    found, curves, margin, unit = q.contrast, q.of, q.margin, q.of.unit
    deciding = found.interval(own_level)
    word = _word(found, deciding, margin)
    here = pd.concat([curves.cells[arm, q.budget] for arm in sorted((q.a, q.b))])
    budget = Budget(amount=q.budget, unit=str(here["budget_unit"].iloc[0]))
    attrs = curves.runs.attrs
    notes = [*notes, *filter(None, [attrs.get("definition")])]
    if not found.paired:
        notes.append("no run seed in common: the difference is not paired")
    if found.identical:
        notes.append(f"{q.a} and {q.b} have identical values in every run")
    if missing := attrs.get("missing"):
        notes.append(f"{missing} runs lack a task and are left out of the mean over tasks")
    settled = None
    if _known(here, "half_value"):  # how far the last doubling of a yardstick moved the difference
        moved = (here["value"] - here["half_value"]).groupby(here["arm"]).mean()
        settled = abs(float(moved[q.a] - moved[q.b]))
        if settled > CONVERGED_NATS:
            notes.append(
                f"yardstick not converged: its last doubling of tokens and steps changed the difference by "
                f"{settled:.3f} nats"
            )
    one_teacher = "teachers" in here and int(here["teachers"].max()) == 1
    return Verdict(
        contrast=(q.a, q.b),
        at=budget,
        y=q.of.y,
        unit=unit,  # type: ignore[arg-type]
        difference=found.difference,
        interval=found.interval(level),
        interval_level=level,
        adjusted_interval=deciding,
        adjusted_interval_level=own_level,
        verdict=word,
        minimum_detectable_difference=found.detectable(own_level),
        margin=margin,
        num_pairs=found.num_pairs,
        primary=primary,
        tuned=tuned,
        informative=bool(here["informative"].iloc[0]) if _known(here, "informative") else None,
        converged=None if settled is None else settled <= CONVERGED_NATS,
        p_value=found.p_value(),
        adjusted_p_value=adjusted_p,
        p_value_equivalence=found.p_equivalence(margin),
        standard_error=found.standard_error,
        degrees_of_freedom=found.degrees_of_freedom,
        run_sd=found.run_sd,
        num_seeds_to_resolve={f"{d:g}": found.runs_to_resolve(d, level) for d in _PUBLISHED if unit == "points"},
        one_teacher=one_teacher,
        compute_multiplier=curves.multiplier(q.a, q.b, q.budget) if q.curves else None,
        crossover=curves.crossover(q.a, q.b) if q.curves else None,
        decomposition=curves.decomposition(q.a, q.b, q.budget) if q.curves else None,
        notes=tuple(notes),
        sentence=_sentence(
            q, word, budget, deciding, own_level, adjusted=adjusted_p is not None and family > 1,
            one_teacher=one_teacher,
        ),
    )  # fmt: skip


def _known(runs: pd.DataFrame, column: str) -> bool:
    return column in runs and bool(runs[column].notna().all())


def _word(found: Contrast, deciding: Interval | None, margin: float) -> _Word:
    """Read the verdict off the interval, so that the two never disagree."""
    if deciding is None:
        return "not_resolved"
    low, high = deciding
    if not found.identical and not low <= 0.0 <= high:
        return "a_better" if found.difference > 0 else "b_better"
    return "equivalent" if -margin < low and high < margin else "not_resolved"


def _sentence(
    q: _Question, word: _Word, at: Budget, ends: Interval | None, level: float, *, adjusted: bool, one_teacher: bool
) -> str:
    found, y, margin = q.contrast, q.of.y, q.margin
    unit, where, what = q.of.unit, f"At {format_amount(at.amount, at.unit)}", OUTCOMES.get(y, y)
    digits = 2 if unit == "points" else 4
    size, signed = f"{abs(found.difference):.{digits}f} {unit}", f"{found.difference:+.{digits}f} {unit}"
    if ends is None:
        few = "one paired run" if found.paired else "one run per arm"
        return (
            f"{where}, these checkpoints differ on {what} by {signed} ({q.a} minus {q.b}, positive when {q.a} is "
            f"better); {few} says nothing about other seeds, so the contrast is not resolved."
        )
    if word == "b_better":  # the size and its interval are of the better arm
        ends = (-ends[1], -ends[0])
    basis = f"{100 * level:.4g} % interval{', adjusted,' if adjusted else ''} {ends[0]:+.{digits}f} to "
    basis += f"{ends[1]:+.{digits}f}, {f'{found.num_pairs} paired runs' if found.paired else 'unpaired runs'}, "
    basis += f"{found.degrees_of_freedom:.3g} degrees of freedom"
    if (found.degrees_of_freedom or 0.0) < 2:
        basis += ", too few seeds to resolve much"
    if y not in LOSSES:
        basis += ", of seeds and not of the validation set's examples"
    scope = ", for this teacher" if one_teacher else ""
    if word in ("a_better", "b_better"):
        better, worse = (q.a, q.b) if word == "a_better" else (q.b, q.a)
        small = f", less than the margin of {margin:g} {unit}" if abs(found.difference) < margin else ""
        return f"{where}, {better} is better than {worse} on {what} by {size}{small} ({basis}){scope}."
    if word == "equivalent":
        return f"{where}, {q.a} and {q.b} are equivalent on {what} within {margin:g} {unit}: {signed} ({basis}){scope}."
    return (
        f"{where}, the difference between {q.a} and {q.b} on {what} is not resolved: {signed} ({basis}){scope}; this "
        f"design resolves {found.detectable(level) or 0.0:.{digits}f} {unit} four times in five."
    )
