"""Figure: the verdict map, who is ahead at which compute and with how many students to share the teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.reporting.figures.style import COLUMN_INCHES, prefix_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_COLOURS = {
    "arm": "#0072B2", "reference": "#E69F00", "not resolved": "#C9CDD1", "infeasible": "#FFFFFF", "n/a": "#FFFFFF",
}  # fmt: skip
_LABELS = {
    "arm": "distilled arm better", "reference": "reference better", "not resolved": "not resolved",
    "infeasible": "teacher's share costs more", "n/a": "n/a: not run, no extrapolation",
}  # fmt: skip
_HATCH = "xxxx"
"""Of what is infeasible; dots would make the vector file ten times larger."""


def map_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: a verdict map's cells, in order of students, arms, students to share, compute."""
    columns = ["student", "num_params_non_embedding", "arm", "reference", "teacher", "students_per_teacher",
               "total_flops", "difference", "low", "high", "unit", "answer", "basis", "reason"]  # fmt: skip
    return found[columns].sort_values(["student", "arm", "students_per_teacher", "total_flops"], ignore_index=True)


def draw_map(table: pd.DataFrame) -> Figure:
    """Draw `map_table`: a panel a student and arm; amounts across, students to share upwards; a dot: predicted."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = list(dict.fromkeys(zip(table["student"], table["arm"], strict=True)))
    heights = 0.62 + 0.135 * table["students_per_teacher"].nunique()
    figure = Figure(figsize=(COLUMN_INCHES, 0.75 + heights * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    many = table["student"].nunique() > 1
    for axes, (student, arm) in zip(grid, panels, strict=True):
        cells = table[(table["student"] == student) & (table["arm"] == arm)]
        _panel(axes, cells)
        whose = f"{arm} against {cells['reference'].iloc[0]}"
        axes.set_title(f"{whose}, student {student}" if many else whose, loc="left", pad=2.5)
        axes.set_ylabel("students\nper teacher")
    prefix, _ = prefix_for(float(table["total_flops"].max()))
    grid[-1].set_xlabel(f"all-in required compute of one student ({prefix}FLOP)")
    shown = [answer for answer in _COLOURS if (table["answer"] == answer).any()]
    looks = {"edgecolor": "#777777", "linewidth": 0.4}
    handles = [Patch(facecolor=_COLOURS[answer], hatch=_HATCH if answer == "infeasible" else None,
                     label=_LABELS[answer], **looks) for answer in shown]  # fmt: skip
    if (table["basis"] == "predicted").any():
        from matplotlib.lines import Line2D

        handles.append(Line2D([], [], linestyle="", marker="o", color="black", markersize=1.8, label="predicted"))  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=1.4, columnspacing=1.0)
    return figure


def _panel(axes: Axes, cells: pd.DataFrame) -> None:
    from matplotlib.patches import Rectangle

    amounts, shares = sorted(cells["total_flops"].unique()), sorted(cells["students_per_teacher"].unique())
    _, scale = prefix_for(max(amounts))
    for row in cells.to_dict("records"):
        x, y = amounts.index(row["total_flops"]), shares.index(row["students_per_teacher"])
        answer = str(row["answer"])
        hatch = _HATCH if answer == "infeasible" else None
        edge = "#9AA0A6" if answer in ("infeasible", "n/a") else "white"
        box = Rectangle(
            (x - 0.5, y - 0.5), 1, 1, facecolor=_COLOURS[answer], edgecolor=edge, linewidth=0.4, hatch=hatch
        )
        axes.add_patch(box)
        if row["basis"] == "predicted":
            axes.plot(x, y, marker="o", color="black", markersize=1.2, linestyle="")
    axes.set_xlim(-0.5, len(amounts) - 0.5)
    axes.set_ylim(-0.5, len(shares) - 0.5)
    axes.set_xticks(range(len(amounts)), [f"{amount / scale:.3g}" for amount in amounts])
    axes.set_yticks(range(len(shares)), ["free" if math.isinf(k) else f"{k:g}" for k in shares])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
