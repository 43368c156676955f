"""Tables for terminals, for the page and as frames."""

from budgetlab.reporting.tables.answers import fit_sheet, gate_lines, verdict_sheet
from budgetlab.reporting.tables.assumptions import assumption_sheet, assumption_words
from budgetlab.reporting.tables.closing import closing_frame, closing_note, closing_sheet, full_sheet
from budgetlab.reporting.tables.costs import (
    model_sheet,
    phase_sheet,
    profile_sheet,
    ratio_sheet,
    time_model_sheet,
)
from budgetlab.reporting.tables.maps import map_sheet, next_sheet
from budgetlab.reporting.tables.plans import plan_sheet, status_sheet
from budgetlab.reporting.tables.scores import average_sheet, score_sheet
from budgetlab.reporting.tables.sheets import Column, Sheet, markdown, plain_lines, print_sheets, stack

__all__ = [
    "Column",
    "Sheet",
    "assumption_sheet",
    "assumption_words",
    "average_sheet",
    "closing_frame",
    "closing_note",
    "closing_sheet",
    "fit_sheet",
    "full_sheet",
    "gate_lines",
    "map_sheet",
    "markdown",
    "model_sheet",
    "next_sheet",
    "phase_sheet",
    "plain_lines",
    "plan_sheet",
    "print_sheets",
    "profile_sheet",
    "ratio_sheet",
    "score_sheet",
    "stack",
    "status_sheet",
    "time_model_sheet",
    "verdict_sheet",
]
