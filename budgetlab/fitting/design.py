"""From a law and a table to a smooth problem: centred logarithms, free parameters, exact derivatives.

With centred log inputs the parameters are the logarithm of each term at the geometric mean of the inputs, and the
exponents. The log prediction is a log-sum-exp of affine terms: its gradient is the terms' features averaged with
the terms' shares, and the Hessian needs no more than products of two features. Parameters may be pinned, tied, or
shared between groups (arms): each raw parameter is an affine map of the free ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetlab.fitting.forms import FormDesign, build_form_design
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.sample import Sample
from budgetlab.laws import AnyLaw, Form
from budgetlab.laws.base import Array, Law

_FLOOR_DEPTH = 20.0
"""A floor below the smallest outcome by e^20 counts as zero."""
_TERM_DEPTH = 80.0
"""Other terms may be this small at the centre: with a steep exponent they still matter at one end."""


@dataclass(frozen=True)
class _Block:
    """The rows of one group: per term its features (points, 1 + inputs) and the products of every two terms."""

    rows: slice
    features: tuple[Array, ...]
    products: Mapping[tuple[int, int], Array]
    first: int
    """Index of the block's first raw parameter."""


@dataclass(frozen=True)
class Design:
    """A law on given inputs, with what is free in it.

    `names` are the free parameters (``A`` stands for the term at the centre of the inputs, in logarithms);
    `lower` and `upper` their bounds; raw parameters are ``offset + map @ free``.
    """

    law: Law
    names: tuple[str, ...]
    lower: Array
    upper: Array
    map: Array
    offset: Array
    blocks: tuple[_Block, ...]
    groups: tuple[str | None, ...]
    centres: Mapping[str, float]
    pinned: Mapping[str, float]
    shared: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of free parameters."""
        return len(self.names)

    def to_params(self, theta: Array, group: str | None = None) -> dict[str, Array]:
        """Turn free parameters (..., free) into the law's own parameters, in the units of the table."""
        raw = theta @ self.map.T + self.offset
        position = self.blocks[self.groups.index(group)].first
        params: dict[str, Array] = {}
        for term in self.law.terms:
            log_coefficient = raw[..., position]
            for shift, (name, power) in enumerate(term.exponents.items(), start=1):
                params[power] = raw[..., position + shift]
                log_coefficient = log_coefficient + params[power] * self.centres[name]
            params[term.coefficient] = np.exp(log_coefficient)
            if not term.exponents and term.coefficient not in self.pinned:
                # On its lower bound a floor is zero, not e^-20.
                j = self.names.index(_free_name(term.coefficient, group, self.shared))
                params[term.coefficient] = np.where(theta[..., j] <= self.lower[j], 0.0, params[term.coefficient])
            position += 1 + len(term.exponents)
        return {name: params[name] for name in self.law.params}

    def to_theta(self, params: Mapping[str | None, Mapping[str, float | Array]]) -> Array:
        """Turn each group's parameters into free ones, moved inside the bounds; shared ones are averaged."""
        columns: dict[str, list[Array]] = {name: [] for name in self.names}
        for group, values in params.items():
            for term in self.law.terms:
                with np.errstate(divide="ignore"):
                    centred = np.log(np.asarray(values[term.coefficient], dtype=float))
                for name, power in term.exponents.items():
                    exponent = np.asarray(values[power], dtype=float)
                    centred = centred - exponent * self.centres[name]
                    columns.get(power, columns.get(f"{power}[{group}]", [])).append(exponent)
                name = term.coefficient
                columns.get(name, columns.get(f"{name}[{group}]", [])).append(centred)
        means = [sum(values[1:], start=values[0]) / len(values) for values in columns.values()]
        return np.clip(np.stack(np.broadcast_arrays(*means), axis=-1), self.lower, self.upper)

    def log_prediction(self, theta: Array) -> Array:
        """Predict every row of the table, for parameters of shape (problems, free)."""
        raw = theta @ self.map.T + self.offset
        parts = []
        for block in self.blocks:
            logs, position = [], block.first
            for features in block.features:
                logs.append(raw[:, position : position + features.shape[1]] @ features.T)
                position += features.shape[1]
            parts.append(np.logaddexp.reduce(np.stack(np.broadcast_arrays(*logs)), axis=0))
        return np.concatenate(parts, axis=1)

    def gradients(self, theta: Array) -> Array:
        """Differentiate every row's log prediction, shape (points, free), for one set of parameters (free,)."""
        raw = self.map @ theta + self.offset
        rows = []
        for block in self.blocks:
            parts, logs, position = [], [], block.first
            for features in block.features:
                logs.append(features @ raw[position : position + features.shape[1]])
                position += features.shape[1]
            length = block.rows.stop - block.rows.start
            total = np.logaddexp.reduce(np.stack([np.broadcast_to(part, length) for part in logs]), axis=0)
            for log_term, features in zip(logs, block.features, strict=True):
                parts.append(np.exp(log_term - total)[:, None] * features)
            wide = np.zeros((length, len(raw)))
            wide[:, block.first : position] = np.hstack(parts)
            rows.append(wide @ self.map)
        return np.vstack(rows)


