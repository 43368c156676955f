"""The gates: has anything been learned at all? Below them a comparison of arms would compare noise."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.fitting.contrast import Contrast, satterthwaite
from budgetlab.fitting.scores import LOSSES, averaged_tasks
from budgetlab.reporting.frames import PROBES, largest_rung, per_run, probe_tasks, scores_frame, summarise
from budgetlab.resampling import holm
from budgetlab.units import format_amount
from budgetlab.values import Score, Value

TEACHER_LEAD_NATS = 0.3
"""A teacher less far ahead than this has little to teach."""
UNIGRAM_LEAD_NATS = 0.5
"""A student less far below the unigram entropy has learned word frequencies and little more."""

# Differences of printed decimals must not fail a gate by one unit in the last place.
_ROUNDING = 1e-9
_CLEARLY = 0.05
_FEW_TASKS = 4
"""Of more tasks than these the gate leaves the means to the table of scores."""


class Gate(Value):
    """One condition under which a comparison means something."""

    name: str
    passed: bool
    judged: bool = True
    """False where a number is missing: then it is not passed, and not failed either."""
    sentence: str
    """Its numbers with their units."""


def learning_gates(
    scores: Sequence[Score] | pd.DataFrame,
    *,
    arms: Sequence[str] | None = None,
    rung: int | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[Gate, ...]:
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
    gates
        Three gates; one that lacks a number is not passed and says n/a.
    """
    frame = scores_frame(scores)
    cells = summarise(per_run(frame))
    rung = largest_rung(frame) if rung is None else rung
    own = cells[(cells["subject"] == "run") & (cells["task"] == "mlm_loss")]
    if tasks is None:
        # A study without tasks is judged on its loss.
        loss = next((name for name in LOSSES if (frame["task"] == name).any()), LOSSES[0])
        tasks = averaged_tasks(frame) or probe_tasks(frame) or [loss]
    tasks = tuple(tasks)
    if arms is None:
        arms = tuple(pd.unique(frame.loc[frame["subject"] == "run", "arm"]))
    return (
        _teacher_is_ahead(own, _yardstick(cells, "teacher", "mlm_loss")),
        _student_beats_unigram(own, _yardstick(cells, "unigram", "mlm_loss")),
        _pretraining_beats_random(cells, tuple(arms), rung, tasks),
    )


def _yardstick(cells: pd.DataFrame, subject: str, task: str) -> float | None:
    found = cells.loc[(cells["subject"] == subject) & (cells["task"] == task), "mean"]
    return None if found.empty else float(found.mean())


