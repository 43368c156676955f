"""The certificate of a fit, and the status that follows: is it the optimum, the only one, and do the data determine it.

Gradient and Newton decrement at the end, agreement of independent starts, the optima they found, a second solver,
parameters on a bound, and the width of the profile likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from budgetlab.fitting.design import Design, evaluate
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import Law, Parameter
from budgetlab.laws.law import Array
from budgetlab.resampling import percentile_interval, t_quantile

GAP_TOLERANCE = 1e-9
"""Relative gap to the best optimum found above which parameters are not the optimum."""
_LADDER = np.array([0.25, 0.6, 1.0, 1.6, 4.0, 12.0, 40.0])
"""Where a profile is looked at, in units of its expected half width."""
_WIDTH = 3.0
"""A parameter is determined when its profile interval is closed and its ends are within this factor."""
_FLOOR_SHARE = 0.5
"""A floor is determined when its interval is shorter than this share of what the outcomes have above it, on average."""
_SHORTEST_SPAN = 2.0
"""An input that varies less says nothing of its power: any steep curve is straight over so short a stretch."""
_EXACT = 1e-9

Ends = tuple[float | None, float | None]
"""Where a profile falls below the level, None where it does not before the parameter's bound."""


@dataclass(frozen=True)
class Solution:
    """The best end of all starts, `optima.theta[best]`, and what became of it: status, detail and certificate."""

    design: Design
    sample: Sample
    objective: Objective
    optima: Optimum
    best: int
    status: FitStatus = FitStatus.CONVERGED
    detail: str = ""
    certificate: Mapping[str, Any] = field(default_factory=dict)

    @property
    def theta(self) -> Array:
        """The optimum."""
        return self.optima.theta[self.best]

    @cached_property
    def value(self) -> float:
        """The objective there: itself, where `optima` are of a smooth neighbour."""
        return self.value_at(self.theta)

    @property
    def ended(self) -> bool:
        """Whether the solver ended at an optimum."""
        return bool(self.optima.converged[self.best])

    @cached_property
    def exact(self) -> bool:
        """Whether the data are noise-free: what is left is rounding, and no ratio of it means anything."""
        missed = self.sample.log_outcome - self.design.log_prediction(self.theta[None])[0]
        return float(np.abs(missed).max()) < _EXACT

    def value_at(self, theta: Array) -> float:
        """The objective at other parameters."""
        return float(self.objective.value(self.design.log_prediction(theta[None])[0], self.sample))


def judge(found: Solution, points: Points, other: float, level: float) -> Solution:
    """Certify a solution, given the objective that a second solver reached."""
    design, theta, exact = found.design, found.theta, found.exact
    gap = 0.0 if exact else max(0.0, found.value / max(other, 1e-300) - 1)
    # Of absolute deviations a smooth neighbour is solved.
    same = 1e-6 if found.objective.name == "lad" else GAP_TOLERANCE
    values, ends = found.optima.value, found.optima.theta
    profiles: dict[str, Ends] = (
        {name: (end, end) for name, end in zip(design.names, theta.tolist(), strict=True)}
        if exact
        else _profile(found, level, points.clusters)
    )
    distinct = _basins(found.optima, found.best)
    rivals = [] if exact else _rivals(found, distinct, level, points.clusters)
    margin = 1e-6 * (design.upper - design.lower)
    on_bound = (theta <= design.lower + margin) | (theta >= design.upper - margin)
    hits = [name for name, hit in zip(design.names, on_bound, strict=True) if hit]
    decrease = 0.0 if exact else float(found.optima.decrement[found.best]) / max(float(values[found.best]), 1e-300)
    gradient = float(np.linalg.norm(found.optima.gradient[found.best]))
    kinds = {name: _parameter(design, name) for name in design.names}
    certificate = {
        "gradient_norm": None if found.objective.name == "lad" else gradient,
        "newton_decrement_relative": decrease,
        "iterations": found.optima.iterations,
        "starts": len(values),
        "starts_agreeing": int((values <= values[found.best] * (1 + same) + 1e-25).sum()),
        "basins": [{"objective": float(values[i]), "params": _natural(design, ends[i])} for i in distinct],
        "second_solver": "scipy L-BFGS-B, exact gradient, another start",
        "second_solver_objective": other,
        "gap": gap,
        "at_bound": hits,
        "profile_level": level,
        # A coefficient is profiled as the size of its term at the geometric mean of the inputs.
        "profile": {
            f"{name}_term_at_centre" if kind.centred else name: [
                float(np.exp(end)) if kind.positive and end is not None else end for end in profiles[name]
            ]
            for name, kind in kinds.items()
        },
    }
    spans = {name: float(inputs.max() / inputs.min()) for name, inputs in points.inputs.items()}
    weak = [_weakness(design, name, profiles[name], spans) for name in design.names if name not in hits]
    status, detail = FitStatus.CONVERGED, ""
    if not found.ended and not exact:
        status, detail = FitStatus.NOT_CONVERGED, f"the solver still predicts a relative decrease of {decrease:.1e}"
    elif gap > same:
        status, detail = FitStatus.NOT_CONVERGED, f"a second solver ends {gap:.1e} lower"
    elif rivals:
        status, detail = FitStatus.SEVERAL_BASINS, "; ".join(rivals)
    elif hits:
        status, detail = FitStatus.AT_BOUND, ", ".join(_bound_text(design, theta, name) for name in hits)
    elif any(weak):
        status, detail = FitStatus.WEAKLY_IDENTIFIED, "; ".join(filter(None, weak))
    return replace(found, status=status, detail=detail, certificate=certificate)


