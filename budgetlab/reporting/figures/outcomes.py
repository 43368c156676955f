"""Scores and losses against tokens read, FLOPs or device time: runs, their means, fitted curves and yardsticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.scores import OUTCOMES
from budgetlab.reporting.averages import BASELINES, MEAN, mid_decay, per_run, scores_frame, summarise
from budgetlab.reporting.figures import style
from budgetlab.reporting.figures.data import AXES, Axis, Figure, Known, fit_note, fit_notes, points_table, spread_note
from budgetlab.values import CurveFit
from budgetlab.values.scoring import LOSSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_NAMES: dict[Axis, str] = {"tokens": "tokens", "required_flops": "flops", "device_hours": "hours"}
_WORDS: dict[Axis, str] = {
    "tokens": "tokens read by the student",
    "required_flops": "required training compute",
    "device_hours": "device time of the training",
}
_LAYERS = ("run", "mean", "mid_decay", "curve", "beyond")
_SHIFT = 0.02
"""By which arms are drawn aside of one another where they spent the same, in logarithms: the width of a marker."""
_DASHES = {"teacher": (0, ()), "random": (0, (4, 2)), "majority": (0, (1, 1.5)), "unigram": (0, (6, 2, 1, 2))}
_EARLY = {"linestyle": "none", "marker": "x", "markersize": 3.0, "markeredgewidth": 0.7}
"""How a checkpoint in mid-decay is marked."""
_METRICS = {"matthews": "Matthews", "f1": "F1", "macro_f1": "macro F1", "pearson_spearman": "correlation"}


def score_figure(
    scores: pd.DataFrame,
    fits: Sequence[CurveFit] = (),
    *,
    arms: Sequence[str] = (),
    tasks: Sequence[str] = (),
    level: float = 0.95,
    x: Axis = "tokens",
) -> Drawing:
    """Draw scores, a panel a task and one for their mean, against tokens read, "required_flops" or "device_hours".

    Parameters
    ----------
    scores
        The tidy table of the store, or of `as_scores`.
    fits
        Curves to draw, of those that their status allows.
    arms, tasks
        Which, in order; default: all. An arm looks as its place in `arms` says; one without a run is left out.
    level
        Of the intervals, which the bands are where an arm has three runs or more; of two runs they are the range.
    x
        The amount along the axis.

    Raises
    ------
    CallerError
        When there is nothing to draw, the amount or a task is unknown, or a table lacks a column.
    """
    tasks = [tasks] if isinstance(tasks, str) else tasks
    table, order = _points(scores, fits, arms, tasks, level, x, "scores")
    return style.styled(lambda drawn: draw_scores(drawn, x, order, fit_notes(fits, drawn, x)), table)


def loss_figure(
    scores: pd.DataFrame,
    fits: Sequence[CurveFit] = (),
    *,
    arms: Sequence[str] = (),
    level: float = 0.95,
    x: Axis = "required_flops",
    task: str = "readout_loss",
) -> Drawing:
    """Draw a loss against required FLOPs, "tokens" or "device_hours", with the fitted curves that may be used.

    Parameters and errors are those of `score_figure`; `task` is ``readout_loss``, ``adapted_loss`` or ``mlm_loss``.
    """
    if task not in LOSSES:
        raise unknown_name("loss", task, LOSSES, "loss_figure, task")
    table, order = _points(scores, fits, arms, [task], level, x, f"values of {task}")
    return style.styled(lambda drawn: draw_losses(drawn, fit_note(fits, task, drawn, x), x, order), table)


def _points(
    scores: pd.DataFrame, fits: Sequence[CurveFit], arms: Sequence[str], tasks: Sequence[str], level: float, x: Axis,
    what: str,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Return what is drawn, and the order of arms that was asked for."""
    what = f"figure of {what}"
    if x not in AXES:
        raise unknown_name("x", x, AXES, f"{what}, x")
    if not 0 < level < 1:
        raise CallerError(f"{what}, level = {level:g}", "not between 0 and 1", "write 95 % as 0.95")
    order = [arms] if isinstance(arms, str) else list(arms)
    scores = scores_frame(scores)
    averages = per_run(scores)
    runs = averages[averages["subject"] == "run"]
    if len(runs):
        for task in tasks:
            if task not in {*LOSSES, *runs["task"]}:
                raise unknown_name("task", task, map(str, pd.unique(runs["task"])), f"{what}, task")
        if order and not set(order) & set(runs["arm"]):
            raise unknown_name("arm", order[0], map(str, pd.unique(runs["arm"])), f"{what}, arm")
    chosen = order or list(pd.unique(runs["arm"]))
    cells, early = summarise(averages, level), mid_decay(scores)
    table = points_table(averages, cells, chosen, tasks, fits=fits, mid_decay=early)
    means = table.loc[table["layer"] == "mean", x]
    asked = what + (f" of {', '.join(chosen)}" if 0 < len(chosen) <= 6 else "")
    if means.empty:
        tabled = [str(task) for task in pd.unique(scores["task"])]
        raise CallerError(asked, "no complete run has any", f"the table has {', '.join(tabled) or 'no rows'}")
    if means.isna().all():
        raise CallerError(asked, f"{x} of the runs is unknown", "choose another x")
    return table, order


