"""The certificate of a fit: is this the optimum, is it the only one, and do the data determine it.

Gradient and Newton decrement at the end, agreement of independent starts, the optima they found, a second solver
(scipy's L-BFGS-B with the exact gradient), parameters on a bound, and the width of the profile likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from budgetlab.fitting.design import AnyDesign, Sample, evaluate, slope
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective
from budgetlab.laws.base import Array
from budgetlab.resampling import t_quantile

GAP_TOLERANCE = 1e-9
"""Relative gap to the best optimum found above which parameters are not the optimum."""
_LADDER = np.array([0.25, 0.6, 1.0, 1.6, 4.0, 12.0, 40.0])
"""Where a profile is looked at, in units of its expected half width."""


@dataclass(frozen=True)
class Profile:
    """The profile likelihood of one free parameter.

    `low` and `high` are where it falls below the level, None where it does not before the parameter's bound.
    """

    estimate: float
    low: float | None
    high: float | None

    @property
    def closed(self) -> bool:
        """Whether the data bound the parameter on both sides."""
        return self.low is not None and self.high is not None


def bounds_hit(design: AnyDesign, theta: Array) -> tuple[str, ...]:
    """Name the free parameters that ended on a bound."""
    margin = 1e-6 * (design.upper - design.lower)
    on_bound = (theta <= design.lower + margin) | (theta >= design.upper - margin)
    return tuple(name for name, hit in zip(design.names, on_bound, strict=True) if hit)


def basins(optima: Optimum, best: int) -> list[int]:
    """Index one converged start for each distinct optimum, best first, beginning with the best start.

    Optima within `GAP_TOLERANCE` of each other in value are one; so are those at the same place.
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


def second_solver(
    design: AnyDesign, start: Array, sample: Sample, objective: Objective, scale: float
) -> tuple[float, Array]:
    """Solve again from another start with L-BFGS-B; the objective is divided by `scale` so that it can stop well."""

    def divided(theta: Array) -> tuple[float, Array]:
        value, gradient = slope(design, theta[None], sample, objective)
        with np.errstate(over="ignore"):  # of noise-free data the scale is next to nothing
            return float(value[0]) / scale, gradient[0] / scale

    bounds = list(zip(design.lower, design.upper, strict=True))
    theta = np.asarray(start, dtype=float)
    # A line search that meets a kink of Huber's gradient gives up early; a fresh start from there goes on.
    for _ in range(3):
        before = divided(theta)[0]
        theta = minimize(
            divided,
            theta,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 400, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        ).x
        if divided(theta)[0] > before * (1 - 1e-12):
            break
    return float(divided(theta)[0]) * scale, theta


def profile(
    design: AnyDesign,
    optimum: Array,
    sample: Sample,
    objective: Objective,
    names: tuple[str, ...],
    level: float,
    clusters: np.ndarray | None = None,
) -> dict[str, Profile]:
    """Profile the likelihood of some free parameters around an optimum of shape (free,).

    Rows of one cluster that err together count as fewer rows.

    Notes
    -----
    The statistic is the robust likelihood ratio ``2 * gain * (objective - best) `` with ``gain`` the mean second
    derivative over the mean squared first derivative of the points' costs (exact for least squares), against the
    square of Student's t at the residual degrees of freedom. It is followed to 40 expected half widths.

    References
    ----------
    Heritier and Ronchetti 1994, JASA 89:897.
    """
    smooth = _smooth(objective)
    if smooth is not objective:
        optimum = minimise(design, optimum[None], sample, smooth).theta[0]
    # Damped, since Huber may have no point within delta, and then no curvature at all.
    best, _, hessian = evaluate(design, optimum[None], sample, smooth, damping=1.0)
    nothing = {name: Profile(float(optimum[design.names.index(name)]), None, None) for name in names}
    known = _gain(design, optimum, sample, smooth, clusters)
    if known is None:
        return nothing
    gain, freedom = known
    if not np.isfinite(gain):
        return {name: Profile(found.estimate, found.estimate, found.estimate) for name, found in nothing.items()}
    critical = t_quantile((1 + level) / 2, freedom) ** 2
    curvature, axes = np.linalg.eigh(hessian[0])
    curvature = np.maximum(np.abs(curvature), 1e-9 * np.abs(curvature).max() + 1e-300)
    spread = np.sqrt(np.einsum("pk,k->p", axes**2, 1 / curvature) * critical / gain)
    starts, fixed, owners = [], [], []
    for name in names:
        j = design.names.index(name)
        for side in (-1.0, 1.0):
            bound = design.lower[j] if side < 0 else design.upper[j]
            ladder = np.unique(np.minimum(_LADDER * spread[j], abs(bound - optimum[j])))
            if not len(ladder) or ladder[-1] < 1e-9:
                continue
            # Along the ridge of the quadratic approximation, so that Newton has little left to do.
            covariance = (axes / curvature) @ axes.T
            ridge = covariance[:, j] / covariance[j, j]
            for distance in ladder:
                point = np.clip(optimum + side * distance * ridge, design.lower, design.upper)
                point[j] = optimum[j] + side * distance
                starts.append(point)
                fixed.append(np.arange(design.size) == j)
                owners.append((name, side, distance))
    if not starts:
        return nothing
    profiled = minimise(
        design, np.array(starts), sample, smooth, fixed=np.array(fixed), tolerance=1e-7, max_iterations=40
    )
    with np.errstate(over="ignore"):
        statistic = 2 * gain * (profiled.value - best[0])
    result = {}
    for name in names:
        j = design.names.index(name)
        ends: list[float | None] = []
        for side in (-1.0, 1.0):
            rows = [i for i, owner in enumerate(owners) if owner[:2] == (name, side)]
            distances = np.array([0.0] + [owners[i][2] for i in rows])
            roots = np.sqrt(np.maximum(np.array([0.0, *statistic[rows]]), 0.0))
            ends.append(_crossing(distances, roots, np.sqrt(critical), float(optimum[j]), side))
        result[name] = Profile(float(optimum[j]), ends[0], ends[1])
    return result


