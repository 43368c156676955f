"""Figures: scores and the read-out loss against tokens read, FLOPs or device time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.fitting.scores import OUTCOMES
from budgetlab.reporting.figures.points import AXES, Axis
from budgetlab.reporting.figures.style import (
    BEYOND_COLOUR,
    COLUMN_INCHES,
    YARDSTICK_COLOUR,
    YARDSTICK_LINES,
    ArmStyle,
    arm_handles,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prominent,
    room,
    unit_at,
    yardstick_handles,
)
from budgetlab.reporting.frames import LOSSES, MEAN, YARDSTICKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_METRICS = {"matthews": "Matthews", "f1": "F1", "macro_f1": "macro F1", "pearson_spearman": "correlation"}
_AMOUNT_LAYERS = ("run", "mean", "mid_decay", "curve", "beyond")
_SHIFT = 0.02
"""By which arms are drawn aside of one another where they spent the same, in logarithms: the width of a marker."""


def draw_scores(table: pd.DataFrame, x: Axis = "tokens", order: Sequence[str] = (), note: str = "") -> Figure:
    """Draw `points_table` over one of its amounts, on a logarithmic axis: a panel a task.

    `order` is that of the study's arms, which their looks follow; `note` stands below.
    """
    from matplotlib.figure import Figure

    tasks = list(pd.unique(table["task"]))
    styles = _styles(table, x, order)
    wide = len(tasks) > 6
    columns = 4 if wide else min(2, len(tasks))
    spare = len(tasks) % columns != 0
    lines = math.ceil(len(tasks) / columns)
    width = 2 * COLUMN_INCHES + 0.3 if wide else COLUMN_INCHES
    handles = [*arm_handles(styles), *_layer_handles(table, x)]
    labels = [str(handle.get_label()) for handle in handles]
    across = legend_columns(labels, width)
    spare = spare and len(labels) <= 10
    above = 0.0 if spare else 0.15 * math.ceil(len(labels) / across) + 0.1
    told = textwrap.wrap(note, 120 if wide else 58)
    height = (1.45 if lines > 1 else 1.75) * lines + 0.15 + above + 0.11 * len(told)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    aside = _aside(table, x)
    limits, scale, label = _axis(table, x, aside)
    for axes, task in zip(panels, tasks, strict=False):
        rows = table[table["task"] == task]
        _panel(axes, rows, x, styles, aside, joined=not (rows["layer"] == "curve").any())
        _amounts(axes, limits, scale, most=4)
        metric = str(rows["metric"].iloc[0])
        of = textwrap.wrap(str(rows["subset"].iloc[0]), 34)  # a subset, or what the mean is of
        axes.set_title(metric if task == MEAN else task, loc="left", pad=3 + 6 * len(of), fontweight="bold")
        axes.annotate("\n".join(of), (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", fontsize=5,
                      color="#444444", linespacing=1.0)  # fmt: skip
        name = "score" if task == MEAN else _METRICS.get(metric, metric)
        axes.set_ylabel("loss (nats)" if task in LOSSES else f"{name} (points)", labelpad=2)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel("\n".join([label, *told]), fontsize=7)
    if spare:
        panels[-1].legend(handles=handles, loc="center", borderaxespad=0)
    else:
        figure.legend(handles=handles, loc="outside upper center", ncols=across, columnspacing=1.2)
    return figure


def draw_losses(
    table: pd.DataFrame, note: str = "", x: Axis = "required_flops", order: Sequence[str] = ()
) -> Figure:  # fmt: skip
    """Draw `points_table` of one loss over one of its amounts; a line is a fitted curve, and nothing else is.

    `note` stands below; `order` is that of the study's arms, which their looks follow.
    """
    from matplotlib.figure import Figure

    styles = _styles(table, x, order)
    lines = textwrap.wrap(note, 66)
    fitted = set(table.loc[table["layer"].isin(["curve", "beyond"]) & table[x].notna(), "arm"])
    handles = [*arm_handles(styles, lines=fitted), *_layer_handles(table, x)]
    across = legend_columns([str(handle.get_label()) for handle in handles], COLUMN_INCHES)
    above = 0.14 * max(0, math.ceil(len(handles) / across) - 2)
    figure = Figure(figsize=(COLUMN_INCHES, 2.5 + above + 0.11 * len(lines)), layout="constrained")
    axes = figure.subplots()
    aside = _aside(table, x)
    limits, scale, label = _axis(table, x, aside)
    _panel(axes, table, x, styles, aside, joined=False)
    _amounts(axes, limits, scale, most=6)
    name = OUTCOMES[str(table["task"].iloc[0])].removeprefix("the ")
    axes.set_ylabel(f"{name} (nats per target token)")
    axes.set_xlabel(label)
    figure.legend(handles=handles, loc="outside upper center", ncols=across, columnspacing=1.2, handletextpad=0.5)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=6, color="#444444", x=0.02, ha="left", style="italic")
    return figure


def _styles(table: pd.DataFrame, x: Axis, order: Sequence[str]) -> dict[str, ArmStyle]:
    """Return the style of each arm that is drawn; of very many, those that lead at the largest budget have colours."""
    seen = table[table["layer"].isin(["run", "mid_decay"])]
    arms = list(dict.fromkeys([*order, *seen["arm"]]))
    drawn = set(seen.loc[seen[x].notna(), "arm"])
    means = table[(table["layer"] == "mean") & (table["task"] == table["task"].iloc[-1])]
    last = means[means["rung"] == means["rung"].max()].set_index("arm")["value"]
    nats = table["unit"].iloc[0] != "points"
    styles = arm_styles(arms, prominent(arms, list(last.sort_values(ascending=nats).index)))
    return {arm: style for arm, style in styles.items() if arm in drawn}


def _axis(table: pd.DataFrame, x: Axis, aside: Mapping[str, float]) -> tuple[tuple[float, float], float, str]:
    """Return the limits of the axis, the size of the unit that it is written in, and its label."""
    rows = table[table["layer"].isin(_AMOUNT_LAYERS) & table[x].notna()]
    at = rows[x] * rows["arm"].map(aside).fillna(1.0)
    low, high = room(at.tolist(), 0.07, log=True)
    written, scale = ("h", 1.0) if x == "device_hours" else unit_at(x, rows[x].max())
    # One budget fills no axis.
    return (min(low, at.min() / 1.1), max(high, at.max() * 1.1)), scale, f"{AXES[x]} ({written}, log scale)"


def _amounts(axes: Axes, limits: tuple[float, float], scale: float, *, most: int) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    log_ticks(axes.xaxis, *limits, scale=scale, most=most)


def _aside(table: pd.DataFrame, x: Axis) -> dict[str, float]:
    """Return the factor by which each arm is moved along x: arms that spent the same would hide one another."""
    means = table[(table["layer"] == "mean") & (table["task"] == table["task"].iloc[0])]
    arms = list(dict.fromkeys(table.loc[table["layer"] == "run", "arm"]))
    first = means[means["rung"] == means["rung"].min()][x]
    if len(arms) < 2 or len(first) < 2 or first.max() > 1.02 * first.min():
        return dict.fromkeys(arms, 1.0)
    spent = means[x]
    step = _SHIFT * max(0.5, math.log(spent.max() / spent.min())) * min(1.0, 6 / len(arms))
    return {arm: math.exp(step * (i - (len(arms) - 1) / 2)) for i, arm in enumerate(arms)}


def _panel(
    axes: Axes, rows: pd.DataFrame, x: Axis, styles: Mapping[str, ArmStyle], aside: Mapping[str, float],
    *, joined: bool = True,
) -> None:  # fmt: skip
    """Draw one outcome: its yardsticks, then arm by arm the curve, the runs, and their means.

    A band surrounds a line: the fitted curve where there is one, else, if they are `joined`, the line through the
    means; a mean without a line has a bar.
    """
    grid(axes)
    for row in rows[rows["layer"].isin(list(YARDSTICKS))].to_dict("records"):
        axes.axhline(row["value"], color=YARDSTICK_COLOUR, linewidth=0.8, linestyle=YARDSTICK_LINES[row["layer"]],
                     zorder=1)  # fmt: skip
    drawn = rows[rows[x].notna()]
    beyond, runs = drawn[drawn["layer"] == "beyond"], drawn[drawn["layer"] == "run"]
    if len(beyond):
        for start, stop in ((beyond[x].min(), runs[x].min()), (runs[x].max(), beyond[x].max())):
            if start < stop:
                axes.axvspan(start, stop, color=BEYOND_COLOUR, linewidth=0, zorder=0)
    for arm, style in styles.items():
        own = drawn[drawn["arm"] == arm]
        layers = {layer: own[own["layer"] == layer] for layer in _AMOUNT_LAYERS}
        at = {layer: part[x] * aside.get(arm, 1.0) for layer, part in layers.items()}
        fitted = len(layers["curve"]) > 0
        _line(axes, at, layers, style)
        axes.plot(at["run"], layers["run"]["value"], linestyle="none", marker=style.marker, markersize=2.0,
                  markeredgewidth=0.5, markerfacecolor="white", color=style.colour, alpha=0.55, zorder=2.5)  # fmt: skip
        axes.plot(at["mid_decay"], layers["mid_decay"]["value"], linestyle="none", marker="x", markersize=3.0,
                  markeredgewidth=0.7, color=style.colour, zorder=2.6)  # fmt: skip
        means, places = layers["mean"], at["mean"]
        bars = means[["low", "high"]].notna().all(axis=1)
        lines = joined and not fitted and len(means) > 1
        if lines and bars.any():
            axes.fill_between(places, means["low"], means["high"], color=style.colour, alpha=0.13, linewidth=0,
                              zorder=1.5)  # fmt: skip
        elif bars.any():
            known = means[bars]
            spread = [known["value"] - known["low"], known["high"] - known["value"]]
            axes.errorbar(places[bars], known["value"], yerr=spread, linestyle="none", color=style.colour,
                          elinewidth=0.8, capsize=1.6, capthick=0.8, zorder=2.8)  # fmt: skip
        axes.plot(places, means["value"], linestyle=style.dash if lines else "none", marker=style.marker,
                  markeredgecolor="white", markeredgewidth=0.4, color=style.colour, zorder=3)  # fmt: skip


def _line(
    axes: Axes, at: Mapping[str, pd.Series], layers: Mapping[str, pd.DataFrame], style: ArmStyle
) -> None:  # fmt: skip
    """Draw a fitted curve with its band: full inside the fitted range, thin beyond it."""
    curve, beyond = layers["curve"], layers["beyond"]
    if curve.empty:
        return
    axes.plot(at["curve"], curve["value"], color=style.colour, linestyle=style.dash, zorder=2)
    _band(axes, at["curve"], curve, style, 0.16)
    inside = at["curve"].min(), at["curve"].max()
    for side in (at["beyond"] < inside[0], at["beyond"] > inside[1]):
        part = beyond[side]
        if part.empty:
            continue
        # The two parts meet at the end of the range.
        edge = curve[at["curve"] == (inside[0] if part.index[0] < curve.index[0] else inside[1])]
        whole = pd.concat([part, edge]).sort_index()
        places = pd.concat([at["beyond"][side], at["curve"][edge.index]]).sort_index()
        axes.plot(places, whole["value"], color=style.colour, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
        _band(axes, places, whole, style, 0.08)


def _band(axes: Axes, at: pd.Series, rows: pd.DataFrame, style: ArmStyle, alpha: float) -> None:
    if rows[["low", "high"]].notna().all(axis=None):
        axes.fill_between(at, rows["low"], rows["high"], color=style.colour, alpha=alpha, linewidth=0, zorder=1.4)


def _layer_handles(table: pd.DataFrame, x: Axis) -> Sequence[Any]:
    from matplotlib.lines import Line2D

    handles = yardstick_handles(table["layer"])
    if (table.loc[table[x].notna(), "layer"] == "mid_decay").any():
        handles.append(Line2D([], [], linestyle="", marker="x", markersize=3, color="#555555", label="in mid-decay"))  # type: ignore[arg-type]
    return handles
