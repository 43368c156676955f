"""Compute-optimal numbers of parameters and tokens under a fitted or published law, with their exponents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.use import interval_ends, law_of
from budgetlab.laws import Law, Instance
from budgetlab.laws.base import Array
from budgetlab.values import CurveFit

_CLOSED = {"chinchilla": "alpha beta A B", "chinchilla_gamma": "alpha beta A B"}
"""Laws whose optimum has a closed form: an outer power and a floor do not move it."""
_FEWEST = 1e3
"""Parameters, and tokens, that the numerical search begins at."""
_GRID, _ROUNDS = 121, 45
_STEP = 0.1
"""Of the logarithm of compute, for exponents: far above what the search's rounding can disturb."""
_GOLDEN = (np.sqrt(5.0) - 1) / 2

At = Mapping[str, float | Callable[[Array, Array], Array]]


def frontier(
    fit: CurveFit | Instance,
    flops: Array | float | list[float],
    *,
    flops_per_param_token: float = 6.0,
    flops_per_token: Callable[[Array], Array] | None = None,
    at: At | None = None,
) -> pd.DataFrame:
    """Split compute between parameters and tokens as a law does best.

    Minimises the law's loss subject to ``C = F(N) D``, where F is the cost of a token. With ``F = k N`` the laws
    ``chinchilla`` and ``chinchilla_gamma`` have ``N* = G (C/k)^(beta/(alpha+beta))`` and ``D* = C / (k N*)`` with
    ``G = (alpha A / (beta B))^(1/(alpha+beta))``; otherwise N is searched for, for every draw of the fit.

    Parameters
    ----------
    fit
        A fit, or a published instance, of a law with the inputs ``num_params`` and ``tokens``.
    flops
        Compute budgets C, in FLOPs.
    flops_per_param_token
        The k above; 6 ignores attention and the head, a measured cost does not.
    flops_per_token
        F instead of k N: FLOPs of training on one token, by number of parameters (any shape).
    at
        The law's other inputs: numbers, or functions of parameters and tokens, such as
        ``{"unique_tokens": 1e10}``, or ``supervised_loss`` from another law.

    Returns
    -------
    DataFrame
        `flops`, and with ``_low`` and ``_high`` (NaN without draws): `num_params`, `tokens`, `loss` (of the law's
        outcome), `tokens_per_param`, and the local exponents `num_params_exponent` (d log N* / d log C) and
        `tokens_exponent`. `extrapolated` where N* or D* is outside what the law was fitted to. All are NaN where the
        best N lies at an end of the search, from 10^3 parameters to 10^3 tokens.

    Raises
    ------
    CallerError
        When the law does not trade parameters against tokens, another input is missing, a budget is not above zero,
        or the fit may not be used.

    References
    ----------
    Hoffmann et al. 2022, arXiv 2203.15556, equation 4.
    """
    law, params, drawn, level, ranges = _parts(fit)
    others = [name for name in law.inputs if name not in ("num_params", "tokens")]
    if not {"num_params", "tokens"} <= set(law.inputs):
        raise CallerError(f"optimum of law {law.name}", "it does not trade parameters against tokens", "fit chinchilla")
    if missing := [name for name in others if name not in (at or {})]:
        raise CallerError(f"optimum of law {law.name}", f"no value of {', '.join(missing)}", "give it in at={...}")
    compute = np.atleast_1d(np.asarray(flops, dtype=float))
    if not (np.isfinite(compute).all() and (compute > 0).all()):
        raise CallerError(f"frontier at {compute.tolist()} FLOPs", "not finite and above zero", "correct it")
    given = {name: (at or {})[name] for name in others}
    closed = flops_per_token is None and set(_CLOSED.get(law.name.split()[0], "?").split()) <= set(law.params)
    cost = flops_per_token or (lambda n: flops_per_param_token * n)

    def split(values: Mapping[str, Any], budgets: Array) -> dict[str, Array]:
        if closed:
            return _closed(law, values, budgets / flops_per_param_token)
        return _searched(law, values, budgets, cost, given)

    best = split(params, compute)
    cloud = split({name: v[:, None] for name, v in drawn.items()}, compute[None]) if drawn else None
    table = pd.DataFrame({"flops": compute})
    for name, values in best.items():
        table[name] = values
        low, high = (np.nan, np.nan) if cloud is None else interval_ends(_known(cloud[name]), level)
        table[f"{name}_low"], table[f"{name}_high"] = low, high
    outside = [
        (table[name] < low) | (table[name] > high)
        for name, (low, high) in ranges.items()
        if name in ("num_params", "tokens")
    ]
    table["extrapolated"] = np.any(outside, axis=0) if outside else True
    return table


