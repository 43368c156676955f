"""Using a fit: predictions with intervals, in one step or two, and compute-optimal parameters and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.laws import Instance, Law, Term, get_law
from budgetlab.laws.law import Array
from budgetlab.values import CurveFit

_CLOSED = ("chinchilla", "chinchilla_gamma")
"""Laws whose optimum has a closed form: an outer power and a floor do not move it."""
_FEWEST = 1e3
"""Parameters, and tokens, that the numerical search begins at."""
_GRID, _ROUNDS = 121, 45
_STEP = 0.1
"""Of the logarithm of compute, for exponents: far above what the search's rounding can disturb."""
_GOLDEN = (np.sqrt(5.0) - 1) / 2

At = Mapping[str, float | Callable[[Array, Array], Array]]


def predict(fit: CurveFit, inputs: Mapping[str, Array | float | list[float]]) -> pd.DataFrame:
    """Predict the outcome at given inputs.

    Parameters
    ----------
    fit
        From `fit` or `fit_arms`. Intervals come from its draws, which live in memory: a fit that was read from
        JSON predicts without them.
    inputs
        Positive values by the law's own names, such as ``{"num_params": 1e9, "tokens": 2e10}``.

    Returns
    -------
    DataFrame
        The inputs, `prediction` (in the units of the fitted column), `low` and `high` (of the curve, not of a new
        run; NaN without draws), and `extrapolated`.

    Raises
    ------
    CallerError
        When the fit may not be used, or an input is missing or not positive.
    """
    law = law_of(fit)
    given = {name: np.atleast_1d(np.asarray(inputs[name], dtype=float)) for name in law.inputs if name in inputs}
    for name, values in given.items():
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise CallerError(f"predict at {name} = {values.tolist()}", "not finite and above zero", "correct it")
    if len(given) == len(law.inputs):
        given = dict(zip(given, np.broadcast_arrays(*given.values()), strict=True))
    table = pd.DataFrame(given)
    table["prediction"] = law.predict(fit.params, given)
    table["low"], table["high"] = np.nan, np.nan
    if fit.draws:
        cloud = law.predict(
            {n: np.array(v)[:, None] for n, v in fit.draws.items()}, {n: v[None] for n, v in given.items()}
        )
        table["low"], table["high"] = interval_ends(cloud, fit.interval_level)
    if fit.outcome_transform == "1 - y":
        table[["prediction", "low", "high"]] = 1.0 - table[["prediction", "high", "low"]].to_numpy()
    outside = [(table[name] < low) | (table[name] > high) for name, (low, high) in fit.input_ranges.items()]
    table["extrapolated"] = np.any(outside, axis=0)
    return table


def law_of(fit: CurveFit | Instance) -> Law:
    """Rebuild the law of a fit: a smaller sum of power terms is known by the parameters that are left."""
    if isinstance(fit, Instance):
        return fit.law
    if fit.usable_for == "nothing":
        raise CallerError(f"use of a fit of {fit.law}", f"its status is {fit.status}", "see its status text")
    law = get_law(fit.law.split()[0])
    left = [
        Term(term.coefficient, {name: power for name, power in term.exponents.items() if power in fit.params})
        for term in law.terms
        if term.coefficient in fit.params
    ]
    return law if tuple(left) == law.terms else law.of_terms(left)


