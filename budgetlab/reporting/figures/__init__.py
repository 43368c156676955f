"""Figures: scores against tokens, read-out loss against FLOPs, costs, the plan, any fit; each with its CSV."""

from budgetlab.reporting.figures.costs import costs_table, draw_costs
from budgetlab.reporting.figures.fits import draw_fit, fit_table
from budgetlab.reporting.figures.isoflop import draw_isoflop, isoflop_table
from budgetlab.reporting.figures.losses import curves_table, draw_losses, fit_note, losses_table
from budgetlab.reporting.figures.plans import draw_plan, plan_table
from budgetlab.reporting.figures.scores import draw_scores, scores_table
from budgetlab.reporting.figures.show import cost_figure, isoflop_figure, loss_figure, plan_figure, score_figure
from budgetlab.reporting.figures.style import FigureFiles, arm_styles, render

__all__ = [
    "FigureFiles",
    "arm_styles",
    "cost_figure",
    "costs_table",
    "curves_table",
    "draw_costs",
    "draw_fit",
    "draw_isoflop",
    "draw_losses",
    "draw_plan",
    "draw_scores",
    "fit_note",
    "fit_table",
    "isoflop_figure",
    "isoflop_table",
    "loss_figure",
    "losses_table",
    "plan_figure",
    "plan_table",
    "render",
    "score_figure",
    "scores_table",
]
