"""From a law of any form and a table to a smooth problem: what `design` is to sums of powers.

Raw parameters are those that the form's rule takes; free ones are centred (the size of a coefficient's term at the
geometric mean of the inputs), pinned or shared between groups. One is an affine map of the other, and the rule, fed
with jets, gives the derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.sample import Sample
from budgetlab.laws.base import Array
from budgetlab.laws.form import Form
from budgetlab.laws.jets import Jet

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
    """The rows of one group, their inputs as the rule takes them, and the place of its first raw parameter."""

    rows: slice
    logs: Mapping[str, Array]
    first: int


@dataclass(frozen=True)
class FormDesign:
    """A form on given inputs, with what is free in it; attributes and methods as in `Design`."""

    law: Form
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
        first = self.blocks[self.groups.index(group)].first
        params: dict[str, Array] = {}
        for position, parameter in enumerate(self.law.parameters, start=first):
            value = raw[..., position]
            params[parameter.name] = np.exp(value) if parameter.positive else value
            if parameter.name == self.law.floor and parameter.name not in self.pinned:
                # On its lower bound a floor is zero, not e^-20.
                j = self.names.index(_free_name(parameter.name, group, self.shared))
                params[parameter.name] = np.where(theta[..., j] <= self.lower[j], 0.0, params[parameter.name])
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
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            parts = [
                self.law.rule(
                    {name: raw[:, k, None] for k, name in enumerate(self.law.params, start=block.first)}, block.logs
                )
                for block in self.blocks
            ]
        shapes = [(len(theta), block.rows.stop - block.rows.start) for block in self.blocks]
        return np.concatenate([np.broadcast_to(p, s) for p, s in zip(parts, shapes, strict=True)], axis=1)

    def gradients(self, theta: Array) -> Array:
        """Differentiate every row's log prediction, shape (points, free), for one set of parameters (free,)."""
        raw = (self.map @ theta + self.offset)[None]
        rows = []
        for block in self.blocks:
            jet = self._jet(raw, block, bend=False)
            wide = np.zeros((block.rows.stop - block.rows.start, raw.shape[1]))
            for k, slope in jet.first.items():
                wide[:, block.first + k] = np.broadcast_to(slope, (1, len(wide)))[0]
            rows.append(wide @ self.map)
        return np.vstack(rows)

    def evaluate(
        self, theta: Array, sample: Sample, objective: Objective, damping: Array | float, *, bend: bool = True
    ) -> tuple[Array, Array, Array]:
        """Return value, gradient and Hessian of the objective for many problems; see `design.evaluate`.

        Without `bend` the Hessian is not computed, and zero.
        """
        raw = theta @ self.map.T + self.offset
        problems, raw_size = raw.shape
        value = np.zeros(problems)
        gradient, hessian = np.zeros((problems, raw_size)), np.zeros((problems, raw_size, raw_size))
        for block in self.blocks:
            jet = self._jet(raw, block, bend)
            outcome, weights, log_outcome = (part[..., block.rows] for part in sample.parts())
            length = block.rows.stop - block.rows.start
            prediction = np.broadcast_to(jet.value, (problems, length))
            cost, slope, curvature = objective.derivatives(prediction, outcome, log_outcome, damping)
            value += np.einsum("...n,...n->...", *np.broadcast_arrays(cost, weights))
            slope, curvature = weights * slope, weights * curvature
            for k, first in jet.first.items():
                gradient[:, block.first + k] += _total(slope, first)
                if jet.second is None:
                    continue
                bent = curvature * first
                for m, other in jet.first.items():
                    if m < k:
                        continue
                    part = _total(bent, other)
                    if (k, m) in jet.second:
                        part = part + _total(slope, jet.second[k, m])
                    hessian[:, block.first + k, block.first + m] += part
                    if m != k:
                        hessian[:, block.first + m, block.first + k] += part
        # A problem beyond what floating point can hold is infinitely bad, which no solver takes for an improvement.
        lost = ~np.isfinite(value) | ~np.isfinite(gradient).all(1) | ~np.isfinite(hessian).all((1, 2))
        value[lost], gradient[lost], hessian[lost] = np.inf, 0.0, 0.0
        return value, gradient @ self.map, self.map.T @ hessian @ self.map

    def _jet(self, raw: Array, block: _Block, bend: bool) -> Jet:
        """Evaluate the rule at raw parameters (problems, raw), with derivatives in those that are not pinned."""
        moving = (self.map != 0).any(axis=1).tolist()
        one = np.ones((1, 1))
        params = {
            name: Jet(
                raw[:, block.first + k, None], {k: one} if moving[block.first + k] else None, {} if bend else None
            )
            for k, name in enumerate(self.law.params)
        }
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self.law.rule(params, block.logs)


