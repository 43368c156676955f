"""What a study may conclude, decided in one place: `fit`, `report`, `study`, the page and notebooks print its words.

First the sanity checks: has anything been learned at all? Below them a comparison of arms would compare noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.fitting.contrast import Contrast, satterthwaite
from budgetlab.fitting.scores import AGGREGATE, LOSSES, OUTCOMES
from budgetlab.reporting.averages import Outcomes, outcomes
from budgetlab.reporting.tables.answer_sheets import decimals_of
from budgetlab.reporting.tables.sheets import bracketed, fixed
from budgetlab.resampling import holm
from budgetlab.units import format_amount
from budgetlab.values import Plan, RunRecord, Score, Value, Verdict
from budgetlab.values.scoring import CAUSAL_PROBES, OWN_HEAD_LOSSES, PROBES

BELOW_THRESHOLD = "below the learning threshold"
TEACHER_LEAD_NATS = 0.3
"""A teacher less far ahead than this has little to teach."""
UNIGRAM_LEAD_NATS = 0.5
"""A student less far below the unigram entropy has learned word frequencies and little more."""
MANY = 8
"""More contrasts than these are counted in a sentence, and told one by one in a table."""

_ROUNDING = 1e-9
"""Differences of printed decimals must not fail a check by one unit in the last place."""
_CLEARLY = 0.05
_FEW_TASKS = 4
"""Of more tasks than these a check leaves the means to the table of scores."""
_SHARED_LOSSES = ("readout_loss", "adapted_loss")
"""Losses that every arm has, whatever it was trained on."""


class SanityCheck(Value):
    """One condition under which a comparison means something."""

    name: str
    passed: bool
    judged: bool = True
    """False where a number is missing: then it is not passed, and not failed either."""
    sentence: str
    """Its numbers with their units."""

    @property
    def outcome(self) -> str:
        """Return passed, failed or n/a."""
        return "passed" if self.passed else "failed" if self.judged else "n/a"


class Conclusion(Value):
    """What a study may conclude."""

    sentence: str
    """The verdict, or why there is none."""
    checks: tuple[SanityCheck, ...] = ()
    contradictions: tuple[str, ...] = ()
    """Primary contrasts that another outcome answers the other way, in words; they are in the sentence too."""


def sanity_checks(
    scores: Sequence[Score] | pd.DataFrame | Outcomes,
    *,
    arms: Sequence[str] | None = None,
    rung: int | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[SanityCheck, ...]:
    """Check that the teacher, the students and pretraining itself are above the learning threshold.

    Parameters
    ----------
    scores
        Scores of the runs and of the yardsticks teacher, random and unigram.
    arms
        The arms that must beat random weights; default: those that were scored.
    rung
        Index of the largest budget; default: the largest that was scored.
    tasks
        The tasks on which they must; default: those that were scored at every budget, or without any the loss that
        all arms have.

    Returns
    -------
    checks
        Three; one that lacks a number is not passed and says n/a.
    """
    found = outcomes(scores)
    table, cells = found.table, found.cells
    own = cells[cells["task"].isin(OWN_HEAD_LOSSES)]
    kind = "LM" if own["task"].eq("lm_loss").any() else "MLM"
    students = own[own["subject"] == "run"]
    # The lowest of an arm, over its budgets, is the hardest to stay ahead of.
    lowest = students.loc[students.groupby("arm", sort=False)["mean"].idxmin()] if len(students) else students
    best = lowest.loc[[lowest["mean"].idxmin()]] if len(lowest) else lowest
    lowest_loss = float(best["mean"].iloc[0]) if len(best) else None
    teacher, unigram = (
        None if rows.empty else float(rows["mean"].mean())
        for rows in (own[own["subject"] == subject] for subject in ("teacher", "unigram"))
    )
    if tasks is None:
        present = list(pd.unique(table["task"]))
        loss = next((name for name in LOSSES if name in present), LOSSES[0])
        tasks = found.averaged or [task for task in present if task not in LOSSES] or [loss]
    if arms is None:
        arms = list(pd.unique(table.loc[table["subject"] == "run", "arm"]))
    return (
        _check_lead(
            "the teacher is ahead of every student", teacher, lowest_loss, TEACHER_LEAD_NATS, "the nearest", kind,
            f"teacher {fixed(teacher, 2)}; students with an {kind} head, each at its lowest: {_list_losses(lowest)}",
        ),
        _check_lead(
            "the best student is below the unigram entropy", lowest_loss, unigram, UNIGRAM_LEAD_NATS, "it", kind,
            f"unigram entropy {fixed(unigram, 2)}; best student {_list_losses(best)}",
        ),
        _check_pretraining(cells, list(arms), found.largest_rung if rung is None else rung, list(tasks)),
    )  # fmt: skip


def _list_losses(lowest: pd.DataFrame) -> str:
    """List arms with their losses, and at the end what they share: the budget and the number of runs."""
    parts, shared = [], []
    for row in lowest.to_dict("records"):
        known, runs = not pd.isna(row["budget_amount"]), int(row["num_runs"])
        at = f" at {format_amount(row['budget_amount'], row['budget_unit'])}" if known else ""
        parts.append(f"{row['arm']} {row['mean']:.2f}")
        shared.append(f"{'1 run' if runs == 1 else f'means of {runs} runs'}{at}")
    if len(set(shared)) == 1:
        return f"{', '.join(parts)} ({shared[0]})"
    return ", ".join(f"{part} ({note})" for part, note in zip(parts, shared, strict=True)) or "n/a"


def _check_lead(
    name: str, lower: float | None, upper: float | None, needed: float, whom: str, kind: str, losses: str
) -> SanityCheck:
    """Check that one loss is so far below another."""
    lead = None if lower is None or upper is None else upper - lower
    told = f"n/a below {whom} (at least {needed:.2f} needed)"
    if lead is not None:
        told = f"{abs(lead):.2f} {'below' if lead >= 0 else 'above'} {whom} (at least {needed:.2f} below needed)"
    return SanityCheck(
        name=name,
        passed=lead is not None and lead >= needed - _ROUNDING,
        judged=lead is not None,
        sentence=f"own {kind} loss, held out, in nats per target token: {losses}; {told}.",
    )


def _check_pretraining(cells: pd.DataFrame, arms: list[str], rung: int | None, tasks: list[str]) -> SanityCheck:
    """On our own probes every arm must; on GLUE, where labels teach much by themselves, one arm clearly on one task."""
    parts: list[str] = []
    missing, failing, p_values = [], [], {}
    for task in tasks:
        of_task = cells[cells["task"] == task]
        at_top = of_task[(of_task["subject"] == "run") & (of_task["rung"] == rung)]
        rows = {row["arm"]: row for row in at_top.to_dict("records")}
        untrained = of_task[of_task["subject"] == "random"]
        # Of several students, their mean.
        random = None if untrained.empty else untrained.iloc[0].to_dict() | {"mean": float(untrained["mean"].mean())}
        decimals = 2 if task in LOSSES else 1
        for arm in arms:
            if arm not in rows or random is None:
                missing.append((task, arm))
                continue
            sign = 1.0 if rows[arm]["higher_is_better"] else -1.0
            if sign * (rows[arm]["mean"] - random["mean"]) <= 0:
                failing.append((task, arm))
            p_values[task, arm] = _p_above(rows[arm], random, sign)
        shown = ", ".join(f"{arm} {fixed(rows[arm]['mean'] if arm in rows else None, decimals)}" for arm in arms)
        about = (", ".join(part for part in (row["metric"], row["subset"]) if part) for row in rows.values())
        metric = next((f" ({words})" for words in about), "")
        level = fixed(None if random is None else random["mean"], decimals)
        parts.append(f"{task}{metric}: {shown or 'n/a'}, random weights {level}")
    known = {key: p for key, p in p_values.items() if p is not None}
    clearly = [key for key, p in zip(known, holm(list(known.values())), strict=True) if p < _CLEARLY]
    asked = bool(tasks and arms)
    everywhere = set(tasks) <= {*PROBES, *CAUSAL_PROBES, *LOSSES}
    said = [] if everywhere else [f"clearly above: {_name_arms(clearly, arms) or 'none'}"]
    said += [f"not above: {_name_arms(failing, arms)}"] if failing else []
    said += [f"n/a: {_name_arms(missing, arms)}"] if missing else []
    told = "; ".join(parts) if len(tasks) <= _FEW_TASKS else f"{len(tasks)} tasks, which the table of scores has"
    unclear = missing or (not everywhere and len(known) < len(p_values))
    unit = "nats" if set(tasks) <= set(LOSSES) else "points"
    return SanityCheck(
        name="pretraining beats random weights",
        passed=asked and (not failing and not missing if everywhere else bool(clearly)),
        judged=asked and (bool(failing if everywhere else clearly) or not unclear),
        sentence=f"means over runs at the largest budget, in {unit}: {told or 'n/a'}; "
        f"{'; '.join(said) or ('every arm is better' if asked else 'nothing was scored')}.",
    )


def _name_arms(places: Sequence[tuple[str, str]], arms: Sequence[str]) -> str:
    by_task: dict[str, list[str]] = {}
    for task, arm in places:
        by_task.setdefault(task, []).append(arm)
    return "; ".join(
        f"{'every arm' if len(found) == len(arms) > 1 else ', '.join(found)} on {task}"
        for task, found in by_task.items()
    )


def _p_above(row: Mapping[Any, Any], random: Mapping[Any, Any], sign: float) -> float | None:
    """One-sided p-value of an arm's lead over random weights, by Welch's t; None with one run of the arm."""
    own, other = int(row["num_runs"]), int(random["num_runs"])
    if own < 2:
        return None
    # A single run of random weights is taken to scatter as the arm does.
    spread, freedom = (random["sd"], other - 1) if other > 1 else (row["sd"], own - 1)
    squares = np.array([row["sd"] ** 2 / own, spread**2 / other])
    lead = sign * (float(row["mean"]) - float(random["mean"]))
    error, freedom = float(squares.sum()) ** 0.5, satterthwaite(squares, [own - 1, freedom])
    both = Contrast(lead, error, freedom, 0, False).p_value() or 0.0
    return both / 2 if lead > 0 else 1 - both / 2


def conclude_study(
    plan: Plan,
    scores: Sequence[Score] | pd.DataFrame | Outcomes,
    verdicts: Sequence[Verdict],
    records: Sequence[RunRecord] = (),
    *,
    checks: Sequence[SanityCheck] | None = None,
) -> Conclusion:
    """Judge whether anything was learned, and say what follows.

    Parameters
    ----------
    plan, scores, verdicts
        Of the study.
    records
        Count the runs that are complete, where nothing is scored yet.
    checks
        The sanity checks; by default judged from the scores.
    """
    found = outcomes(scores)
    if not len(found.table):
        complete = sum(record.status == "complete" and record.kind == "rung" for record in records)
        planned = len(plan.seeds) * sum(schedule.feasible for schedule in plan.schedules)
        return Conclusion(
            sentence=f"no verdict yet: {complete} of {planned} planned runs are complete and none has been scored; "
            "this is the plan."
        )
    if checks is None:
        rung = max((schedule.rung for schedule in plan.schedules), default=None)
        arms = [schedule.arm for schedule in plan.schedules if schedule.rung == rung and schedule.feasible]
        checks = sanity_checks(found, arms=arms, rung=rung)
    said = [conclude(checks, verdicts)]
    students = dict.fromkeys(arm.student for arm in plan.arms.values())
    if given := [name for name in students if plan.models[name].weights is not None]:
        who = "Students" if len(given) == len(students) else f"Students of {' and '.join(given)}"
        said.append(f"{who} start from given weights: this is continued pretraining.")
    return Conclusion(
        sentence=" ".join(said), checks=tuple(checks), contradictions=tuple(_contradictions(verdicts))
    )  # fmt: skip


def conclude(checks: Sequence[SanityCheck], verdicts: Sequence[Verdict]) -> str:
    """Return one sentence: what the primary contrasts at the largest budget say, if the sanity checks allow it.

    Parameters
    ----------
    checks
        The sanity checks; one that failed replaces the verdict, and so does one that lacks its numbers.
    verdicts
        Where none is primary, all count.
    """
    if failed := [check.name for check in checks if check.outcome == "failed"]:
        return f"{BELOW_THRESHOLD} (not so: {'; '.join(failed)}): no verdict is given."
    if missing := [check.name for check in checks if check.outcome == "n/a"]:
        return f"no verdict: numbers are missing to judge whether {', whether '.join(missing)}."
    chosen = [verdict for verdict in verdicts if verdict.primary] or list(verdicts)
    if not chosen:
        return "no verdict: no two arms have been scored at the same budget yet."
    if dull := [verdict.y for verdict in chosen if verdict.informative is False]:
        names = ", ".join(dict.fromkeys(dull))
        return f"no verdict: {names} is not informative at this size (the teacher is hardly above random weights)."
    largest = max(verdict.at.amount for verdict in chosen)
    chosen = [verdict for verdict in chosen if verdict.at.amount == largest]
    if len(chosen) == 1 and not _opposed_losses(chosen[0], verdicts):
        said = [chosen[0].sentence]
    else:  # What the contrasts share is said once.
        groups: dict[tuple[str, str, bool], list[Verdict]] = {}
        for verdict in chosen:
            groups.setdefault((verdict.y, verdict.unit, verdict.one_teacher), []).append(verdict)
        parts = [_group_words(members, verdicts) for members in groups.values()]
        said = [f"At {format_amount(largest, chosen[0].at.unit)}, {'; '.join(parts)}."]
    if any(verdict.tuned is False for verdict in chosen):
        said.append("One learning rate was used for all arms, not tuned.")
    if any(verdict.y in (*_SHARED_LOSSES, "mlm_loss") for verdict in chosen) and not {v.y for v in verdicts}.issuperset(
        _SHARED_LOSSES
    ):
        said.append(f"It rests on {OUTCOMES.get(chosen[0].y, chosen[0].y)} alone: no second yardstick was measured.")
    if against := _contradictions(verdicts):
        said.append(f"But {'; '.join(against)}.")
    return " ".join(said)


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


def _opposed_losses(verdict: Verdict, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Losses of the same checkpoints that say the opposite: then neither is the verdict."""
    return [other for other in _opposed(verdict, verdicts) if verdict.y in LOSSES and other.y in LOSSES]


