"""A bounded metric by a loss: ``chance + k exp(-gamma loss)``, which is Gadre et al.'s law of the error.

Their ``error = epsilon - k exp(-gamma loss)`` with ``epsilon = 1 - chance``. Pin `chance` where it is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetlab.laws.base import Array
from budgetlab.laws.form import Form, Parameter


def _log_metric(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return np.log(p["chance"] + np.exp(p["k"] - p["gamma"] * x["loss"]))


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """Given chance, the logarithm of what is above it is a line in the loss."""
    starts = []
    for share in (0.0, 0.3, 0.6, 0.9, 0.97, 0.995):
        chance = share * float(outcome.min())
        slope, at_zero = np.polyfit(inputs["loss"], np.log(outcome - chance), 1)
        starts.append([chance, np.exp(np.clip(at_zero, -50, 50)), max(-slope, 1e-3)])
    return np.array(starts)


LAW = Form(
    name="exponential",
    outcome="metric",
    inputs=("loss",),
    parameters=(
        Parameter("chance", 0.0, 1.0, positive=False),
        Parameter("k", centred={"loss": "gamma"}),
        Parameter("gamma", 0.0, 100.0, positive=False),
    ),
    rule=_log_metric,
    propose=_propose,
    formula="chance + k*exp(-gamma*loss)",
    source="Gadre et al. 2024, arXiv 2403.08540",
    plain=("loss",),
    most=1.0,
    falling=("loss",),
    size={"loss": -1.0},
    typical={"chance": 0.25, "k": 8.0, "gamma": 1.4},
    ranges={"loss": (2.2, 4.5)},
)
