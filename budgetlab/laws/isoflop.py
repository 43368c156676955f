"""The isoFLOP parabola at one budget: ``L = L_min + k (log N - log N_opt)^2``.

A check and a plot: where the two exponents of the loss differ, or the grid is wide or off its centre, the parabola's
minimum is biased even without noise, and `frontier` of a fitted surface is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetlab.laws.base import Array
from budgetlab.laws.form import Form, Parameter


def _log_loss(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return np.log(np.exp(p["L_min"]) + np.exp(p["k"]) * np.square(x["num_params"] - p["N_opt"]))


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """The least-squares parabola, and one through the lowest point."""
    x = np.log(inputs["num_params"])
    bend, slope, _ = np.polyfit(x, outcome, 2) if len(np.unique(x)) > 2 else (0.0, 0.0, 0.0)
    lowest = float(outcome.min())
    wide = max(float(np.ptp(x)), 1e-3)
    starts = [[lowest, max(float(np.ptp(outcome)) / wide**2, 1e-9), np.exp(x[outcome.argmin()])]]
    if bend > 0:
        starts.append([lowest, bend, np.exp(np.clip(-slope / (2 * bend), x.min() - wide, x.max() + wide))])
    return np.array(starts)


LAW = Form(
    name="isoflop",
    outcome="loss",
    inputs=("num_params",),
    parameters=(Parameter("L_min"), Parameter("k", 1e-9), Parameter("N_opt", place="num_params")),
    rule=_log_loss,
    propose=_propose,
    formula="L_min + k*(log(num_params) - log(N_opt))^2",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approach 2",
    typical={"L_min": 2.5, "k": 0.05, "N_opt": 4e8},
    ranges={"num_params": (5e7, 3e9)},
)
