"""Loss by parameters and tokens with an outer exponent: ``L = E + (A / N^alpha + B / D^beta)^gamma``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from budgetlab.laws.law import Instance, Law, Parameter
from budgetlab.laws.powers import CHINCHILLA
from budgetlab.laws.terms import Array

INNER = CHINCHILLA.without("E")
"""What the outer exponent is applied to."""
_SUPERVISED = {"E": 1.220, "A": 3355.0, "B": 18186.0, "alpha": 0.408, "beta": 0.431, "gamma": 0.452}
_SAME_RATIO = 1e-6


def lacking_two_scales(inputs: Mapping[str, Array], free: tuple[str, ...]) -> str:
    """Say that tokens follow parameters, so that no curve tells the two terms apart."""
    ratio = np.log(inputs["tokens"]) - np.log(inputs["num_params"])
    if {"alpha", "beta"} <= set(free) and np.ptp(ratio) < _SAME_RATIO:
        return f"every model saw the same number of tokens per parameter ({np.exp(ratio[0]):.4g})"
    return ""


def _log_loss(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    inner = np.logaddexp(p["A"] - p["alpha"] * x["num_params"], p["B"] - p["beta"] * x["tokens"])
    return np.logaddexp(p["E"], np.exp(p["gamma"]) * inner)


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """Peel floor and outer exponent off, on a small grid: what is left is a sum of two power terms."""
    starts = []
    for share, gamma in product((0.3, 0.7, 0.9, 0.98), (0.3, 0.5, 0.8, 1.2, 2.0)):
        floor = share * float(outcome.min())
        inner = INNER.starts(inputs, (outcome - floor) ** (1 / gamma), 1)[0]
        starts.append([floor, *inner, gamma])
    return np.array(starts)


LAW = Law(
    name="chinchilla_gamma",
    outcome="loss",
    inputs=("num_params", "tokens"),
    parameters=(
        Parameter("E"),
        Parameter("A", centred={"num_params": "alpha"}),
        Parameter("B", centred={"tokens": "beta"}),
        Parameter("alpha", high=10.0, positive=False),
        Parameter("beta", high=10.0, positive=False),
        Parameter("gamma", 0.02, 20.0),
    ),
    rule=_log_loss,
    propose=_propose,
    formula="E + (A/num_params^alpha + B/tokens^beta)^gamma",
    source="Busbridge et al. 2025, arXiv 2502.08606, equation 1",
    floor="E",
    falling=("num_params", "tokens"),
    lacking=lacking_two_scales,
    derived=CHINCHILLA.derived,
    typical=_SUPERVISED,
    ranges={"num_params": (4e7, 1e10), "tokens": (5e8, 5e11)},
)

PUBLISHED = Instance(
    name="Busbridge et al. 2025, supervised",
    law=LAW,
    params=_SUPERVISED,
    intervals={
        "E": (1.190, 1.247), "A": (3346.0, 3360.0), "B": (18157.0, 18236.0), "alpha": (0.405, 0.411),
        "beta": (0.428, 0.433), "gamma": (0.442, 0.461),
    },
    interval_level=0.9,
    scope="causal models of 143M to 12.6B non-embedding parameters on C4, context 4096, 73 runs; not validated for MLM",
    source="Busbridge et al. 2025, arXiv 2502.08606, table 6",
)  # fmt: skip

LAWS = (LAW,)
