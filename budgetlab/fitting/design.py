"""From a law and a table to a smooth problem: centred parameters, which of them are free, exact derivatives.

A coefficient is solved for as the logarithm of its term at the geometric mean of the inputs. Parameters may be
pinned, tied, or shared between groups (arms): each coordinate of the law is an affine map of the free ones. A law's
formula, fed with jets, gives its derivatives. A sum of power terms has them in closed form, several times as fast: the
log prediction is a log-sum-exp of affine terms, its gradient the terms' features averaged with the terms' shares, and
the Hessian needs no more than products of two features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.laws.jets import Jet
from budgetlab.laws.law import Array, Law

_FLOOR_DEPTH = 20.0
"""A floor below the smallest outcome by e^20 counts as zero."""
_TERM_DEPTH = 80.0
"""A term may be this small, or large, at the centre: with a steep exponent it still matters at one end."""
_NEAR = 10.0
"""A break or a midpoint is looked for within this factor of the table's values."""
_ZERO = -1e300
"""Logarithm of a floor that is pinned to zero; finite, so that its differences are."""


@dataclass(frozen=True)
class _Block:
    """The rows of one group.

    Their inputs as the rule takes them, shape (1, points); the place of the group's coordinates; of a sum, each
    term's features (points, 1 + inputs) and the products of every two terms.
    """

    rows: slice
    logs: Mapping[str, Array]
    span: slice
    features: Sequence[Array]
    products: Mapping[tuple[int, int], Array]


@dataclass(frozen=True)
class Design:
    """A law on given inputs, with what is free in it.

    `names` are the free parameters (a centred coefficient stands for its term at the centre of the inputs, scales are
    in logarithms); `lower` and `upper` their bounds; the law's coordinates are ``offset + map @ free``.
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
        raw = (theta @ self.map.T + self.offset)[..., self.blocks[self.groups.index(group)].span]
        values, params = self._uncentred(np.moveaxis(raw, -1, 0)), {}
        for parameter in self.law.parameters:
            name = parameter.name
            params[name] = np.exp(values[name]) if parameter.positive else values[name]
            if name in self.pinned:
                params[name] = np.full(raw.shape[:-1], float(self.pinned[name]))
            elif name == self.law.floor:
                # On its lower bound a floor is zero, not e^-20.
                j = self.names.index(_free_name(name, group, self.shared))
                params[name] = np.where(theta[..., j] <= self.lower[j], 0.0, params[name])
        return params

    def to_theta(self, params: Mapping[str | None, Mapping[str, float | Array]]) -> Array:
        """Turn each group's parameters into free ones, moved inside the bounds; shared ones are averaged."""
        columns: dict[str, list[Array]] = {name: [] for name in self.names}
        for group, values in params.items():
            raw = self.law.raw(values)
            for parameter in self.law.parameters:
                value = raw[parameter.name]
                for name, power in parameter.centred.items():
                    value = value - parameter.sign * raw[power] * self.centres[name]
                columns.get(_free_name(parameter.name, group, self.shared), []).append(value)
        means = [sum(values[1:], start=values[0]) / len(values) for values in columns.values()]
        return np.clip(np.stack(np.broadcast_arrays(*means), axis=-1), self.lower, self.upper)

    def log_prediction(self, theta: Array) -> Array:
        """Predict every row of the table, for parameters of shape (problems, free)."""
        raw = theta @ self.map.T + self.offset
        parts = []
        for block in self.blocks:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                part = self.law.rule(self._uncentred(raw.T[block.span, :, None]), block.logs)
            parts.append(np.broadcast_to(part, (len(theta), block.rows.stop - block.rows.start)))
        return np.concatenate(parts, axis=1)

    def gradients(self, theta: Array) -> Array:
        """Differentiate every row's log prediction, shape (points, free), for one set of parameters (free,)."""
        raw = (self.map @ theta + self.offset)[None]
        rows = []
        for block in self.blocks:
            wide = np.zeros((block.rows.stop - block.rows.start, raw.shape[1]))
            for k, slope in self.jet(raw[:, block.span], block, bend=False).first.items():
                wide[:, block.span.start + k] = slope[0]
            rows.append(wide @ self.map)
        return np.vstack(rows)

    def jet(self, raw: Array, block: _Block, bend: bool) -> Jet:
        """Log prediction at a block's coordinates (problems, raw), with derivatives in those that are not pinned."""
        moving = (self.map[block.span] != 0).any(axis=1).tolist()
        one, none = np.ones((1, 1)), {} if bend else None
        places = [Jet(raw[:, k, None], {k: one} if moves else {}, none) for k, moves in enumerate(moving)]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self.law.rule(self._uncentred(places), block.logs)

    def _uncentred(self, coordinates: Iterable[Any]) -> dict[str, Any]:
        """Parameters as the rule takes them, from coordinates that are arrays or jets."""
        places = dict(zip(self.law.coordinates, coordinates, strict=True))
        values = dict(places)
        for parameter in self.law.parameters:
            for name, power in parameter.centred.items():
                shift = parameter.sign * self.centres[name]
                values[parameter.name] = values[parameter.name] + shift * places[power]
        return values


