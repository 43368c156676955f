"""A bounded metric by a loss. Pin `chance` where it is known: 1/classes for accuracy, 0 for a correlation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from budgetlab.laws.law import Law, Parameter
from budgetlab.laws.terms import Array


def _log_sigmoid(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    steepness = np.exp(p["k"])
    share = np.exp(-np.logaddexp(0.0, steepness * (x["loss"] - np.exp(p["midpoint"]))))
    return np.log(p["chance"] + (p["ceiling"] - p["chance"]) * share)


def _propose_sigmoid(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
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


SIGMOID = Law(
    name="sigmoid",
    outcome="metric",
    inputs=("loss",),
    parameters=(
        Parameter("chance", 0.0, 1.0, positive=False),
        Parameter("ceiling", 0.0, 1.0, positive=False),
        Parameter("k", 1e-3, 1e3),
        Parameter("midpoint", place="loss"),
    ),
    rule=_log_sigmoid,
    propose=_propose_sigmoid,
    formula="chance + (ceiling - chance)/(1 + exp(k*(loss - midpoint)))",
    source="Bhagia et al. 2024, arXiv 2412.04403",
    plain=("loss",),
    most=1.0,
    falling=("loss",),
    size={"loss": -1.0},
    typical={"chance": 0.25, "ceiling": 0.9, "k": 3.0, "midpoint": 2.6},
    ranges={"loss": (1.5, 4.5)},
)


def _log_exponential(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return np.log(p["chance"] + np.exp(p["k"] - p["gamma"] * x["loss"]))


def _propose_exponential(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """Given chance, the logarithm of what is above it is a line in the loss."""
    starts = []
    for share in (0.0, 0.3, 0.6, 0.9, 0.97, 0.995):
        chance = share * float(outcome.min())
        slope, at_zero = np.polyfit(inputs["loss"], np.log(outcome - chance), 1)
        starts.append([chance, np.exp(np.clip(at_zero, -50, 50)), max(-slope, 1e-3)])
    return np.array(starts)


# Gadre et al. write it as the error, epsilon - k exp(-gamma loss) with epsilon = 1 - chance.
EXPONENTIAL = Law(
    name="exponential",
    outcome="metric",
    inputs=("loss",),
    parameters=(
        Parameter("chance", 0.0, 1.0, positive=False),
        Parameter("k", centred={"loss": "gamma"}),
        Parameter("gamma", 0.0, 100.0, positive=False),
    ),
    rule=_log_exponential,
    propose=_propose_exponential,
    formula="chance + k*exp(-gamma*loss)",
    source="Gadre et al. 2024, arXiv 2403.08540",
    plain=("loss",),
    most=1.0,
    falling=("loss",),
    size={"loss": -1.0},
    typical={"chance": 0.25, "k": 8.0, "gamma": 1.4},
    ranges={"loss": (2.2, 4.5)},
)

LAWS = (SIGMOID, EXPONENTIAL)
