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

_WORDS = {"inference": "with inference", "none": "teacher free", "pretraining": "with pretraining"}


def plan_table(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: `match`, `charge`, `arm`, `tokens` (missing where infeasible), a line a definition."""
    lines = [_line(match, charge) for match, charge in zip(sensitivity["match"], sensitivity["charge"], strict=True)]
    return sensitivity.assign(line=lines)[["line", "match", "charge", "arm", "tokens"]].astype({"tokens": float})


def _line(match: str, charge: str) -> str:
    words = match.replace("_", " ").replace("flops", "FLOPs")
    return words if match == "equal_tokens" else f"{words}, {_WORDS.get(charge, charge)}"


def draw_plan(table: pd.DataFrame) -> Figure:
    """Draw `plan_table`: a line a definition, a marker an arm; at the right how many arms are infeasible."""
    from matplotlib.figure import Figure

    lines, arms = list(pd.unique(table["line"])), list(pd.unique(table["arm"]))
    styles = arm_styles(arms)
    figure = Figure(figsize=(COLUMN_INCHES, 0.75 + (0.1 + 0.035 * len(arms)) * len(lines)), layout="constrained")
    axes = figure.subplots()
    known = table.dropna(subset="tokens")
    low, high = room([float(value) for value in known["tokens"]], log=True)
    prefix, scale = prefix_for(high)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high, scale=scale, most=6)
    axes.set_xlabel(f"tokens ({'B' if prefix == 'G' else prefix})")
    axes.set_yticks(range(len(lines)), lines)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    grid(axes, "x")
    for y, line in enumerate(lines):
        rows = table[table["line"] == line]
        here = rows.dropna(subset="tokens")
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
        if len(here) < len(rows):
            axes.annotate(f"{len(rows) - len(here)} n/a", (1, y), (3, 0), xycoords=("axes fraction", "data"),
                          textcoords="offset points", va="center", fontsize=6, color="#777777")  # fmt: skip
    for i, arm in enumerate(arms):
        own = known[known["arm"] == arm]
        # Side by side, since arms often get the same.
        apart = 0.7 * ((i + 0.5) / len(arms) - 0.5)
        axes.plot(own["tokens"], [lines.index(line) + apart for line in own["line"]], linestyle="", label=arm, zorder=3,
                  color=styles[arm].colour, marker=styles[arm].marker, markersize=3.4, markeredgewidth=0.3,
                  markeredgecolor="white")  # fmt: skip
    figure.legend(loc="outside upper center", ncols=legend_columns(arms, COLUMN_INCHES), handletextpad=0.2)
    return figure
