"""What grows as a power of one input, such as optimal tokens with compute: ``y = A x^a``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetlab.laws.base import Array
from budgetlab.laws.form import Form, Parameter


def _log_value(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return p["A"] + p["a"] * x["x"]


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """The straight line in logarithms."""
    slope, at_one = np.polyfit(np.log(inputs["x"]), np.log(outcome), 1)
    return np.array([[np.exp(np.clip(at_one, -600, 600)), max(slope, 1e-6)]])


LAW = Form(
    name="growth",
    outcome="y",
    inputs=("x",),
    parameters=(Parameter("A", centred={"x": "a"}, grows=True), Parameter("a", high=10.0, positive=False)),
    rule=_log_value,
    propose=_propose,
    formula="A*x^a",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approaches 1 and 2",
    rising=("x",),
    typical={"A": 0.6, "a": 0.49},
    ranges={"x": (1e17, 1e22)},
)