def _total(one: Array, other: Array) -> Array:
    """Sum over the points, for each problem."""
    if other.shape[-1] == 1:
        return one.sum(-1) * other[..., 0]
    return np.einsum("...n,...n->...", one, other)


def build_form_design(
    law: Form,
    inputs: Mapping[str, Array],
    outcome: Array,
    *,
    pinned: Mapping[str, float],
    groups: Sequence[str] | None,
    shared: Sequence[str],
) -> FormDesign:
    """Lay out the problem; arguments as in `build_design`, but a floor may be pinned to zero."""
    logs = law.seen(inputs)
    centres = {name: float(values.mean()) for name, values in logs.items()}
    labels: list[str | None] = [None] if groups is None else list(dict.fromkeys(groups))
    codes = np.zeros(len(outcome), dtype=int) if groups is None else np.array([labels.index(g) for g in groups])
    names = dict.fromkeys(_free_name(n, g, shared) for g in labels for n in law.params if n not in pinned)
    free, raw_size = list(names), len(law.params)
    matrix, offset = np.zeros((raw_size * len(labels), len(free))), np.zeros(raw_size * len(labels))
    blocks = []
    for g, label in enumerate(labels):
        first, where = g * raw_size, np.flatnonzero(codes == g)
        place = {name: first + k for k, name in enumerate(law.params)}
        # Exponents first: centred coefficients are made of them.
        for parameter in sorted(law.parameters, key=lambda part: bool(part.centred)):
            row = place[parameter.name]
            if parameter.name in pinned:
                value = float(pinned[parameter.name])
                offset[row] = value if not parameter.positive else (np.log(value) if value > 0 else _ZERO)
                continue
            matrix[row, free.index(_free_name(parameter.name, label, shared))] = 1.0
            for name, power in parameter.centred.items():
                matrix[row] += parameter.sign * matrix[place[power]] * centres[name]
                offset[row] += parameter.sign * offset[place[power]] * centres[name]
        rows = slice(int(where[0]), int(where[-1]) + 1)
        blocks.append(_Block(rows, {name: values[None, rows] for name, values in logs.items()}, first))
    bounds = [_bounds(law, name.partition("[")[0], inputs, outcome) for name in free]
    lower, upper = np.array(bounds, dtype=float).reshape(len(free), 2).T
    return FormDesign(
        law, tuple(free), lower, upper, matrix, offset, tuple(blocks), tuple(labels), centres, dict(pinned),
        tuple(shared),
    )  # fmt: skip


def _bounds(law: Form, name: str, inputs: Mapping[str, Array], outcome: Array) -> tuple[float, float]:
    """Bounds of a free parameter; of a coefficient without its own, what could matter in the table."""
    parameter = law.parameters[law.params.index(name)]
    if not parameter.positive:
        return parameter.low, parameter.high
    if parameter.place is not None:
        values = np.log(inputs[parameter.place])
        return float(values.min() - np.log(_NEAR)), float(values.max() + np.log(_NEAR))
    smallest, largest = float(np.log(outcome.min())), float(np.log(outcome.max()))
    depth, height = (_FLOOR_DEPTH, 1.0) if name == law.floor else (_TERM_DEPTH, _TERM_DEPTH)
    low = np.log(parameter.low) if parameter.low > 0 else smallest - depth
    high = np.log(parameter.high) if np.isfinite(parameter.high) else largest + height
    return float(low), float(high)


def _free_name(name: str, label: str | None, shared: Sequence[str]) -> str:
    return name if label is None or name in shared else f"{name}[{label}]"
