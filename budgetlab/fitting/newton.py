"""Damped Newton on many small problems at once, inside bounds.

Huber's second derivative is an indicator, so away from the optimum the Hessian may be singular or indefinite.
Against the first each problem carries a damping (`Objective.derivatives`), eased while steps succeed; against the
second eigenvalues enter by their absolute value. A parameter on its bound whose gradient points outward is held
there. Finished problems leave the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from budgetlab.fitting.design import Design, evaluate_blocks
from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.laws.law import Array

_LONGEST_STEP = 3.0
_EASE, _BRACE = 0.3, 30.0
"""Factors on the damping after a step that lowered the objective, and after one that did not."""
_MOST_CELLS = 16_000
"""Problems times points solved at once; why so few, `budgetlab.resampling` says."""
_NEAR = 1e-4
"""Share of a parameter's range within which it counts as near its bound."""
_TINY = 1e-28
"""Below this an objective is zero to rounding: noise-free data end here."""


@dataclass(frozen=True)
class Optimum:
    """Where the problems ended.

    Parameters and gradient of shape (problems, free), else (problems,). `decrement` is half of g' |H|^-1 g over the
    parameters that are not on a bound, the decrease that Newton still predicts; `converged` whether it is within the
    tolerance of the value; `iterations` the steps taken by the slowest problem.
    """

    theta: Array
    value: Array
    gradient: Array
    decrement: Array
    converged: np.ndarray
    iterations: int

    def improved(self, row: int, other: Optimum) -> Optimum:
        """Replace one problem's end by the only end in `other`."""
        ends = {name: getattr(self, name).copy() for name in _BY_PROBLEM}
        for name, values in ends.items():
            values[row] = getattr(other, name)[0]
        return Optimum(**ends, iterations=self.iterations + other.iterations)


_BY_PROBLEM = ("theta", "value", "gradient", "decrement", "converged")


def minimise(
    design: Design,
    start: Array,
    sample: Sample,
    objective: Objective,
    *,
    fixed: np.ndarray | None = None,
    damping: float = 1.0,
    tolerance: float = 1e-13,
    max_iterations: int = 400,
) -> Optimum:
    """Minimise the objective from every start."""
    theta = np.clip(start, design.lower, design.upper)
    held = np.zeros(theta.shape, dtype=bool) if fixed is None else fixed
    most = max(1, _MOST_CELLS // design.rows.size)
    if len(theta) > most:
        options = {"damping": damping, "tolerance": tolerance, "max_iterations": max_iterations}
        chunks = [slice(first, first + most) for first in range(0, len(theta), most)]
        parts = [minimise(design, theta[c], sample.take(c), objective, fixed=held[c], **options) for c in chunks]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _BY_PROBLEM}
        return Optimum(**joined, iterations=max(part.iterations for part in parts))
    iterations, last, laid_out = 0, objective.stages[-1], design.lay_out(sample)
    for stage in objective.stages[:-1]:
        # Only the last stage has to end well; the others bring it near.
        near = _descend(design, theta, laid_out, stage, held, damping, 1e-8, 40)
        theta, iterations = near.theta, iterations + near.iterations
    end = _descend(design, theta, laid_out, last, held, damping, tolerance, max_iterations)
    return replace(end, iterations=iterations + end.iterations)


def _descend(
    design: Design,
    theta: Array,
    sample: Sample,
    objective: Objective,
    held: np.ndarray,
    first_damping: float,
    tolerance: float,
    max_iterations: int,
) -> Optimum:
    problems = len(theta)
    nothing = np.zeros(problems)
    final = Optimum(theta.copy(), nothing, np.zeros(theta.shape), nothing + np.inf, nothing > 0, 0)
    alive = np.arange(problems)
    damping = np.full((problems, 1), first_damping)
    value, gradient, hessian = evaluate_blocks(design, theta, sample, objective, damping)
    lost = ~np.isfinite(value)
    if lost.any():
        # A start beyond what floating point can hold ends where it began, not converged.
        value[lost], gradient[lost], hessian[:, lost] = np.finfo(float).max, 0.0, 0.0
    step, slope = _direction(design, theta, gradient, hessian, held)
    length = np.ones(problems)
    iteration = 0
    for iteration in range(max_iterations + 1):
        decrement = -0.5 * slope
        converged = decrement <= tolerance * np.abs(value) + _TINY
        # A step that no longer lowers the value at 1e-8 of its length has met rounding.
        stalled = length < 1e-8
        done = converged | stalled | (iteration == max_iterations)
        if done.any():
            rows = alive[done]
            final.theta[rows], final.value[rows] = theta[done], value[done]
            final.gradient[rows], final.decrement[rows] = gradient[done], decrement[done]
            final.converged[rows] = ~lost[rows] & (decrement[done] <= 1e3 * tolerance * np.abs(value[done]) + _TINY)
            keep = ~done
            if not keep.any():
                break
            alive, theta, value, gradient = alive[keep], theta[keep], value[keep], gradient[keep]
            hessian, step, slope, length = hessian[:, keep], step[keep], slope[keep], length[keep]
            held, sample, damping = held[keep], sample.of_problems(keep), damping[keep]
        trial = np.clip(theta + length[:, None] * step, design.lower, design.upper)
        new_value, new_gradient, new_hessian = evaluate_blocks(design, trial, sample, objective, damping)
        expected = np.einsum("rp,rp->r", gradient, trial - theta)
        accepted = new_value <= value + 1e-4 * np.minimum(expected, 0.0) + 4e-16 * np.abs(value)
        if accepted.all():
            theta, value, gradient, hessian = trial, new_value, new_gradient, new_hessian
            length[:] = 1.0
        else:
            for old, new in ((theta, trial), (value, new_value), (gradient, new_gradient)):
                old[accepted] = new[accepted]
            hessian[:, accepted] = new_hessian[:, accepted]
            length = np.where(accepted, 1.0, 0.25 * length)
        eased = np.where(damping > 1e-6, _EASE * damping, 0.0)
        damping = np.where(accepted[:, None], eased, np.clip(_BRACE * damping, 0.01, 1.0))
        step, slope = _direction(design, theta, gradient, hessian, held)
    return replace(final, iterations=iteration)


