"""What a study may conclude, decided in one place: `fit`, `report`, `study`, the page and notebooks print its words."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from budgetlab.fitting.scores import AGGREGATE, LOSSES, OUTCOMES
from budgetlab.reporting.frames import scores_frame
from budgetlab.reporting.gates import Gate, learning_gates
from budgetlab.units import format_amount
from budgetlab.values import Plan, RunRecord, Score, Value, Verdict

BELOW_THRESHOLD = "below the learning threshold"

YARDSTICKS_OF_ALL = ("readout_loss", "adapted_loss")
"""Losses that every arm has, whatever it was trained on."""

MANY = 8
"""More contrasts than these are counted in a sentence, and told one by one in a table."""


class Conclusion(Value):
    """What a study may conclude."""

    sentence: str
    """The verdict, or why there is none."""
    gates: tuple[Gate, ...] = ()
    contradictions: tuple[str, ...] = ()
    """Primary contrasts that another outcome answers the other way, in words; they are in the sentence too."""


def conclude_study(
    plan: Plan,
    scores: Sequence[Score] | pd.DataFrame,
    verdicts: Sequence[Verdict],
    records: Sequence[RunRecord] = (),
    *,
    gates: Sequence[Gate] | None = None,
) -> Conclusion:
    """Judge whether anything was learned, and say what follows.

    Parameters
    ----------
    plan, scores, verdicts
        Of the study.
    records
        Count the runs that are complete, where nothing is scored yet.
    gates
        The sanity checks; by default judged from the scores.
    """
    table = scores_frame(scores)
    if not len(table):
        complete = sum(record.status == "complete" and record.kind == "rung" for record in records)
        planned = len(plan.seeds) * sum(schedule.feasible for schedule in plan.schedules)
        return Conclusion(
            sentence=f"no verdict yet: {complete} of {planned} planned runs are complete and none has been scored; "
            "this is the plan."
        )
    if gates is None:
        rung = max((schedule.rung for schedule in plan.schedules), default=None)
        arms = [schedule.arm for schedule in plan.schedules if schedule.rung == rung and schedule.feasible]
        gates = learning_gates(table, arms=arms, rung=rung)
    return Conclusion(
        sentence=" ".join([conclude(gates, verdicts), *_given_students(plan)]),
        gates=tuple(gates),
        contradictions=tuple(_contradictions(verdicts)),
    )


def _given_students(plan: Plan) -> list[str]:
    """Say which students do not start from random weights."""
    students = dict.fromkeys(arm.student for arm in plan.arms.values())
    given = [name for name in students if plan.models[name].weights is not None]
    if not given:
        return []
    who = "Students start" if len(given) == len(students) else f"Students of {' and '.join(given)} start"
    return [f"{who} from given weights: this is continued pretraining."]


def conclude(gates: Sequence[Gate], verdicts: Sequence[Verdict]) -> str:
    """Return one sentence: what the primary contrasts at the largest budget say, if the sanity checks allow it.

    Parameters
    ----------
    gates
        The sanity checks; one that failed replaces the verdict, and so does one that lacks its numbers.
    verdicts
        Where none is primary, all count.
    """
    failed = [gate.name for gate in gates if not gate.passed and gate.judged]
    if failed:
        return f"{BELOW_THRESHOLD} (not so: {'; '.join(failed)}): no verdict is given."
    missing = [gate.name for gate in gates if not gate.passed]
    if missing:
        return f"no verdict: numbers are missing to judge whether {', whether '.join(missing)}."
    chosen = [verdict for verdict in verdicts if verdict.primary] or list(verdicts)
    if not chosen:
        return "no verdict: no two arms have been scored at the same budget yet."
    if dull := [verdict for verdict in chosen if verdict.informative is False]:
        names = ", ".join(dict.fromkeys(verdict.y for verdict in dull))
        return f"no verdict: {names} is not informative at this size (the teacher is hardly above random weights)."
    largest = max(verdict.at.amount for verdict in chosen)
    chosen = [verdict for verdict in chosen if verdict.at.amount == largest]
    against = _contradictions(verdicts)
    if len(chosen) == 1 and not _yardsticks_disagree(chosen[0], verdicts):
        return " ".join([chosen[0].sentence, *_caveats(chosen, verdicts), *_but(against)])
    # What the contrasts share is said once.
    groups: dict[tuple[str, str, bool], list[Verdict]] = {}
    for verdict in chosen:
        groups.setdefault((verdict.y, verdict.unit, verdict.one_teacher), []).append(verdict)
    parts = [_group(*key, members, verdicts) for key, members in groups.items()]
    at = format_amount(largest, chosen[0].at.unit)
    return " ".join([f"At {at}, {'; '.join(parts)}.", *_caveats(chosen, verdicts), *_but(against)])


def _but(against: Sequence[str]) -> list[str]:
    return [f"But {'; '.join(against)}."] if against else []


def _caveats(chosen: Sequence[Verdict], verdicts: Sequence[Verdict]) -> list[str]:
    said = []
    if any(verdict.tuned is False for verdict in chosen):
        said.append("One learning rate was used for all arms, not tuned.")
    shared = {verdict.y for verdict in verdicts} & set(YARDSTICKS_OF_ALL)
    if any(verdict.y in LOSSES for verdict in chosen) and len(shared) < len(YARDSTICKS_OF_ALL):
        said.append(f"It rests on {OUTCOMES[chosen[0].y]} alone: no second yardstick was measured.")
    return said


def _opposed(verdict: Verdict, others: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts of the same contrast and budget on other outcomes that are resolved the other way."""
    return [
        other
        for other in others
        if (other.contrast, other.at) == (verdict.contrast, verdict.at)
        and other.y != verdict.y
        and other.informative is not False
        and {other.verdict, verdict.verdict} == {"a_better", "b_better"}
    ]


