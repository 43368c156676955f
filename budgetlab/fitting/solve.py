"""One certified solution: starts, Newton from all of them, a second solver, and what the certificate says.

And how far it can be trusted beyond its own points: held-out errors, and other objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from budgetlab.errors import CallerError
from budgetlab.fitting.certificate import GAP_TOLERANCE, Candidate, judge
from budgetlab.fitting.design import Design, build_design, evaluate, start_all
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import Law
from budgetlab.laws.law import Array

_START_ITERATIONS = 60
_TRACE = 1e-2
"""A floor below this share of the smallest outcome is tried at zero."""
_MOST_POINTS = 20_000
"""Beyond this the smoothed optimum of absolute deviations is kept: it is within 1e-8 of the vertex."""
_MOST_WINDOWS = 5
SENSITIVITY = (
    ("huber_log", 1e-4),
    ("huber_log", 1e-3),
    ("huber_log", 1e-2),
    ("lad", None),
    ("squared_log", None),
    ("squared", None),
)
"""Objectives, with delta where there is one, that the answer is compared across."""


@dataclass(frozen=True)
class Solution(Candidate):
    """The best optimum found for a design, and what is known about it."""

    status: FitStatus
    detail: str
    certificate: Mapping[str, Any] = field(default_factory=dict)


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
    """Fit a law that the points can carry."""
    design = build_design(law, points.inputs, points.outcome, pinned=pinned, groups=groups, shared=shared)
    sample = Sample.of(points.outcome, points.weights)
    start = start_all(design, points.inputs, points.outcome, groups, starts)
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
        return Solution(**vars(found), status=status, detail="the solver did not end")
    other, elsewhere = _second_opinion(found, start)
    if other < found.value * (1 - GAP_TOLERANCE) and not found.exact:
        optima = optima.improved(best, minimise(design, elsewhere[None], sample, objective))
        found = _candidate(design, sample, objective, optima, best)
    status, detail, certificate = judge(found, points, other, level)
    return Solution(**vars(found), status=status, detail=detail, certificate=certificate)


def _candidate(design: Design, sample: Sample, objective: Objective, optima: Optimum, best: int) -> Candidate:
    theta, ended = optima.theta[best], bool(optima.converged[best])
    decrease = float(optima.decrement[best]) / max(float(optima.value[best]), 1e-300)
    if objective.name == "lad":
        theta, promised = _to_vertex(design, theta, sample, objective)
        if np.isfinite(promised):
            decrease, ended = promised, promised <= GAP_TOLERANCE
    value = _value(design, theta, sample, objective)
    return Candidate(design, sample, objective, optima, best, theta, value, ended, decrease)


def _value(design: Design, theta: Array, sample: Sample, objective: Objective) -> float:
    return float(objective.value(design.log_prediction(theta[None])[0], sample))


def _second_opinion(found: Candidate, start: Array) -> tuple[float, Array]:
    """Solve again, from the worst of the starts, so that the two solvers share nothing but the problem.

    Where that ends higher, the best of the starts has a second chance: another basin says nothing about this one.
    """
    scale = max(float(found.optima.value[found.best]), 1e-300)
    ends = []
    for begin in (start[-1], start[0]):
        theta = _second_solver(found.design, begin, found.sample, found.objective.stages[-1], scale)
        ends.append((_value(found.design, theta, found.sample, found.objective), theta))
        if ends[-1][0] <= found.value * (1 + 1e-6):
            break
    return min(ends, key=lambda end: end[0])


def _second_solver(design: Design, start: Array, sample: Sample, objective: Objective, scale: float) -> Array:
    """Solve with scipy's L-BFGS-B; the objective is divided by `scale` so that it can stop well."""
    from scipy.optimize import minimize

    def divided(theta: Array) -> tuple[float, Array]:
        value, gradient, _ = evaluate(design, theta[None], sample, objective, bend=False)
        with np.errstate(over="ignore"):  # of noise-free data the scale is next to nothing
            return float(value[0]) / scale, gradient[0] / scale

    bounds = list(zip(design.lower, design.upper, strict=True))
    options: Any = {"maxiter": 400, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20}
    theta = np.asarray(start, dtype=float)
    # A line search that meets a kink of Huber's gradient gives up early; a fresh start from there goes on.
    for _ in range(3):
        before = divided(theta)[0]
        theta = minimize(divided, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        if divided(theta)[0] > before * (1 - 1e-12):
            break
    return theta


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


def _to_vertex(design: Design, theta: Array, sample: Sample, objective: Objective) -> tuple[Array, float]:
    """Move a smoothed optimum of absolute deviations to the vertex of the unsmoothed one, by linear programs.

    Returns the optimum, and the relative decrease that the linearised law still promises.
    """
    points, decrease = len(sample.outcome), float("inf")
    if points > _MOST_POINTS:
        return theta, decrease
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, hstack, identity

    # A solver's tolerances are absolute: everything is scaled so that the mean residual is 1.
    residual = sample.log_outcome - design.log_prediction(theta[None])[0]
    scale = max(float(np.abs(residual).mean()), 1e-14)
    eye = identity(points, format="csr")
    radius = 0.1
    value = _value(design, theta, sample, objective)
    for _ in range(12):
        residual = sample.log_outcome - design.log_prediction(theta[None])[0]
        low, high = np.maximum(design.lower - theta, -radius), np.minimum(design.upper - theta, radius)
        found = linprog(
            np.concatenate([np.zeros(design.size), objective.asymmetry * sample.weights, sample.weights]),
            A_eq=hstack([csr_array(design.gradients(theta)), eye, -eye], format="csr"),
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
        radius /= 8
    return theta, decrease


def _onto_vertex(design: Design, theta: Array, sample: Sample) -> Array:
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


def validation_rows(points: Points, objective: Objective, pinned: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Fit the smaller points and predict the larger ones.

    Size is what the law says it is: the product of the inputs, which for parameters and tokens is proportional to
    compute.
    """
    size = np.exp(np.sum([power * np.log(points.inputs[name]) for name, power in points.law.size.items()], axis=0))
    levels = np.unique(size)
    if len(levels) < 3:
        return ()
    cut = len(levels) - 1
    while (size >= levels[cut]).sum() < 0.1 * len(points):
        cut -= 1
    windows = np.unique(np.linspace(len(levels) / 2, len(levels), _MOST_WINDOWS + 1).round().astype(int))
    splits = [("largest", size < levels[cut], size >= levels[cut])]
    for first, last in pairwise(windows):
        seen = size <= levels[first - 1]
        splits.append(("expanding", seen, ~seen & (size <= levels[last - 1])))
    rows = []
    for scheme, train, test in splits:
        row = {
            "scheme": scheme, "num_train": int(train.sum()), "num_test": int(test.sum()),
            "size_train_max": float(size[train].max()), "size_test_max": float(size[test].max()),
            "mean_error": None, "mean_absolute_error": None, "status": "refused",
        }  # fmt: skip
        rows.append(row)
        try:
            prepared = prepare(points.take(np.flatnonzero(train)), pinned)
        except CallerError as error:
            row["reason"] = error.wrong
            continue
        row["reason"] = prepared.refusal or prepared.reason
        if prepared.refusal:
            continue
        solution = solve(prepared.points, prepared.law, objective, pinned=prepared.pinned, certify=False)
        held = points.take(np.flatnonzero(test))
        error = prepared.law.predict(solution.design.to_params(solution.theta), held.inputs) / held.outcome - 1
        row["mean_error"], row["mean_absolute_error"] = float(error.mean()), float(np.abs(error).mean())
        row["status"] = "reduced" if prepared.reason else str(solution.status)
    return tuple(rows)


def sensitivity_rows(points: Points, pinned: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Fit under several objectives: the choice often moves the answer more than the standard error says."""
    prepared = prepare(points, pinned)
    if prepared.refusal:
        return ()
    rows, law = [], prepared.law
    tenfold = {name: np.asarray(10 * prepared.points.inputs[name].max()) for name in law.inputs}
    for name, delta in SENSITIVITY:
        solution = solve(prepared.points, law, Objective(name, delta or 1e-3), pinned=prepared.pinned, certify=False)
        params = solution.design.to_params(solution.theta)
        rows.append(
            {"objective_name": name, "delta": delta, "status": str(solution.status)}
            | {key: float(value) for key, value in params.items()}
            | {key: float(value) for key, value in law.derive(params).items() if np.isfinite(value)}
            | {"prediction_tenfold": float(law.predict(params, tenfold))}
        )
    return tuple(rows)
