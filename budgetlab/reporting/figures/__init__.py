"""Figures: outcomes, differences, sizes, costs and any fit, each with its CSV. A new one is an entry of its file."""

from budgetlab.reporting.figures import outcomes, sizes, spending, verdicts
from budgetlab.reporting.figures.figure import Figure, FigureFiles, Known, render
from budgetlab.reporting.figures.outcomes import loss_figure, score_figure
from budgetlab.reporting.figures.sizes import (
    draw_fit,
    draw_isoflop,
    fit_table,
    frontier_figure,
    isoflop_figure,
    isoflop_table,
    map_figure,
)
from budgetlab.reporting.figures.spending import (
    cost_figure,
    costs_table,
    draw_costs,
    draw_plan,
    plan_figure,
    plan_table,
    spent_figure,
)
from budgetlab.reporting.figures.verdicts import decomposition_figure, verdict_figure

FIGURES: tuple[Figure, ...] = (*outcomes.FIGURES, *verdicts.FIGURES, *spending.FIGURES, *sizes.FIGURES)
"""All figures of a study, in the order in which they are drawn; a report has those with something to draw."""

__all__ = [
    "FIGURES",
    "Figure",
    "FigureFiles",
    "Known",
    "cost_figure",
    "costs_table",
    "decomposition_figure",
    "draw_costs",
    "draw_fit",
    "draw_isoflop",
    "draw_plan",
    "fit_table",
    "frontier_figure",
    "isoflop_figure",
    "isoflop_table",
    "loss_figure",
    "map_figure",
    "plan_figure",
    "plan_table",
    "render",
    "score_figure",
    "spent_figure",
    "verdict_figure",
]
