"""Numbers that carry their exact first and second derivatives, so that a law is written once, as its formula.

`Jet` answers to numpy's functions: a formula written for arrays, fed with jets, returns its own derivatives (forward
mode, to second order). Derivatives that are zero are not stored, so that an affine argument costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from budgetlab.laws.base import Array

_Key = TypeVar("_Key")
_Second = dict[tuple[int, int], Array]
_NOTHING: _Second = {}


class Jet(NDArrayOperatorsMixin):
    """A value with its derivatives in numbered parameters."""

    __slots__ = ("first", "second", "value")

    def __init__(
        self,
        value: Array,
        first: Mapping[int, Array] | None = None,
        second: Mapping[tuple[int, int], Array] | None = _NOTHING,
    ) -> None:
        self.value = value
        self.first = dict(first or {})
        self.second = None if second is None else dict(second)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Apply one of numpy's functions; those without a rule here are refused by numpy's own TypeError."""
        rule = _RULES.get(ufunc)
        if method != "__call__" or kwargs or rule is None:
            return NotImplemented
        return rule(*(part if isinstance(part, Jet) else Jet(np.asarray(part, dtype=float)) for part in inputs))


def _add(one: Jet, other: Jet) -> Jet:
    return Jet(one.value + other.value, _sum(one.first, other.first), _mixed(one, 1.0, other, 1.0))


def _subtract(one: Jet, other: Jet) -> Jet:
    return _add(one, _negative(other))


def _negative(x: Jet) -> Jet:
    return Jet(-x.value, {i: -d for i, d in x.first.items()}, _bent(x, -1.0))


def _multiply(one: Jet, other: Jet) -> Jet:
    first = _sum(_scaled(one.first, other.value), _scaled(other.first, one.value))
    second = _mixed(one, other.value, other, one.value)
    if second is not None:
        for i, left in one.first.items():
            for j, right in other.first.items():
                # A pair met once off the diagonal stands for itself and its mirror; on it, for both orders at once.
                _accumulate(second, (min(i, j), max(i, j)), left * right * (2.0 if i == j else 1.0))
    return Jet(one.value * other.value, first, second)


def _divide(one: Jet, other: Jet) -> Jet:
    inverse = 1 / other.value
    if not other.first:
        return Jet(one.value * inverse, _scaled(one.first, inverse), _mixed(one, inverse, other, 0.0))
    return _multiply(one, _chain(other, inverse, -(inverse**2), 2 * inverse**3))


def _exp(x: Jet) -> Jet:
    value = np.exp(x.value)
    return _chain(x, value, value, value)


def _expm1(x: Jet) -> Jet:
    slope = np.exp(x.value)
    return _chain(x, np.expm1(x.value), slope, slope)


def _log(x: Jet) -> Jet:
    inverse = 1 / x.value
    return _chain(x, np.log(x.value), inverse, -(inverse**2))


def _log1p(x: Jet) -> Jet:
    inverse = 1 / (1 + x.value)
    return _chain(x, np.log1p(x.value), inverse, -(inverse**2))


def _square(x: Jet) -> Jet:
    return _chain(x, x.value**2, 2 * x.value, np.full_like(x.value, 2.0))


def _logaddexp(one: Jet, other: Jet) -> Jet:
    value = np.logaddexp(one.value, other.value)
    left, right = np.exp(one.value - value), np.exp(other.value - value)
    first = _sum(_scaled(one.first, left), _scaled(other.first, right))
    second = _mixed(one, left, other, right)
    if second is not None:
        _add_square(second, left * right, _sum(one.first, {i: -d for i, d in other.first.items()}))
    return Jet(value, first, second)


def _minimum(one: Jet, other: Jet) -> Jet:
    left = (one.value <= other.value).astype(float)
    first = _sum(_scaled(one.first, left), _scaled(other.first, 1 - left))
    return Jet(np.minimum(one.value, other.value), first, _mixed(one, left, other, 1 - left))


def _chain(x: Jet, value: Array, slope: Array, bend: Array) -> Jet:
    """Apply a function of one argument, given its value and its first and second derivative there."""
    second = _bent(x, slope)
    if second is not None:
        _add_square(second, bend, x.first)
    return Jet(value, _scaled(x.first, slope), second)


def _bent(x: Jet, factor: Array | float) -> _Second | None:
    return None if x.second is None else _scaled(x.second, factor)


def _mixed(one: Jet, left: Array | float, other: Jet, right: Array | float) -> _Second | None:
    if one.second is None or other.second is None:
        return None
    return _sum(_scaled(one.second, left), _scaled(other.second, right))


def _add_square(second: _Second, factor: Array, first: Mapping[int, Array]) -> None:
    """Add the outer product of first derivatives with themselves, times a factor."""
    for i, a in first.items():
        bent = factor * a
        for j, b in first.items():
            if i <= j:
                _accumulate(second, (i, j), bent * b)


def _scaled(parts: Mapping[_Key, Array], factor: Array | float) -> dict[_Key, Array]:
    return {key: part * factor for key, part in parts.items()}


def _sum(one: Mapping[_Key, Array], other: Mapping[_Key, Array]) -> dict[_Key, Array]:
    total = dict(one)
    for key, part in other.items():
        _accumulate(total, key, part)
    return total


def _accumulate(total: dict[_Key, Array], key: _Key, part: Array) -> None:
    total[key] = total[key] + part if key in total else part


_RULES: dict[np.ufunc, Callable[..., Jet]] = {
    np.add: _add,
    np.subtract: _subtract,
    np.negative: _negative,
    np.multiply: _multiply,
    np.divide: _divide,
    np.exp: _exp,
    np.expm1: _expm1,
    np.log: _log,
    np.log1p: _log1p,
    np.square: _square,
    np.logaddexp: _logaddexp,
    np.minimum: _minimum,
}
