"""Figures: what every arm may read under each meaning of "the same compute"; what was planned, and what was spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.frames import records_frame
from budgetlab.reporting.figures.style import (
    COLUMN_INCHES,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prefix_for,
    room,
)
from budgetlab.values import Plan, RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_SPENT = {"required_flops": "required compute", "device_seconds": "device time"}
_WORDS = {"inference": "with inference", "none": "teacher free", "pretraining": "with pretraining"}


def plan_table(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: `match`, `charge`, `arm`, `tokens` (missing where infeasible), a line a definition.

    A definition under which no arm has any is left out.
    """
    sensitivity = sensitivity[sensitivity.groupby(["match", "charge"])["tokens"].transform("count") > 0]
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


def spent_table(plan: Plan, records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return the drawn numbers: a row a complete run and quantity, `planned`, `spent` and their `ratio`.

    `quantity` is "required_flops" or "device_seconds"; the ratio is missing where nothing was planned, such as
    seconds without a measured profile.
    """
    columns = ["quantity", "arm", "rung", "run_seed", "planned", "spent", "ratio"]
    order = list(plan.arms)
    runs = [r for r in records if r.kind == "rung" and r.status == "complete" and r.schedule and r.arm in order]
    if not runs:
        return pd.DataFrame(columns=columns)
    known = records_frame(runs)
    known = known.sort_values(["arm", "rung", "run_seed"], key=lambda c: c.map(order.index) if c.name == "arm" else c)
    parts = [
        known.assign(quantity=name, planned=known[f"planned_{name}"].astype(float), spent=known[name].astype(float))
        for name in _SPENT
    ]
    table = pd.concat(parts, ignore_index=True)
    planned = table["planned"].where(table["planned"] > 0)
    return table.assign(planned=planned, ratio=table["spent"] / planned)[columns]


def draw_spent(table: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draw `spent_table`: a row an arm, a marker a run, smallest budget uppermost; the line is what was planned.

    `order` is that of the study's arms, which their looks follow.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    arms = list(dict.fromkeys(table["arm"]))
    styles = arm_styles(list(dict.fromkeys([*order, *arms])))
    rungs = sorted(table["rung"].unique())
    figure = Figure(figsize=(COLUMN_INCHES, 0.65 + 0.28 * len(arms)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (quantity, words) in zip(panels, _SPENT.items(), strict=True):
        rows = table[(table["quantity"] == quantity) & table["ratio"].notna()]
        grid(axes, "x")
        axes.axvline(1.0, color="#444444", linewidth=0.6, zorder=1)
        for y, arm in enumerate(arms):
            own = rows[rows["arm"] == arm]
            apart = 0.6 * ((own["rung"].map(rungs.index) + 0.5) / len(rungs) - 0.5)
            axes.plot(own["ratio"], y + apart, linestyle="", marker=styles[arm].marker, color=styles[arm].colour,
                      markersize=3.2, markeredgecolor="white", markeredgewidth=0.3, zorder=3)  # fmt: skip
        if rows.empty:
            axes.text(0.05, 0.5, "n/a (not timed)", transform=axes.transAxes, va="center", fontsize=6.5)
            axes.set_xticks([])
        else:
            # What is spent to the FLOP must not look like noise: never less than a percent to either side.
            axes.set_xlim(*room([0.99, 1.01, *rows["ratio"]]))
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.set_title(words, loc="left", pad=3, fontweight="bold")
        axes.set_xlabel("spent / planned")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    return figure