AnyDesign = Design | FormDesign
"""What the solvers take."""


def build_design(
    law: AnyLaw,
    inputs: Mapping[str, Array],
    outcome: Array,
    *,
    pinned: Mapping[str, float] | None = None,
    groups: Sequence[str] | None = None,
    shared: Sequence[str] = (),
) -> AnyDesign:
    """Lay out the problem."""
    pinned = dict(pinned or {})
    if isinstance(law, Form):
        return build_form_design(law, inputs, outcome, pinned=pinned, groups=groups, shared=shared)
    logs = {name: np.log(inputs[name]) for name in law.inputs}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    labels: list[str | None] = [None] if groups is None else list(dict.fromkeys(groups))
    codes = np.zeros(len(outcome), dtype=int) if groups is None else np.array([labels.index(g) for g in groups])
    named = [(law.params, label) for label in labels]
    free = list(
        dict.fromkeys(
            name if label is None or name in shared else f"{name}[{label}]"
            for names, label in named
            for name in _raw_order(law)
            if name in names and name not in pinned
        )
    )
    raw_size = sum(1 + len(term.exponents) for term in law.terms)
    matrix, offset = np.zeros((raw_size * len(labels), len(free))), np.zeros(raw_size * len(labels))
    blocks = []
    for g, label in enumerate(labels):
        where = np.flatnonzero(codes == g)
        rows = slice(int(where[0]), int(where[-1]) + 1)
        features = []
        position = g * raw_size
        for term in law.terms:
            coefficient_row = position
            column = [np.ones(len(where))]
            for name, power in term.exponents.items():
                position += 1
                column.append(centres[name] - logs[name][rows])
                if power in pinned:
                    offset[position] = pinned[power]
                else:
                    matrix[position, free.index(_free_name(power, label, shared))] = 1.0
            position += 1
            if term.coefficient in pinned:
                offset[coefficient_row] = np.log(pinned[term.coefficient])
                for shift, name in enumerate(term.exponents, start=1):
                    offset[coefficient_row] -= offset[coefficient_row + shift] * centres[name]
                    matrix[coefficient_row] -= matrix[coefficient_row + shift] * centres[name]
            else:
                matrix[coefficient_row, free.index(_free_name(term.coefficient, label, shared))] = 1.0
            # A floor needs one feature of one row: broadcasting saves its exponentials.
            features.append(np.stack(column, axis=1) if term.exponents else np.ones((1, 1)))
        products = {
            (k, m): (features[k][:, :, None] * features[m][:, None, :]).reshape(
                max(len(features[k]), len(features[m])), -1
            )
            for k in range(len(features))
            for m in range(k, len(features))
        }
        blocks.append(_Block(rows, tuple(features), products, g * raw_size))
    lower, upper = np.zeros(len(free)), np.zeros(len(free))
    low, high = float(np.log(outcome.min())), float(np.log(outcome.max()))
    for j, name in enumerate(free):
        plain = name.partition("[")[0]
        if plain in law.exponents:
            lower[j], upper[j] = 0.0, law.exponent_max
        else:
            depth = _FLOOR_DEPTH if plain == law.floor else _TERM_DEPTH
            lower[j], upper[j] = low - depth, high + (1.0 if plain == law.floor else _TERM_DEPTH)
    return Design(
        law, tuple(free), lower, upper, matrix, offset, tuple(blocks), tuple(labels), centres, pinned,
        tuple(shared),
    )  # fmt: skip


