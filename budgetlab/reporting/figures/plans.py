"""Figure: what every arm may read under each meaning of "the same compute"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.reporting.figures.style import (
    COLUMN_INCHES,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prefix_for,
    room,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_plan", "plan_table"]

_WORDS = {"inference": "teacher's forward", "none": "no teacher", "pretraining": "teacher's pretraining too"}


def plan_table(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: `match`, `charge`, `arm`, `tokens` (missing where infeasible), a line a definition."""
    lines = [_line(match, charge) for match, charge in zip(sensitivity["match"], sensitivity["charge"], strict=True)]
    return sensitivity.assign(line=lines)[["line", "match", "charge", "arm", "tokens"]].astype({"tokens": float})


def _line(match: str, charge: str) -> str:
    words = match.replace("_", " ").replace("flops", "FLOPs")
    return words if match == "equal_tokens" else f"{words}, {_WORDS.get(charge, charge)}"


def draw_plan(table: pd.DataFrame) -> Figure:
    """Draw `plan_table`: a line a definition, a marker an arm; n/a where an arm is infeasible."""
    from matplotlib.figure import Figure

    lines, arms = list(pd.unique(table["line"])), list(pd.unique(table["arm"]))
    styles = arm_styles(arms)
    figure = Figure(figsize=(COLUMN_INCHES, 0.75 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    known = table.dropna(subset="tokens")
    low, high = room([float(value) for value in known["tokens"]], log=True)
    prefix, scale = prefix_for(high)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high, scale=scale, most=6)
    axes.set_xlabel(f"tokens that the largest budget buys ({'B' if prefix == 'G' else prefix})")
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
    for y, line in enumerate(lines):
        rows = table[table["line"] == line]
        here = rows.dropna(subset="tokens")
        if len(here) > 1:
            axes.plot([here["tokens"].min(), here["tokens"].max()], [y, y], color="#CCCCCC", linewidth=0.8, zorder=1)
        lacking = [arm for arm in rows.loc[rows["tokens"].isna(), "arm"]]
        if lacking:
            axes.annotate(f"n/a: {', '.join(lacking)}", (1, y), (-2, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", va="center", fontsize=5, color="#777777")  # fmt: skip
    for arm in arms:
        own = known[known["arm"] == arm]
        axes.plot(own["tokens"], [lines.index(line) for line in own["line"]], linestyle="", label=arm, zorder=3,
                  color=styles[arm].colour, marker=styles[arm].marker, markersize=4, markeredgewidth=0.3,
                  markeredgecolor="white")  # fmt: skip
    figure.legend(loc="outside upper center", ncols=legend_columns(arms, COLUMN_INCHES), handletextpad=0.2)
    return figure
