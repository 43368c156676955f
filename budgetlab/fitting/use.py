"""Using a fit: predictions and compute optima with intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.laws import Law, Term, get_law
from budgetlab.laws.base import Array
from budgetlab.values import CurveFit

__all__ = ["optimum", "predict"]


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
    law = _law_of(fit)
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
        table["low"], table["high"] = _ends(cloud, fit.interval_level)
    if fit.outcome_transform == "1 - y":
        table[["prediction", "low", "high"]] = 1.0 - table[["prediction", "high", "low"]].to_numpy()
    outside = [(table[name] < low) | (table[name] > high) for name, (low, high) in fit.input_ranges.items()]
    table["extrapolated"] = np.any(outside, axis=0)
    return table


def optimum(fit: CurveFit, flops: Array | float | list[float], flops_per_param_token: float = 6.0) -> pd.DataFrame:
    """Split compute between parameters and tokens as the fitted law does best.

    Minimises ``E + A/N^alpha + B/D^beta`` subject to ``C = k N D``: ``N* = G (C/k)^(beta/(alpha+beta))`` and
    ``D* = (C/k)^(alpha/(alpha+beta)) / G`` with ``G = (alpha A / (beta B))^(1/(alpha+beta))``.

    Parameters
    ----------
    fit
        A fit of the law ``chinchilla``.
    flops
        Compute budgets C, in FLOPs.
    flops_per_param_token
        The k above; 6 ignores attention and the head, a measured cost does not.

    Returns
    -------
    DataFrame
        `flops`, and for `num_params`, `tokens` and `loss` the optimum with its ``_low`` and ``_high`` (NaN
        without draws).

    Raises
    ------
    CallerError
        When the fit is of another law, or may not be used.

    References
    ----------
    Hoffmann et al. 2022, arXiv 2203.15556, equation 4.
    """
    law = _law_of(fit)
    if law.name != "chinchilla":
        raise CallerError(f"optimum of law {fit.law}", "it does not trade parameters against tokens", "fit chinchilla")
    compute = np.atleast_1d(np.asarray(flops, dtype=float))
    table = pd.DataFrame({"flops": compute})
    best = _allocation(law, fit.params, compute / flops_per_param_token)
    cloud = (
        _allocation(law, {n: np.array(v)[:, None] for n, v in fit.draws.items()}, compute[None] / flops_per_param_token)
        if fit.draws
        else None
    )
    for name, values in best.items():
        table[name] = values
        ends = (np.nan, np.nan) if cloud is None else _ends(cloud[name], fit.interval_level)
        table[f"{name}_low"], table[f"{name}_high"] = ends
    return table


def _allocation(law: Law, params: Mapping[str, float | Array], product: Array) -> dict[str, Array]:
    alpha, beta = params["alpha"], params["beta"]
    total = np.asarray(alpha) + beta
    log_g = (np.log(alpha) + np.log(params["A"]) - np.log(beta) - np.log(params["B"])) / total
    num_params = np.exp(log_g + np.log(product) * beta / total)
    tokens = product / num_params
    return {
        "num_params": num_params,
        "tokens": tokens,
        "loss": law.predict(params, {"num_params": num_params, "tokens": tokens}),
    }


def _law_of(fit: CurveFit) -> Law:
    """Rebuild the law of a fit: a smaller one is known by the parameters that are left."""
    if fit.usable_for == "nothing":
        raise CallerError(f"use of a fit of {fit.law}", f"its status is {fit.status}", "see its status text")
    whole = get_law(fit.law.split()[0])
    kept = tuple(
        Term(term.coefficient, {name: power for name, power in term.exponents.items() if power in fit.params})
        for term in whole.terms
        if term.coefficient in fit.params
    )
    gone = [term.coefficient for term in whole.terms if term.coefficient not in fit.params]
    if not gone:
        return whole
    smaller = whole.without(*gone)
    return smaller if smaller.terms == kept else Law(fit.law, whole.outcome, kept, fit.formula, whole.source)


def _ends(cloud: Array, level: float) -> tuple[Array, Array]:
    low, high = np.quantile(cloud, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
