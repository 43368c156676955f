"""Others' results as input: transformers' trainer state, CSV of trackers, lm-evaluation-harness -> tidy tables."""

from budgetlab.intake.files import read_json
from budgetlab.intake.harness import read_harness
from budgetlab.intake.tables import FORMS, as_scores, read_table
from budgetlab.intake.trackers import read_tracker_csv
from budgetlab.intake.trainer import TRAINER_COLUMNS, read_trainer_state

__all__ = [
    "FORMS",
    "TRAINER_COLUMNS",
    "as_scores",
    "read_harness",
    "read_json",
    "read_table",
    "read_tracker_csv",
    "read_trainer_state",
]
