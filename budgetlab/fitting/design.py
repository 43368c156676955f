"""From a law and a table to a smooth problem: centred parameters, which of them are free, exact derivatives.

A coefficient is solved for as the logarithm of its term at the geometric mean of the inputs. Parameters may be
pinned, tied, or shared between groups (arms): each coordinate of the law is an affine map of the free ones. A law's
formula, fed with jets, gives its derivatives. A sum of power terms has them in closed form, several times as fast: the
log prediction is a log-sum-exp of affine terms, its gradient the terms' features averaged with the terms' shares, and
the Hessian needs no more than products of two features.

Groups lie along the first axis of every array, each with as many points as the largest (the others' last rows are
repeated without weight). A group's own parameters meet only the shared ones in the Hessian, so that it is kept as one
small block a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
class Design:
    """A law on given inputs, with what is free in it.

    `names` are the free parameters (a centred coefficient stands for its term at the centre of the inputs, scales are
    in logarithms); `lower` and `upper` their bounds. Group g has those at `columns[g]`, its `own` first and then the
    shared ones; the law's coordinates there are ``offsets[g] + maps[g] @ free``. `rows[g]` are its points in the
    table; `present` is None where all groups have as many, else 0 where a row only fills up. `logs` are the inputs as
    the rule takes them, shape (groups, 1, points); of a sum, `features` holds for each term (groups, points,
    1 + inputs) and `products` the products of every two terms' features.
    """

    law: Law
    names: tuple[str, ...]
    lower: Array
    upper: Array
    groups: tuple[str | None, ...]
    shared: tuple[str, ...]
    columns: NDArray[np.intp]
    own: int
    maps: Array
    offsets: Array
    rows: NDArray[np.intp]
    present: Array | None
    logs: Mapping[str, Array]
    features: Sequence[Array]
    products: Mapping[tuple[int, int], Array]
    centres: Mapping[str, float]
    pinned: Mapping[str, float]

    @property
    def size(self) -> int:
        """Number of free parameters."""
        return len(self.names)

    def lay_out(self, sample: Sample) -> Sample:
        """Put a sample's points in the order of the groups: shape (groups, problems or 1, points)."""
        parts = [np.atleast_2d(part) for part in sample.parts()]
        if len(self.groups) == 1:
            return Sample(*(part[None] for part in parts))
        outcome, weights, logs = (np.moveaxis(part[:, self.rows], 1, 0) for part in parts)
        return Sample(outcome, weights if self.present is None else weights * self.present[:, None], logs)

    def coordinates(self, theta: Array) -> Array:
        """The law's coordinates, shape (groups, problems, coordinates), of parameters (problems, free)."""
        local = np.moveaxis(theta[:, self.columns], 1, 0)
        return local @ self.maps.swapaxes(1, 2) + self.offsets[:, None]

    def to_params(self, theta: Array, group: str | None = None) -> dict[str, Array]:
        """Turn free parameters (..., free) into the law's own parameters, in the units of the table."""
        g = self.groups.index(group)
        raw = theta[..., self.columns[g]] @ self.maps[g].T + self.offsets[g]
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
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            raw = np.moveaxis(self.coordinates(theta), -1, 0)[..., None]
            found = self.law.rule(self._uncentred(raw), self.logs)
        found = np.broadcast_to(found, (len(self.groups), len(theta), self.rows.shape[1]))
        return found[0] if len(self.groups) == 1 else self._in_table(found)

    def gradients(self, theta: Array) -> Array:
        """Differentiate every row's log prediction, shape (points, free), for one set of parameters (free,)."""
        raw = self.coordinates(theta[None])
        wide = np.zeros((*self.rows.shape, raw.shape[-1]))
        for k, slope in self.jet(raw, bend=False).first.items():
            wide[..., k] = slope[:, 0]
        local, slopes = wide @ self.maps, np.zeros((len(self.groups), self.size, self.rows.shape[1]))
        for g, columns in enumerate(self.columns):
            slopes[g, columns] = local[g].T
        return self._in_table(slopes).T

    def _in_table(self, values: Array) -> Array:
        """Bring values of the groups' points, the last axis, into the order of the table."""
        found = np.empty((values.shape[1], self.rows.max() + 1))
        found[:, self.rows] = np.moveaxis(values, 0, 1)
        return found

    def jet(self, raw: Array, bend: bool) -> Jet:
        """Log prediction at coordinates (groups, problems, raw), with derivatives in those that are not pinned."""
        moving = (self.maps != 0).any(axis=(0, 2)).tolist()
        one, none = np.ones((1, 1, 1)), {} if bend else None
        places = [Jet(raw[..., k, None], {k: one} if moves else {}, none) for k, moves in enumerate(moving)]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self.law.rule(self._uncentred(places), self.logs)

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
    """Lay out the problem."""
    pinned, logs, parameters = dict(pinned or {}), law.seen(inputs), {part.name: part for part in law.parameters}
    centres = {name: float(values.mean()) for name, values in logs.items()}
    labels: list[str | None] = [None] if groups is None else list(dict.fromkeys(groups))
    free = [name for name in dict.fromkeys(law.coordinates) if name not in pinned]
    names = tuple(dict.fromkeys(_free_name(name, label, shared) for label in labels for name in free))
    local = sorted(free, key=lambda name: groups is not None and name in shared)
    columns = np.array([[names.index(_free_name(name, label, shared)) for name in local] for label in labels], int)
    own = sum(groups is None or name not in shared for name in local)
    place = {name: k for k, name in enumerate(law.coordinates)}
    matrix, offset = np.zeros((len(law.coordinates), len(local))), np.zeros(len(law.coordinates))
    # Exponents first: a pinned coefficient moves, at the centre, with those of its term.
    for k, name in sorted(enumerate(law.coordinates), key=lambda at: bool(parameters[at[1]].centred)):
        parameter = parameters[name]
        if name not in pinned:
            matrix[k, local.index(name)] = 1.0
            continue
        value = float(pinned[name])
        offset[k] = value if not parameter.positive else (np.log(value) if value > 0 else _ZERO)
        for column, power in parameter.centred.items():
            offset[k] -= parameter.sign * offset[place[power]] * centres[column]
            matrix[k] -= parameter.sign * matrix[place[power]] * centres[column]
    if groups is None:
        rows, present = np.arange(len(outcome))[None], None
        known = {name: values[None, None] for name, values in logs.items()}
    else:
        found = [np.flatnonzero(np.asarray(groups) == label) for label in labels]
        longest = max(map(len, found))
        rows = np.array([np.pad(where, (0, longest - len(where)), mode="edge") for where in found])
        present = np.array([np.arange(longest) < len(where) for where in found], dtype=float)
        present = None if present.all() else present
        known = {name: values[rows][:, None] for name, values in logs.items()}
    features = [
        # A floor needs one feature of one row: broadcasting saves its exponentials.
        np.stack([np.ones(rows.shape), *(centres[name] - known[name][:, 0] for name in term.exponents)], axis=-1)
        if term.exponents
        else np.ones((len(labels), 1, 1))
        for term in law.terms
    ]
    products = {
        (k, m): (one[..., :, None] * other[..., None, :]).reshape(len(labels), max(one.shape[1], other.shape[1]), -1)
        for k, one in enumerate(features)
        for m, other in enumerate(features)
        if m >= k
    }
    bounds = [_bounds(law, name.partition("[")[0], inputs, outcome) for name in names]
    lower, upper = np.array(bounds, dtype=float).reshape(len(names), 2).T
    count = len(labels)
    return Design(
        law, names, lower, upper, tuple(labels), tuple(shared), columns, own, np.tile(matrix, (count, 1, 1)),
        np.tile(offset, (count, 1)), rows, present, known, features, products, centres, pinned,
    )  # fmt: skip


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
    without `bend` the Hessian is not computed, and zero.
    """
    value, gradient, blocks = evaluate_blocks(design, theta, design.lay_out(sample), objective, damping, bend=bend)
    if len(design.groups) == 1:
        return value, gradient, blocks[0]
    hessian = np.zeros((*theta.shape, design.size))
    for columns, block in zip(design.columns, blocks, strict=True):
        hessian[:, columns[:, None], columns] += block
    return value, gradient, hessian


def evaluate_blocks(
    design: Design,
    theta: Array,
    sample: Sample,
    objective: Objective,
    damping: Array | float = 0.0,
    *,
    bend: bool = True,
) -> tuple[Array, Array, Array]:
    """Evaluate as `evaluate`, of a sample that is laid out, with a Hessian (groups, problems, own + shared, same).

    A problem beyond what floating point can hold is infinitely bad, which no solver takes for an improvement.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        derive = _of_terms if design.features else _of_jets
        cost, slopes, hessian = derive(design, design.coordinates(theta), sample, objective, damping, bend)
        value = (cost[:, :, None] @ np.broadcast_to(sample.weights, cost.shape)[..., None]).sum((0, 2, 3))
        maps = design.maps[:, None]
        slopes = (slopes[:, :, None] @ maps)[:, :, 0]
        hessian = maps.swapaxes(2, 3) @ hessian @ maps
        if len(design.groups) == 1:
            gradient = slopes[0]
        else:
            gradient, own = np.zeros(theta.shape), design.own
            gradient[:, design.columns[:, :own]] = np.moveaxis(slopes[..., :own], 0, 1)
            gradient[:, design.columns[0, own:]] = slopes[..., own:].sum(0)
        lost = ~(np.isfinite(value) & np.isfinite(gradient).all(1) & np.isfinite(hessian).all((0, 2, 3)))
        value[lost], gradient[lost], hessian[:, lost] = np.inf, 0.0, 0.0
        return value, gradient, hessian


