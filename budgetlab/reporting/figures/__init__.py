"""Figures: outcomes against tokens, FLOPs and time, costs, plans, verdicts, any fit; each with its CSV."""

from budgetlab.reporting.figures.costs import costs_table, draw_costs
from budgetlab.reporting.figures.fits import draw_fit, fit_table
from budgetlab.reporting.figures.frontier import draw_frontier, frontier_table
from budgetlab.reporting.figures.isoflop import draw_isoflop, isoflop_table
from budgetlab.reporting.figures.maps import draw_map, map_table
from budgetlab.reporting.figures.outcomes import draw_losses, draw_scores
from budgetlab.reporting.figures.plans import draw_plan, draw_spent, plan_table, spent_table
from budgetlab.reporting.figures.points import fit_note, fit_notes, points_table, spread_note
from budgetlab.reporting.figures.show import (
    cost_figure,
    decomposition_figure,
    frontier_figure,
    isoflop_figure,
    loss_figure,
    map_figure,
    plan_figure,
    score_figure,
    spent_figure,
    verdict_figure,
)
from budgetlab.reporting.figures.style import FigureFiles, arm_styles, render
from budgetlab.reporting.figures.verdicts import (
    decomposition_table,
    draw_decomposition,
    draw_verdicts,
    multiplier_name,
    verdict_table,
)

__all__ = [
    "FigureFiles",
    "arm_styles",
    "cost_figure",
    "costs_table",
    "decomposition_figure",
    "decomposition_table",
    "draw_costs",
    "draw_decomposition",
    "draw_fit",
    "draw_frontier",
    "draw_isoflop",
    "draw_losses",
    "draw_map",
    "draw_plan",
    "draw_scores",
    "draw_spent",
    "draw_verdicts",
    "fit_note",
    "fit_notes",
    "fit_table",
    "frontier_figure",
    "frontier_table",
    "isoflop_figure",
    "isoflop_table",
    "loss_figure",
    "map_figure",
    "map_table",
    "multiplier_name",
    "plan_figure",
    "plan_table",
    "points_table",
    "render",
    "score_figure",
    "spent_figure",
    "spent_table",
    "spread_note",
    "verdict_figure",
    "verdict_table",
]