def contradicted(
    law: Law, points: Points, params: Mapping[str, Array], drawn: Mapping[str, Array], level: float
) -> str:
    """Say what the draws leave open, though the profile closed it; empty where they agree.

    Coefficients are looked at as the size of their term at the geometric mean of the inputs: at an input of 1 they
    hang on its unit.
    """
    found, floor = [], law.floor
    if floor is not None and floor in drawn:
        low, high = percentile_interval(drawn[floor], level)
        above = float(np.average(points.outcome, weights=points.weights)) - float(params[floor])
        if high - low > _FLOOR_SHARE * above:
            found.append(f"{floor} (anywhere from {low:.3g} to {high:.3g}, with {above:.3g} above it)")
    for name in law.exponents:
        if name in drawn and name != floor:
            low, high = percentile_interval(drawn[name], level)
            if low <= 0 or high / low > _WIDTH:
                found.append(f"{name} (anywhere from {low:.3g} to {high:.3g})")
    for term in law.terms:
        if term.exponents and term.coefficient in drawn:
            with np.errstate(divide="ignore"):
                size = np.log(drawn[term.coefficient])
            for name, power in term.exponents.items():
                size = size - drawn.get(power, params[power]) * float(np.log(points.inputs[name]).mean())
            low, high = np.exp(percentile_interval(size, level))
            if high > _WIDTH * low:
                found.append(f"the {term.coefficient} term (anywhere from {low:.3g} to {high:.3g})")
    return "; ".join(found)


def _basins(optima: Optimum, best: int) -> list[int]:
    """Index one converged start for each distinct optimum, best first, beginning with the best start.

    Optima within 1e-6 of each other in value are one; so are those at the same place.
    """
    found = [best]
    for index in np.argsort(optima.value, kind="stable"):
        known = np.array([optima.value[i] for i in found])
        apart = np.abs(optima.theta[found] - optima.theta[index]).max(axis=1) > 1e-3
        with np.errstate(over="ignore"):  # a start that never came near the data
            distinct = np.abs(optima.value[index] / np.maximum(known, 1e-300) - 1) > 1e-6
        if optima.converged[index] and (apart & distinct).all():
            found.append(int(index))
    return found


