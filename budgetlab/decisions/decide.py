"""All that bears on a decision, from one study's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from budgetlab.decisions.assumptions import assumptions
from budgetlab.decisions.evidence import Evidence
from budgetlab.values import Assumption, FitSpec, Verdict

__all__ = ["Decisions", "decide"]


@dataclass(frozen=True)
class Decisions:
    """What a study's verdicts rest on, and what follows from them."""

    assumptions: tuple[Assumption, ...] = ()


def decide(own: Evidence, spec: FitSpec, verdicts: Sequence[Verdict], *, beside: Sequence[Evidence] = ()) -> Decisions:
    """Test what a study's verdicts rest on; nothing where there is no verdict.

    Parameters
    ----------
    own
        The study: its plan and scores.
    spec
        Law, columns and level.
    verdicts
        From `compare_arms`.
    beside
        Other studies, whose arms may test what this one's cannot.
    """
    if not verdicts:
        return Decisions()
    return Decisions(assumptions=assumptions(own.scores, own.plan, spec, verdicts, beside=beside))
