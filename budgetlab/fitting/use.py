"""Using a fit: predictions with intervals, and the law that it is of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.laws import Law, Term, get_law
from budgetlab.laws.base import Array
from budgetlab.values import CurveFit


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


def law_of(fit: CurveFit) -> Law:
    """Rebuild the law of a fit: a smaller sum of power terms is known by the parameters that are left."""
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
