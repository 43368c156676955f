"""Outcomes as they are drawn: runs, their means, fitted curves and yardsticks in one table, and words on them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from budgetlab.reporting.averages import BASELINES, MEAN, Outcomes, shown_unit, told_range
from budgetlab.values import CurveFit
from budgetlab.values.scoring import LOSSES

Axis = Literal["tokens", "required_flops", "device_hours"]
AXES: tuple[Axis, ...] = ("tokens", "required_flops", "device_hours")
LAYERS = ("run", "mid_decay", "mean", "curve", "beyond")
_COLUMNS = ["task", "metric", "unit", "subset", "layer", "arm", "rung", "run_seed", *AXES,
            "value", "low", "high", "spread", "num_runs"]  # fmt: skip
_FEW_RUNS = 3
"""With fewer runs than these an arm's band is the range of its runs."""
_LONGEST_NOTE = 400
"""A note on a figure longer than this leaves what it says to the table of fits."""
_CONSTANT_RATIO = 1.05
"""Amounts of an arm convert into one another where their ratio varies by less than this over its budgets."""


def points_table(
    found: Outcomes, arms: Sequence[str], tasks: Sequence[str] = (), *, fits: Sequence[CurveFit] = ()
) -> pd.DataFrame:
    """Return the drawn numbers of some outcomes, default: of every score, their mean last.

    `layer` says what a row is: a "run", a checkpoint in "mid_decay", the "mean" over runs with its `low` and `high`
    (`spread`: "interval", or "range" under three runs), a point of a fitted "curve", one "beyond" the fitted range, or
    a yardstick. `value` is in points or nats (`unit`). An amount is missing where it is not known: of a yardstick, and
    of a curve on an axis that does not go in step with the one it was fitted over.
    """
    known = [str(task) for task in pd.unique(found.cells["task"])]
    chosen = [t for t in known if t in tasks] if tasks else [t for t in known if t not in LOSSES]
    chosen.sort(key=lambda task: task == MEAN)
    cells = found.cells.assign(value=found.cells["mean"], device_hours=found.cells["device_seconds"] / 3600)
    layers = {"run": found.runs.assign(num_runs=1), "mid_decay": found.early.assign(num_runs=1), "mean": cells}
    parts = []
    for layer, rows in layers.items():
        own = rows[(rows["subject"] == "run") & rows["arm"].isin(arms)]
        hours = own["device_seconds"] / 3600
        own = own.assign(layer=layer, device_hours=hours, place=own["arm"].map(list(arms).index), at=own["tokens"])
        parts.append(_with_spread(own, parts[0]) if layer == "mean" else own)
    # A yardstick is a line: it has read and spent what it has, but not along this axis.
    off_axis = dict.fromkeys(AXES, math.nan)
    parts += [cells[cells["subject"] == name].assign(layer=name, place=0, at=0.0, **off_axis) for name in BASELINES]
    parts += [_curve(fit, cells) for fit in fits if fit.arm in arms and any(may_be_drawn(fit, t) for t in chosen)]
    parts = [part.assign(layer_place=place) for place, part in enumerate(parts) if len(part)]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=[*_COLUMNS, "layer_place", "place", "at"])
    table = table[table["task"].isin(chosen)]
    table = table.assign(
        task_place=table["task"].map(chosen.index),
        unit=table["task"].map({task: shown_unit(task) for task in chosen}),
        subset=table["subset"].where(
            (table["task"] == MEAN) & ~table["layer"].isin(["curve", "beyond"]),
            table["task"].map(lambda task: found.subsets.get(str(task), "")),
        ),
    )
    table = table.sort_values(["task_place", "layer_place", "place", "at"], kind="stable", ignore_index=True)
    table = table.reindex(columns=_COLUMNS).astype(dict.fromkeys((*AXES, "value", "low", "high"), float))
    # Who read or spent nothing was not metered; a logarithmic axis has no place for it either.
    return table.assign(**{axis: table[axis].where(table[axis] > 0) for axis in AXES})


