"""Tables for terminals, for the page and as files: each is rows and a column spec."""

from budgetlab.reporting.tables.answer_sheets import (
    assumption_sheet,
    assumption_words,
    fit_sheet,
    map_sheet,
    next_sheet,
    runs_sheet,
    score_files_sheet,
    verdict_sheet,
)
from budgetlab.reporting.tables.cost_sheets import (
    model_sheet,
    phase_sheet,
    profile_sheet,
    ratio_sheet,
    time_model_sheet,
)
from budgetlab.reporting.tables.plan_sheets import plan_sheet, status_sheet
from budgetlab.reporting.tables.score_sheets import (
    average_sheet,
    closing_frame,
    closing_sheet,
    full_sheet,
    score_sheet,
    subset_note,
)
from budgetlab.reporting.tables.sheets import Column, Sheet, markdown, plain_lines, plain_rows, print_sheets, stack

__all__ = [
    "Column", "Sheet", "assumption_sheet", "assumption_words", "average_sheet", "closing_frame",
    "closing_sheet", "fit_sheet", "full_sheet", "map_sheet", "markdown", "model_sheet", "next_sheet", "phase_sheet",
    "plain_lines", "plain_rows", "plan_sheet", "print_sheets", "profile_sheet", "ratio_sheet", "runs_sheet",
    "score_files_sheet", "score_sheet", "stack", "status_sheet", "subset_note", "time_model_sheet", "verdict_sheet",
]  # fmt: skip
