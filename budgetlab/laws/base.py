"""What a scaling law is: a sum of power terms with named, bounded parameters.

Every law here has the form ``outcome = sum_k coefficient_k * prod_v input_v ** -exponent_kv``; a term without
inputs is the floor. In logarithms each term is linear in (log coefficient, exponents), so that one set of exact
first and second derivatives (`budgetlab.fitting`) serves every law: a new law is one file with one `Law`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from budgetlab.errors import CallerError

Array = NDArray[np.float64]

_GRID_POINTS = 600
"""Exponent combinations that `Law.starts` tries, whatever the number of exponents."""


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


@dataclass(frozen=True)
class Law:
    """A scaling law: positive coefficients, exponents in [0, `exponent_max`], decreasing in every input.

    Parameters
    ----------
    name
        The name of its file.
    outcome
        What it predicts, such as ``loss``.
    terms
        Its power terms; the first without inputs is the floor.
    formula
        The formula, as printed.
    source
        Where the form comes from.
    derived
        Quantities that follow from the parameters, by name.
    exponent_max
        Upper bound of every exponent; a fit that ends there is reported, never trusted.
    """

    name: str
    outcome: str
    terms: tuple[Term, ...]
    formula: str
    source: str
    derived: Mapping[str, Callable[[Mapping[str, Array]], Array]] = field(default_factory=dict)
    exponent_max: float = 10.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the terms."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.exponents))

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the coefficients, the floor's first if it has one."""
        return tuple(term.coefficient for term in self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, each once."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.exponents.values()))

    @property
    def params(self) -> tuple[str, ...]:
        """Names of all parameters: coefficients, then exponents."""
        return self.coefficients + self.exponents

    @property
    def floor(self) -> str | None:
        """Name of the floor's coefficient, if the law has a floor."""
        return next((term.coefficient for term in self.terms if not term.exponents), None)

    @property
    def centred(self) -> tuple[str, ...]:
        """Names of the coefficients that are solved for as the size of their term at the centre of the inputs."""
        return tuple(term.coefficient for term in self.terms if term.exponents)

    @property
    def powers(self) -> tuple[tuple[str, str], ...]:
        """Every input with the exponent that a term gives it."""
        return tuple(pair for term in self.terms for pair in term.exponents.items())

    @property
    def size(self) -> dict[str, float]:
        """Power of each input in what counts as the size of a run: the largest are held out to test the law."""
        return {name: 1.0 for name in self.inputs}

    @property
    def scope(self) -> str:
        """What the form is not validated for: nothing that all fits would have to say."""
        return ""

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Bounds of every parameter."""
        positive = {name: (0.0, float("inf")) for name in self.coefficients}
        return positive | {name: (0.0, self.exponent_max) for name in self.exponents}

    def predict(self, params: Mapping[str, float | Array], inputs: Mapping[str, float | Array]) -> Array:
        """Evaluate the law.

        Parameters
        ----------
        params
            A value for every parameter, or arrays that broadcast against the inputs.
        inputs
            A positive array for every input.

        Returns
        -------
        Array
            The outcome, in the shape that parameters and inputs broadcast to.

        Raises
        ------
        CallerError
            When a parameter or an input is missing.
        """
        for kind, needed, given in (("parameter", self.params, params), ("input", self.inputs, inputs)):
            if missing := [name for name in needed if name not in given]:
                raise CallerError(f"law {self.name}", f"no {kind} {', '.join(missing)}", "give a value to each")
        logs = {name: np.log(np.asarray(inputs[name], dtype=float)) for name in self.inputs}
        total = np.zeros(())
        for term in self.terms:
            # In logarithms, since a coefficient of 1e40 beside an input of 1e-40 is no rarity.
            with np.errstate(divide="ignore"):
                exponent = np.log(np.asarray(params[term.coefficient], dtype=float))
            for name, power in term.exponents.items():
                exponent = exponent - np.asarray(params[power], dtype=float) * logs[name]
            total = total + np.exp(exponent)
        return total

    def derive(self, params: Mapping[str, float | Array]) -> dict[str, Array]:
        """Compute what follows from the parameters; NaN where that is undefined."""
        arrays = {name: np.asarray(value, dtype=float) for name, value in params.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: np.asarray(rule(arrays)) for name, rule in self.derived.items()}

    def without(self, *coefficients: str) -> Law:
        """Return the smaller law that lacks these terms, named by its shape, such as ``power without E``."""
        terms = tuple(term for term in self.terms if term.coefficient not in coefficients)
        return replace(
            self,
            name=f"{self.name} without {' and '.join(coefficients)}",
            terms=terms,
            formula=" + ".join(_term_formula(term) for term in terms),
            derived={},
        )

    def starts(self, inputs: Mapping[str, Array], outcome: Array, count: int = 8) -> Array:
        """Propose starting points by variable projection.

        On a grid of exponents the law is linear in its coefficients: least squares on relative errors gives
        them, positive ones only. The best and the most distant good ones are returned.

        Parameters
        ----------
        inputs
            Positive arrays of shape (points,).
        outcome
            Positive array of shape (points,).
        count
            How many starts, at most.

        Returns
        -------
        Array
            Shape (starts, parameters), best first, in the order of `params`.
        """
        logs = {name: np.log(np.asarray(inputs[name], dtype=float)) for name in self.inputs}
        centres = {name: float(values.mean()) for name, values in logs.items()}
        per_axis = max(4, int(_GRID_POINTS ** (1 / max(1, len(self.exponents)))))
        axis = np.geomspace(0.03, 2.5, min(per_axis, 120))
        grid = np.array(list(product(range(len(axis)), repeat=len(self.exponents))), dtype=int)
        columns: list[Array] = []
        index = np.empty((len(grid), len(self.terms)), dtype=int)
        for k, term in enumerate(self.terms):
            where = {name: self.exponents.index(power) for name, power in term.exponents.items()}
            used = sorted(set(where.values()))
            keys, inverse = np.unique(grid[:, used], axis=0, return_inverse=True)
            index[:, k] = len(columns) + inverse.reshape(len(grid))
            for key in keys:
                power_of = dict(zip(used, axis[key], strict=True)) if used else {}
                log_column = sum(
                    (-power_of[where[name]] * (logs[name] - centres[name]) for name in term.exponents),
                    start=np.zeros(len(outcome)),
                )
                columns.append(np.exp(log_column) / outcome)
        matrix = np.array(columns)
        gram, moment = matrix @ matrix.T, matrix.sum(axis=1)
        gram = gram[index[:, :, None], index[:, None, :]]
        coefficients, error = _nonnegative(gram, moment[index], float(len(outcome)))
        chosen = _spread(error, axis[grid], count)
        tiny = 1e-4 * float(np.median(outcome))
        log_coefficients = np.log(np.maximum(coefficients[chosen], tiny))
        exponents = axis[grid[chosen]]
        for k, term in enumerate(self.terms):
            for name, power in term.exponents.items():
                log_coefficients[:, k] += exponents[:, self.exponents.index(power)] * centres[name]
        return np.hstack([np.exp(log_coefficients), exponents])


def _term_formula(term: Term) -> str:
    powers = "*".join(f"{name}^{power}" for name, power in term.exponents.items())
    return f"{term.coefficient}/{powers}" if powers else term.coefficient


def _nonnegative(gram: Array, moment: Array, total: float) -> tuple[Array, Array]:
    """Solve small nonnegative least squares exactly, by trying every set of positive coefficients."""
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