_Derivatives = tuple[Array, Array, Array]
"""The cost of every point (groups, problems, points), gradient and Hessian in each group's coordinates."""


def _of_terms(
    design: Design, raw: Array, sample: Sample, objective: Objective, damping: Array | float, bend: bool
) -> _Derivatives:
    """Differentiate a sum of power terms, in closed form."""
    gradient, hessian = np.zeros(raw.shape), np.zeros((*raw.shape, raw.shape[-1]))
    terms, spans, position = [], [], 0
    for features in design.features:
        spans.append(slice(position, position + features.shape[-1]))
        terms.append(np.exp(raw[..., spans[-1]] @ features.swapaxes(1, 2)))
        position += features.shape[-1]
    # The floor, one number a problem, is added last: it is cheaper so.
    prediction = sum(terms[-2::-1], start=terms[-1])
    cost, first, second = objective.derivatives(np.log(prediction), sample.outcome, sample.log_outcome, damping)
    # d log(prediction) is the mean of the terms' features, weighted by the terms' shares in the prediction.
    inverse = sample.weights / prediction
    slope, curvature = first * inverse, (second - first) * inverse / prediction
    for k, term in enumerate(terms):
        pull, weighted = slope * term, curvature * term
        gradient[..., spans[k]] = _reduce(pull, design.features[k])
        for m in range(k, len(terms) if bend else k):
            both = weighted * terms[m]
            if m == k:
                both += pull
            part = _reduce(both, design.products[k, m])
            part = part.reshape(*raw.shape[:2], design.features[k].shape[-1], design.features[m].shape[-1])
            hessian[..., spans[k], spans[m]] = part
            hessian[..., spans[m], spans[k]] = part.swapaxes(2, 3)
    return cost, gradient, hessian


