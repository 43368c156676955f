"""The figures for notebooks: one function each, from what the store returns to a matplotlib figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting import IsoFlop
from budgetlab.reporting.figures.costs import costs_table, draw_costs
from budgetlab.reporting.figures.frontier import draw_frontier, frontier_table
from budgetlab.reporting.figures.isoflop import draw_isoflop, isoflop_table
from budgetlab.reporting.figures.maps import draw_map, map_table
from budgetlab.reporting.figures.outcomes import draw_losses, draw_scores
from budgetlab.reporting.figures.plans import draw_plan, draw_spent, plan_table, spent_table
from budgetlab.reporting.figures.points import AXES, Axis, fit_note, fit_notes, points_table
from budgetlab.reporting.figures.style import styled
from budgetlab.reporting.figures.verdicts import decomposition_table, draw_decomposition, draw_verdicts, verdict_table
from budgetlab.reporting.frames import LOSSES, mid_decay, per_run, scores_frame, summarise
from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_DOTS_PER_INCH = 140
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
    table = _points(scores, fits, arms, tasks, level, x, "scores")
    return _figure(lambda drawn: draw_scores(drawn, x, _names(arms), fit_notes(fits, drawn, x)), table)


def loss_figure(
    scores: pd.DataFrame, fits: Sequence[CurveFit] = (), *, arms: Sequence[str] = (), level: float = 0.95,
    x: Axis = "required_flops", task: str = "readout_loss",
) -> Figure:  # fmt: skip
    """Draw a loss against required FLOPs, "tokens" or "device_hours", with the fitted curves that may be used.

    Parameters and errors are those of `score_figure`; `task` is ``readout_loss``, ``adapted_loss`` or ``mlm_loss``.
    """
    if task not in LOSSES:
        raise unknown_name("loss", task, LOSSES, "loss_figure, task")
    table = _points(scores, fits, arms, [task], level, x, f"values of {task}")
    return _figure(lambda drawn: draw_losses(drawn, fit_note(fits, task, table, x), x, _names(arms)), table)


def _points(
    scores: pd.DataFrame, fits: Sequence[CurveFit], arms: Sequence[str], tasks: Sequence[str], level: float, x: Axis,
    what: str,
) -> pd.DataFrame:  # fmt: skip
    if x not in AXES:
        raise unknown_name("x", x, AXES, f"figure of {what}, x")
    if not 0 < level < 1:
        raise CallerError(f"figure of {what}, level = {level:g}", "not between 0 and 1", "write 95 % as 0.95")
    scores = scores_frame(scores)
    runs = per_run(scores)
    known = runs[runs["subject"] == "run"]
    chosen, wanted = _names(arms) or list(pd.unique(known["arm"])), _names(tasks)
    for task in wanted if len(known) else ():
        if task not in {*LOSSES, *known["task"]}:
            raise unknown_name("task", task, map(str, pd.unique(known["task"])), f"figure of {what}, task")
    if len(known) and not set(chosen) & set(known["arm"]):
        raise unknown_name("arm", chosen[0], map(str, pd.unique(known["arm"])), f"figure of {what}, arm")
    found = points_table(runs, summarise(runs, level), chosen, wanted, fits=fits, mid_decay=mid_decay(scores))
    asked = f"figure of {what}" + (f" of {', '.join(chosen)}" if 0 < len(chosen) <= 6 else "")
    if not (found["layer"] == "mean").any():
        tabled = [str(task) for task in pd.unique(scores["task"])]
        raise CallerError(asked, "no complete run has any", f"the table has {', '.join(tabled) or 'no rows'}")
    if found.loc[found["layer"] == "mean", x].isna().all():
        raise CallerError(asked, f"{x} of the runs is unknown", "choose another x")
    return found


def _names(given: Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _need(table: pd.DataFrame, columns: Iterable[str], what: str, source: str) -> None:
    """Refuse a table that is empty or another one."""
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        wrong = f"no column {', '.join(missing)}" if len(table) else "the table has no rows"
        raise CallerError(f"figure of {what}", wrong, f"give the table of {source}")


def cost_figure(profile: CostProfile) -> Figure:
    """Draw what a token costs each arm, by phase, in FLOPs and in seconds, and by how much the two ratios disagree.

    Raises
    ------
    CallerError
        Without a profile, as the store returns none of a study that was never profiled.
    """
    if not isinstance(profile, CostProfile):
        raise CallerError("figure of costs", f"{type(profile).__name__} is no profile", "profile the study first")
    return _figure(draw_costs, costs_table(profile))


def isoflop_figure(found: IsoFlop, table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> Figure:
    """Draw the parabolas that `isoflop` fitted to a table, and the optimal size against compute."""
    given = columns or {}
    _need(table, [given.get(name, place) for name, place in found.columns.items()], "isoFLOP curves",
          "`isoflop`, with its columns")  # fmt: skip
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
    return _figure(lambda drawn: draw_spent(drawn, list(plan.arms)), table)


def verdict_figure(
    verdicts: Verdict | Sequence[Verdict] | Mapping[str, Sequence[Verdict]], y: str | None = None, *,
    arms: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Draw differences from the reference arm over the budget, and compute multipliers below them.

    Parameters
    ----------
    verdicts
        From `compare` or `compare_arms`; or name -> verdicts of several studies, side by side, such as unlimited and
        limited data.
    y
        The outcome; default: that of the primary contrasts.
    arms
        The study's, in order, so that an arm looks as in its other figures.

    Raises
    ------
    CallerError
        When no verdict has a difference in it.
    """
    found = [verdicts] if isinstance(verdicts, Verdict) else verdicts
    studies = found if isinstance(found, Mapping) else {"": found}
    outcomes = {verdict.y for of_study in studies.values() for verdict in of_study}
    if y is not None and outcomes and y not in outcomes:
        raise unknown_name("outcome", y, outcomes, "figure of verdicts, y")
    table = verdict_table(studies, y)
    if table.empty:
        raise CallerError(f"figure of verdicts on {y or 'the primary outcome'}", "there are none", "score two arms")
    return _figure(lambda drawn: draw_verdicts(drawn, _names(arms)), table)


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
    _need(verdict_map, ["student", "arm", "reference", "students_per_teacher", "total_flops", "answer", "basis"],
          "a verdict map", "`verdict_map`")  # fmt: skip
    return _figure(draw_map, map_table(verdict_map))


