"""Sums of power terms: their logarithm, and where a fit of one begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_GRID_POINTS = 600
"""Exponent combinations that `start_terms` tries, whatever the number of exponents."""


@dataclass(frozen=True)
class Term:
    """One power term.

    Parameters
    ----------
    coefficient
        Name of its coefficient, in units of the outcome where every input is 1.
    exponents
        Name of the exponent of each input; empty for the floor. Two terms may share an exponent.
    """

    coefficient: str
    exponents: Mapping[str, str] = field(default_factory=dict)

    @property
    def formula(self) -> str:
        """The term, as printed."""
        powers = "*".join(f"{name}^{power}" for name, power in self.exponents.items())
        return f"{self.coefficient}/{powers}" if powers else self.coefficient


def log_sum(terms: Sequence[Term], p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    """Logarithm of the sum, from logarithms of coefficients and inputs, and the exponents."""
    logs = []
    for term in terms:
        logs.append(p[term.coefficient])
        for name, power in term.exponents.items():
            logs[-1] = logs[-1] - p[power] * x[name]
    return reduce(np.logaddexp, logs)


def start_terms(
    terms: Sequence[Term], exponents: Sequence[str], inputs: Mapping[str, Array], outcome: Array, count: int
) -> Array:
    """Propose coefficients and exponents by variable projection, shape (at most `count`, parameters), best first.

    On a grid of exponents the sum is linear in its coefficients: least squares on relative errors gives them,
    positive ones only. The best and the most distant good ones are returned.
    """
    names = dict.fromkeys(name for term in terms for name in term.exponents)
    logs = {name: np.log(np.asarray(inputs[name], dtype=float)) for name in names}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    per_axis = max(4, int(_GRID_POINTS ** (1 / max(1, len(exponents)))))
    axis = np.geomspace(0.03, 2.5, min(per_axis, 120))
    grid = np.array(list(product(range(len(axis)), repeat=len(exponents))), dtype=int)
    columns: list[Array] = []
    index = np.empty((len(grid), len(terms)), dtype=int)
    for k, term in enumerate(terms):
        used = sorted({exponents.index(power) for power in term.exponents.values()})
        keys, inverse = np.unique(grid[:, used], axis=0, return_inverse=True)
        index[:, k] = len(columns) + inverse.reshape(len(grid))
        for key in keys:
            powers = dict(zip(used, axis[key], strict=True))
            log_column = np.zeros(len(outcome))
            for name, power in term.exponents.items():
                log_column = log_column - powers[exponents.index(power)] * (logs[name] - centres[name])
            columns.append(np.exp(log_column) / outcome)
    matrix = np.array(columns)
    gram, moment = matrix @ matrix.T, matrix.sum(axis=1)
    gram = gram[index[:, :, None], index[:, None, :]]
    coefficients, error = _nonnegative(gram, moment[index], float(len(outcome)))
    chosen = _spread(error, axis[grid], count)
    tiny = 1e-4 * float(np.median(outcome))
    log_coefficients, powers = np.log(np.maximum(coefficients[chosen], tiny)), axis[grid[chosen]]
    for k, term in enumerate(terms):
        for name, power in term.exponents.items():
            log_coefficients[:, k] += powers[:, exponents.index(power)] * centres[name]
    return np.hstack([np.exp(log_coefficients), powers])


def _nonnegative(gram: Array, moment: Array, total: float) -> tuple[Array, Array]:
    """Solve many small nonnegative least squares exactly, by trying every set of positive coefficients."""
    points, terms = moment.shape
    best, error = np.zeros((points, terms)), np.full(points, total)
    pending = np.arange(points)
    for size in range(terms, 0, -1):
        for kept in map(np.array, combinations(range(terms), size)):
            sub = gram[np.ix_(pending, kept, kept)]
            ridge = 1e-13 * np.trace(sub, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            solution = np.linalg.solve(sub + ridge, moment[np.ix_(pending, kept)][..., None])[..., 0]
            left = total - np.einsum("gk,gk->g", solution, moment[np.ix_(pending, kept)])
            better = (solution >= 0).all(axis=1) & (left < error[pending])
            rows = pending[better]
            error[rows] = left[better]
            best[rows] = 0.0
            best[np.ix_(rows, kept)] = solution[better]
        # The full set, where it is positive, cannot be beaten by a smaller one.
        if size == terms:
            pending = np.flatnonzero(error == total)
            if not len(pending):
                break
    return best, error


def _spread(error: Array, exponents: Array, count: int) -> NDArray[np.intp]:
    """Take the best half of `count`, then the most distant among the best tenth of the grid."""
    order = np.argsort(error, kind="stable")
    chosen = list(order[: (count + 1) // 2])
    pool = order[: max(count, len(order) // 10)]
    places = np.log(exponents)
    while len(chosen) < min(count, len(order)):
        gaps = np.linalg.norm(places[pool][:, None] - places[chosen][None], axis=2).min(axis=1)
        chosen.append(pool[int(gaps.argmax())])
    return np.array(chosen)