def optimum(fit: CurveFit, flops: Array | float | list[float], flops_per_param_token: float = 6.0) -> pd.DataFrame:
    """Split compute between parameters and tokens as the fitted law does best: the head of `frontier`.

    Returns
    -------
    DataFrame
        `flops`, and for `num_params`, `tokens` and `loss` the optimum with its ``_low`` and ``_high`` (NaN
        without draws).

    Raises
    ------
    CallerError
        As in `frontier`.
    """
    table = frontier(fit, flops, flops_per_param_token=flops_per_param_token)
    return table[["flops", *(f"{name}{end}" for name in ("num_params", "tokens", "loss") for end in _ENDS)]]


_ENDS = ("", "_low", "_high")


def _parts(
    fit: CurveFit | Instance,
) -> tuple[Law, Mapping[str, float], dict[str, Array], float, Mapping[str, tuple[float, float]]]:
    if isinstance(fit, Instance):
        return fit.law, fit.params, {}, 0.95, fit.input_ranges
    drawn = {name: np.array(values) for name, values in fit.draws.items()}
    return law_of(fit), fit.params, drawn, fit.interval_level, fit.input_ranges


def _known(cloud: Array) -> Array:
    """Leave draws whose optimum is at an end of the search out of the intervals, unless they are many."""
    lost = np.isnan(cloud).any(axis=1)
    return cloud if lost.mean() > 0.05 else cloud[~lost]


def _closed(law: Law, params: Mapping[str, Any], product: Array) -> dict[str, Array]:
    alpha, beta = (np.asarray(params[name], dtype=float) for name in ("alpha", "beta"))
    total = alpha + beta
    with np.errstate(divide="ignore", invalid="ignore"):
        log_g = (np.log(alpha) + np.log(params["A"]) - np.log(beta) - np.log(params["B"])) / total
        num_params = np.exp(log_g + np.log(product) * beta / total)
        exponent = np.broadcast_to(beta / total, num_params.shape)
    tokens = product / num_params
    return {
        "num_params": num_params,
        "tokens": tokens,
        "loss": law.predict(params, {"num_params": num_params, "tokens": tokens}),
        "tokens_per_param": tokens / num_params,
        "num_params_exponent": exponent,
        "tokens_exponent": 1 - exponent,
    }


def _searched(
    law: Law, params: Mapping[str, Any], budgets: Array, cost: Callable[[Array], Array], given: At
) -> dict[str, Array]:
    shape = np.broadcast_shapes(budgets.shape, *(np.shape(value) for value in params.values()))

    def tokens_at(log_n: Array, compute: Array) -> Array:
        return compute / cost(np.exp(log_n))

    def loss(log_n: Array, compute: Array) -> Array:
        n, d = np.exp(log_n), tokens_at(log_n, compute)
        extra = {name: value(n, d) if callable(value) else np.asarray(value) for name, value in given.items()}
        return law.predict(params, {"num_params": n, "tokens": d, **extra})

    def place(compute: Array) -> Array:
        ends = np.log(_FEWEST), _most_params(compute, cost)
        grid = [ends[0] + share * (ends[1] - ends[0]) for share in np.linspace(0, 1, _GRID)]
        values = np.stack([np.broadcast_to(loss(at, compute), shape) for at in grid])
        index = values.argmin(axis=0)
        low, high = (
            np.take_along_axis(
                np.stack([np.broadcast_to(at, shape) for at in grid]), np.clip(index + d, 0, _GRID - 1)[None], 0
            )[0]
            for d in (-1, 1)
        )
        found = _golden(lambda log_n: loss(log_n, compute), low, high)
        return np.where((index == 0) | (index == _GRID - 1), np.nan, found)

    budgets = np.broadcast_to(budgets, shape)
    log_n = place(budgets)
    up, down = (place(budgets * np.exp(sign * _STEP)) for sign in (1, -1))
    num_params, tokens = np.exp(log_n), tokens_at(log_n, budgets)
    log_d = [np.log(tokens_at(at, budgets * np.exp(sign * _STEP))) for at, sign in ((up, 1), (down, -1))]
    return {
        "num_params": num_params,
        "tokens": tokens,
        "loss": loss(log_n, budgets),
        "tokens_per_param": tokens / num_params,
        "num_params_exponent": (up - down) / (2 * _STEP),
        "tokens_exponent": (log_d[0] - log_d[1]) / (2 * _STEP),
    }


def _most_params(compute: Array, cost: Callable[[Array], Array]) -> Array:
    """Logarithm of the parameters that leave `_FEWEST` tokens, by bisection: cost rises with parameters."""
    low, high = np.full(compute.shape, np.log(_FEWEST)), np.log(compute)
    for _ in range(60):
        middle = (low + high) / 2
        affordable = compute / cost(np.exp(middle)) >= _FEWEST
        low, high = np.where(affordable, middle, low), np.where(affordable, high, middle)
    return low


def _golden(loss: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Golden-section search of many brackets at once."""
    for _ in range(_ROUNDS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        lower = loss(left) < loss(right)
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    return (low + high) / 2