def allowance(
    design: AnyDesign,
    theta: Array,
    sample: Sample,
    objective: Objective,
    level: float,
    clusters: np.ndarray | None = None,
) -> float | None:
    """How far above the best an objective may lie before the data rule it out; None where there is no telling."""
    known = _gain(design, theta, sample, _smooth(objective), clusters)
    if known is None or not np.isfinite(known[0]):
        return None
    gain, freedom = known
    return t_quantile((1 + level) / 2, freedom) ** 2 / (2 * gain)


def _smooth(objective: Objective) -> Objective:
    """The objective itself, or for least absolute deviations a smooth one that is close and still bends."""
    return objective.stages[min(3, len(objective.stages) - 1)]


def _gain(
    design: AnyDesign, theta: Array, sample: Sample, objective: Objective, clusters: np.ndarray | None
) -> tuple[float, float] | None:
    """Mean curvature over mean squared slope of the costs, and the residual degrees of freedom.

    The gain is infinite where the fit is exact; None is returned where nothing is left to judge it by.
    """
    log_prediction = design.log_prediction(theta[None])[0]
    _, first, second = objective.derivatives(log_prediction, sample.outcome, sample.log_outcome)
    slopes = sample.weights * first
    total = float((slopes**2).sum())
    effect = 1.0
    if clusters is not None and total > 0:
        codes = np.unique(clusters, return_inverse=True)[1]
        effect = max(1.0, float((np.bincount(codes, weights=slopes) ** 2).sum()) / total)
    freedom = float((sample.weights > 0).sum()) / effect - design.size
    if len(slopes) <= design.size:
        return None
    if total <= 1e-24:
        return np.inf, 1.0
    freedom = max(freedom, 1.0)
    if objective.name == "squared":
        # In the log prediction the cost is bent by the exponential as well; what counts is the residual.
        second = 2.0 * np.exp(2 * log_prediction)
    elif objective.name == "huber_log":
        second = _huber_curvature(log_prediction, sample, objective)
    curvature = float((sample.weights * second).mean())
    return curvature * (len(slopes) - design.size) / (total * effect), freedom


def _huber_curvature(log_prediction: Array, sample: Sample, objective: Objective) -> Array:
    """Expected share of points within delta, from a band wide enough to hold a fair number of them."""
    distance = np.abs(sample.log_outcome - log_prediction)
    count = min(len(distance), max(_band_points(len(distance)), 4))
    band = max(objective.delta, float(np.partition(distance, count - 1)[count - 1]))
    share = float((distance <= band).mean()) * objective.delta / band
    return np.full_like(distance, share)


def _band_points(points: int) -> int:
    """How many of the smallest residuals estimate the density at zero: n^(4/5), as in a histogram."""
    return int(np.ceil(points**0.8))


def _crossing(distances: Array, roots: Array, target: float, estimate: float, side: float) -> float | None:
    above = np.flatnonzero(roots >= target)
    if not len(above):
        return None
    i = int(above[0])
    share = (target - roots[i - 1]) / (roots[i] - roots[i - 1])
    return estimate + side * float(distances[i - 1] + share * (distances[i] - distances[i - 1]))
