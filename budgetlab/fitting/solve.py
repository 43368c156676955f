"""One certified solution: starts, Newton from all of them, and the certificate's findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetlab.fitting.certificate import (
    GAP_TOLERANCE,
    Profile,
    allowance,
    basins,
    bounds_hit,
    profile,
    second_solver,
)
from budgetlab.fitting.design import Design, Sample, build_design
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.polish import polish_lad
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import Law
from budgetlab.laws.base import Array

__all__ = ["Solution", "solve"]

_START_ITERATIONS = 60
_WIDTH = 3.0
"""A parameter is determined when its profile interval is closed and its ends are within this factor."""

_EXACT = 1e-9
_TRACE = 1e-2
"""A floor below this share of the smallest outcome is tried at zero."""
_SHORTEST_SPAN = 2.0
"""An input that varies less says nothing of its power: any steep curve is straight over so short a stretch."""


@dataclass(frozen=True)
class Solution:
    """The best optimum found for a design, and what is known about it."""

    design: Design
    sample: Sample
    objective: Objective
    theta: Array
    value: float
    status: FitStatus
    detail: str
    certificate: Mapping[str, Any]


def solve(
    points: Points,
    law: Law,
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
    """Fit a law that the points can carry.

    Parameters
    ----------
    points
        Checked points.
    law
        The law, after any reduction.
    objective
        The objective.
    pinned
        Parameters held at a value.
    groups, shared
        For joint fits: a label per point, in contiguous runs, and the parameters in common.
    starts
        How many starts variable projection proposes (per group).
    also
        Parameters to start from as well.
    level
        Of the profile intervals.
    certify
        Whether to spend time on the second solver and the profile; without, only convergence is reported.
    """
    design = build_design(law, points.inputs, points.outcome, pinned=pinned, groups=groups, shared=shared)
    sample = Sample.of(points.outcome, points.weights)
    start = _starts(design, points, groups, starts)
    if also is not None:
        start = np.vstack([start, design.to_theta({None: also})])
    optima = minimise(design, start, sample, objective, max_iterations=_START_ITERATIONS)
    best = int(optima.value.argmin())
    if not optima.converged[best]:
        again = minimise(design, optima.theta[best][None], sample, objective, max_iterations=1000)
        optima = optima.improved(best, again)
    optima = _without_a_trace(optima, best, design, sample, objective)
    theta = optima.theta[best]
    decrease = float(optima.decrement[best]) / max(float(optima.value[best]), 1e-300)
    ended = bool(optima.converged[best])
    if objective.name == "lad":
        theta, promised = polish_lad(design, theta, sample, objective)
        if np.isfinite(promised):
            decrease, ended = promised, promised <= GAP_TOLERANCE
    value = float(objective.value(design.log_prediction(theta[None])[0], sample.outcome, sample.weights))
    if not certify:
        status = FitStatus.CONVERGED if ended else FitStatus.NOT_CONVERGED
        return Solution(design, sample, objective, theta, value, status, "the solver did not end", {})
    return _certified(design, sample, objective, optima, best, theta, value, start, level, ended, decrease, points)


def _starts(design: Design, points: Points, groups: Sequence[str] | None, count: int) -> Array:
    law = design.law
    if groups is None:
        proposed = law.starts(points.inputs, points.outcome, count)
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


def _without_a_trace(optima: Optimum, best: int, design: Design, sample: Sample, objective: Objective) -> Optimum:
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


def _certified(
    design: Design,
    sample: Sample,
    objective: Objective,
    optima: Optimum,
    best: int,
    theta: Array,
    value: float,
    start: Array,
    level: float,
    ended: bool,
    decrease: float,
    points: Points,
) -> Solution:
    smooth_value = float(optima.value[best])
    # Noise-free data: what is left of the objective is rounding, and no ratio of it means anything.
    exact = float(np.abs(sample.log_outcome - design.log_prediction(theta[None])[0]).max()) < _EXACT
    # The worst of the starts, so that the two solvers have nothing in common but the problem.
    other = _second_value(design, start[-1], sample, objective, smooth_value)
    if other > value * (1 + 1e-6):
        other = min(other, _second_value(design, start[0], sample, objective, smooth_value))
    gap = 0.0 if exact else max(0.0, value / max(other, 1e-300) - 1)
    agreeing = int((optima.value <= smooth_value * (1 + GAP_TOLERANCE) + 1e-25).sum())
    judged = [name for name in design.names if name.partition("[")[0] in design.law.params]
    profiles = (
        {name: Profile(end, end, end) for name, end in zip(design.names, theta.tolist(), strict=True)}
        if exact
        else profile(design, theta, sample, objective, tuple(judged), level, points.clusters)
    )
    distinct = basins(optima, best)
    rivals = [] if exact else _rivals(design, sample, objective, optima, distinct, theta, level, points.clusters)
    hits = bounds_hit(design, theta)
    relative = 0.0 if exact else decrease
    certificate = {
        "gradient_norm": float(np.linalg.norm(optima.gradient[best])),
        "newton_decrement_relative": relative,
        "iterations": optima.iterations,
        "starts": len(optima.value),
        "starts_agreeing": agreeing,
        "basins": [
            {"objective": float(optima.value[i]), "params": _natural(design, optima.theta[i])} for i in distinct
        ],
        "second_solver": "scipy L-BFGS-B, exact gradient, another start",
        "second_solver_objective": other,
        "gap": gap,
        "at_bound": list(hits),
        "profile_level": level,
        "profile": {name: _profile_ends(design, name, profiles[name]) for name in judged},
    }
    spans = {name: float(values.max() / values.min()) for name, values in points.inputs.items()}
    weak = [_weakness(design, name, profiles[name], spans) for name in judged if name not in hits]
    weak = [text for text in weak if text]
    status, detail = FitStatus.CONVERGED, ""
    if not ended and not exact:
        status, detail = FitStatus.NOT_CONVERGED, f"the solver still predicts a relative decrease of {relative:.1e}"
    elif gap > GAP_TOLERANCE:
        status, detail = FitStatus.NOT_CONVERGED, f"a second solver ends {gap:.1e} lower"
    elif rivals:
        status, detail = FitStatus.SEVERAL_BASINS, "; ".join(rivals)
    elif hits:
        status, detail = FitStatus.AT_BOUND, ", ".join(_bound_text(design, theta, name) for name in hits)
    elif weak:
        status, detail = FitStatus.WEAKLY_IDENTIFIED, "; ".join(weak)
    return Solution(design, sample, objective, theta, value, status, detail, certificate)


def _second_value(design: Design, start: Array, sample: Sample, objective: Objective, scale: float) -> float:
    _, theta = second_solver(design, start, sample, objective.stages[-1], max(scale, 1e-300))
    return float(objective.value(design.log_prediction(theta[None])[0], sample.outcome, sample.weights))


def _rivals(
    design: Design,
    sample: Sample,
    objective: Objective,
    optima: Optimum,
    distinct: list[int],
    theta: Array,
    level: float,
    clusters: np.ndarray | None,
) -> list[str]:
    """Describe the other optima that the data cannot tell from the best."""
    limit = allowance(design, theta, sample, objective, level, clusters)
    if limit is None:
        return []
    texts = []
    for index in distinct[1:]:
        excess = float(optima.value[index] - optima.value[distinct[0]])
        if excess <= limit:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in _natural(design, optima.theta[index]).items())
            texts.append(f"{shown} at an objective only {excess / optima.value[distinct[0]]:.1e} higher")
    return texts


def _natural(design: Design, theta: Array) -> dict[str, float]:
    values: dict[str, float] = {}
    for group in design.groups:
        for name, value in design.to_params(theta, group).items():
            key = name if group is None or name in design.names else f"{name}[{group}]"
            if key in design.names:
                values[key] = float(value)
    return values


def _is_exponent(design: Design, name: str) -> bool:
    return name.partition("[")[0] in design.law.exponents


def _profile_ends(design: Design, name: str, found: Profile) -> list[float | None]:
    ends = [found.low, found.high]
    if _is_exponent(design, name):
        return ends
    # Coefficients are profiled as the size of their term at the geometric mean of the inputs.
    return [None if end is None else float(np.exp(end)) for end in ends]


def _label(design: Design, name: str) -> str:
    plain = name.partition("[")[0]
    return name if plain == design.law.floor or plain in design.law.exponents else f"the {name} term"


def _weakness(design: Design, name: str, found: Profile, spans: Mapping[str, float]) -> str:
    low, high = found.low, found.high
    label = _label(design, name)
    for term in design.law.terms:
        for column, power in term.exponents.items():
            if power == name.partition("[")[0] and spans[column] < _SHORTEST_SPAN:
                return f"{label} ({column} spans a factor of {spans[column]:.3g} only)"
    if low is None and high is None:
        return f"{label} (any value fits)"
    exponent = _is_exponent(design, name)
    if low is None or (exponent and low <= 0):
        return f"{label} (it may be zero)"
    if high is None:
        return f"{label} (unbounded above)"
    if (high / low if exponent else np.exp(high - low)) > _WIDTH:
        ends = (low, high) if exponent else (np.exp(low), np.exp(high))
        return f"{label} (anywhere from {ends[0]:.3g} to {ends[1]:.3g})"
    return ""


def _bound_text(design: Design, theta: Array, name: str) -> str:
    j = design.names.index(name)
    at_lower = theta[j] - design.lower[j] < design.upper[j] - theta[j]
    if _is_exponent(design, name):
        return f"{name} at {design.lower[j] if at_lower else design.upper[j]:g}"
    return f"{_label(design, name)} at zero" if at_lower else f"{_label(design, name)} at its upper bound"
