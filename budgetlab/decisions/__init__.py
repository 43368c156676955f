"""What a comparison rests on, and what to do next: assumptions, the teacher's budget, the next run."""

from budgetlab.decisions.assumptions import assumptions, assumptions_frame
from budgetlab.decisions.decide import Decisions, decide, next_runs
from budgetlab.decisions.evidence import Evidence, may_test
from budgetlab.decisions.teacher_budget import all_in_frontier, capacity_gap, verdict_map

__all__ = [
    "Decisions",
    "Evidence",
    "all_in_frontier",
    "assumptions",
    "assumptions_frame",
    "capacity_gap",
    "decide",
    "may_test",
    "next_runs",
    "verdict_map",
]
