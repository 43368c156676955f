"""The figures for notebooks: one function each, from what the store returns to a matplotlib figure."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.fitting import IsoFlop
from budgetlab.reporting.figures.costs import costs_table, draw_costs
from budgetlab.reporting.figures.isoflop import draw_isoflop, isoflop_table
from budgetlab.reporting.figures.losses import curves_table, draw_losses, fit_note, losses_table
from budgetlab.reporting.figures.plans import draw_plan, plan_table
from budgetlab.reporting.figures.scores import Axis, draw_scores, scores_table
from budgetlab.reporting.figures.style import styled
from budgetlab.reporting.frames import per_run, summarise
from budgetlab.values import CostProfile, CurveFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["cost_figure", "isoflop_figure", "loss_figure", "plan_figure", "score_figure"]

_DOTS_PER_INCH = 200
"""Sharp on a screen at the width of a column."""


def score_figure(scores: pd.DataFrame, *, arms: Sequence[str] = (), level: float = 0.95, x: Axis = "tokens") -> Figure:
    """Draw scores, a panel a task and one for their mean, against tokens read, "required_flops" or "device_hours"."""
    runs = per_run(scores)
    return _figure(lambda table: draw_scores(table, x), scores_table(runs, summarise(runs, level), _arms(scores, arms)))


def loss_figure(
    scores: pd.DataFrame, fits: Sequence[CurveFit] = (), *, arms: Sequence[str] = (), level: float = 0.95
) -> Figure:
    """Draw read-out loss against required FLOPs, with the fitted curves that may be used."""
    runs, note = per_run(scores), fit_note(fits)
    table = losses_table(runs, summarise(runs, level), _arms(scores, arms), curves_table(fits))
    return _figure(lambda drawn: draw_losses(drawn, note), table)


def cost_figure(profile: CostProfile) -> Figure:
    """Draw what a token costs each arm, by phase, in FLOPs and in seconds."""
    return _figure(draw_costs, costs_table(profile))


def isoflop_figure(found: IsoFlop, table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> Figure:
    """Draw the parabolas that `isoflop` fitted to a table, and the optimal size against compute."""
    return _figure(draw_isoflop, isoflop_table(found, table, columns))


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


def _arms(scores: pd.DataFrame, arms: Sequence[str]) -> list[str]:
    return list(arms) or list(pd.unique(scores.loc[scores["subject"] == "run", "arm"]))
