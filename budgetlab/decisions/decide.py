"""All that bears on a decision, from one study's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from budgetlab.decisions.assumptions import assumptions
from budgetlab.decisions.evidence import Evidence, alternatives
from budgetlab.decisions.next_run import next_runs
from budgetlab.decisions.teacher_budget import all_in_frontier, capacity_gap, verdict_map
from budgetlab.errors import CallerError
from budgetlab.fitting import compare_arms
from budgetlab.units import format_quantity
from budgetlab.values import Assumption, CurveFit, FitSpec, Plan, Verdict


@dataclass(frozen=True)
class Decisions:
    """What a study's verdicts rest on, and what follows from them."""

    assumptions: tuple[Assumption, ...] = ()
    next_runs: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Candidates, best first; ``attrs["sentence"]`` names the first."""
    verdict_map: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Over student size, all-in compute and students that share the teacher, from the study's own curves."""
    frontier: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Every measured arm and budget in all-in compute."""
    gap: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Students beside their teachers."""
    by_text: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
    """How much text there is -> the verdicts with it, this study's first; empty where no other study varies that."""
    notes: tuple[str, ...] = ()
    """What could not be said, and why."""


def decide(
    own: Evidence,
    spec: FitSpec,
    verdicts: Sequence[Verdict],
    *,
    fits: Sequence[CurveFit] = (),
    beside: Sequence[Evidence] = (),
) -> Decisions:
    """Test what a study's verdicts rest on; nothing where there is no verdict.

    Parameters
    ----------
    own
        The study: its plan and scores.
    spec
        Law, columns and level.
    verdicts
        From `compare_arms`.
    fits
        From `fit_arms`, for what may be predicted beyond the budgets.
    beside
        Other studies, whose arms may test what this one's cannot.
    """
    if not verdicts:
        return Decisions()
    notes: list[str] = []
    rows = assumptions(own.scores, own.plan, spec, verdicts, beside=beside)
    ahead = pd.DataFrame()
    try:
        ahead = next_runs(own, verdicts, rows)
    except CallerError as error:
        notes.append(str(error))
    charted = pd.DataFrame()
    try:
        charted = verdict_map(own, spec, fits=fits)
    except CallerError as error:
        notes.append(str(error))
    charged = own.plan.charge == "inference" and "required_flops" in own.scores
    return Decisions(
        verdict_map=charted,
        frontier=all_in_frontier(own, spec) if charged else pd.DataFrame(),
        gap=capacity_gap(own, spec),
        assumptions=rows,
        next_runs=ahead,
        by_text=_by_text(own, spec, verdicts, beside),
        notes=tuple(notes),
    )


def _by_text(
    own: Evidence, spec: FitSpec, verdicts: Sequence[Verdict], beside: Sequence[Evidence]
) -> dict[str, tuple[Verdict, ...]]:
    """Compare the arms of other studies too that differ from this one in the amount of text and in nothing else."""
    primary = [verdict for verdict in verdicts if verdict.primary]
    found = {_text(own.plan): tuple(verdicts)}
    for other in beside:
        if primary and all(_differs_in_text_alone(own, other, verdict) for verdict in primary):
            try:
                found.setdefault(_text(other.plan), compare_arms(other.scores, spec))
            except CallerError:
                continue  # its scores cannot be compared
    return found if len(found) > 1 else {}


def _differs_in_text_alone(own: Evidence, other: Evidence, verdict: Verdict) -> bool:
    pairs = alternatives(own, [other], *verdict.contrast, verdict.y, differs_in="text")
    return any(pair.where is other and (pair.a, pair.b) == verdict.contrast for pair in pairs)


def _text(plan: Plan) -> str:
    unique = plan.corpus.unique_tokens
    return "all of the text" if unique is None else f"{format_quantity(unique)} unique tokens"
