"""What a comparison rests on, and what to do next: assumptions, the teacher's budget, the next run."""

from budgetlab.decisions.assumptions import assumptions, assumptions_frame
from budgetlab.decisions.decide import Decisions, decide
from budgetlab.decisions.evidence import Evidence, may_test

__all__ = ["Decisions", "Evidence", "assumptions", "assumptions_frame", "decide", "may_test"]