def _contradictions(verdicts: Sequence[Verdict]) -> list[str]:
    """Name what speaks against a primary contrast: the mean score where it does, else each task."""
    told = []
    for verdict in (verdict for verdict in verdicts if verdict.primary):
        against = [other for other in _opposed(verdict, verdicts) if not (verdict.y in LOSSES and other.y in LOSSES)]
        mean = [other for other in against if other.y == AGGREGATE]
        told += [f"on {OUTCOMES.get(other.y, other.y)}, in {other.unit}, {_clause(other)}" for other in mean or against]
    return told


def _group_words(members: Sequence[Verdict], everything: Sequence[Verdict]) -> str:
    """Say what several contrasts on one outcome answer."""
    y, unit = members[0].y, members[0].unit
    levels = sorted({level for interval, level in map(_deciding_interval, members) if interval is not None})
    *before, last = [f"{100 * level:.4g}" for level in levels] or [""]
    named = f"{', '.join(before)} and {last}" if before else last
    adjusted = any(verdict.adjusted_interval_level not in (None, verdict.interval_level) for verdict in members)
    how = ", adjusted for their number by Holm's procedure" if adjusted else ""
    intervals = f" with {named} % intervals{how}" if levels else ""
    scope = " and for this teacher" if members[0].one_teacher else ""
    clauses = []
    for verdict in members if len(members) <= MANY else ():
        clause, against = _clause(verdict), _opposed_losses(verdict, everything)
        if against:
            a, b = verdict.contrast
            other = f"on {OUTCOMES.get(against[0].y, against[0].y)} {_clause(against[0])}"
            clause = f"the yardsticks of {a} against {b} disagree, so neither is the verdict ({clause}; {other})"
        clauses.append(clause)
    return f"on {OUTCOMES.get(y, y)}{scope}, in {unit}{intervals}: {'; '.join(clauses) or _count(members)}"