def draw_scores(table: pd.DataFrame, x: Axis = "tokens", order: Sequence[str] = (), note: str = "") -> Drawing:
    """Draw `points_table` over one of its amounts, on a logarithmic axis: a panel a task.

    `order` is that of the study's arms, which their looks follow; `note` stands below.
    """
    tasks = list(pd.unique(table["task"]))
    styles, wide = _styles(table, x, order), len(tasks) > 6
    columns = 4 if wide else min(2, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    handles = [*style.arm_handles(styles), *_layer_handles(table, x)]
    spare = len(tasks) % columns != 0 and len(handles) <= 10  # a panel without a task has style.room for the legend
    told = textwrap.wrap(note, 120 if wide else 58)
    height = (1.45 if lines > 1 else 1.75) * lines + 0.2 + 0.11 * len(told)
    width = style.TWO_COLUMNS_INCHES if wide else style.COLUMN_INCHES
    figure, panels = style.canvas(height, [] if spare else handles, (lines, columns), width=width)
    panels = panels.ravel()
    aside, (label, ticks) = _aside(table, x), _axis(table, x)
    for axes, task in zip(panels, tasks, strict=False):
        rows = table[table["task"] == task]
        _panel(axes, rows, x, styles, aside, joined=not (rows["layer"] == "curve").any())
        style.log_axis(axes, "x", _limits(table, x, aside), most=4, **ticks)
        metric = str(rows["metric"].iloc[0])
        of = textwrap.wrap(str(rows["subset"].iloc[0]), 34)  # a subset, or what the mean is of
        axes.set_title(metric if task == MEAN else task, loc="left", pad=3 + 6 * len(of), fontweight="bold")
        beneath = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 5, "linespacing": 1.0}
        axes.annotate("\n".join(of), (0, 1), (0, 2), color=style.INK, **beneath)
        name = "score" if task == MEAN else _METRICS.get(metric, metric)
        axes.set_ylabel("loss (nats)" if task in LOSSES else f"{name} (points)", labelpad=2)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    if spare:
        panels[-1].legend(handles=handles, loc="center", borderaxespad=0)
    figure.supxlabel("\n".join([label, *told]))
    return figure


def draw_losses(table: pd.DataFrame, note: str = "", x: Axis = "required_flops", order: Sequence[str] = ()) -> Drawing:
    """Draw `points_table` of one loss over one of its amounts; a line is a fitted curve, and nothing else is.

    `note` stands below; `order` is that of the study's arms, which their looks follow.
    """
    styles, lines = _styles(table, x, order), textwrap.wrap(note, 66)
    fitted = set(table.loc[table["layer"].isin(["curve", "beyond"]) & table[x].notna(), "arm"])
    handles = [*style.arm_handles(styles, lines=fitted), *_layer_handles(table, x)]
    figure, [[axes]] = style.canvas(2.25 + 0.11 * len(lines), handles)
    aside, (label, ticks) = _aside(table, x), _axis(table, x)
    _panel(axes, table, x, styles, aside, joined=False)
    style.log_axis(axes, "x", _limits(table, x, aside), most=6, **ticks)
    name = OUTCOMES[str(table["task"].iloc[0])].removeprefix("the ")
    axes.set(xlabel=label, ylabel=f"{name} (nats per target token)")
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=6, color=style.INK, x=0.02, ha="left", fontstyle="italic")
    return figure


