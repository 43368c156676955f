"""A bounded metric by a loss: ``chance + (ceiling - chance) / (1 + exp(k (loss - midpoint)))``.

Pin `chance` where it is known: 1/classes for accuracy, the majority's share, 0 for a correlation.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from budgetlab.laws.base import Array
from budgetlab.laws.form import Form, Parameter


def _log_metric(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    steepness = np.exp(p["k"])
    share = np.exp(-np.logaddexp(0.0, steepness * (x["loss"] - np.exp(p["midpoint"]))))
    return np.log(p["chance"] + (p["ceiling"] - p["chance"]) * share)


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """Given chance and ceiling, the logit of the share between them is a line in the loss."""
    loss = inputs["loss"]
    smallest, largest = float(outcome.min()), min(1.0, float(outcome.max()))
    starts = []
    for low, high in product((0.0, 0.5, 0.9, 0.99), (0.1, 0.4, 1.0)):
        chance, ceiling = low * smallest, largest + high * (1.0 - largest)
        share = np.clip((outcome - chance) / max(ceiling - chance, 1e-9), 0.01, 0.99)
        logit = np.log(share / (1 - share))
        slope = np.polyfit(loss, logit, 1)[0]
        steepness = max(-slope, 0.1)
        starts.append([chance, ceiling, steepness, max(float(np.mean(loss + logit / steepness)), 1e-3)])
    return np.array(starts)


LAW = Form(
    name="sigmoid",
    outcome="metric",
    inputs=("loss",),
    parameters=(
        Parameter("chance", 0.0, 1.0, positive=False),
        Parameter("ceiling", 0.0, 1.0, positive=False),
        Parameter("k", 1e-3, 1e3),
        Parameter("midpoint", place="loss"),
    ),
    rule=_log_metric,
    propose=_propose,
    formula="chance + (ceiling - chance)/(1 + exp(k*(loss - midpoint)))",
    source="Bhagia et al. 2024, arXiv 2412.04403",
    plain=("loss",),
    most=1.0,
    falling=("loss",),
    size={"loss": -1.0},
    typical={"chance": 0.25, "ceiling": 0.9, "k": 3.0, "midpoint": 2.6},
    ranges={"loss": (1.5, 4.5)},
)