def _rivals(found: Solution, distinct: list[int], level: float, clusters: np.ndarray | None) -> list[str]:
    """Describe the other optima that the data cannot tell from the best."""
    known = _gain(found.design, found.theta, found.sample, _smooth(found.objective), clusters)
    if known is None or not np.isfinite(known[0]):
        return []
    gain, freedom = known
    allowed = t_quantile((1 + level) / 2, freedom) ** 2 / (2 * gain)
    values, texts = found.optima.value, []
    for index in distinct[1:]:
        excess = float(values[index] - values[found.best])
        if excess <= allowed:
            params = _natural(found.design, found.optima.theta[index])
            shown = ", ".join(f"{name} {value:.4g}" for name, value in params.items())
            texts.append(f"{shown} at an objective only {excess / values[found.best]:.1e} higher")
    return texts


def _natural(design: Design, theta: Array) -> dict[str, float]:
    values: dict[str, float] = {}
    for group in design.groups:
        for name, value in design.to_params(theta, group).items():
            key = name if group is None or name in design.names else f"{name}[{group}]"
            if key in design.names:
                values[key] = float(value)
    return values


def _parameter(design: Design, name: str) -> Parameter:
    return design.law.parameters[design.law.params.index(name.partition("[")[0])]


def _label(design: Design, name: str) -> str:
    return f"the {name} term" if _parameter(design, name).centred else name


def _weakness(design: Design, name: str, ends: Ends, spans: Mapping[str, float]) -> str:
    (low, high), label, parameter = ends, _label(design, name), _parameter(design, name)
    for column, power in design.law.powers:
        if power == parameter.name and spans[column] < _SHORTEST_SPAN:
            return f"{label} ({column} spans a factor of {spans[column]:.3g} only)"
    if low is None and high is None:
        return f"{label} (any value fits)"
    if not parameter.positive and (low is None or low <= 0) and (high is None or high >= 0):
        return f"{label} (it may be zero)"
    if low is None:
        vanishes = parameter.centred or parameter.name == design.law.floor
        return f"{label} (it may be zero)" if vanishes else f"{label} (unbounded below)"
    if high is None:
        return f"{label} (unbounded above)"
    if parameter.positive:
        wide, low, high = np.exp(high - low) > _WIDTH, np.exp(low), np.exp(high)
    else:
        wide = max(abs(low), abs(high)) / min(abs(low), abs(high)) > _WIDTH
    return f"{label} (anywhere from {low:.3g} to {high:.3g})" if wide else ""


def _bound_text(design: Design, theta: Array, name: str) -> str:
    j, parameter = design.names.index(name), _parameter(design, name)
    at_lower = theta[j] - design.lower[j] < design.upper[j] - theta[j]
    bound = design.lower[j] if at_lower else design.upper[j]
    if not parameter.positive:
        return f"{name} at {bound:g}"
    if not parameter.centred and parameter.name != design.law.floor:
        return f"{name} at {np.exp(bound):.4g}"
    return f"{_label(design, name)} at {'zero' if at_lower else 'its upper bound'}"