def _axis(table: pd.DataFrame, x: Axis) -> tuple[str, dict[str, Any]]:
    """Return the label of an axis of amounts and how its ticks are written; time in hours, minutes or seconds."""
    if x == "device_hours":
        unit, seconds = style.budget_axis("device_seconds", 3600.0 * float(table[x].max()))
        return f"{_WORDS[x]} ({unit}, log scale)", {"scale": seconds / 3600.0, "written": "{x:.4g}"}
    unit = "" if x == "tokens" else "FLOP, "
    return f"{_WORDS[x]} ({unit}log scale)", {"written": style.prefixes("tokens" if x == "tokens" else "")}


def _styles(table: pd.DataFrame, x: Axis, order: Sequence[str]) -> dict[str, style.ArmStyle]:
    """Return the look of each arm that is drawn; of very many, those that lead at the largest budget have colours."""
    seen = table[table["layer"].isin(["run", "mid_decay"])]
    means = table[(table["layer"] == "mean") & (table["task"] == table["task"].iloc[-1])]
    last = means[means["rung"] == means["rung"].max()].set_index("arm")["value"]
    ranked = last.sort_values(ascending=table["unit"].iloc[0] != "points").index
    styles = style.arm_styles(list(dict.fromkeys([*order, *seen["arm"]])), list(ranked))
    drawn = set(seen.loc[seen[x].notna(), "arm"])
    return {arm: look for arm, look in styles.items() if arm in drawn}


def _limits(table: pd.DataFrame, x: Axis, aside: Mapping[str, float]) -> tuple[float, float]:
    rows = table[table["layer"].isin(_LAYERS) & table[x].notna()]
    at = rows[x] * rows["arm"].map(aside).fillna(1.0)
    low, high = style.room(at.tolist(), 0.07, log=True)
    return min(low, at.min() / 1.1), max(high, at.max() * 1.1)  # one budget fills no axis


def _aside(table: pd.DataFrame, x: Axis) -> dict[str, float]:
    """Return the factor by which each arm is moved along x: arms that spent the same would hide one another."""
    means = table[(table["layer"] == "mean") & (table["task"] == table["task"].iloc[0])]
    arms = list(dict.fromkeys(table.loc[table["layer"] == "run", "arm"]))
    first = means[means["rung"] == means["rung"].min()][x]
    if len(arms) < 2 or len(first) < 2 or first.max() > 1.02 * first.min():
        return dict.fromkeys(arms, 1.0)
    step = _SHIFT * max(0.5, math.log(means[x].max() / means[x].min())) * min(1.0, 6 / len(arms))
    return {arm: math.exp(step * (i - (len(arms) - 1) / 2)) for i, arm in enumerate(arms)}


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    x: Axis,
    styles: Mapping[str, style.ArmStyle],
    aside: Mapping[str, float],
    *,
    joined: bool,
) -> None:
    """Draw one outcome: its yardsticks, then arm by arm the curve, the runs, and their means.

    A band surrounds a line: the fitted curve where there is one, else, if they are `joined`, the line through the
    means; a mean without a line has a bar.
    """
    axes.grid(axis="y")
    for row in rows[rows["layer"].isin(list(BASELINES))].to_dict("records"):
        axes.axhline(row["value"], color=style.QUIET, linewidth=0.8, linestyle=_DASHES[row["layer"]], zorder=1)
    drawn = rows[rows[x].notna()]
    beyond, runs = drawn[drawn["layer"] == "beyond"], drawn[drawn["layer"] == "run"]
    if len(beyond):
        for start, stop in ((beyond[x].min(), runs[x].min()), (runs[x].max(), beyond[x].max())):
            if start < stop:
                axes.axvspan(start, stop, color="#F0F0F0", linewidth=0, zorder=0)
    for arm, look in styles.items():
        own = drawn[drawn["arm"] == arm]
        own = own.assign(at=own[x] * aside.get(arm, 1.0))
        runs, means, early, curve, beyond = (own[own["layer"] == layer] for layer in _LAYERS)
        if len(curve):
            _band(axes, curve, look, 0.16, linestyle=look.dash)
            inside = curve["at"].min(), curve["at"].max()
            for side, edge in ((beyond["at"] < inside[0], inside[0]), (beyond["at"] > inside[1], inside[1])):
                if side.any():  # the two parts meet at the end of the range
                    whole = pd.concat([beyond[side], curve[curve["at"] == edge]]).sort_index()
                    _band(axes, whole, look, 0.08, linestyle=(0, (4, 2)), linewidth=0.8)
        faint = style.OPEN | {"marker": look.marker, "markersize": 2.0, "markeredgewidth": 0.5, "alpha": 0.55}
        axes.plot(runs["at"], runs["value"], color=look.colour, zorder=2.5, **faint)
        axes.plot(early["at"], early["value"], color=look.colour, zorder=2.6, **_EARLY)
        lines = joined and not len(curve) and len(means) > 1
        if lines:
            axes.fill_between(means["at"], means["low"], means["high"], color=look.colour, alpha=0.13, **style.AREA)
        else:
            style.intervals(axes, means["at"], means[["value", "low", "high"]], look.colour)
        axes.plot(means["at"], means["value"], linestyle=look.dash if lines else "none", zorder=3, **look.mark)


