"""Numbers that carry their exact first and second derivatives, so that a law is written once, as its formula.

`Jet` answers to numpy's functions: a formula written for arrays, fed with jets, returns its own derivatives (forward
mode, to second order). Derivatives that are zero are not stored, so that an affine argument costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from budgetlab.laws.terms import Array

_Key = TypeVar("_Key")
_Second = dict[tuple[int, int], Array]
_NONE: dict[Any, Array] = {}
_ONE = 1.0
"""A weight that costs nothing."""


class Jet(NDArrayOperatorsMixin):
    """A value with its derivatives in numbered parameters; `second` is None where nobody asks for it."""

    __slots__ = ("first", "second", "value")

    def __init__(self, value: Array, first: Mapping[int, Array] = _NONE, second: _Second | None = _NONE) -> None:
        self.value = value
        self.first = first
        self.second = second

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Apply one of numpy's functions; those without a rule here are refused by numpy's own TypeError."""
        rule = _RULES.get(ufunc)
        if method != "__call__" or kwargs or rule is None:
            return NotImplemented
        return rule(*(part if isinstance(part, Jet) else Jet(np.asarray(part, dtype=float)) for part in inputs))


def _chain(x: Jet, value: Array, slope: Array, bend: Array) -> Jet:
    """Apply a function of one argument, given its value and its first and second derivative there."""
    second = None if x.second is None else _scaled(x.second, slope)
    if second is not None:
        _add_square(second, bend, x.first)
    return Jet(value, _scaled(x.first, slope), second)


def _mix(value: Array, one: Jet, left: Array | float, other: Jet, right: Array | float) -> Jet:
    """Weigh the derivatives of two jets."""
    first = _sum(_scaled(one.first, left), _scaled(other.first, right))
    if one.second is None or other.second is None:
        return Jet(value, first, None)
    return Jet(value, first, _sum(_scaled(one.second, left), _scaled(other.second, right)))


def _multiply(one: Jet, other: Jet) -> Jet:
    product = _mix(one.value * other.value, one, other.value, other, one.value)
    if product.second is not None:
        for i, left in one.first.items():
            for j, right in other.first.items():
                # A pair met once off the diagonal stands for itself and its mirror; on it, for both orders at once.
                _accumulate(product.second, (min(i, j), max(i, j)), left * right * (2.0 if i == j else 1.0))
    return product


def _divide(one: Jet, other: Jet) -> Jet:
    inverse = 1 / other.value
    return _multiply(one, _chain(other, inverse, -(inverse**2), 2 * inverse**3))


def _logaddexp(one: Jet, other: Jet) -> Jet:
    value = np.logaddexp(one.value, other.value)
    left, right = np.exp(one.value - value), np.exp(other.value - value)
    total = _mix(value, one, left, other, right)
    if total.second is not None:
        _add_square(total.second, left * right, _sum(one.first, _scaled(other.first, -1.0)))
    return total


def _minimum(one: Jet, other: Jet) -> Jet:
    left = (one.value <= other.value).astype(float)
    return _mix(np.minimum(one.value, other.value), one, left, other, 1 - left)


def _add_square(second: _Second, factor: Array | float, first: Mapping[int, Array]) -> None:
    """Add the outer product of first derivatives with themselves, times a factor."""
    for i, a in first.items():
        bent = factor * a
        for j, b in first.items():
            if i <= j:
                _accumulate(second, (i, j), bent * b)


def _scaled(parts: Mapping[_Key, Array], factor: Array | float) -> dict[_Key, Array]:
    return {key: part if factor is _ONE else part * factor for key, part in parts.items()}


def _sum(one: Mapping[_Key, Array], other: Mapping[_Key, Array]) -> dict[_Key, Array]:
    total = dict(one)
    for key, part in other.items():
        _accumulate(total, key, part)
    return total


def _accumulate(total: dict[_Key, Array], key: _Key, part: Array) -> None:
    total[key] = total[key] + part if key in total else part


_RULES: dict[np.ufunc, Callable[..., Jet]] = {
    np.add: lambda one, other: _mix(one.value + other.value, one, _ONE, other, _ONE),
    np.subtract: lambda one, other: _mix(one.value - other.value, one, _ONE, other, -1.0),
    np.negative: lambda x: _multiply(x, Jet(np.array(-1.0))),
    np.multiply: _multiply,
    np.divide: _divide,
    np.square: lambda x: _chain(x, x.value**2, 2 * x.value, np.full_like(x.value, 2.0)),
    np.exp: lambda x: _chain(x, *(np.exp(x.value),) * 3),
    np.expm1: lambda x: _chain(x, np.expm1(x.value), *(np.exp(x.value),) * 2),
    np.log: lambda x: _chain(x, np.log(x.value), 1 / x.value, -1 / x.value**2),
    np.log1p: lambda x: _chain(x, np.log1p(x.value), 1 / (1 + x.value), -1 / (1 + x.value) ** 2),
    np.logaddexp: _logaddexp,
    np.minimum: _minimum,
}
