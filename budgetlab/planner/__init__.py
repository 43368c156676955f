"""Budgets become matched token schedules, and the answer to "what if": pure arithmetic, without torch."""

from budgetlab.planner.match import MATCHES, effective_tokens, plan, price_per_step
from budgetlab.planner.scenarios import all_in, cached_teacher, sensitivity, what_if, with_throughput
from budgetlab.planner.words import compute_statement, latex_table, methods_paragraph, training_arguments

__all__ = [
    "MATCHES",
    "all_in",
    "cached_teacher",
    "compute_statement",
    "effective_tokens",
    "latex_table",
    "methods_paragraph",
    "plan",
    "price_per_step",
    "sensitivity",
    "training_arguments",
    "what_if",
    "with_throughput",
]