def _band(axes: Axes, rows: pd.DataFrame, look: style.ArmStyle, alpha: float, **line: Any) -> None:
    """Draw a part of a fitted curve, with its band where that is known."""
    axes.plot(rows["at"], rows["value"], color=look.colour, zorder=2, **line)
    axes.fill_between(rows["at"], rows["low"], rows["high"], color=look.colour, alpha=alpha, **style.AREA)


def _layer_handles(table: pd.DataFrame, x: Axis) -> list[Any]:
    drawn = set(table["layer"])
    line = {"color": style.QUIET, "linewidth": 0.8}
    known = {subject: label for subject, label in BASELINES.items() if subject in drawn}
    handles = [style.handle(label, linestyle=_DASHES[subject], **line) for subject, label in known.items()]
    if (table.loc[table[x].notna(), "layer"] == "mid_decay").any():
        handles.append(style.handle("in mid-decay", color="#555555", **_EARLY))
    return handles


def _on(x: Axis, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of points where some mean has a place on an axis; else none of it."""
    return table if x in _known_axes(table) else table[:0]


def _known_axes(table: pd.DataFrame) -> list[Axis]:
    means = table[table["layer"] == "mean"]
    return [x for x in AXES if means[x].notna().any()]


def _spread(table: pd.DataFrame, known: Known) -> dict[str, str]:
    return {"spread": spread_note(table, known.outcomes.cells, known.level)}


def _scores_figure(x: Axis) -> Figure:
    def told(table: pd.DataFrame, known: Known) -> dict[str, str]:
        # What the mean is of is said once.
        first = known.definitions if x == _known_axes(table)[0] else ()
        return {"spread": "; ".join([*first, spread_note(table, known.outcomes.cells, known.level)])}

    return Figure(
        f"score_vs_{_NAMES[x]}",
        "Outcomes",
        table=lambda known: _on(x, known.points),
        draw=lambda table, known: draw_scores(table, x, known.arms, fit_notes(known.fits, table, x)),
        caption=f"Score against {_WORDS[x]}; {{spread}}; {{where}}.",
        told=told,
    )


def _loss_figure(x: Axis) -> Figure:
    aside = "arms are drawn a little aside of one another; " if x == "required_flops" else ""
    return Figure(
        f"readout_loss_vs_{_NAMES[x]}",
        "Outcomes",
        table=lambda known: _on(x, known.losses),
        draw=lambda table, known: draw_losses(table, fit_note(known.fits, "readout_loss", table, x), x, known.arms),
        caption=f"Held-out read-out loss against {_WORDS[x]}; {aside}{{spread}}; {{where}}.",
        told=_spread,
    )


FIGURES = (
    *map(_scores_figure, AXES),
    Figure(
        "cola_vs_tokens",
        "Outcomes",
        table=lambda known: _on("tokens", known.points[known.points["task"] == "cola"]),
        draw=lambda table, known: draw_scores(table, "tokens", known.arms, fit_notes(known.fits, table, "tokens")),
        caption=f"CoLA against {_WORDS['tokens']}; {{spread}}; {{where}}.",
        told=lambda table, known: _spread(known.points, known),
    ),
    *map(_loss_figure, AXES[:2]),
)
