"""Figure: every arm and size in compute, and which of them nothing cheaper beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.decisions.teacher_budget import on_frontier
from budgetlab.fitting.scores import OUTCOMES
from budgetlab.reporting.figures.style import (
    COLUMN_INCHES,
    arm_handles,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prefix_for,
    prominent,
    room,
)
from budgetlab.reporting.frames import unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def frontier_table(frontier: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: `all_in_frontier`'s rows whose compute is known, with the frontier over all sizes.

    Returns
    -------
    DataFrame
        `students_per_teacher` (infinite: the teacher exists anyway), `student`, `arm`, `all_in_flops`, `outcome` (of
        `y`, in points or nats), `num_runs`, `on_frontier`: of all arms and students nothing that costs no more is
        better.
    """
    known = frontier[frontier["all_in_flops"].notna()].assign(on_frontier=False)
    sign = 1.0 if known["higher_is_better"].all() else -1.0
    for _, rows in known.groupby("students_per_teacher"):
        known.loc[rows.index, "on_frontier"] = on_frontier(rows["all_in_flops"], sign * rows["outcome"])
    known["outcome"] *= known["y"].map(unit_of).map({"points": 100.0}).fillna(1.0)
    columns = ["students_per_teacher", "student", "arm", "all_in_flops", "outcome", "y", "num_runs", "on_frontier"]
    return known[columns].sort_values(["students_per_teacher", "all_in_flops"], ignore_index=True)


def draw_frontier(table: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draw `frontier_table`: a panel for each number of students that share a teacher; the line is the frontier.

    `order` is that of the study's arms, which their looks follow.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shares = sorted(table["students_per_teacher"].unique().tolist(), reverse=True)
    arms = list(dict.fromkeys([*order, *table["arm"]]))
    leading = list(table[table["on_frontier"]]["arm"].unique())
    styles = arm_styles(arms, prominent(arms, leading))
    columns = min(2, len(shares))
    lines = math.ceil(len(shares) / columns)
    front = Line2D([], [], color="black", linewidth=0.8, drawstyle="steps-post", label="frontier")
    handles = [*arm_handles(styles, lines=()), front]
    across = legend_columns([str(handle.get_label()) for handle in handles], COLUMN_INCHES)
    above = 0.14 * math.ceil(len(handles) / across)
    figure = Figure(figsize=(COLUMN_INCHES, 1.45 * lines + 0.25 + above), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    prefix, scale = prefix_for(table["all_in_flops"].max())
    for axes, share in zip(panels, shares, strict=False):
        rows = table[table["students_per_teacher"] == share]
        grid(axes)
        best = rows[rows["on_frontier"]]
        limits = room(rows["all_in_flops"].tolist(), log=True)
        axes.step([*best["all_in_flops"], limits[1]], [*best["outcome"], best["outcome"].iloc[-1]], where="post",
                  color="black", linewidth=0.8, zorder=2)  # fmt: skip
        for arm, style in styles.items():
            own = rows[rows["arm"] == arm]
            for row in own.to_dict("records"):
                axes.plot(row["all_in_flops"], row["outcome"], linestyle="", marker=style.marker, markersize=4.0,
                          color=style.colour, markerfacecolor=style.colour if row["on_frontier"] else "white",
                          markeredgewidth=0.7, zorder=3)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        log_ticks(axes.xaxis, *limits, scale=scale, most=4)
        shared = "teacher free" if math.isinf(share) else f"teacher for {share:g} student{'s' * (share != 1)}"
        axes.set_title(shared, loc="left", pad=3)
    for axes in panels[len(shares) :]:
        axes.set_axis_off()
    name = str(table["y"].iloc[0])
    unit = unit_of(name)
    figure.supylabel(f"{OUTCOMES.get(name, name).removeprefix('the ')} ({unit})", fontsize=7)
    figure.supxlabel(f"all-in required compute of one student ({prefix}FLOP, log scale)", fontsize=7)
    figure.legend(handles=handles, loc="outside upper center", ncols=across, columnspacing=1.2, handletextpad=0.5)
    return figure