def _reduce(coefficients: Array, features: Array) -> Array:
    """Sum coefficients times features over the points; one row of features stands for all points."""
    if features.shape[1] == 1:
        return coefficients.sum(-1, keepdims=True) * features
    return coefficients @ features


def _of_jets(
    design: Design, raw: Array, sample: Sample, objective: Objective, damping: Array | float, bend: bool
) -> _Derivatives:
    """Differentiate any formula."""
    gradient, hessian = np.zeros(raw.shape), np.zeros((*raw.shape, raw.shape[-1]))
    jet = design.jet(raw, bend)
    prediction = np.broadcast_to(jet.value, (*raw.shape[:2], design.rows.shape[1]))
    cost, slope, curvature = objective.derivatives(prediction, sample.outcome, sample.log_outcome, damping)
    slope, curvature = sample.weights * slope, sample.weights * curvature
    for k, first in jet.first.items():
        gradient[..., k] = _total(slope, first)
        bent = curvature * first
        for m, other in jet.first.items():
            if jet.second is None or m < k:
                continue
            part = _total(bent, other)
            if (k, m) in jet.second:
                part = part + _total(slope, jet.second[k, m])
            hessian[..., k, m] = hessian[..., m, k] = part
    return cost, gradient, hessian


def _total(one: Array, other: Array) -> Array:
    """Sum over the points, for each problem."""
    if other.shape[-1] == 1:
        return one.sum(-1) * other[..., 0]
    return np.einsum("...n,...n->...", one, other)