def _direction(design: Design, theta: Array, gradient: Array, hessian: Array, held: np.ndarray) -> tuple[Array, Array]:
    """Newton's step with absolute eigenvalues, and its slope.

    Held parameters stay. A parameter near a bound that its gradient points to goes there by itself, and Newton moves
    the others: clipping a joint step could turn it uphill (Bertsekas 1982, SIAM J. Control Optim. 20:221).
    """
    margin = _NEAR * (design.upper - design.lower)
    to_lower = (theta <= design.lower + margin) & (gradient > 0) & ~held
    to_upper = (theta >= design.upper - margin) & (gradient < 0) & ~held
    still = held | to_lower | to_upper
    step = -_solve(design, gradient, hessian, still)
    longest = np.abs(step).max(axis=1, keepdims=True)
    to_bound = np.where(to_lower, design.lower - theta, np.where(to_upper, design.upper - theta, 0.0))
    slope = np.einsum("rp,rp->r", gradient, step + to_bound)
    return step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300)) + to_bound, slope


def _solve(design: Design, gradient: Array, hessian: Array, still: np.ndarray) -> Array:
    """Solve for Newton's step from the groups' blocks: shared parameters first, then each group's own (an arrow)."""
    own, columns = design.own, design.columns
    if still.any():
        gradient = np.where(still, 0.0, gradient)
        free = np.moveaxis(~still[:, columns], 1, 0)
        hessian = hessian * (free[..., :, None] & free[..., None, :])
        diagonal = np.einsum("...pp->...p", hessian)
        # Of shared parameters each group has a part of the one.
        diagonal[~free] = 1.0
    if own == columns.shape[1]:
        solution = np.empty(gradient.shape)
        for block, place in zip(hessian, columns, strict=True):
            solution[:, place] = _absolute_solve(block, gradient[:, place, None])[..., 0]
        return solution
    mixed, alone = hessian[..., :own, own:], np.moveaxis(gradient[:, columns[:, :own]], 1, 0)[..., None]
    found = _absolute_solve(hessian[..., :own, :own], np.concatenate([alone, mixed], axis=-1))
    left = hessian[..., own:, own:].sum(0) - (mixed.swapaxes(2, 3) @ found[..., 1:]).sum(0)
    pulled = gradient[:, columns[0, own:], None] - (mixed.swapaxes(2, 3) @ found[..., :1]).sum(0)
    common = _absolute_solve(left, pulled)
    solution = np.empty(gradient.shape)
    solution[:, columns[0, own:]] = common[..., 0]
    solution[:, columns[:, :own]] = np.moveaxis(found[..., 0] - (found[..., 1:] @ common)[..., 0], 0, 1)
    return solution


def _absolute_solve(matrix: Array, right: Array) -> Array:
    """Solve small systems with the absolute eigenvalues of their symmetric matrices; at once where all are positive."""
    try:
        roots = np.linalg.cholesky(matrix).diagonal(axis1=-2, axis2=-1)
        if (roots.min(-1) > 1e-5 * roots.max(-1)).all():
            return np.asarray(np.linalg.solve(matrix, right), dtype=float)
    except np.linalg.LinAlgError:
        pass  # somewhere the objective is not convex
    curvature, axes = np.linalg.eigh(matrix)
    curvature = np.abs(curvature)
    curvature = np.maximum(curvature, 1e-11 * curvature.max(axis=-1, keepdims=True) + 1e-300)
    return axes @ ((axes.swapaxes(-1, -2) @ right) / curvature[..., None])
