"""Budgets become matched token schedules, and the answer to "what if": pure arithmetic, without torch."""

from budgetlab.planner.checks import checked, other_machine, rereads
from budgetlab.planner.match import plan
from budgetlab.planner.prices import effective_tokens, step_price
from budgetlab.planner.scenarios import (
    all_in,
    cached_teacher,
    definition_notes,
    power,
    sensitivity,
    what_if,
    with_throughput,
    written_text,
)
from budgetlab.planner.standing import (
    Standing,
    Workload,
    ladder_costs,
    ladder_note,
    predicted_times,
    standing,
    workload,
)
from budgetlab.planner.trainers import run_description, trainer_arguments, training_arguments
from budgetlab.planner.tuning import choose_rates, grid_ends, trial_losses, trial_plan, trials_key, tuning_note
from budgetlab.planner.words import (
    audit,
    compute_statement,
    latex_table,
    methods_paragraph,
)
from budgetlab.units import MATCHES
