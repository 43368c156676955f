"""The isoFLOP parabola at one budget, and how what it gives grows with compute (approach 2 of Hoffmann et al.).

A check and a plot: where the two exponents of the loss differ, or the grid is wide or off its centre, the parabola's
minimum is biased even without noise, and `frontier` of a fitted surface is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetlab.laws.base import Law, Parameter
from budgetlab.laws.terms import Array


def _log_loss(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return np.log(np.exp(p["L_min"]) + np.exp(p["k"]) * np.square(x["num_params"] - p["N_opt"]))


def _propose_parabola(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """The least-squares parabola, and one through the lowest point."""
    x = np.log(inputs["num_params"])
    bend, slope, _ = np.polyfit(x, outcome, 2) if len(np.unique(x)) > 2 else (0.0, 0.0, 0.0)
    lowest = float(outcome.min())
    wide = max(float(np.ptp(x)), 1e-3)
    starts = [[lowest, max(float(np.ptp(outcome)) / wide**2, 1e-9), np.exp(x[outcome.argmin()])]]
    if bend > 0:
        starts.append([lowest, bend, np.exp(np.clip(-slope / (2 * bend), x.min() - wide, x.max() + wide))])
    return np.array(starts)


ISOFLOP = Law(
    name="isoflop",
    outcome="loss",
    inputs=("num_params",),
    parameters=(Parameter("L_min"), Parameter("k", 1e-9), Parameter("N_opt", place="num_params")),
    rule=_log_loss,
    propose=_propose_parabola,
    formula="L_min + k*(log(num_params) - log(N_opt))^2",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approach 2",
    typical={"L_min": 2.5, "k": 0.05, "N_opt": 4e8},
    ranges={"num_params": (5e7, 3e9)},
)


def _log_value(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return p["A"] + p["a"] * x["x"]


def _propose_line(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """The straight line in logarithms."""
    slope, at_one = np.polyfit(np.log(inputs["x"]), np.log(outcome), 1)
    return np.array([[np.exp(np.clip(at_one, -600, 600)), max(slope, 1e-6)]])


GROWTH = Law(
    name="growth",
    outcome="y",
    inputs=("x",),
    parameters=(Parameter("A", centred={"x": "a"}, grows=True), Parameter("a", high=10.0, positive=False)),
    rule=_log_value,
    propose=_propose_line,
    formula="A*x^a",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approaches 1 and 2",
    rising=("x",),
    typical={"A": 0.6, "a": 0.49},
    ranges={"x": (1e17, 1e22)},
)

LAWS = (ISOFLOP, GROWTH)
