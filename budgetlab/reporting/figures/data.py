"""What figures are drawn from: a study as far as it is known, and its outcomes with their fitted curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from budgetlab.decisions import Decisions
from budgetlab.errors import CallerError
from budgetlab.reporting.averages import (
    BASELINES,
    MEAN,
    Outcomes,
    interval_note,
    mid_decay,
    shown_unit,
    subsets,
)
from budgetlab.reporting.figures.style import FigureFiles, render
from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Verdict
from budgetlab.values.scoring import LOSSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Axis = Literal["tokens", "required_flops", "device_hours"]
AXES: tuple[Axis, ...] = ("tokens", "required_flops", "device_hours")
_COLUMNS = ["task", "metric", "unit", "subset", "layer", "arm", "rung", "run_seed", *AXES,
            "value", "low", "high", "spread", "num_runs"]  # fmt: skip
_FEW_RUNS = 3
"""With fewer runs than these an arm's band is the range of its runs."""
_LONGEST_NOTE = 400
"""A note on a figure longer than this leaves what it says to the table of fits."""
_CONSTANT_RATIO = 1.05
"""Amounts of an arm convert into one another where their ratio varies by less than this over its budgets."""


@dataclass(frozen=True)
class Known:
    """What the figures of a study are drawn from."""

    plan: Plan
    profile: CostProfile
    records: Sequence[RunRecord]
    outcomes: Outcomes
    """The scores, and their averages."""
    fits: Sequence[CurveFit]
    verdicts: Sequence[Verdict]
    decisions: Decisions
    sensitivity: pd.DataFrame
    """The plan under every meaning of compute; empty where no arm can afford a step."""
    definitions: Sequence[str]
    """What tasks are subsets, and what the mean is of: said in the first caption."""
    where: str
    """Hardware and number format, which end a caption."""

    @property
    def arms(self) -> list[str]:
        """In the order of the study, which their looks follow."""
        return list(self.plan.arms)

    @property
    def scores(self) -> pd.DataFrame:
        """One row a score."""
        return self.outcomes.table

    @property
    def level(self) -> float:
        """Confidence of the intervals."""
        return self.outcomes.level

    @cached_property
    def points(self) -> pd.DataFrame:
        """Every score as it is drawn."""
        return self._points()

    @cached_property
    def losses(self) -> pd.DataFrame:
        """The read-out loss as it is drawn."""
        return self._points(["readout_loss"])

    def _points(self, tasks: Sequence[str] = ()) -> pd.DataFrame:
        early = mid_decay(self.scores)
        return points_table(self.outcomes.runs, self.outcomes.cells, self.arms, tasks, fits=self.fits, mid_decay=early)


@dataclass(frozen=True)
class Figure:
    """One figure of a study: an entry of `FIGURES`, from which page, command line and notebooks draw it."""

    name: str
    section: str
    """Heading of the page that it stands under."""
    table: Callable[[Known], pd.DataFrame]
    """The drawn numbers; empty where there is nothing to draw."""
    draw: Callable[[pd.DataFrame, Known], Drawing]
    caption: str
    """With {level}, {where}, and what `told` names."""
    told: Callable[[pd.DataFrame, Known], dict[str, str]] = lambda table, known: {}

    def write(self, known: Known, folder: Path) -> FigureFiles | None:
        """Leave the figure's three files in a folder; None where there is nothing to draw."""
        table = self.table(known)
        if table.empty:
            return None
        told = {"level": f"{100 * known.level:g} %", "where": known.where, **self.told(table, known)}
        return render(self.name, lambda drawn: self.draw(drawn, known), table, folder, self.caption.format(**told))


def need_columns(table: pd.DataFrame, columns: Iterable[str], what: str, source: str) -> None:
    """Refuse a table that is empty or another one."""
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        wrong = f"no column {', '.join(missing)}" if len(table) else "the table has no rows"
        raise CallerError(f"figure of {what}", wrong, f"give the table of {source}")