def build_design(
    law: Law,
    inputs: Mapping[str, Array],
    outcome: Array,
    *,
    pinned: Mapping[str, float] | None = None,
    groups: Sequence[str] | None = None,
    shared: Sequence[str] = (),
) -> Design:
    """Lay out the problem; rows of one group are next to each other."""
    pinned, logs, parameters = dict(pinned or {}), law.seen(inputs), {part.name: part for part in law.parameters}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    labels: list[str | None] = [None] if groups is None else list(dict.fromkeys(groups))
    codes = np.zeros(len(outcome), dtype=int) if groups is None else np.array([labels.index(g) for g in groups])
    free = dict.fromkeys(_free_name(n, g, shared) for g in labels for n in law.coordinates if n not in pinned)
    names, raw_size = tuple(free), len(law.coordinates)
    matrix, offset = np.zeros((raw_size * len(labels), len(names))), np.zeros(raw_size * len(labels))
    blocks = []
    for g, label in enumerate(labels):
        first, where = g * raw_size, np.flatnonzero(codes == g)
        place = {name: k for k, name in enumerate(law.coordinates, start=first)}
        # Exponents first: a pinned coefficient moves, at the centre, with those of its term.
        for k, name in sorted(enumerate(law.coordinates, start=first), key=lambda at: bool(parameters[at[1]].centred)):
            parameter = parameters[name]
            if name not in pinned:
                matrix[k, names.index(_free_name(name, label, shared))] = 1.0
                continue
            value = float(pinned[name])
            offset[k] = value if not parameter.positive else (np.log(value) if value > 0 else _ZERO)
            for column, power in parameter.centred.items():
                offset[k] -= parameter.sign * offset[place[power]] * centres[column]
                matrix[k] -= parameter.sign * matrix[place[power]] * centres[column]
        rows = slice(int(where[0]), int(where[-1]) + 1)
        features = [
            # A floor needs one feature of one row: broadcasting saves its exponentials.
            np.column_stack([np.ones(len(where)), *(centres[name] - logs[name][rows] for name in term.exponents)])
            if term.exponents
            else np.ones((1, 1))
            for term in law.terms
        ]
        products = {
            (k, m): (one[:, :, None] * other[:, None, :]).reshape(max(len(one), len(other)), -1)
            for k, one in enumerate(features)
            for m, other in enumerate(features)
            if m >= k
        }
        known = {name: values[None, rows] for name, values in logs.items()}
        blocks.append(_Block(rows, known, slice(first, first + raw_size), features, products))
    bounds = [_bounds(law, name.partition("[")[0], inputs, outcome) for name in names]
    lower, upper = np.array(bounds, dtype=float).reshape(len(names), 2).T
    return Design(
        law, names, lower, upper, matrix, offset, tuple(blocks), tuple(labels), centres, pinned, tuple(shared)
    )


def _bounds(law: Law, name: str, inputs: Mapping[str, Array], outcome: Array) -> tuple[float, float]:
    """Bounds of a free parameter; of a coefficient without its own, what could matter in the table."""
    parameter = law.parameters[law.params.index(name)]
    if not parameter.positive:
        return parameter.low, parameter.high
    if parameter.place is not None:
        values = np.log(inputs[parameter.place])
        return float(values.min() - np.log(_NEAR)), float(values.max() + np.log(_NEAR))
    depth, height = (_FLOOR_DEPTH, 1.0) if name == law.floor else (_TERM_DEPTH, _TERM_DEPTH)
    low = np.log(parameter.low) if parameter.low > 0 else np.log(outcome.min()) - depth
    high = np.log(parameter.high) if np.isfinite(parameter.high) else np.log(outcome.max()) + height
    return float(low), float(high)


def _free_name(name: str, label: str | None, shared: Sequence[str]) -> str:
    return name if label is None or name in shared else f"{name}[{label}]"


def start_all(
    design: Design, inputs: Mapping[str, Array], outcome: Array, groups: Sequence[str] | None = None, count: int = 8
) -> Array:
    """Free parameters where a fit begins, shape (starts, free): the law's guesses, of several groups in their order."""
    proposed = []
    for label in design.groups:
        rows = slice(None) if groups is None else np.asarray(groups) == label
        part = {name: values[rows] for name, values in inputs.items()}
        proposed.append(design.law.starts(part, outcome[rows], count, design.pinned if groups is None else None))
    fewest = min(map(len, proposed))
    columns = [dict(zip(design.law.params, rows[:fewest].T, strict=True)) for rows in proposed]
    return design.to_theta(dict(zip(design.groups, columns, strict=True)))


