"""The figures for notebooks: one function each, from what the store returns to a matplotlib figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting import IsoFlop
from budgetlab.reporting.figures.costs import costs_table, draw_costs
from budgetlab.reporting.figures.frontier import draw_frontier, frontier_table
from budgetlab.reporting.figures.isoflop import draw_isoflop, isoflop_table
from budgetlab.reporting.figures.maps import draw_map, map_table
from budgetlab.reporting.figures.outcomes import draw_losses, draw_scores
from budgetlab.reporting.figures.plans import draw_plan, draw_spent, plan_table, spent_table
from budgetlab.reporting.figures.points import Axis, fit_note, points_table
from budgetlab.reporting.figures.style import styled
from budgetlab.reporting.figures.verdicts import decomposition_table, draw_decomposition, draw_verdicts, verdict_table
from budgetlab.reporting.frames import LOSSES, mid_decay, per_run, summarise
from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_figure", "decomposition_figure", "frontier_figure", "isoflop_figure", "loss_figure", "map_figure",
           "plan_figure", "score_figure", "spent_figure", "verdict_figure"]  # fmt: skip

_DOTS_PER_INCH = 200
"""Sharp on a screen at the width of a column."""


def score_figure(
    scores: pd.DataFrame, fits: Sequence[CurveFit] = (), *, arms: Sequence[str] = (), tasks: Sequence[str] = (),
    level: float = 0.95, x: Axis = "tokens",
) -> Figure:  # fmt: skip
    """Draw scores, a panel a task and one for their mean, against tokens read, "required_flops" or "device_hours".

    Parameters
    ----------
    scores
        The tidy table of the store, or of `as_scores`.
    fits
        Curves to draw, of those that their status allows.
    arms, tasks
        Which, in order; default: all.
    level
        Of the intervals, which the bands are where an arm has three runs or more; of two runs they are the range.
    x
        The amount along the axis.

    Raises
    ------
    CallerError
        When there is nothing to draw, or the amount is unknown.
    """
    table = _points(scores, fits, arms, tasks, level, x, "scores")
    return _figure(lambda drawn: draw_scores(drawn, x), table)


def loss_figure(
    scores: pd.DataFrame, fits: Sequence[CurveFit] = (), *, arms: Sequence[str] = (), level: float = 0.95,
    x: Axis = "required_flops", task: str = "readout_loss",
) -> Figure:  # fmt: skip
    """Draw a loss against required FLOPs, "tokens" or "device_hours", with the fitted curves that may be used.

    Parameters and errors are those of `score_figure`; `task` is ``readout_loss`` or ``mlm_loss``.
    """
    table = _points(scores, fits, arms, [task], level, x, f"values of {task}")
    return _figure(lambda drawn: draw_losses(drawn, fit_note(fits, task, table, x), x), table)


def _points(
    scores: pd.DataFrame, fits: Sequence[CurveFit], arms: Sequence[str], tasks: Sequence[str], level: float, x: Axis,
    what: str,
) -> pd.DataFrame:  # fmt: skip
    runs = per_run(scores)
    chosen = list(arms) or list(pd.unique(runs.loc[runs["subject"] == "run", "arm"]))
    found = points_table(runs, summarise(runs, level), chosen, tasks, fits=fits, mid_decay=mid_decay(scores))
    asked = f"figure of {what}" + (f" of {', '.join(chosen)}" if 0 < len(chosen) <= 6 else "")
    if not (found["layer"] == "mean").any():
        known = [str(task) for task in pd.unique(scores["task"]) if task not in LOSSES or tasks]
        raise CallerError(asked, "no complete run has any", f"the table has {', '.join(known) or 'no rows'}")
    if found.loc[found["layer"] == "mean", x].isna().all():
        raise CallerError(asked, f"{x} of the runs is unknown", "choose another x")
    return found


def cost_figure(profile: CostProfile) -> Figure:
    """Draw what a token costs each arm, by phase, in FLOPs and in seconds."""
    return _figure(draw_costs, costs_table(profile))


def isoflop_figure(found: IsoFlop, table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> Figure:
    """Draw the parabolas that `isoflop` fitted to a table, and the optimal size against compute."""
    return _figure(draw_isoflop, isoflop_table(found, table, columns))


def spent_figure(plan: Plan, records: Iterable[RunRecord]) -> Figure:
    """Draw what each complete run spent over what was planned, in required FLOPs and in device time.

    Raises
    ------
    CallerError
        When no run is complete.
    """
    table = spent_table(plan, records)
    if table.empty:
        raise CallerError(f"figure of what {plan.study} spent", "no run is complete", "run it")
    return _figure(draw_spent, table)


def verdict_figure(
    verdicts: Sequence[Verdict] | Mapping[str, Sequence[Verdict]], y: str | None = None, *, arms: Sequence[str] = ()
) -> Figure:
    """Draw differences from the reference arm over the budget, and compute multipliers below them.

    Parameters
    ----------
    verdicts
        From `compare_arms`; or name -> verdicts of several studies, side by side, such as unlimited and limited data.
    y
        The outcome; default: that of the primary contrasts.
    arms
        The study's, in order, so that an arm looks as in its other figures.

    Raises
    ------
    CallerError
        When no verdict has a difference in it.
    """
    table = verdict_table(verdicts, y)
    if table.empty:
        raise CallerError(f"figure of verdicts on {y or 'the primary outcome'}", "there are none", "score two arms")
    return _figure(lambda drawn: draw_verdicts(drawn, arms), table)


def decomposition_figure(verdicts: Sequence[Verdict]) -> Figure:
    """Draw what makes up each primary difference: gain per token, and the effect of reading fewer tokens.

    Raises
    ------
    CallerError
        When no primary verdict could be decomposed.
    """
    table = decomposition_table(verdicts)
    if table.empty:
        reasons = {str((v.decomposition or {}).get("reason")) for v in verdicts if v.primary and v.decomposition}
        raise CallerError(
            "figure of a decomposition", "; ".join(sorted(reasons)) or "no primary verdict has one",
            "run the reference at the other arm's tokens (match equal_tokens), or at three budgets",
        )  # fmt: skip
    return _figure(draw_decomposition, table)


def map_figure(verdict_map: pd.DataFrame) -> Figure:
    """Draw `verdict_map`: who is ahead at which all-in compute, by how many students share the teacher."""
    return _figure(draw_map, map_table(verdict_map))


def frontier_figure(frontier: pd.DataFrame, *, arms: Sequence[str] = ()) -> Figure:
    """Draw `all_in_frontier`: every arm and size in compute, filled where nothing cheaper is better.

    `arms` are the study's, in order, so that an arm looks as in its other figures.
    """
    return _figure(lambda drawn: draw_frontier(drawn, arms), frontier_table(frontier))


def plan_figure(sensitivity: pd.DataFrame) -> Figure:
    """Draw tokens per arm under every meaning of compute, from `planner.sensitivity`."""
    return _figure(draw_plan, plan_table(sensitivity))


def _figure(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame) -> Figure:
    figure = styled(draw, table)

    def png() -> bytes:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DOTS_PER_INCH)
        return content.getvalue()

    # A notebook shows what can draw itself, whether or not pyplot was ever loaded.
    figure._repr_png_ = png  # type: ignore[attr-defined]
    return figure
