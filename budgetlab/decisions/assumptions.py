"""The assumptions behind a comparison, each tested on the records at hand or named as untested."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from budgetlab.decisions.currencies import all_in_row, flops_row, seconds_row
from budgetlab.decisions.evidence import Evidence
from budgetlab.decisions.forms import exponent_row, floor_row, law_row, parameters_row, tasks_row
from budgetlab.decisions.question import Question, question_of
from budgetlab.decisions.settings import (
    learning_rate_row,
    outcomes_row,
    repetition_row,
    schedule_row,
    shape_row,
    teacher_row,
)
from budgetlab.decisions.unseen import largest_row
from budgetlab.errors import CallerError
from budgetlab.values import Assumption, FitSpec, Plan, Verdict

_ROWS = (
    law_row, floor_row, exponent_row, tasks_row, outcomes_row, largest_row, learning_rate_row, schedule_row, shape_row,
    repetition_row, teacher_row, parameters_row, flops_row, seconds_row, all_in_row,
)  # fmt: skip


def assumptions(
    scores: pd.DataFrame,
    plan: Plan,
    spec: FitSpec,
    verdicts: Sequence[Verdict],
    *,
    beside: Sequence[Evidence] = (),
    simulations: int = 199,
) -> tuple[Assumption, ...]:
    """Test every assumption that a study's verdicts rest on.

    Parameters
    ----------
    scores
        The tidy table of the store.
    plan
        What was run: arms, recipes, passes over the text, trials of learning rates.
    spec
        Law, columns and level of the study.
    verdicts
        From `compare_arms`; the primary ones are what is asked of, all of them where none is.
    beside
        Other studies, used where their arms are those of this one but for the one thing under test.
    simulations
        Tables drawn for each test of a shared parameter.

    Returns
    -------
    tuple of Assumption
        One row an assumption, always all of them and in one order; what the records do not test says what is missing.

    Raises
    ------
    CallerError
        When there is no verdict to rest on anything.
    """
    if not verdicts:
        raise CallerError(f"assumptions of {plan.study}", "there is no verdict", "evaluate and fit the study first")
    question: Question = question_of(Evidence(plan.study, plan, scores), tuple(beside), spec, verdicts, simulations)
    return tuple(row(question) for row in _ROWS)


def assumptions_frame(rows: Sequence[Assumption]) -> pd.DataFrame:
    """Tidy table, a row an assumption: what ``assumptions.csv`` holds."""
    columns = list(Assumption.model_fields)
    found = [{**row.model_dump(), "studies": ", ".join(row.studies)} for row in rows]
    return pd.DataFrame(found, columns=columns)