def _with_spread(means: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Name the spread of means; under three runs it is their range, since an interval would lean on other arms."""
    keys = ["task", "arm", "rung"]
    of_runs = runs.groupby(keys)["value"].agg(["count", "min", "max"])
    count, least, most = (means[keys].join(of_runs, on=keys)[name] for name in ("count", "min", "max"))
    interval = (count >= _FEW_RUNS) & np.isfinite(means["low"].astype(float))
    several = ~interval & (count > 1)
    return means.assign(
        low=means["low"].where(interval, least.where(several)),
        high=means["high"].where(interval, most.where(several)),
        spread=pd.Series("interval", means.index).where(interval, pd.Series("range", means.index).where(several)),
    )


def _curve(fit: CurveFit, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the points of a fitted curve, at the ends of its range too."""
    task, (low, high), at = fit.columns["y"], fit.x_range or (math.nan, math.nan), fit.band["x"]
    own = cells[(cells["task"] == task) & (cells["subject"] == "run") & (cells["arm"] == fit.arm)]
    x = np.array([low, *(value for value in at if low < value < high), high])
    if fit.usable_for == "everything":
        x = np.array(sorted({*x, *at}))
    scale = 100.0 if shown_unit(task) == "points" else 1.0
    columns = {"value": "prediction", "low": "low", "high": "high"}
    return pd.DataFrame({
        "task": task, "subset": "", "arm": fit.arm, "layer": np.where((x >= low) & (x <= high), "curve", "beyond"),
        "spread": "interval" if "low" in fit.band else "", "place": 0, "at": 0.0,
        **{axis: x * _per_unit(own, axis, fit.columns["x"]) for axis in AXES},
        **{name: scale * np.interp(np.log(x), np.log(at), fit.band[column])
           for name, column in columns.items() if column in fit.band},
    })  # fmt: skip


def _per_unit(amounts: pd.DataFrame, axis: str, fitted: str) -> float:
    """Return how much of an axis goes with one of the amount that was fitted; missing where that varies."""
    if axis == fitted:
        return 1.0
    ratio = (amounts[axis] / amounts[fitted]).to_numpy(dtype=float) if fitted in amounts else np.array([])
    return float(np.median(ratio)) if len(ratio) and ratio.max() <= _CONSTANT_RATIO * ratio.min() else math.nan


def may_be_drawn(fit: CurveFit, task: str) -> bool:
    """Whether a fit is a curve of this outcome that its status allows to use."""
    usable = fit.arm is not None and fit.usable_for != "nothing" and fit.x_range is not None
    return usable and bool(fit.band.get("x")) and fit.columns.get("y") == task


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
        if may_be_drawn(fit, task) and fit.arm not in drawn:
            clause = f"its curve is over {fit.columns['x']}, which does not go in step with this axis"
        use = fit.usable_for if fit.arm in drawn else "nothing"
        reasons.setdefault((use, fit.law, clause), []).append(str(fit.arm))
    parts = []
    for (use, law, clause), arms in reasons.items():
        whose = "" if len(arms) == len(own) else f" ({', '.join(arms)})"
        reach = "dashed and shaded outside the fitted range" if use == "everything" else "inside the fitted range"
        parts.append(f"Points{whose}: {clause}." if use == "nothing" else f"Lines{whose}: {law}, {reach}. {clause}.")
    if len(" ".join(parts)) > _LONGEST_NOTE:
        none = sum(len(arms) for (use, _, _), arms in reasons.items() if use == "nothing")
        parts = [part for part in parts if part.startswith("Lines")]
        parts.append(f"No curve for {none} of {len(own)} arms: the statuses of their fits say why.")
    return " ".join(parts)


def fit_notes(fits: Sequence[CurveFit], table: pd.DataFrame, x: Axis) -> str:
    """Say on a figure of several outcomes which of its lines are fitted curves; empty where none is."""
    drawn = table[table["layer"].isin(["curve", "beyond"]) & table[x].notna()]
    if drawn.empty:
        return ""
    tasks, arms = [str(task) for task in pd.unique(drawn["task"])], set(drawn["arm"])
    laws = dict.fromkeys(f.law for f in fits for task in tasks if f.arm in arms and may_be_drawn(f, task))
    parts = [f"Fitted curves ({', '.join(laws)}): {', '.join('mean score' if t == MEAN else t for t in tasks)}"]
    if (drawn["layer"] == "beyond").any():
        parts.append("dashed and shaded outside the fitted range")
    if table["task"].nunique() > len(tasks):
        parts.append("other lines join means")
    return "; ".join(parts) + "."


def spread_note(table: pd.DataFrame, found: Outcomes) -> str:
    """Say what the markers and the bands of a figure are."""
    means = table[table["layer"] == "mean"]
    if means.empty:
        return "no run is complete"
    single = (means["num_runs"] == 1).all()
    many = f"{told_range(means['num_runs'])} run seeds (open and faint: one run, filled: their mean)"
    parts, spreads = ["one run seed" if single else many], set(means["spread"].dropna())
    if "interval" in spreads:
        parts.append(found.interval_note(_FEW_RUNS, list(means["task"])).replace("± is", "bands are"))
    if "range" in spreads:
        parts.append("bands are the range of the runs where an arm has two")
    if not spreads:
        parts.append("no bands, since no arm has two runs at one budget")
    if (table["layer"] == "mid_decay").any():
        parts.append("crosses: checkpoints in mid-decay, not fitted and not averaged")
    return "; ".join(parts)