def points_table(
    runs: pd.DataFrame,
    cells: pd.DataFrame,
    arms: Sequence[str],
    tasks: Sequence[str] = (),
    *,
    fits: Sequence[CurveFit] = (),
    mid_decay: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the drawn numbers of some outcomes, default: of every score, their mean last.

    `runs`, `cells` and `mid_decay` are what those functions of `reporting.averages` return. `layer` says what a row is:
    a "run", a checkpoint in "mid_decay", the "mean" over runs with its `low` and `high` (`spread`: "interval", or
    "range" under three runs), a point of a fitted "curve", one "beyond" the fitted range, or a yardstick. `value` is
    in points or nats (`unit`). An amount is missing where it is not known: of a yardstick, and of a curve on an axis
    that does not go in step with the one it was fitted over.
    """
    known = [str(task) for task in pd.unique(cells["task"])] if len(cells) else []
    chosen = [t for t in known if t in tasks] if tasks else [t for t in known if t not in LOSSES]
    layers = {
        "run": runs.assign(num_runs=1),
        "mid_decay": (runs[:0] if mid_decay is None else mid_decay).assign(num_runs=1),
        "mean": cells.assign(value=cells["mean"]),
    }
    named, rows = subsets(cells), []
    for task in sorted(chosen, key=lambda task: task == MEAN):
        for layer, frame in layers.items():
            own = frame[(frame["task"] == task) & (frame["subject"] == "run") & frame["arm"].isin(arms)]
            own = own.assign(layer=layer, device_hours=own["device_seconds"] / 3600, order=own["arm"].map(arms.index))
            rows += own.sort_values(["order", "tokens"], kind="stable").to_dict("records")
        for mean in (row for row in rows if row["task"] == task and row["layer"] == "mean"):
            mean |= _spread(mean, rows)
        for subject in BASELINES:
            own = layers["mean"][(cells["task"] == task) & (cells["subject"] == subject)]
            # A line: it has read and spent what it has, but not along this axis.
            rows += own.assign(layer=subject, **dict.fromkeys(AXES, math.nan)).to_dict("records")
        for row in rows:
            if row["task"] == task:
                row |= {"unit": shown_unit(task), "subset": row["subset"] if task == MEAN else named.get(task, "")}
        rows += [row for fit in fits if fit.arm in arms and may_be_drawn(fit, task) for row in _curve(fit, task, cells)]
    table = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys((*AXES, "value", "low", "high"), float))
    # Who read or spent nothing was not metered; a logarithmic axis has no place for it either.
    return table.assign(**{axis: table[axis].where(table[axis] > 0) for axis in AXES})


def _spread(mean: Mapping[Any, Any], rows: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    """Name a mean's spread; under three runs it is their range, since an interval would lean on other arms alone."""
    same = ("task", "arm", "rung")
    own = [row["value"] for row in rows if row["layer"] == "run" and all(row[name] == mean[name] for name in same)]
    if len(own) >= _FEW_RUNS and math.isfinite(mean["low"]):
        return {"spread": "interval"}
    return {"low": min(own), "high": max(own), "spread": "range"} if len(own) > 1 else {"low": None, "high": None}


def _curve(fit: CurveFit, task: str, cells: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    own = cells[(cells["task"] == task) & (cells["subject"] == "run") & (cells["arm"] == fit.arm)]
    own = own.assign(device_hours=own["device_seconds"] / 3600)
    low, high = fit.x_range or (math.nan, math.nan)
    x = np.array([low, *(value for value in fit.band["x"] if low < value < high), high])
    if fit.usable_for == "everything":
        x = np.array(sorted({*x, *fit.band["x"]}))
    scale = 100.0 if shown_unit(task) == "points" else 1.0
    columns = {"value": "prediction", "low": "low", "high": "high"}
    band = {name: fit.band[column] for name, column in columns.items() if column in fit.band}
    curve = {name: scale * np.interp(np.log(x), np.log(fit.band["x"]), values) for name, values in band.items()}
    curve |= {axis: x * _per_unit(own, axis, fit.columns["x"]) for axis in AXES}
    spread = "interval" if "low" in band else ""
    shared = {"task": task, "unit": shown_unit(task), "subset": "", "arm": fit.arm, "spread": spread}
    for i, amount in enumerate(x):
        layer = "curve" if low <= amount <= high else "beyond"
        yield {**shared, "layer": layer, **{name: column[i] for name, column in curve.items()}}


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
        own = cells[(cells["subject"] == "run") & cells["task"].isin(means["task"]) & (cells["num_runs"] >= _FEW_RUNS)]
        parts.append(interval_note(own, level).replace("± is", "bands are"))
    if "range" in spreads:
        parts.append("bands are the range of the runs where an arm has two")
    if not spreads:
        parts.append("no bands, since no arm has two runs at one budget")
    if (table["layer"] == "mid_decay").any():
        parts.append("crosses: checkpoints in mid-decay, not fitted and not averaged")
    return "; ".join(parts)
