"""The what-if planner of the page: the planner's arithmetic in JavaScript, and the form that asks it."""

from budgetlab.reporting.whatif.markup import planner_source, whatif_html
from budgetlab.reporting.whatif.prices import price_data

__all__ = ["planner_source", "price_data", "whatif_html"]