def _raw_order(law: Law) -> list[str]:
    return [name for term in law.terms for name in (term.coefficient, *term.exponents.values())]


def _free_name(name: str, label: str | None, shared: Sequence[str]) -> str:
    return name if label is None or name in shared else f"{name}[{label}]"


def evaluate(
    design: AnyDesign, theta: Array, sample: Sample, objective: Objective, damping: Array | float = 0.0
) -> tuple[Array, Array, Array]:
    """Return value, gradient and Hessian of the objective for many problems at once.

    Parameters
    ----------
    theta
        Free parameters, shape (problems, free).
    sample
        Outcomes and weights, one for all problems or one for each.
    objective
        A smooth objective.
    damping
        See `Objective.derivatives`; one for all problems, or shape (problems, 1).

    Returns
    -------
    value, gradient, hessian
        Shapes (problems,), (problems, free), (problems, free, free).
    """
    # What overflows is infinite, which no solver takes for an improvement.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(design, FormDesign):
            return design.evaluate(theta, sample, objective, damping)
        return _evaluate(design, theta, sample, objective, damping)


def slope(design: AnyDesign, theta: Array, sample: Sample, objective: Objective) -> tuple[Array, Array]:
    """Return value and gradient, as `evaluate` does, without the Hessian where that is dear."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(design, FormDesign):
            return design.evaluate(theta, sample, objective, 0.0, bend=False)[:2]
        return _evaluate(design, theta, sample, objective, 0.0)[:2]


def _evaluate(
    design: Design, theta: Array, sample: Sample, objective: Objective, damping: Array | float
) -> tuple[Array, Array, Array]:
    raw = theta @ design.map.T + design.offset
    problems, raw_size = raw.shape
    value = np.zeros(problems)
    gradient, hessian = np.zeros((problems, raw_size)), np.zeros((problems, raw_size, raw_size))
    for block in design.blocks:
        terms, spans, position = [], [], block.first
        for features in block.features:
            spans.append(slice(position, position + features.shape[1]))
            terms.append(np.exp(raw[:, spans[-1]] @ features.T))
            position += features.shape[1]
        # The floor, one number a problem, is added last: it is cheaper so.
        prediction = sum(terms[-2::-1], start=terms[-1])
        outcome, weights, log_outcome = (part[..., block.rows] for part in sample.parts())
        cost, first, second = objective.derivatives(np.log(prediction), outcome, log_outcome, damping)
        value += np.einsum("...n,...n->...", *np.broadcast_arrays(cost, weights))
        # d log(prediction) is the mean of the terms' features, weighted by the terms' shares in the prediction.
        inverse = weights / prediction
        slope = first * inverse
        bend = (second - first) * inverse / prediction
        for k, term in enumerate(terms):
            pull, weighted = slope * term, bend * term
            gradient[:, spans[k]] += _reduce(pull, block.features[k])
            for m in range(k, len(terms)):
                curvature = weighted * terms[m]
                if m == k:
                    curvature += pull
                size = (spans[k].stop - spans[k].start, spans[m].stop - spans[m].start)
                part = _reduce(curvature, block.products[k, m]).reshape(problems, *size)
                hessian[:, spans[k], spans[m]] += part
                if m != k:
                    hessian[:, spans[m], spans[k]] += part.transpose(0, 2, 1)
    gradient = gradient @ design.map
    hessian = design.map.T @ hessian @ design.map
    return value, gradient, hessian


def _reduce(coefficients: Array, features: Array) -> Array:
    """Sum coefficients times features over the points; one row of features stands for all points."""
    if len(features) == 1:
        return coefficients.sum(-1, keepdims=True) * features
    return coefficients @ features
