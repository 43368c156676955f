"""Figures: scores against tokens read, FLOPs or device time, one small panel a task and the mean."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from budgetlab.reporting.figures.style import (
    COLUMN_INCHES,
    YARDSTICK_COLOUR,
    YARDSTICK_LINES,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prefix_for,
    room,
    yardstick_handles,
)
from budgetlab.reporting.frames import LOSSES, MEAN, YARDSTICKS, subsets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_scores", "scores_table"]

_COLUMNS = ["task", "metric", "subset", "layer", "arm", "rung", "run_seed", "tokens", "required_flops", "device_hours",
            "score_points", "low_points", "high_points", "num_runs"]  # fmt: skip
_METRICS = {"matthews": "Matthews", "f1": "F1", "macro_f1": "macro F1", "pearson_spearman": "correlation"}
_AXES = {
    "tokens": ("tokens read by the student", "tokens"),
    "required_flops": ("required training compute", "FLOP"),
    "device_hours": ("device time of the training", "h"),
}
Axis = Literal["tokens", "required_flops", "device_hours"]


def scores_table(runs: pd.DataFrame, cells: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Return the drawn numbers: a row a run ("run"), a mean over runs ("mean") and a yardstick.

    Parameters
    ----------
    runs, cells
        What `frames.per_run` and `frames.summarise` return.
    arms
        Arms in the order of the study.
    """
    tasks = [task for task in pd.unique(cells["task"]) if task not in LOSSES] if len(cells) else []
    tasks.sort(key=lambda task: task == MEAN)
    named = subsets(cells)
    rows: list[dict[str, object]] = []
    for task in tasks:
        for layer, frame in (("run", runs), ("mean", cells)):
            own = frame[(frame["task"] == task) & (frame["subject"] == "run") & frame["arm"].isin(arms)]
            own = own.assign(order=own["arm"].map({arm: i for i, arm in enumerate(arms)}))
            for row in own.sort_values(["order", "rung"], kind="stable").to_dict("records"):
                rows.append(_row(row, layer, named))
        for subject in YARDSTICKS:
            own = cells[(cells["task"] == task) & (cells["subject"] == subject)]
            rows += [_row(row, subject, named) for row in own.to_dict("records")]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _row(row: dict[Any, Any], layer: str, named: dict[str, str]) -> dict[str, object]:
    # A yardstick is a line: it has read and spent what it has, but not along this axis.
    at = {axis: math.nan for axis in _AXES} if layer in YARDSTICKS else {
        "tokens": row["tokens"], "required_flops": row["required_flops"], "device_hours": row["device_seconds"] / 3600,
    }  # fmt: skip
    return {
        "task": row["task"], "metric": row["metric"], "layer": layer, "arm": row["arm"], "rung": row["rung"],
        "subset": row["subset"] if row["task"] == MEAN else named.get(row["task"], ""),
        "run_seed": row.get("run_seed"), **at,
        "score_points": row["value"] if layer == "run" else row["mean"],
        "low_points": row.get("low"), "high_points": row.get("high"), "num_runs": row.get("num_runs", 1),
    }  # fmt: skip


def draw_scores(table: pd.DataFrame, x: Axis = "tokens") -> Figure:
    """Draw `scores_table` over one of its amounts, on a logarithmic axis."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    tasks = list(pd.unique(table["task"]))
    arms = list(dict.fromkeys(table.loc[table["layer"] == "run", "arm"]))
    styles = arm_styles(arms)
    wide = len(tasks) > 6
    columns = 4 if wide else min(2, len(tasks))
    spare = len(tasks) % columns != 0
    lines = math.ceil(len(tasks) / columns)
    width = 2 * COLUMN_INCHES + 0.3 if wide else COLUMN_INCHES
    labels = [*arms, *(handle.get_label() for handle in yardstick_handles(table["layer"]))]
    across = legend_columns(labels, width)
    above = 0.0 if spare else 0.15 * math.ceil(len(labels) / across) + 0.1
    figure = Figure(figsize=(width, (1.45 if lines > 1 else 1.75) * lines + 0.15 + above), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    amounts = table.loc[table["layer"].isin(["run", "mean"]), x].astype(float)
    limits = room(amounts.tolist(), log=True)
    prefix, scale = prefix_for(amounts.max()) if x != "device_hours" else ("", 1.0)
    for axes, task in zip(panels, tasks, strict=False):
        rows = table[table["task"] == task]
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        log_ticks(axes.xaxis, *limits, scale=scale, most=4)
        grid(axes)
        for row in rows[rows["layer"].isin(list(YARDSTICKS))].itertuples():
            axes.axhline(
                row.score_points, color=YARDSTICK_COLOUR, linewidth=0.8, linestyle=YARDSTICK_LINES[row.layer], zorder=1
            )
        for arm in arms:
            style = styles[arm]
            seeds = rows[(rows["layer"] == "run") & (rows["arm"] == arm)]
            means = rows[(rows["layer"] == "mean") & (rows["arm"] == arm)]
            axes.plot(seeds[x], seeds["score_points"], linestyle="none", marker=style.marker, markersize=2.0,
                      markeredgewidth=0.5, markerfacecolor="white", color=style.colour, alpha=0.7,
                      zorder=2.5)  # fmt: skip
            spread = [means["score_points"] - means["low_points"], means["high_points"] - means["score_points"]]
            bars = means[["low_points", "high_points"]].notna().all(axis=None)
            axes.errorbar(means[x], means["score_points"], yerr=spread if bars else None, color=style.colour,
                          linestyle=style.dash, marker=style.marker, markeredgecolor="white", markeredgewidth=0.4,
                          elinewidth=0.8, capsize=1.6, capthick=0.8, zorder=3)  # fmt: skip
        metric = str(rows["metric"].iloc[0])
        of = textwrap.wrap(str(rows["subset"].iloc[0]), 34)  # a subset, or what the mean is of
        axes.set_title(metric if task == MEAN else task, loc="left", pad=3 + 6 * len(of), fontweight="bold")
        axes.annotate("\n".join(of), (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", fontsize=5,
                      color="#444444", linespacing=1.0)  # fmt: skip
        axes.set_ylabel(f"{'score' if task == MEAN else _METRICS.get(metric, metric)} (points)", labelpad=2)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    label, unit = _AXES[x]
    written = f"{prefix}{unit}" if unit == "FLOP" else f"{prefix} {unit}".strip()
    figure.supxlabel(f"{label} ({written}, log scale)", fontsize=7)
    handles = [
        Line2D([], [], color=styles[arm].colour, linestyle=styles[arm].dash, marker=styles[arm].marker,
               markeredgecolor="white", markeredgewidth=0.4, label=arm)
        for arm in arms
    ]  # fmt: skip
    handles += yardstick_handles(table["layer"])
    if spare:
        panels[-1].legend(handles=handles, loc="center", borderaxespad=0)
    else:
        figure.legend(handles=handles, loc="outside upper center", ncols=across, columnspacing=1.2)
    return figure