def evaluate(
    design: Design,
    theta: Array,
    sample: Sample,
    objective: Objective,
    damping: Array | float = 0.0,
    *,
    bend: bool = True,
) -> tuple[Array, Array, Array]:
    """Return value, gradient and Hessian of the objective for many problems at once.

    Shapes are (problems,), (problems, free), (problems, free, free) for `theta` of shape (problems, free) and one
    sample for all problems or one for each. `damping`, see `Objective.derivatives`, may have shape (problems, 1);
    without `bend` the Hessian is not computed, and zero. A problem beyond what floating point can hold is infinitely
    bad, which no solver takes for an improvement.
    """
    raw = theta @ design.map.T + design.offset
    value, gradient = np.zeros(len(raw)), np.zeros(raw.shape)
    hessian = np.zeros((*raw.shape, raw.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in design.blocks:
            part = Sample(*(column[..., block.rows] for column in sample.parts()))
            derive = _of_terms if block.features else _of_jets
            coordinates, span = raw[:, block.span], block.span
            cost, gradient[:, span], hessian[:, span, span] = derive(
                design, coordinates, block, part, objective, damping, bend
            )
            value += np.einsum("...n,...n->...", *np.broadcast_arrays(cost, part.weights))
        lost = ~(np.isfinite(value) & np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2)))
        value[lost], gradient[lost], hessian[lost] = np.inf, 0.0, 0.0
        return value, gradient @ design.map, design.map.T @ hessian @ design.map


_Derivatives = tuple[Array, Array, Array]
"""The cost of every point (problems, points), gradient and Hessian in a block's coordinates."""


def _of_terms(
    design: Design, raw: Array, block: _Block, sample: Sample, objective: Objective, damping: Array | float, bend: bool
) -> _Derivatives:
    """Differentiate a sum of power terms, in closed form."""
    gradient, hessian = np.zeros(raw.shape), np.zeros((*raw.shape, raw.shape[1]))
    terms, spans, position = [], [], 0
    for features in block.features:
        spans.append(slice(position, position + features.shape[1]))
        terms.append(np.exp(raw[:, spans[-1]] @ features.T))
        position += features.shape[1]
    # The floor, one number a problem, is added last: it is cheaper so.
    prediction = sum(terms[-2::-1], start=terms[-1])
    cost, first, second = objective.derivatives(np.log(prediction), sample.outcome, sample.log_outcome, damping)
    # d log(prediction) is the mean of the terms' features, weighted by the terms' shares in the prediction.
    inverse = sample.weights / prediction
    slope, curvature = first * inverse, (second - first) * inverse / prediction
    for k, term in enumerate(terms):
        pull, weighted = slope * term, curvature * term
        gradient[:, spans[k]] = _reduce(pull, block.features[k])
        for m in range(k, len(terms) if bend else k):
            both = weighted * terms[m]
            if m == k:
                both += pull
            part = _reduce(both, block.products[k, m])
            part = part.reshape(len(raw), block.features[k].shape[1], block.features[m].shape[1])
            hessian[:, spans[k], spans[m]] = part
            hessian[:, spans[m], spans[k]] = part.transpose(0, 2, 1)
    return cost, gradient, hessian


def _reduce(coefficients: Array, features: Array) -> Array:
    """Sum coefficients times features over the points; one row of features stands for all points."""
    if len(features) == 1:
        return coefficients.sum(-1, keepdims=True) * features
    return coefficients @ features


def _of_jets(
    design: Design, raw: Array, block: _Block, sample: Sample, objective: Objective, damping: Array | float, bend: bool
) -> _Derivatives:
    """Differentiate any formula."""
    gradient, hessian = np.zeros(raw.shape), np.zeros((*raw.shape, raw.shape[1]))
    jet = design.jet(raw, block, bend)
    prediction = np.broadcast_to(jet.value, (len(raw), block.rows.stop - block.rows.start))
    cost, slope, curvature = objective.derivatives(prediction, sample.outcome, sample.log_outcome, damping)
    slope, curvature = sample.weights * slope, sample.weights * curvature
    for k, first in jet.first.items():
        gradient[:, k] = _total(slope, first)
        bent = curvature * first
        for m, other in jet.first.items():
            if jet.second is None or m < k:
                continue
            part = _total(bent, other)
            if (k, m) in jet.second:
                part = part + _total(slope, jet.second[k, m])
            hessian[:, k, m] = hessian[:, m, k] = part
    return cost, gradient, hessian


def _total(one: Array, other: Array) -> Array:
    """Sum over the points, for each problem."""
    if other.shape[-1] == 1:
        return one.sum(-1) * other[..., 0]
    return np.einsum("...n,...n->...", one, other)
