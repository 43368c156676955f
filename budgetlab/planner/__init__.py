"""Budgets become matched token schedules, and the answer to "what if": pure arithmetic, without torch."""

from budgetlab.planner.checks import checked, other_machine, rereads
from budgetlab.planner.match import plan
from budgetlab.planner.power import power
from budgetlab.planner.prices import effective_tokens, price_per_step
from budgetlab.planner.progress import Standing, standing
from budgetlab.planner.scenarios import (
    all_in,
    cached_teacher,
    definition_notes,
    sensitivity,
    what_if,
    with_throughput,
)
from budgetlab.planner.tuning import choose_rates, grid_ends, trial_losses, trial_plan, trials_key, tuning_note
from budgetlab.planner.words import (
    compute_statement,
    ladder_costs,
    ladder_note,
    latex_table,
    methods_paragraph,
    run_description,
    training_arguments,
)
from budgetlab.units import MATCHES

__all__ = [
    "MATCHES",
    "Standing",
    "all_in",
    "cached_teacher",
    "checked",
    "choose_rates",
    "compute_statement",
    "definition_notes",
    "effective_tokens",
    "grid_ends",
    "ladder_costs",
    "ladder_note",
    "latex_table",
    "methods_paragraph",
    "other_machine",
    "plan",
    "power",
    "price_per_step",
    "rereads",
    "run_description",
    "sensitivity",
    "standing",
    "training_arguments",
    "trial_losses",
    "trial_plan",
    "trials_key",
    "tuning_note",
    "what_if",
    "with_throughput",
]
