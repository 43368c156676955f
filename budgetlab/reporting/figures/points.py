"""The numbers of the figures of outcomes: runs, their means, fitted curves and yardsticks, on three axes of amount."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from budgetlab.reporting.frames import LOSSES, MEAN, YARDSTICKS, interval_note, subsets, unit_of
from budgetlab.values import CurveFit

Axis = Literal["tokens", "required_flops", "device_hours"]
AXES = {
    "tokens": "tokens read by the student",
    "required_flops": "required training compute",
    "device_hours": "device time of the training",
}
"""Axis -> its label."""

_COLUMNS = ["task", "metric", "unit", "subset", "layer", "arm", "rung", "run_seed", *AXES,
            "value", "low", "high", "spread", "num_runs"]  # fmt: skip
_FEW = 3
"""With fewer runs than these an arm's band is the range of its runs."""
_LONG_NOTE = 400
"""A note on a figure longer than this leaves what it says to the table of fits."""
_ALIKE = 1.05
"""Amounts of an arm convert into one another where their ratio varies by less than this over its budgets."""


def points_table(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    arms: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    fits: Sequence[CurveFit] = (),
    mid_decay: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the drawn numbers.

    Parameters
    ----------
    runs, cells
        What `frames.per_run` and `frames.summarise` return.
    arms
        Arms in the order of the study.
    tasks
        Outcomes to draw; default: every score, their mean last.
    fits
        Fitted curves; those of an outcome drawn here that may be used are drawn.
    mid_decay
        What `frames.mid_decay` returns.

    Returns
    -------
    DataFrame
        `layer` says what a row is: a "run", a checkpoint in "mid_decay", the "mean" over runs with its `low` and
        `high` (`spread`: "interval", or "range" under three runs), a point of a fitted "curve", one "beyond" the
        fitted range, or a yardstick. `value` is in points or nats (`unit`). An amount is missing where it is not
        known: of a yardstick, and of a curve on an axis that does not go in step with the one it was fitted over.
    """
    known = [str(task) for task in pd.unique(cells["task"])] if len(cells) else []
    chosen = [t for t in known if t in tasks] if tasks else [t for t in known if t not in LOSSES]
    chosen.sort(key=lambda task: task == MEAN)
    named = subsets(cells)
    order = {arm: i for i, arm in enumerate(arms)}
    rows: list[dict[str, object]] = []
    for task in chosen:
        frames = {"run": runs, "mid_decay": mid_decay if mid_decay is not None else runs[:0], "mean": cells}
        for layer, frame in frames.items():
            own = frame[(frame["task"] == task) & (frame["subject"] == "run") & frame["arm"].isin(arms)]
            own = own.assign(order=own["arm"].map(order)).sort_values(["order", "tokens"], kind="stable")
            rows += [_row(row, layer, named) for row in own.to_dict("records")]
        _bands(rows, task)
        for subject in YARDSTICKS:
            own = cells[(cells["task"] == task) & (cells["subject"] == subject)]
            rows += [_row(row, subject, named) for row in own.to_dict("records")]
        for fit in fits:
            if fit.arm in order and may_be_drawn(fit, task):
                rows += list(_curve(fit, task, cells))
    table = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys((*AXES, "value", "low", "high"), float))
    # Who read or spent nothing was not metered; a logarithmic axis has no place for it either.
    return table.assign(**{axis: table[axis].where(table[axis] > 0) for axis in AXES})


def _row(row: dict[Any, Any], layer: str, named: dict[str, str]) -> dict[str, object]:
    # A yardstick is a line: it has read and spent what it has, but not along this axis.
    at = {axis: math.nan for axis in AXES} if layer in YARDSTICKS else {
        "tokens": row["tokens"], "required_flops": row["required_flops"], "device_hours": row["device_seconds"] / 3600,
    }  # fmt: skip
    return {
        "task": row["task"], "metric": row["metric"], "unit": unit_of(row["task"]), "layer": layer, "arm": row["arm"],
        "subset": row["subset"] if row["task"] == MEAN else named.get(row["task"], ""), "rung": row["rung"],
        "run_seed": row.get("run_seed"), **at, "value": row["value"] if "value" in row else row["mean"],
        "low": row.get("low"), "high": row.get("high"), "num_runs": row.get("num_runs", 1),
    }  # fmt: skip


def _bands(rows: list[dict[str, Any]], task: str) -> None:
    """Name each mean's spread; under three runs it is their range, since an interval would lean on other arms alone."""
    for mean in (row for row in rows if row["task"] == task and row["layer"] == "mean"):
        own = [row["value"] for row in rows if row["task"] == task and row["layer"] == "run"
               and (row["arm"], row["rung"]) == (mean["arm"], mean["rung"])]  # fmt: skip
        if len(own) >= _FEW and math.isfinite(mean["low"]):
            mean["spread"] = "interval"
        elif len(own) > 1:
            mean |= {"low": min(own), "high": max(own), "spread": "range"}
        else:
            mean |= {"low": math.nan, "high": math.nan}


def _curve(fit: CurveFit, task: str, cells: pd.DataFrame) -> Iterator[dict[str, object]]:
    own = cells[(cells["task"] == task) & (cells["subject"] == "run") & (cells["arm"] == fit.arm)]
    amounts = own.assign(device_hours=own["device_seconds"] / 3600)
    low, high = fit.x_range or (math.nan, math.nan)
    x = np.array([low, *(value for value in fit.band["x"] if low < value < high), high])
    if fit.usable_for == "everything":
        x = np.array(sorted({*x, *fit.band["x"]}))
    scale = 100.0 if unit_of(task) == "points" else 1.0
    levels = {
        name: scale * np.interp(np.log(x), np.log(fit.band["x"]), fit.band[key]) if key in fit.band else x * math.nan
        for name, key in (("value", "prediction"), ("low", "low"), ("high", "high"))
    }
    places = {axis: x * _per_unit(amounts, axis, fit.columns["x"]) for axis in AXES}
    for i, amount in enumerate(x):
        layer = "curve" if low <= amount <= high else "beyond"
        yield {"task": task, "unit": unit_of(task), "subset": "", "layer": layer, "arm": fit.arm,
               "spread": "interval" if "low" in fit.band else "",
               **{name: values[i] for name, values in (*places.items(), *levels.items())}}  # fmt: skip


def _per_unit(amounts: pd.DataFrame, axis: str, fitted: str) -> float:
    """Return how much of an axis goes with one of the amount that was fitted; missing where that varies."""
    if axis == fitted:
        return 1.0
    if fitted not in amounts:
        return math.nan
    ratio = (amounts[axis] / amounts[fitted]).to_numpy(dtype=float)
    return float(np.median(ratio)) if len(ratio) and ratio.max() <= _ALIKE * ratio.min() else math.nan


def may_be_drawn(fit: CurveFit, task: str) -> bool:
    """Whether a fit is a curve of this outcome that its status allows to use."""
    return (
        fit.arm is not None and fit.usable_for != "nothing" and bool(fit.band.get("x")) and fit.x_range is not None
        and fit.columns.get("y") == task
    )  # fmt: skip


def fit_note(fits: Sequence[CurveFit], task: str, table: pd.DataFrame, x: Axis) -> str:
    """Say on the figure what its lines are, and why an arm has none; empty where nothing was fitted."""
    drawn = set(table.loc[(table["layer"] == "curve") & table[x].notna(), "arm"])
    own = [fit for fit in fits if fit.arm is not None and fit.columns.get("y") == task]
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for fit in own:
        # The first clause tells what happened, of a refusal the last before its full stop; the page has the whole text.
        clauses = re.split(r"; ", re.split(r"\. |\.$", fit.status_text)[0])
        refused = clauses[0].startswith("No curve: ") and len(clauses) > 1
        clause = f"No curve: {clauses[-1]}" if refused else clauses[0]
        use = fit.usable_for if fit.arm in drawn else "nothing"
        if may_be_drawn(fit, task) and fit.arm not in drawn:
            clause = f"its curve is over {fit.columns['x']}, which does not go in step with this axis"
        reasons.setdefault((use, fit.law, clause), []).append(str(fit.arm))
    parts = []
    for (use, law, clause), arms in reasons.items():
        whose = "" if len(arms) == len(own) else f" ({', '.join(arms)})"
        reach = "dashed and shaded outside the fitted range" if use == "everything" else "inside the fitted range"
        parts.append(f"Points{whose}: {clause}." if use == "nothing" else f"Lines{whose}: {law}, {reach}. {clause}.")
    told = " ".join(parts)
    if len(told) <= _LONG_NOTE:
        return told
    lines = [part for part in parts if part.startswith("Lines")]
    none = len(own) - sum(len(arms) for (use, _, _), arms in reasons.items() if use != "nothing")
    return " ".join([*lines, f"No curve for {none} of {len(own)} arms: the statuses of their fits say why."])


def fit_notes(fits: Sequence[CurveFit], table: pd.DataFrame, x: Axis) -> str:
    """Say on a figure of several outcomes which of its lines are fitted curves; empty where none is."""
    drawn = table[table["layer"].isin(["curve", "beyond"]) & table[x].notna()]
    if drawn.empty:
        return ""
    tasks = [str(task) for task in pd.unique(drawn["task"])]
    laws = dict.fromkeys(
        fit.law for fit in fits for task in tasks if fit.arm in set(drawn["arm"]) and may_be_drawn(fit, task)
    )
    parts = [f"Fitted curves ({', '.join(laws)}): {', '.join('mean score' if t == MEAN else t for t in tasks)}"]
    if (drawn["layer"] == "beyond").any():
        parts.append("dashed and shaded outside the fitted range")
    if table["task"].nunique() > len(tasks):
        parts.append("other lines join means")
    return "; ".join(parts) + "."


def spread_note(table: pd.DataFrame, cells: pd.DataFrame, level: float) -> str:
    """Say what the markers and the bands of a figure are."""
    means = table[table["layer"] == "mean"]
    if means.empty:
        return "no run is complete"
    counts = sorted({int(n) for n in means["num_runs"]})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts = ["one run seed" if counts == [1] else f"{many} run seeds (open and faint: one run, filled: their mean)"]
    spreads = set(means["spread"].dropna())
    if "interval" in spreads:
        own = cells[(cells["subject"] == "run") & cells["task"].isin(means["task"]) & (cells["num_runs"] >= _FEW)]
        parts.append(interval_note(own, level).replace("± is", "bands are"))
    if "range" in spreads:
        parts.append("bands are the range of the runs where an arm has two")
    if not spreads:
        parts.append("no bands, since no arm has two runs at one budget")
    if (table["layer"] == "mid_decay").any():
        parts.append("crosses: checkpoints in mid-decay, not fitted and not averaged")
    return "; ".join(parts)
