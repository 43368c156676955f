"""The closing table: what each arm was to spend, what it spent, and what came out.

Planned comes from the schedule, spent from the records, quality from the scores; no cell is computed from another,
except for read-out minus own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from budgetlab.fitting.scores import average_words
from budgetlab.reporting.frames import (
    LOSSES,
    MEAN,
    YARDSTICKS,
    interval_note,
    per_run,
    probe_tasks,
    scores_frame,
    subsets,
    summarise,
)
from budgetlab.reporting.tables.plans import answers
from budgetlab.reporting.tables.scores import subset_note
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed, percent, scaled
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import Plan, RunRecord, Schedule, Score

_SPENT = "planned and spent"
_OUTCOME = "what came out"
_READOUT_BEHIND_NATS = 0.02
"""A read-out that is more than this above the own head misses something that the own head tells."""


def closing_frame(
    plan: Plan, records: Iterable[RunRecord], scores: Sequence[Score] | pd.DataFrame, *, level: float = 0.95
) -> pd.DataFrame:
    """Put plan, records and scores side by side: one row an arm and budget, then the yardsticks.

    Parameters
    ----------
    plan
        What was planned.
    records
        What was run; only complete runs count, averaged over run seeds.
    scores
        What was measured.
    level
        Confidence of the half-widths.

    Returns
    -------
    frame
        Amounts in canonical units, losses in nats per target token, scores in points. Unknown is missing. `attrs` has
        what of each task was used where that is not all ("subsets"), and what the mean is of ("average").
    """
    table = scores_frame(scores)
    cells = summarise(per_run(table), level)
    named = subsets(cells)
    complete = [record for record in records if record.status == "complete"]
    rows = [_arm_row(schedule, complete, cells) for schedule in plan.schedules]
    for subject in YARDSTICKS:
        names = list(dict.fromkeys(cells.loc[cells["subject"] == subject, "arm"]))
        if subject == "teacher":
            names = list(dict.fromkeys([*(teacher.model for teacher in plan.teachers), *names]))
        rows += [_yardstick_row(subject, name, plan, complete, cells) for name in names]
    columns = ["subject", "arm", "rung", "budget_amount", "budget_unit", "feasible", "runs", "tokens", "steps",
               "planned_required_flops", "spent_required_flops", "planned_device_seconds", "spent_device_seconds",
               "unspent_fraction"]  # fmt: skip
    for task in (*LOSSES, *_shown_tasks(table)):
        columns += [_column(task), _column(task, "half_width_")]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs |= {"subsets": named, "average": average_words(table) if _column(MEAN) in frame else ""}
    return frame


def closing_sheet(frame: pd.DataFrame, *, note: str = "") -> Sheet:
    """Return the table a study ends with: every arm at the largest budget, and the yardsticks."""
    rungs = frame["rung"].dropna()
    top = frame[(frame["rung"] == rungs.max()) | (frame["subject"] != "run")] if len(rungs) else frame
    top = top[top["subject"] != "unigram"]
    at = top[top["budget_amount"].notna()]
    title = (
        f"At {format_amount(at['budget_amount'].iloc[0], at['budget_unit'].iloc[0])}" if len(at) else "Closing table"
    )
    return _sheet(top, title, with_budget=False, note=note)


def full_sheet(frame: pd.DataFrame, *, note: str = "") -> Sheet:
    """Return the same over all budgets, with the runs counted and the arms' own masked-language-model loss.

    A note names the arms and budgets where the read-out is more than 0.02 nats above the own head.
    """
    return _sheet(frame, "All budgets", with_budget=True, note=note)


def _sheet(frame: pd.DataFrame, title: str, *, with_budget: bool, note: str) -> Sheet:
    def column(name: str) -> list[float | None]:
        return [None if pd.isna(v) else float(v) for v in frame[name]]

    def pair(task: str, decimals: int) -> list[str]:
        return [
            fixed(v, decimals, h)
            for v, h in zip(column(_column(task)), column(_column(task, "half_width_")), strict=True)
        ]

    flops = [*column("planned_required_flops"), *column("spent_required_flops")]
    flop_unit, flop_cells = scaled(flops, "FLOP")
    seconds = [*column("planned_device_seconds"), *column("spent_device_seconds")]
    hours = max((s for s in seconds if s is not None), default=0.0) >= 7200
    second_cells = [fixed(None if s is None else s / (3600 if hours else 1), 2 if hours else 1) for s in seconds]
    time_unit = "h" if hours else "s"
    size = len(frame)
    names = [
        str(arm if subject in ("run", "teacher") else YARDSTICKS[subject])
        for subject, arm in zip(frame["subject"], frame["arm"], strict=True)
    ]
    parts: list[tuple[Column, list[str]]] = [(Column("arm", left=True), names)]
    if with_budget:
        amounts = zip(frame["budget_amount"], frame["budget_unit"], strict=True)
        budgets = ["" if pd.isna(amount) else format_amount(float(amount), str(unit)) for amount, unit in amounts]
        parts.append((Column("budget", left=True), budgets))
        parts.append((Column("runs", _SPENT), [fixed(v, 0) for v in column("runs")]))
    parts += [
        (Column("tokens", _SPENT), [format_quantity(v) for v in column("tokens")]),
        (Column("steps", _SPENT), [fixed(v, 0) for v in column("steps")]),
        (Column(f"plan\n{flop_unit}", _SPENT), flop_cells[:size]),
        (Column(f"spent\n{flop_unit}", _SPENT), flop_cells[size:]),
        (Column(f"plan\n{time_unit}", _SPENT), second_cells[:size]),
        (Column(f"spent\n{time_unit}", _SPENT), second_cells[size:]),
        (Column("unspent\n%", _SPENT), [percent(v) for v in column("unspent_fraction")]),
        (Column("read-out\nnats", _OUTCOME), pair("readout_loss", 2)),
    ]
    if frame[_column("adapted_loss")].notna().any():
        parts.append((Column("adapted\nnats", _OUTCOME), pair("adapted_loss", 2)))
    behind = frame[_column("readout_loss")].astype(float) - frame[_column("mlm_loss")].astype(float)
    if with_budget:
        parts.append((Column("own MLM\nnats", _OUTCOME), pair("mlm_loss", 2)))
        if behind.notna().any():
            cells = ["n/a" if pd.isna(gap) else f"{gap:+.3f}" for gap in behind]
            parts.append((Column("read-out\nminus own\nnats", _OUTCOME), cells))
    tasks = [
        name.removesuffix("_points") for name in frame.columns if name.endswith("_points") and "_half_width" not in name
    ]
    # The mean of two tasks says nothing that the two do not; of nine it is what one reads first.
    shown = tasks if with_budget or len(tasks) > 4 else [task for task in tasks if task != MEAN]
    named = frame.attrs.get("subsets", {})
    heads = {task: "mean" if task == MEAN else f"{task}\nsubset" if task in named else task for task in shown}
    parts += [(Column(f"{heads[task]}\npoints", _OUTCOME), pair(task, 1)) for task in shown]
    told = _readout_note(frame, behind) if with_budget else ""
    notes = (note, told, *subset_note({task: named[task] for task in shown if task in named}),
             frame.attrs.get("average", "") if MEAN in shown else "")  # fmt: skip
    blocks = frame["subject"].where(frame["subject"] != "run", frame["rung"].astype(str))
    blocks = blocks.where(frame["subject"] == "run", "yardsticks").tolist()
    return Sheet(
        title=title,
        columns=tuple(c for c, _ in parts),
        rows=tuple(zip(*(cells for _, cells in parts), strict=True)),
        notes=tuple(n for n in notes if n),
        rules=tuple(i for i in range(1, size) if blocks[i] != blocks[i - 1]),
    )


def _readout_note(frame: pd.DataFrame, behind: pd.Series) -> str:
    rows = frame[(frame["subject"] == "run") & (behind > _READOUT_BEHIND_NATS)]
    places: dict[str, list[str]] = {}
    for arm, amount, unit in zip(rows["arm"], rows["budget_amount"], rows["budget_unit"], strict=True):
        places.setdefault(arm, []).append(format_amount(float(amount), str(unit)))
    if not places:
        return ""
    named = "; ".join(f"{arm} at {', '.join(budgets)}" for arm, budgets in places.items())
    return (
        f"the read-out is more than {_READOUT_BEHIND_NATS:g} nats above the own head: {named}; no exponent or "
        "multiplier of an arm that trains a head should rest on the read-out alone"
    )


def _arm_row(schedule: Schedule, complete: Sequence[RunRecord], cells: pd.DataFrame) -> dict[str, object]:
    runs = [
        record
        for record in complete
        if record.kind == "rung" and record.arm == schedule.arm and answers(record, schedule)
    ]
    own = cells[(cells["subject"] == "run") & (cells["arm"] == schedule.arm) & (cells["rung"] == schedule.rung)]
    planned = schedule.feasible
    return {
        "subject": "run", "arm": schedule.arm, "rung": schedule.rung, "budget_amount": schedule.budget.amount,
        "budget_unit": schedule.budget.unit, "feasible": schedule.feasible, "runs": len(runs),
        "planned_required_flops": schedule.required_flops if planned else None,
        "planned_device_seconds": schedule.device_seconds if planned else None,
        "unspent_fraction": schedule.unspent_fraction if planned else None,
        **_spent(runs), **_quality(own),
    }  # fmt: skip


def _yardstick_row(
    subject: str, name: str, plan: Plan, complete: Sequence[RunRecord], cells: pd.DataFrame
) -> dict[str, object]:
    row: dict[str, object] = {"subject": subject, "arm": name}
    if subject == "teacher":
        planned = next((teacher for teacher in plan.teachers if teacher.model == name), None)
        runs = [record for record in complete if record.kind == "teacher" and record.student == name]
        row |= {"runs": len(runs)} | _spent(runs)
        if planned is not None and planned.weights is None:
            row |= {
                "planned_required_flops": planned.required_flops,
                "planned_device_seconds": planned.device_seconds,
            }
    return row | _quality(cells[(cells["subject"] == subject) & (cells["arm"] == name)])


def _spent(runs: Sequence[RunRecord]) -> dict[str, float]:
    if not runs:
        return {}
    count = len(runs)
    return {
        "tokens": sum(run.tokens for run in runs) / count,
        "steps": sum(run.steps for run in runs) / count,
        "spent_required_flops": sum(run.required_flops for run in runs) / count,
        "spent_device_seconds": sum(run.device_seconds for run in runs) / count,
    }


def _quality(cells: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {}
    for task, mean, half in zip(cells["task"], cells["mean"], cells["half_width"], strict=True):
        row |= {_column(task): mean, _column(task, "half_width_"): half}
    return row


def _column(task: str, what: str = "") -> str:
    return f"{task}_{what}{'nats' if task in LOSSES else 'points'}"


def _shown_tasks(table: pd.DataFrame) -> tuple[str, ...]:
    tasks = probe_tasks(table)
    return (*tasks, MEAN) if len(tasks) > 1 else tasks


def closing_note(frame: pd.DataFrame, cells: pd.DataFrame, level: float = 0.95) -> str:
    """Say how many runs a row is the mean of, and what ± is."""
    counts = sorted({int(runs) for runs in frame.loc[frame["subject"] == "run", "runs"]})
    runs = "no run" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    spread = interval_note(cells[cells["subject"] == "run"], level)
    return f"each arm: mean of {runs} complete run{'s' * (counts != [1])}; {spread}"