def _profile(found: Solution, level: float, clusters: np.ndarray | None) -> dict[str, Ends]:
    """Profile the likelihood of every free parameter; rows of one cluster that err together count as fewer rows.

    The statistic is the robust likelihood ratio ``2 * gain * (objective - best)`` with ``gain`` the mean second
    derivative over the mean squared first derivative of the points' costs (exact for least squares), against the
    square of Student's t at the residual degrees of freedom: Heritier and Ronchetti 1994, JASA 89:897. It is followed
    to 40 expected half widths.
    """
    design, optimum, sample, smooth = found.design, found.theta, found.sample, _smooth(found.objective)
    if smooth is not found.objective:
        optimum = minimise(design, optimum[None], sample, smooth).theta[0]
    # Damped, since Huber may have no point within delta, and then no curvature at all.
    best, _, hessian = evaluate(design, optimum[None], sample, smooth, damping=1.0)
    known = _gain(design, optimum, sample, smooth, clusters)
    if known is None:
        return dict.fromkeys(design.names, (None, None))
    gain, freedom = known
    if not np.isfinite(gain):
        return {name: (end, end) for name, end in zip(design.names, optimum.tolist(), strict=True)}
    critical = t_quantile((1 + level) / 2, freedom) ** 2
    curvature, axes = np.linalg.eigh(hessian[0])
    curvature = np.maximum(np.abs(curvature), 1e-9 * np.abs(curvature).max() + 1e-300)
    covariance = (axes / curvature) @ axes.T
    spread = np.sqrt(np.einsum("pk,k->p", axes**2, 1 / curvature) * critical / gain)
    starts, fixed, ladders = [], [], {}
    for j in range(design.size):
        # Along the ridge of the quadratic approximation, so that Newton has little left to do.
        ridge = covariance[:, j] / covariance[j, j]
        for side, bound in ((-1.0, design.lower[j]), (1.0, design.upper[j])):
            ladder = np.unique(np.minimum(_LADDER * spread[j], abs(bound - optimum[j])))
            if not len(ladder) or ladder[-1] < 1e-9:
                ladder = ladder[:0]
            ladders[j, side] = slice(len(starts), len(starts) + len(ladder)), ladder
            for distance in ladder:
                starts.append(np.clip(optimum + side * distance * ridge, design.lower, design.upper))
                starts[-1][j] = optimum[j] + side * distance
                fixed.append(np.arange(design.size) == j)
    if not starts:
        return dict.fromkeys(design.names, (None, None))
    profiled = minimise(
        design, np.array(starts), sample, smooth, fixed=np.array(fixed), tolerance=1e-7, max_iterations=40
    )
    with np.errstate(over="ignore"):
        roots = np.sqrt(np.maximum(2 * gain * (profiled.value - best[0]), 0.0))
    ends: dict[tuple[int, float], float | None] = {}
    for (j, side), (rows, ladder) in ladders.items():
        distance = _crossing(np.append(0.0, ladder), np.append(0.0, roots[rows]), np.sqrt(critical))
        ends[j, side] = None if distance is None else float(optimum[j]) + side * distance
    return {name: (ends[j, -1.0], ends[j, 1.0]) for j, name in enumerate(design.names)}


def _smooth(objective: Objective) -> Objective:
    """The objective itself, or for least absolute deviations a smooth one that is close and still bends."""
    return objective.stages[min(3, len(objective.stages) - 1)]


def _gain(
    design: Design, theta: Array, sample: Sample, objective: Objective, clusters: np.ndarray | None
) -> tuple[float, float] | None:
    """Mean curvature over mean squared slope of the costs, and the residual degrees of freedom.

    The gain is infinite where the fit is exact; None is returned where nothing is left to judge it by.
    """
    log_prediction = design.log_prediction(theta[None])[0]
    _, first, second = objective.derivatives(log_prediction, sample.outcome, sample.log_outcome)
    slopes = sample.weights * first
    total, left = float((slopes**2).sum()), len(slopes) - design.size
    if left <= 0:
        return None
    if total <= 1e-24:
        return np.inf, 1.0
    effect = 1.0
    if clusters is not None:
        codes = np.unique(clusters, return_inverse=True)[1]
        effect = max(1.0, float((np.bincount(codes, weights=slopes) ** 2).sum()) / total)
    freedom = float((sample.weights > 0).sum()) / effect - design.size
    if objective.name == "squared":
        # In the log prediction the cost is bent by the exponential as well; what counts is the residual.
        second = 2.0 * np.exp(2 * log_prediction)
    elif objective.name == "huber_log":
        # The expected share of points within delta, from a band wide enough to hold a fair number of them: n^(4/5)
        # of the smallest residuals, as in a histogram.
        distance = np.abs(sample.log_outcome - log_prediction)
        count = min(len(distance), max(int(np.ceil(len(distance) ** 0.8)), 4))
        band = max(objective.delta, float(np.partition(distance, count - 1)[count - 1]))
        second = np.full_like(distance, float((distance <= band).mean()) * objective.delta / band)
    curvature = float((sample.weights * second).mean())
    return curvature * left / (total * effect), max(freedom, 1.0)


def _crossing(distances: Array, roots: Array, target: float) -> float | None:
    above = np.flatnonzero(roots >= target)
    if not len(above):
        return None
    i = int(above[0])
    share = (target - roots[i - 1]) / (roots[i] - roots[i - 1])
    return float(distances[i - 1] + share * (distances[i] - distances[i - 1]))
