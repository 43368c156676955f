"""One certified solution: starts, Newton from all of them, a second solver, and what the certificate says.

And how far it can be trusted beyond its own points: held-out errors, and other objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from budgetlab.errors import CallerError
from budgetlab.fitting.certificate import GAP_TOLERANCE, Solution, judge
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
_MANY_POINTS = 20_000
"""Starts go the first part of their way on this many points, drawn at random."""
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
    begin = start
    if len(points) > _MANY_POINTS and groups is None:
        # Most of the way is the same on some of the points.
        some = points.take(np.random.default_rng(0).choice(len(points), _MANY_POINTS, replace=False))
        small = build_design(law, some.inputs, some.outcome, pinned=pinned)
        begin = small.to_theta({None: design.to_params(start)})
        part = Sample.of(some.outcome, some.weights)
        near = minimise(small, begin, part, objective, tolerance=1e-8, max_iterations=_START_ITERATIONS)
        begin = design.to_theta({None: small.to_params(near.theta)})
    optima = minimise(design, begin, sample, objective, max_iterations=_START_ITERATIONS)
    best = int(optima.value.argmin())
    if not optima.converged[best]:
        again = minimise(design, optima.theta[best][None], sample, objective, max_iterations=1000)
        optima = optima.improved(best, again)
    optima = _without_a_trace(optima, best, design, sample, objective)
    found = Solution(design, sample, objective, optima, best)
    if not certify:
        return found if found.ended or found.exact else replace(found, status=FitStatus.NOT_CONVERGED)
    other, elsewhere = _second_opinion(found, start)
    if other < found.value * (1 - GAP_TOLERANCE) and not found.exact:
        optima = optima.improved(best, minimise(design, elsewhere[None], sample, objective))
        found = Solution(design, sample, objective, optima, best)
    return judge(found, points, other, level)


def _second_opinion(found: Solution, start: Array) -> tuple[float, Array]:
    """Solve again, from the worst of the starts, so that the two solvers share nothing but the problem.

    Where that ends higher, the best of the starts has a second chance: another basin says nothing about this one.
    """
    scale = max(float(found.optima.value[found.best]), 1e-300)
    ends = []
    for begin in (start[-1], start[0]):
        theta = _second_solver(found.design, begin, found.sample, found.objective.stages[-1], scale)
        ends.append((found.value_at(theta), theta))
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