def _count(verdicts: Sequence[Verdict]) -> str:
    references = list(dict.fromkeys(verdict.contrast[1] for verdict in verdicts))
    words = {"a_better": "better", "b_better": "worse", "equivalent": "equivalent", "not_resolved": "not resolved"}
    counts = {word: sum(verdict.verdict == key for verdict in verdicts) for key, word in words.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    best = max(verdicts, key=lambda verdict: -1e9 if verdict.difference is None else verdict.difference)
    reference = references[0] if len(references) == 1 else "their references"
    return f"of {len(verdicts)} arms against {reference}, {told}; the highest difference: {_clause(best)}"


def _deciding_interval(verdict: Verdict) -> tuple[tuple[float, float] | None, float]:
    """The interval that a verdict is read off, and its level; records of before have the plain one alone."""
    if verdict.adjusted_interval_level is None:
        return verdict.interval, verdict.interval_level
    return verdict.adjusted_interval, verdict.adjusted_interval_level


def _clause(verdict: Verdict) -> str:
    """Say in a few words who is better, by how much, and within which interval."""
    (a, b), digits, difference = verdict.contrast, decimals_of(verdict.unit), verdict.difference
    interval = _deciding_interval(verdict)[0]
    if difference is None:
        return f"{a} against {b} is n/a"
    signed = f"{difference:+.{digits}f}"
    if interval is None:
        return f"these checkpoints of {a} and {b} differ by {signed}, which one run per arm cannot resolve"
    if verdict.verdict == "b_better":  # said of the better one
        a, b, interval = b, a, (-interval[1], -interval[0])
    around = bracketed(interval, digits) + (", yardstick not converged" if verdict.converged is False else "")
    if verdict.verdict == "equivalent":
        return f"{a} and {b} are equivalent within {verdict.margin:g} ({signed} {around})"
    if verdict.verdict == "not_resolved":
        smallest = fixed(verdict.minimum_detectable_difference, digits)
        return f"{a} against {b} is not resolved ({signed} {around}, detectable {smallest})"
    small = f", less than the margin of {verdict.margin:g}," if abs(difference) < verdict.margin else ""
    return f"{a} is better than {b} by {abs(difference):.{digits}f}{small} {around}"