def _yardsticks_disagree(verdict: Verdict, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Losses of the same checkpoints that say the opposite: then neither is the verdict."""
    return [other for other in _opposed(verdict, verdicts) if verdict.y in LOSSES and other.y in LOSSES]


def _contradictions(verdicts: Sequence[Verdict]) -> list[str]:
    """Name what speaks against a primary contrast: the mean score where it does, else each task."""
    told = []
    for verdict in verdicts:
        if not verdict.primary:
            continue
        against = [other for other in _opposed(verdict, verdicts) if not (verdict.y in LOSSES and other.y in LOSSES)]
        mean = [other for other in against if other.y == AGGREGATE]
        told += [f"on {OUTCOMES.get(other.y, other.y)}, in {other.unit}, {_clause(other)}" for other in mean or against]
    return told


def _group(y: str, unit: str, one_teacher: bool, verdicts: Sequence[Verdict], everything: Sequence[Verdict]) -> str:
    levels = sorted({_interval(verdict)[1] for verdict in verdicts if _interval(verdict)[0] is not None})
    shown = [f"{100 * level:.4g}" for level in levels]
    named = f"{' and '.join([', '.join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)} %"
    adjusted = any(verdict.adjusted_interval_level not in (None, verdict.interval_level) for verdict in verdicts)
    how = ", adjusted for their number by Holm's procedure" if adjusted else ""
    intervals = f" with {named} intervals{how}" if levels else ""
    scope = " and for this teacher" if one_teacher else ""
    if len(verdicts) > MANY:
        clauses = _count(verdicts)
    else:
        clauses = "; ".join(_answer(verdict, everything) for verdict in verdicts)
    return f"on {OUTCOMES.get(y, y)}{scope}, in {unit}{intervals}: {clauses}"


def _answer(verdict: Verdict, everything: Sequence[Verdict]) -> str:
    against = _yardsticks_disagree(verdict, everything)
    if not against:
        return _clause(verdict)
    other = against[0]
    return (
        f"the yardsticks of {verdict.contrast[0]} against {verdict.contrast[1]} disagree, so neither is the verdict "
        f"({_clause(verdict)}; on {OUTCOMES.get(other.y, other.y)} {_clause(other)})"
    )


def _count(verdicts: Sequence[Verdict]) -> str:
    against = dict.fromkeys(verdict.contrast[1] for verdict in verdicts)
    reference = next(iter(against)) if len(against) == 1 else "their references"
    words = {"a_better": "better", "b_better": "worse", "equivalent": "equivalent", "not_resolved": "not resolved"}
    counts = {word: sum(verdict.verdict == key for verdict in verdicts) for key, word in words.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    best = max(verdicts, key=lambda verdict: -1e9 if verdict.difference is None else verdict.difference)
    return f"of {len(verdicts)} arms against {reference}, {told}; the highest difference: {_clause(best)}"


def _interval(verdict: Verdict) -> tuple[tuple[float, float] | None, float]:
    """The interval that a verdict is read off, and its level; records of before have the plain one alone."""
    if verdict.adjusted_interval_level is None:
        return verdict.interval, verdict.interval_level
    return verdict.adjusted_interval, verdict.adjusted_interval_level


def _clause(verdict: Verdict) -> str:
    a, b = verdict.contrast
    digits = 1 if verdict.unit == "points" else 3
    if verdict.difference is None:
        return f"{a} against {b} is n/a"
    signed = f"{verdict.difference:+.{digits}f}"
    interval, _ = _interval(verdict)
    if interval is None:
        return f"these checkpoints of {a} and {b} differ by {signed}, which one run per arm cannot resolve"
    low, high = interval
    around = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    if verdict.converged is False:
        around += ", yardstick not converged"
    if verdict.verdict == "equivalent":
        return f"{a} and {b} are equivalent within {verdict.margin:g} ({signed} {around})"
    if verdict.verdict == "not_resolved":
        smallest = verdict.minimum_detectable_difference
        detectable = "n/a" if smallest is None else f"{smallest:.{digits}f}"
        return f"{a} against {b} is not resolved ({signed} {around}, detectable {detectable})"
    better, worse = (a, b) if verdict.verdict == "a_better" else (b, a)
    if verdict.verdict == "b_better":
        around = around.replace(
            f"[{low:+.{digits}f}, {high:+.{digits}f}]", f"[{-high:+.{digits}f}, {-low:+.{digits}f}]"
        )
    small = f", less than the margin of {verdict.margin:g}," if abs(verdict.difference) < verdict.margin else ""
    return f"{better} is better than {worse} by {abs(verdict.difference):.{digits}f}{small} {around}"