def frontier_figure(frontier: pd.DataFrame, *, arms: Sequence[str] = ()) -> Figure:
    """Draw `all_in_frontier`: every arm and size in compute, filled where nothing cheaper is better.

    `arms` are the study's, in order, so that an arm looks as in its other figures.
    """
    _need(frontier, ["student", "arm", "students_per_teacher", "all_in_flops", "outcome", "y"], "a frontier",
          "`all_in_frontier`")  # fmt: skip
    table = frontier_table(frontier)
    if table.empty:
        raise CallerError("figure of a frontier", "the all-in compute is unknown", "count the teacher's pretraining")
    return _figure(lambda drawn: draw_frontier(drawn, _names(arms)), table)


def plan_figure(sensitivity: pd.DataFrame) -> Figure:
    """Draw tokens per arm under every meaning of compute, from `planner.sensitivity`."""
    _need(sensitivity, ["match", "charge", "arm", "tokens"], "a plan", "`sensitivity`")
    table = plan_table(sensitivity)
    if table.empty:
        raise CallerError("figure of a plan", "no arm has tokens under any definition", "give a larger budget")
    return _figure(draw_plan, table)


def _figure(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame) -> Figure:
    figure = styled(draw, table)

    def png() -> bytes:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DOTS_PER_INCH)
        return content.getvalue()

    # A notebook shows what can draw itself, whether or not pyplot was ever loaded.
    figure._repr_png_ = png  # type: ignore[attr-defined]
    return figure