def _nats(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _best_by_arm(own: pd.DataFrame) -> pd.DataFrame:
    """Return each arm's lowest mean loss, over its budgets; the lowest is the hardest to stay ahead of."""
    return own.loc[own.groupby("arm", sort=False)["mean"].idxmin()] if len(own) else own


def _listed(best: pd.DataFrame) -> str:
    """List arms with their losses, and at the end what they share: the budget and the number of runs."""
    if best.empty:
        return "n/a"
    parts, shared = [], []
    for row in best.to_dict("records"):
        known = not pd.isna(row["budget_amount"])
        at = f" at {format_amount(row['budget_amount'], row['budget_unit'])}" if known else ""
        runs = int(row["num_runs"])
        parts.append(f"{row['arm']} {row['mean']:.2f}")
        shared.append(f"{'1 run' if runs == 1 else f'means of {runs} runs'}{at}")
    if len(set(shared)) == 1:
        return f"{', '.join(parts)} ({shared[0]})"
    return ", ".join(f"{part} ({note})" for part, note in zip(parts, shared, strict=True))


def _teacher_is_ahead(own: pd.DataFrame, teacher: float | None) -> Gate:
    best = _best_by_arm(own)
    lead = None if teacher is None or best.empty else float(best["mean"].min()) - teacher
    return Gate(
        name="the teacher is ahead of every student",
        passed=lead is not None and lead >= TEACHER_LEAD_NATS - _ROUNDING,
        judged=lead is not None,
        sentence=f"own MLM loss, held out, in nats per target token: teacher {_nats(teacher)}; students with an MLM "
        f"head, each at its lowest: {_listed(best)}; {_lead(lead, 'the nearest', TEACHER_LEAD_NATS)}.",
    )


def _student_beats_unigram(own: pd.DataFrame, unigram: float | None) -> Gate:
    best = own.loc[[own["mean"].idxmin()]] if len(own) else own
    lead = None if unigram is None or best.empty else unigram - float(best["mean"].iloc[0])
    return Gate(
        name="the best student is below the unigram entropy",
        passed=lead is not None and lead >= UNIGRAM_LEAD_NATS - _ROUNDING,
        judged=lead is not None,
        sentence=f"own MLM loss, held out, in nats per target token: unigram entropy {_nats(unigram)}; best student "
        f"{_listed(best)}; {_lead(lead, 'it', UNIGRAM_LEAD_NATS)}.",
    )


def _lead(lead: float | None, whom: str, needed: float) -> str:
    if lead is None:
        return f"n/a below {whom} (at least {needed:.2f} needed)"
    return f"{abs(lead):.2f} {'below' if lead >= 0 else 'above'} {whom} (at least {needed:.2f} below needed)"


def _pretraining_beats_random(
    cells: pd.DataFrame, arms: tuple[str, ...], rung: int | None, tasks: tuple[str, ...]
) -> Gate:
    """On our own probes every arm must; on GLUE, where labels teach much by themselves, one arm clearly on one task."""
    at_top = cells[(cells["subject"] == "run") & (cells["rung"] == rung)] if rung is not None else cells.iloc[:0]
    parts: list[str] = []
    failing: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    leads: dict[tuple[str, str], float | None] = {}
    for task in tasks:
        random = _cell(cells, task)
        rows = {row["arm"]: row for row in at_top[at_top["task"] == task].to_dict("records")}
        shown = []
        for arm in arms:
            value = float(rows[arm]["mean"]) if arm in rows else None
            shown.append(f"{arm} {_shown(value, task)}")
            if value is None or random is None:
                missing.setdefault(task, []).append(arm)
                continue
            sign = 1.0 if rows[arm]["higher_is_better"] else -1.0
            if sign * (value - random["mean"]) <= 0:
                failing.setdefault(task, []).append(arm)
            leads[task, arm] = _p_above(rows[arm], random, sign)
        about = (", ".join(part for part in (row["metric"], row["subset"]) if part) for row in rows.values())
        metric = next((f" ({words})" for words in about), "")
        level = None if random is None else float(random["mean"])
        parts.append(f"{task}{metric}: {', '.join(shown) or 'n/a'}, random weights {_shown(level, task)}")
    known = {key: p for key, p in leads.items() if p is not None}
    clearly: dict[str, list[str]] = {}
    for (task, arm), p in zip(known, holm(list(known.values())), strict=True):
        if p < _CLEARLY:
            clearly.setdefault(task, []).append(arm)
    some = bool(tasks) and bool(arms)
    everywhere = set(tasks) <= PROBES | set(LOSSES)
    outcomes = [] if everywhere else [f"clearly above: {_on(clearly, arms) or 'none'}"]
    outcomes += [f"not above: {_on(failing, arms)}"] if failing else []
    outcomes += [f"n/a: {_on(missing, arms)}"] if missing else []
    told = "; ".join(parts) if len(tasks) <= _FEW_TASKS else f"{len(tasks)} tasks, which the table of scores has"
    unclear = len(known) < len(leads)
    unit = "nats" if set(tasks) <= set(LOSSES) else "points"
    return Gate(
        name="pretraining beats random weights",
        passed=some and (not failing and not missing if everywhere else bool(clearly)),
        judged=some and (bool(failing if everywhere else clearly) or not (missing or (unclear and not everywhere))),
        sentence=f"means over runs at the largest budget, in {unit}: {told or 'n/a'}; "
        f"{'; '.join(outcomes) or ('every arm is better' if some else 'nothing was scored')}.",
    )


def _cell(cells: pd.DataFrame, task: str) -> dict[Hashable, Any] | None:
    """The cell of random weights on a task; of several students, their mean."""
    rows = cells[(cells["subject"] == "random") & (cells["task"] == task)]
    if rows.empty:
        return None
    first = rows.iloc[0].to_dict()
    return first | {"mean": float(rows["mean"].mean())}


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


def _on(by_task: Mapping[str, Sequence[str]], arms: Sequence[str]) -> str:
    return "; ".join(
        f"{'every arm' if len(found) == len(arms) > 1 else ', '.join(found)} on {task}"
        for task, found in by_task.items()
    )


def _shown(value: float | None, task: str) -> str:
    return "n/a" if value is None else f"{value:.2f}" if task in LOSSES else f"{value:.1f}"
