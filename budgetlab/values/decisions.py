"""What bears on a decision: the assumptions behind a comparison, each tested or named as untested."""

from __future__ import annotations

from typing import Literal

from budgetlab.values.base import Value


class Assumption(Value):
    """One assumption behind a comparison: how it was tested here, and what came of it.

    "holds" means that the data at hand do not contradict it at the level of the study, never that it is proven.
    """

    name: str
    tested: str
    """How, in one phrase; where it was not, how it would be."""
    outcome: Literal["holds", "violated", "not_tested"]
    evidence: str = ""
    """The numbers, with their units; empty where it was not tested."""
    effect: str = ""
    """What becomes of the answer without the assumption."""
    missing: str = ""
    """The one thing that a test would need; empty where it was tested."""
    p_value: float | None = None
    """Of the assumption; adjusted by Holm's procedure where several contrasts were tested."""
    studies: tuple[str, ...] = ()
    """Whose records were used beside the study's own."""