def interval_ends(cloud: Array, level: float) -> tuple[Array, Array]:
    """Take the ends of percentile intervals over the first axis."""
    low, high = np.quantile(cloud, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


@dataclass(frozen=True)
class TwoStep:
    """Two fitted curves, one after the other.

    `loss` is a fit of a loss (any law), which the first step predicts; `metric` one of a bounded metric with that loss
    as its only input, such as ``sigmoid`` or ``exponential``.
    """

    loss: CurveFit
    metric: CurveFit

    def predict(self, inputs: Mapping[str, Array | float | list[float]], seed: int = 0) -> pd.DataFrame:
        """Predict the metric at given scale.

        Parameters
        ----------
        inputs
            Positive values by the names of the first law's inputs.
        seed
            Of the pairing of draws, where the two fits were not resampled together.

        Returns
        -------
        DataFrame
            The inputs, `loss` and `prediction` (the metric) with ``loss_low``, ``loss_high``, ``low`` and ``high``
            (of the curve, not of a new run; NaN without draws), and `extrapolated`: the scale is outside the first
            fit's range, or the predicted loss outside the second's.

        Raises
        ------
        CallerError
            When one of the fits may not be used, or an input is missing or not positive.

        Notes
        -----
        Errors of the first step pass through the second: each draw of the metric is a draw of the second curve at a
        draw of the loss. Draws are paired one to one where both fits resampled the same rows with the same seed, so
        that what the steps share is kept; otherwise at random, as if they were independent.
        """
        names = {"prediction": "loss", "low": "loss_low", "high": "loss_high"}
        table, second = predict(self.loss, inputs).rename(columns=names), law_of(self.metric)
        name = second.inputs[0]
        table["prediction"] = second.predict(self.metric.params, {name: table["loss"].to_numpy()})
        table["low"], table["high"] = np.nan, np.nan
        if self.loss.draws and self.metric.draws:
            scale = {key: table[key].to_numpy()[None] for key in law_of(self.loss).inputs}
            first = {key: np.array(values)[:, None] for key, values in self.loss.draws.items()}
            losses = law_of(self.loss).predict(first, scale)
            one, other = ((f.interval_method, f.seed, f.num_points, f.clusters) for f in (self.loss, self.metric))
            count, available = len(losses), len(next(iter(self.metric.draws.values())))
            rows = np.arange(count)
            if one != other or one[0] == "wild" or count != available:
                rows = np.random.default_rng(seed).integers(0, available, count)
            then = {key: np.array(values)[rows, None] for key, values in self.metric.draws.items()}
            cloud = second.predict(then, {name: losses})
            table["low"], table["high"] = interval_ends(cloud, self.loss.interval_level)
        low, high = self.metric.input_ranges[name]
        beyond = (table["loss"] < low) | (table["loss"] > high)
        table["extrapolated"] = table["extrapolated"].to_numpy() | beyond.to_numpy()
        return table


def two_step(loss: CurveFit, metric: CurveFit) -> TwoStep:
    """Chain a fit of a loss with a fit of a metric by that loss.

    Parameters
    ----------
    loss, metric
        As in `TwoStep`; both must be usable.

    Raises
    ------
    CallerError
        When one of the fits may not be used, the first predicts no loss, or the second has another input than one.

    References
    ----------
    Bhagia et al. 2024, arXiv 2412.04403.
    """
    if law_of(loss).outcome == "metric" or loss.outcome_transform != "y":
        raise CallerError(f"two steps from law {loss.law}", "it predicts a metric, not a loss", "fit a loss first")
    inputs = law_of(metric).inputs
    if len(inputs) != 1:
        raise CallerError(
            f"two steps to law {metric.law}",
            f"it has {len(inputs)} inputs ({', '.join(inputs)})",
            "fit sigmoid or exponential",
        )
    return TwoStep(loss, metric)


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
    law, drawn = law_of(fit), {} if isinstance(fit, Instance) else {k: np.array(v) for k, v in fit.draws.items()}
    others = [name for name in law.inputs if name not in ("num_params", "tokens")]
    if not {"num_params", "tokens"} <= set(law.inputs):
        raise CallerError(f"optimum of law {law.name}", "it does not trade parameters against tokens", "fit chinchilla")
    if missing := [name for name in others if name not in (at or {})]:
        raise CallerError(f"optimum of law {law.name}", f"no value of {', '.join(missing)}", "give it in at={...}")
    compute = np.atleast_1d(np.asarray(flops, dtype=float))
    if not (np.isfinite(compute).all() and (compute > 0).all()):
        raise CallerError(f"frontier at {compute.tolist()} FLOPs", "not finite and above zero", "correct it")
    given = {name: (at or {})[name] for name in others}
    closed = flops_per_token is None and law.name.split()[0] in _CLOSED and {"A", "B"} <= set(law.params)
    cost = flops_per_token or (lambda n: flops_per_param_token * n)

    def split(values: Mapping[str, Any], budgets: Array) -> dict[str, Array]:
        if closed:
            return _closed(law, values, budgets / flops_per_param_token)
        return _searched(law, values, budgets, cost, given)

    best = split(fit.params, compute)
    cloud = split({name: v[:, None] for name, v in drawn.items()}, compute[None]) if drawn else None
    table = pd.DataFrame({"flops": compute})
    for name, values in best.items():
        table[name], table[f"{name}_low"], table[f"{name}_high"] = values, np.nan, np.nan
        if cloud is not None:
            # Draws whose optimum is at an end of the search are left out, unless they are many.
            lost = np.isnan(cloud[name]).any(axis=1)
            known = cloud[name] if lost.mean() > 0.05 else cloud[name][~lost]
            table[f"{name}_low"], table[f"{name}_high"] = interval_ends(known, fit.interval_level or 0.95)
    ranges = {name: ends for name, ends in fit.input_ranges.items() if name in ("num_params", "tokens")}
    outside = [(table[name] < low) | (table[name] > high) for name, (low, high) in ranges.items()]
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
    ends = ("", "_low", "_high")
    return table[["flops", *(f"{name}{end}" for name in ("num_params", "tokens", "loss") for end in ends)]]


def _closed(law: Law, params: Mapping[str, Any], product: Array) -> dict[str, Array]:
    alpha, beta = (np.asarray(params[name], dtype=float) for name in ("alpha", "beta"))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_g = (np.log(alpha) + np.log(params["A"]) - np.log(beta) - np.log(params["B"])) / (alpha + beta)
        exponent = beta / (alpha + beta)
        num_params = np.exp(log_g + np.log(product) * exponent)
    exponent = np.broadcast_to(exponent, num_params.shape)
    return _split(law, params, num_params, product / num_params, {}, exponent, 1 - exponent)


def _split(
    law: Law, params: Mapping[str, Any], n: Array, d: Array, extra: Mapping[str, Any], of_n: Array, of_d: Array
) -> dict[str, Array]:
    return {
        "num_params": n,
        "tokens": d,
        "loss": law.predict(params, {"num_params": n, "tokens": d, **extra}),
        "tokens_per_param": d / n,
        "num_params_exponent": of_n,
        "tokens_exponent": of_d,
    }


def _searched(
    law: Law, params: Mapping[str, Any], budgets: Array, cost: Callable[[Array], Array], given: At
) -> dict[str, Array]:
    """Search for the best N of every draw and budget: a grid, and golden sections around its best."""
    shape = np.broadcast_shapes(budgets.shape, *(np.shape(value) for value in params.values()))

    def others(n: Array, d: Array) -> dict[str, Any]:
        return {name: value(n, d) if callable(value) else np.asarray(value) for name, value in given.items()}

    def loss(log_n: Array, compute: Array) -> Array:
        n = np.exp(log_n)
        d = compute / cost(n)
        return np.broadcast_to(law.predict(params, {"num_params": n, "tokens": d, **others(n, d)}), shape)

    def place(compute: Array) -> Array:
        start, end = np.log(_FEWEST), _most_params(compute, cost)
        grid = [np.broadcast_to(start + share * (end - start), shape) for share in np.linspace(0, 1, _GRID)]
        index = np.stack([loss(log_n, compute) for log_n in grid]).argmin(axis=0)
        low, high = (
            np.take_along_axis(np.stack(grid), np.clip(index + step, 0, _GRID - 1)[None], 0)[0] for step in (-1, 1)
        )
        for _ in range(_ROUNDS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            lower = loss(left, compute) < loss(right, compute)
            low, high = np.where(lower, low, left), np.where(lower, right, high)
        return np.where((index == 0) | (index == _GRID - 1), np.nan, (low + high) / 2)

    budgets = np.broadcast_to(budgets, shape)
    around = [budgets * np.exp(step) for step in (_STEP, 0.0, -_STEP)]
    sizes = [np.exp(place(compute)) for compute in around]
    tokens = [compute / cost(n) for compute, n in zip(around, sizes, strict=True)]
    of_n, of_d = ((np.log(ends[0]) - np.log(ends[2])) / (2 * _STEP) for ends in (sizes, tokens))
    return _split(law, params, sizes[1], tokens[1], others(sizes[1], tokens[1]), of_n, of_d)


def _most_params(compute: Array, cost: Callable[[Array], Array]) -> Array:
    """Logarithm of the parameters that leave `_FEWEST` tokens, by bisection: cost rises with parameters."""
    low, high = np.full(compute.shape, np.log(_FEWEST)), np.log(compute)
    for _ in range(60):
        middle = (low + high) / 2
        affordable = compute / cost(np.exp(middle)) >= _FEWEST
        low, high = np.where(affordable, middle, low), np.where(affordable, high, middle)
    return low
