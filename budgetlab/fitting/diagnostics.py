"""How far a fit can be trusted beyond its own points: held-out error, and other objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from budgetlab.errors import CallerError
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.table import Points

SENSITIVITY = (
    ("huber_log", 1e-4),
    ("huber_log", 1e-3),
    ("huber_log", 1e-2),
    ("lad", None),
    ("squared_log", None),
    ("squared", None),
)
"""Objectives, with delta where there is one, that the answer is compared across."""
_MOST_WINDOWS = 5


def validation_rows(points: Points, objective: Objective, pinned: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """Fit the smaller points and predict the larger ones.

    Size is what the law says it is: the product of the inputs, which for parameters and tokens is proportional to
    compute.
    """
    size = np.exp(np.sum([power * np.log(points.inputs[name]) for name, power in points.law.size.items()], axis=0))
    levels = np.unique(size)
    rows = []
    if len(levels) < 3:
        return ()
    cut = levels[-1]
    while (size >= cut).sum() < 0.1 * len(points):
        cut = levels[np.searchsorted(levels, cut) - 1]
    rows.append({"scheme": "largest"} | _held_out(points, size, size < cut, size >= cut, objective, pinned))
    windows = np.unique(np.linspace(len(levels) / 2, len(levels), _MOST_WINDOWS + 1).round().astype(int))
    for first, last in pairwise(windows):
        test = (size > levels[first - 1]) & (size <= levels[last - 1])
        rows.append(
            {"scheme": "expanding"} | _held_out(points, size, size <= levels[first - 1], test, objective, pinned)
        )
    return tuple(rows)


def _held_out(
    points: Points,
    size: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    objective: Objective,
    pinned: Mapping[str, float],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "num_train": int(train.sum()), "num_test": int(test.sum()),
        "size_train_max": float(size[train].max()), "size_test_max": float(size[test].max()),
        "mean_error": None, "mean_absolute_error": None,
    }  # fmt: skip
    try:
        prepared = prepare(points.take(np.flatnonzero(train)), pinned)
    except CallerError as error:
        return row | {"status": "refused", "reason": error.wrong}
    if prepared.refusal:
        return row | {"status": "refused", "reason": prepared.refusal}
    solution = solve(prepared.points, prepared.law, objective, pinned=prepared.pinned, certify=False)
    held = points.take(np.flatnonzero(test))
    predicted = prepared.law.predict(solution.design.to_params(solution.theta), held.inputs)
    error = predicted / held.outcome - 1
    return row | {
        "mean_error": float(error.mean()),
        "mean_absolute_error": float(np.abs(error).mean()),
        "status": "reduced" if prepared.reason else str(solution.status),
        "reason": prepared.reason,
    }


def sensitivity_rows(
    points: Points, pinned: Mapping[str, float], objectives: Sequence[tuple[str, float | None]] = SENSITIVITY
) -> tuple[dict[str, Any], ...]:
    """Fit under several objectives: the choice often moves the answer more than the standard error says."""
    prepared = prepare(points, pinned)
    if prepared.refusal:
        return ()
    rows = []
    for name, delta in objectives:
        objective = Objective(name, delta or 1e-3)
        solution = solve(prepared.points, prepared.law, objective, pinned=prepared.pinned, certify=False)
        params = solution.design.to_params(solution.theta)
        tenfold = {k: np.asarray(10 * v.max()) for k, v in prepared.points.inputs.items() if k in prepared.law.inputs}
        rows.append(
            {"objective_name": name, "delta": delta, "status": str(solution.status)}
            | {key: float(value) for key, value in params.items()}
            | {key: float(value) for key, value in prepared.law.derive(params).items() if np.isfinite(value)}
            | {"prediction_tenfold": float(prepared.law.predict(params, tenfold))}
        )
    return tuple(rows)
