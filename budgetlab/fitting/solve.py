"""One certified solution: starts, Newton from all of them, a second solver, and what the certificate says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetlab.fitting.certificate import GAP_TOLERANCE, second_solver
from budgetlab.fitting.design import AnyDesign, Sample, build_design
from budgetlab.fitting.judge import Candidate, judge
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.polish import polish_lad
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import AnyLaw, Form
from budgetlab.laws.base import Array

_START_ITERATIONS = 60
_TRACE = 1e-2
"""A floor below this share of the smallest outcome is tried at zero."""


@dataclass(frozen=True)
class Solution:
    """The best optimum found for a design, and what is known about it.

    `exact` where the curve passes through every point to rounding.
    """

    design: AnyDesign
    sample: Sample
    objective: Objective
    theta: Array
    value: float
    exact: bool
    status: FitStatus
    detail: str
    certificate: Mapping[str, Any]


def solve(
    points: Points,
    law: AnyLaw,
    objective: Objective,
    *,
    pinned: Mapping[str, float],
    groups: Sequence[str] | None = None,
    shared: Sequence[str] = (),
    starts: int = 8,
    also: Mapping[str, float] | None = None,
    level: float = 0.95,
    certify: bool = True,
) -> Solution:
    """Fit a law that the points can carry."""
    design = build_design(law, points.inputs, points.outcome, pinned=pinned, groups=groups, shared=shared)
    sample = Sample.of(points.outcome, points.weights)
    start = _starts(design, points, groups, starts, pinned)
    if also is not None:
        start = np.vstack([start, design.to_theta({None: also})])
    optima = minimise(design, start, sample, objective, max_iterations=_START_ITERATIONS)
    best = int(optima.value.argmin())
    if not optima.converged[best]:
        again = minimise(design, optima.theta[best][None], sample, objective, max_iterations=1000)
        optima = optima.improved(best, again)
    optima = _without_a_trace(optima, best, design, sample, objective)
    found = _candidate(design, sample, objective, optima, best)
    if not certify:
        status = FitStatus.CONVERGED if found.ended or found.exact else FitStatus.NOT_CONVERGED
        return _solution(found, status, "the solver did not end", {})
    other, elsewhere = _second_opinion(found, start)
    if other < found.value * (1 - GAP_TOLERANCE) and not found.exact:
        optima = optima.improved(best, minimise(design, elsewhere[None], sample, objective))
        found = _candidate(design, sample, objective, optima, best)
    return _solution(found, *judge(found, points, other, level))


def _candidate(design: AnyDesign, sample: Sample, objective: Objective, optima: Optimum, best: int) -> Candidate:
    theta, ended = optima.theta[best], bool(optima.converged[best])
    decrease = float(optima.decrement[best]) / max(float(optima.value[best]), 1e-300)
    if objective.name == "lad":
        theta, promised = polish_lad(design, theta, sample, objective)
        if np.isfinite(promised):
            decrease, ended = promised, promised <= GAP_TOLERANCE
    value = _value(design, theta, sample, objective)
    return Candidate(design, sample, objective, optima, best, theta, value, ended, decrease)


def _solution(found: Candidate, status: FitStatus, detail: str, certificate: Mapping[str, Any]) -> Solution:
    return Solution(
        found.design, found.sample, found.objective, found.theta, found.value, found.exact, status, detail, certificate
    )


def _second_opinion(found: Candidate, start: Array) -> tuple[float, Array]:
    """Solve again, from the worst of the starts, so that the two solvers share nothing but the problem.

    Where that ends higher, the best of the starts has a second chance: another basin says nothing about this one.
    """
    scale = max(float(found.optima.value[found.best]), 1e-300)
    ends = []
    for begin in (start[-1], start[0]):
        _, theta = second_solver(found.design, begin, found.sample, found.objective.stages[-1], scale)
        ends.append((_value(found.design, theta, found.sample, found.objective), theta))
        if ends[-1][0] <= found.value * (1 + 1e-6):
            break
    return min(ends, key=lambda end: end[0])


def _value(design: AnyDesign, theta: Array, sample: Sample, objective: Objective) -> float:
    return float(objective.value(design.log_prediction(theta[None])[0], sample.outcome, sample.weights))


def _starts(
    design: AnyDesign, points: Points, groups: Sequence[str] | None, count: int, pinned: Mapping[str, float]
) -> Array:
    law = design.law
    if groups is None:
        # A sum of powers proposes what it would without pins, a form what is best with them.
        known = {"pinned": pinned} if isinstance(law, Form) else {}
        proposed = law.starts(points.inputs, points.outcome, count, **known)
        return design.to_theta({None: dict(zip(law.params, proposed.T, strict=True))})
    by_group: dict[str | None, dict[str, Array]] = {}
    labels = np.asarray(groups)
    for label in dict.fromkeys(groups):
        part = points.take(np.flatnonzero(labels == label))
        proposed = law.starts(part.inputs, part.outcome, count)
        by_group[label] = dict(zip(law.params, proposed.T, strict=True))
    fewest = min(len(values[law.params[0]]) for values in by_group.values())
    cut = {label: {name: v[:fewest] for name, v in values.items()} for label, values in by_group.items()}
    return design.to_theta(cut)


def _without_a_trace(optima: Optimum, best: int, design: AnyDesign, sample: Sample, objective: Objective) -> Optimum:
    """Put floors that have all but vanished on their bound, where that is better.

    A floor nears zero in equal steps of its logarithm, each worth less than the last: Newton would stop on the way.
    """
    floors = np.array([name.partition("[")[0] == design.law.floor for name in design.names])
    theta = optima.theta[best].copy()
    theta[floors & (theta < np.log(_TRACE * sample.outcome.min()))] = -np.inf
    if np.isfinite(theta).all():
        return optima
    again = minimise(design, theta[None], sample, objective)
    return optima.improved(best, again) if again.value[0] <= optima.value[best] else optima
