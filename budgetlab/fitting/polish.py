"""The last digits of a least-absolute-deviation fit: at its vertex, by linear programs on the linearised law."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, identity

from budgetlab.fitting.design import AnyDesign, Sample
from budgetlab.fitting.objectives import Objective
from budgetlab.laws.base import Array

_MOST_POINTS = 20_000
"""Beyond this the smoothed optimum is kept: it is within 1e-8 of the vertex."""


def polish_lad(design: AnyDesign, theta: Array, sample: Sample, objective: Objective) -> tuple[Array, float]:
    """Move a smoothed least-absolute-deviation optimum to the vertex of the unsmoothed one."""
    points, decrease = len(sample.outcome), float("inf")
    if points > _MOST_POINTS:
        return theta, decrease
    # A solver's tolerances are absolute: everything is scaled so that the mean residual is 1.
    residual = sample.log_outcome - design.log_prediction(theta[None])[0]
    scale = max(float(np.abs(residual).mean()), 1e-14)
    above, below = objective.asymmetry * sample.weights, sample.weights
    eye = identity(points, format="csr")
    radius = 0.1
    value = _value(design, theta, sample, objective)
    for _ in range(12):
        residual = sample.log_outcome - design.log_prediction(theta[None])[0]
        gradients = design.gradients(theta)
        low = np.maximum(design.lower - theta, -radius)
        high = np.minimum(design.upper - theta, radius)
        found = linprog(
            np.concatenate([np.zeros(design.size), above, below]),
            A_eq=hstack([csr_array(gradients), eye, -eye], format="csr"),
            b_eq=residual / scale,
            bounds=[*zip(low / scale, high / scale, strict=True), *[(0.0, None)] * (2 * points)],
            method="highs",
        )
        if found.x is None or found.fun is None:
            return theta, decrease
        decrease = max(0.0, 1.0 - float(found.fun) * scale / max(value, 1e-300))
        trial = np.clip(theta + scale * found.x[: design.size], design.lower, design.upper)
        trial = _onto_vertex(design, trial, sample)
        new = _value(design, trial, sample, objective)
        if new < value:
            theta, value = trial, new
        if decrease <= 1e-10:
            break
        if new >= value:
            radius /= 8
    return theta, decrease


def _value(design: AnyDesign, theta: Array, sample: Sample, objective: Objective) -> float:
    return float(objective.value(design.log_prediction(theta[None])[0], sample.outcome, sample.weights))


def _onto_vertex(design: AnyDesign, theta: Array, sample: Sample) -> Array:
    """Make the curve pass exactly through the points that it nearly passes through, one per free parameter."""
    inside = (theta > design.lower) & (theta < design.upper)
    for _ in range(3):
        residual = sample.log_outcome - design.log_prediction(theta[None])[0]
        through = np.argsort(np.abs(residual), kind="stable")[: int(inside.sum())]
        system = design.gradients(theta)[np.ix_(through, inside)]
        step = np.linalg.lstsq(system, residual[through], rcond=1e-12)[0]
        if not np.isfinite(step).all() or np.abs(step).max(initial=0.0) > 1e-3:
            return theta
        theta = theta.copy()
        theta[inside] += step
        theta = np.clip(theta, design.lower, design.upper)
    return theta
