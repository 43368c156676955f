"""Scores and losses against tokens read, FLOPs or device time: runs, their means, fitted curves and yardsticks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.scores import OUTCOMES
from budgetlab.reporting.averages import BASELINES, MEAN, outcomes
from budgetlab.reporting.figures import style
from budgetlab.reporting.figures.figure import Figure, Known, styled
from budgetlab.reporting.figures.points import (
    AXES,
    LAYERS,
    Axis,
    fit_note,
    fit_notes,
    points_table,
    spread_note,
)
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
    table, order = _points(scores, fits, arms, tasks, level, x, "figure of scores")
    return styled(lambda drawn: draw_scores(drawn, x, order, fit_notes(fits, drawn, x)), table)


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
    table, order = _points(scores, fits, arms, [task], level, x, f"figure of values of {task}")
    return styled(lambda drawn: draw_losses(drawn, fit_note(fits, task, drawn, x), x, order), table)


def _points(
    scores: pd.DataFrame, fits: Sequence[CurveFit], arms: Sequence[str], tasks: Sequence[str], level: float, x: Axis,
    what: str,
) -> tuple[pd.DataFrame, list[str]]:  # fmt: skip
    """Return what is drawn, and the order of arms that was asked for."""
    if x not in AXES:
        raise unknown_name("x", x, AXES, f"{what}, x")
    if not 0 < level < 1:
        raise CallerError(f"{what}, level = {level:g}", "not between 0 and 1", "write 95 % as 0.95")
    order = [arms] if isinstance(arms, str) else list(arms)
    found = outcomes(scores, level)
    runs = found.runs[found.runs["subject"] == "run"]
    if len(runs):
        for task in tasks:
            if task not in {*LOSSES, *runs["task"]}:
                raise unknown_name("task", task, map(str, pd.unique(runs["task"])), f"{what}, task")
        if order and not set(order) & set(runs["arm"]):
            raise unknown_name("arm", order[0], map(str, pd.unique(runs["arm"])), f"{what}, arm")
    chosen = order or list(pd.unique(runs["arm"]))
    table = points_table(found, chosen, tasks, fits=fits)
    means = table.loc[table["layer"] == "mean", x]
    asked = what + (f" of {', '.join(chosen)}" if 0 < len(chosen) <= 6 else "")
    if means.empty:
        tabled = [str(task) for task in pd.unique(found.table["task"])]
        raise CallerError(asked, "no complete run has any", f"the table has {', '.join(tabled) or 'no rows'}")
    if means.isna().all():
        raise CallerError(asked, f"{x} of the runs is unknown", "choose another x")
    return table, order


@dataclass(frozen=True)
class _Frame:
    """What the panels of a figure of outcomes share."""

    styles: dict[str, style.ArmStyle]
    """Looks of the arms that are drawn; of very many, those that lead at the largest budget have colours."""
    aside: dict[str, float]
    """Factor by which each arm is moved along x: arms that spent the same would hide one another."""
    limits: tuple[float, float]
    label: str
    ticks: dict[str, Any]
    handles: list[Any]
    """Legend entries of what is no arm."""


def _frame(table: pd.DataFrame, x: Axis, order: Sequence[str]) -> _Frame:
    seen, means = table[table["layer"].isin(["run", "mid_decay"])], table[table["layer"] == "mean"]
    last = means[means["task"] == table["task"].iloc[-1]]
    last = last[last["rung"] == last["rung"].max()].set_index("arm")["value"]
    ranked = last.sort_values(ascending=table["unit"].iloc[0] != "points").index
    drawn = set(seen.loc[seen[x].notna(), "arm"])
    styles = style.arm_styles(list(dict.fromkeys([*order, *seen["arm"]])), list(ranked))
    arms = list(dict.fromkeys(seen.loc[seen["layer"] == "run", "arm"]))
    amounts = means[means["task"] == table["task"].iloc[0]]
    first, aside = amounts[amounts["rung"] == amounts["rung"].min()][x], dict.fromkeys(arms, 1.0)
    if len(arms) > 1 and len(first) > 1 and first.max() <= 1.02 * first.min():
        step = _SHIFT * max(0.5, math.log(amounts[x].max() / amounts[x].min())) * min(1.0, 6 / len(arms))
        aside = {arm: math.exp(step * (i - (len(arms) - 1) / 2)) for i, arm in enumerate(arms)}
    at = table.loc[table["layer"].isin(LAYERS), x] * table["arm"].map(aside).fillna(1.0)
    low, high = style.room(at.dropna().tolist(), 0.07, log=True)
    label, ticks = f"{_WORDS[x]} ({'' if x == 'tokens' else 'FLOP, '}log scale)", {"written": style.prefixes()}
    if x == "tokens":
        ticks = {"written": style.prefixes("tokens")}
    elif x == "device_hours":
        unit, seconds = style.budget_axis("device_seconds", 3600.0 * float(table[x].max()))
        label, ticks = f"{_WORDS[x]} ({unit}, log scale)", {"scale": seconds / 3600.0, "written": "{x:.4g}"}
    line = {"color": style.QUIET, "linewidth": 0.8}
    known = {subject: words for subject, words in BASELINES.items() if subject in set(table["layer"])}
    handles = [style.handle(words, linestyle=_DASHES[subject], **line) for subject, words in known.items()]
    if (table.loc[table[x].notna(), "layer"] == "mid_decay").any():
        handles.append(style.handle("in mid-decay", color="#555555", **_EARLY))
    return _Frame(
        styles={arm: look for arm, look in styles.items() if arm in drawn},
        aside=aside,
        limits=(min(low, at.min() / 1.1), max(high, at.max() * 1.1)),  # one budget fills no axis
        label=label,
        ticks=ticks,
        handles=handles,
    )


def draw_scores(table: pd.DataFrame, x: Axis = "tokens", order: Sequence[str] = (), note: str = "") -> Drawing:
    """Draw `points_table` over one of its amounts, on a logarithmic axis: a panel a task.

    `order` is that of the study's arms, which their looks follow; `note` stands below.
    """
    shared, tasks = _frame(table, x, order), list(pd.unique(table["task"]))
    wide = len(tasks) > 6
    columns = 4 if wide else min(2, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    handles = [*style.arm_handles(shared.styles), *shared.handles]
    spare = len(tasks) % columns != 0 and len(handles) <= 10  # a panel without a task has room for the legend
    told = textwrap.wrap(note, 120 if wide else 58)
    height = (1.45 if lines > 1 else 1.75) * lines + 0.2 + 0.11 * len(told)
    width = style.TWO_COLUMNS_INCHES if wide else style.COLUMN_INCHES
    figure, panels = style.canvas(height, [] if spare else handles, (lines, columns), width=width)
    panels = panels.ravel()
    for axes, (task, rows) in zip(panels, table.groupby("task", sort=False), strict=False):
        _panel(axes, rows, x, shared, joined=not (rows["layer"] == "curve").any())
        style.log_axis(axes, "x", shared.limits, most=4, **shared.ticks)
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
    figure.supxlabel("\n".join([shared.label, *told]))
    return figure


def draw_losses(table: pd.DataFrame, note: str = "", x: Axis = "required_flops", order: Sequence[str] = ()) -> Drawing:
    """Draw `points_table` of one loss over one of its amounts; a line is a fitted curve, and nothing else is.

    `note` stands below; `order` is that of the study's arms, which their looks follow.
    """
    shared, lines = _frame(table, x, order), textwrap.wrap(note, 66)
    fitted = set(table.loc[table["layer"].isin(["curve", "beyond"]) & table[x].notna(), "arm"])
    handles = [*style.arm_handles(shared.styles, lines=fitted), *shared.handles]
    figure, [[axes]] = style.canvas(2.25 + 0.11 * len(lines), handles)
    _panel(axes, table, x, shared, joined=False)
    style.log_axis(axes, "x", shared.limits, most=6, **shared.ticks)
    name = OUTCOMES[str(table["task"].iloc[0])].removeprefix("the ")
    axes.set(xlabel=shared.label, ylabel=f"{name} (nats per target token)")
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=6, color=style.INK, x=0.02, ha="left", fontstyle="italic")
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, x: Axis, shared: _Frame, *, joined: bool) -> None:
    """Draw one outcome: its yardsticks, then arm by arm the curve, the runs, and their means.

    A band surrounds a line: the fitted curve where there is one, else, if they are `joined`, the line through the
    means; a mean without a line has a bar.
    """
    axes.grid(axis="y")
    for row in rows[rows["layer"].isin(list(BASELINES))].to_dict("records"):
        axes.axhline(row["value"], color=style.QUIET, linewidth=0.8, linestyle=_DASHES[row["layer"]], zorder=1)
    drawn = rows[rows[x].notna()]
    drawn = drawn.assign(at=drawn[x] * drawn["arm"].map(shared.aside).fillna(1.0))
    layers: dict[Any, pd.DataFrame] = dict(iter(drawn.groupby(["arm", "layer"])))
    beyond, runs = (drawn.loc[drawn["layer"] == layer, x] for layer in ("beyond", "run"))
    if len(beyond):
        for start, stop in ((beyond.min(), runs.min()), (runs.max(), beyond.max())):
            if start < stop:
                axes.axvspan(start, stop, color="#F0F0F0", linewidth=0, zorder=0)
    for arm, look in shared.styles.items():
        runs, early, means, curve, beyond = (layers.get((arm, layer), drawn[:0]) for layer in LAYERS)
        if len(curve):
            _band(axes, curve, look, 0.16, linestyle=look.dash)
            first, last = curve["at"].min(), curve["at"].max()
            for outside, edge in ((beyond[beyond["at"] < first], first), (beyond[beyond["at"] > last], last)):
                if len(outside):  # the two parts meet at the end of the range
                    whole = pd.concat([outside, curve[curve["at"] == edge]]).sort_index()
                    _band(axes, whole, look, 0.08, linestyle=(0, (4, 2)), linewidth=0.8)
        if len(runs):
            faint = style.OPEN | {"marker": look.marker, "markersize": 2.0, "markeredgewidth": 0.5, "alpha": 0.55}
            axes.plot(runs["at"], runs["value"], color=look.colour, zorder=2.5, **faint)
        if len(early):
            axes.plot(early["at"], early["value"], color=look.colour, zorder=2.6, **_EARLY)
        lines = joined and curve.empty and len(means) > 1
        if lines:
            axes.fill_between(means["at"], means["low"], means["high"], color=look.colour, alpha=0.13, **style.AREA)
        elif len(means):
            style.intervals(axes, means["at"], means[["value", "low", "high"]], look.colour)
        axes.plot(means["at"], means["value"], linestyle=look.dash if lines else "none", zorder=3, **look.mark)


def _band(axes: Axes, rows: pd.DataFrame, look: style.ArmStyle, alpha: float, **line: Any) -> None:
    """Draw a part of a fitted curve, with its band where that is known."""
    axes.plot(rows["at"], rows["value"], color=look.colour, zorder=2, **line)
    axes.fill_between(rows["at"], rows["low"], rows["high"], color=look.colour, alpha=alpha, **style.AREA)


def _known_axes(table: pd.DataFrame) -> list[Axis]:
    """Axes on which some mean has a place."""
    means = table[table["layer"] == "mean"]
    return [x for x in AXES if means[x].notna().any()]


def _of_scores(name: str, x: Axis, what: str = "Score", task: str | None = None) -> Figure:
    def table(known: Known) -> pd.DataFrame:
        found = known.points if task is None else known.points[known.points["task"] == task]
        return found if x in _known_axes(found) else found[:0]

    def caption(table: pd.DataFrame, known: Known) -> str:
        # What the mean is of is said once.
        first = known.definitions if task is None and x == _known_axes(table)[0] else ()
        spread = "; ".join([*first, spread_note(known.points, known.outcomes)])
        return f"{what} against {_WORDS[x]}; {spread}; {known.where}."

    def draw(table: pd.DataFrame, known: Known) -> Drawing:
        return draw_scores(table, x, known.arms, fit_notes(known.fits, table, x))

    return Figure(name, "Outcomes", table, draw, caption)


def _of_losses(x: Axis, task: str, words: str, points: Callable[[Known], pd.DataFrame]) -> Figure:
    aside = "arms are drawn a little aside of one another; " if x == "required_flops" else ""

    def table(known: Known) -> pd.DataFrame:
        drawn = points(known)
        return drawn if x in _known_axes(drawn) else drawn[:0]

    return Figure(
        f"{task}_vs_{_NAMES[x]}",
        "Outcomes",
        table,
        draw=lambda table, known: draw_losses(table, fit_note(known.fits, task, table, x), x, known.arms),
        caption=lambda table, known: (
            f"Held-out {words} against {_WORDS[x]}; {aside}{spread_note(table, known.outcomes)}; {known.where}."
        ),
    )


FIGURES = (
    *(_of_scores(f"score_vs_{_NAMES[x]}", x) for x in AXES),
    _of_scores("cola_vs_tokens", "tokens", "CoLA", "cola"),
    *(_of_losses(x, "readout_loss", "read-out loss", lambda known: known.losses) for x in AXES[:2]),
    *(_of_losses(x, "lm_loss", "loss of the own head", lambda known: known.next_token_losses) for x in AXES[:2]),
)
