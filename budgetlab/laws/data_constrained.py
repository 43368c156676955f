"""Loss when data repeat: every repetition, and every surplus parameter, is worth less (Muennighoff et al.).

``L = E + A / N'^alpha + B / D'^beta`` with ``D' = U_D + U_D R_D (1 - exp(-r_D / R_D))`` for ``r_D = D / U_D - 1``
repetitions of U_D unique tokens, and likewise N' from the parameters U_N that are optimal for U_D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetlab.laws.law import Instance, Law, Parameter
from budgetlab.laws.powers import CHINCHILLA
from budgetlab.laws.terms import Array

_PUBLISHED = {
    "E": float(np.exp(0.6254804)), "A": float(np.exp(6.255414)), "B": float(np.exp(7.3049974)), "alpha": 0.3526596,
    "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743,
}  # fmt: skip


def effective_tokens(tokens: float | Array, unique_tokens: float | Array, decay: float = _PUBLISHED["R_D"]) -> Array:
    """Unique tokens that would be worth as much as tokens seen in repetition.

    Parameters
    ----------
    tokens
        Tokens fed.
    unique_tokens
        Distinct tokens that there are.
    decay
        R_D*, about the repetitions after which a further one is worth 1/e of a new token.

    Returns
    -------
    Array
        In tokens, at most ``unique_tokens * (1 + decay)``.

    Examples
    --------
    >>> effective_tokens(np.array([2.0, 4.0, 16.0]), 1.0).round(2).tolist()
    [1.97, 3.73, 10.58]
    """
    tokens, unique = np.asarray(tokens, dtype=float), np.asarray(unique_tokens, dtype=float)
    return np.exp(_saturated(np.log(tokens), np.log(np.minimum(unique, tokens)), np.log(decay)))


def _saturated(log_amount: Any, log_unique: Any, log_decay: Any) -> Any:
    """Logarithm of the effective amount, from the logarithms of the amount, its unique part and the decay."""
    repetitions = np.expm1(log_amount - log_unique)
    decay = np.exp(log_decay)
    return log_unique + np.log1p(-decay * np.expm1(-repetitions / decay))


def _log_loss(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    alpha, beta = p["alpha"], p["beta"]
    log_unique = np.minimum(x["unique_tokens"], x["tokens"])
    # Parameters for which the unique tokens are the optimal number.
    log_g = (np.log(alpha) - np.log(beta) + p["A"] - p["B"]) / (alpha + beta)
    log_optimal = log_g + beta / alpha * (log_unique + log_g)
    log_params = _saturated(x["num_params"], np.minimum(log_optimal, x["num_params"]), p["R_N"])
    log_tokens = _saturated(x["tokens"], log_unique, p["R_D"])
    return np.logaddexp(p["E"], np.logaddexp(p["A"] - alpha * log_params, p["B"] - beta * log_tokens))


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """For each decay of tokens the rest is nearly a sum of power terms in parameters and effective tokens."""
    starts = []
    for repeats in (3.0, 15.0, 100.0):
        known = {
            "num_params": inputs["num_params"],
            "tokens": effective_tokens(inputs["tokens"], inputs["unique_tokens"], repeats),
        }
        for surface in CHINCHILLA.starts(known, outcome, 3):
            starts += [[*surface, repeats, surplus] for surplus in (1.0, 5.0, 30.0)]
    return np.array(starts)


def _lacking(inputs: Mapping[str, Array], free: tuple[str, ...]) -> str:
    if "R_D" in free and (inputs["tokens"] <= inputs["unique_tokens"] * (1 + 1e-9)).all():
        return "no model saw any token twice (tokens never exceed unique_tokens)"
    return ""


LAW = Law(
    name="data_constrained",
    outcome="loss",
    inputs=("num_params", "tokens", "unique_tokens"),
    parameters=(
        Parameter("E"),
        Parameter("A", centred={"num_params": "alpha"}),
        Parameter("B", centred={"tokens": "beta"}),
        Parameter("alpha", 1e-3, 10.0, positive=False),
        Parameter("beta", 1e-3, 10.0, positive=False),
        Parameter("R_D", 1e-2, 1e6),
        Parameter("R_N", 1e-2, 1e6),
    ),
    rule=_log_loss,
    propose=_propose,
    formula="E + A/N'^alpha + B/D'^beta, D' = U*(1 + R_D*(1 - exp(-(D/U - 1)/R_D))), N' likewise with R_N",
    source="Muennighoff et al. 2023, arXiv 2305.16264",
    floor="E",
    falling=("num_params", "tokens", "unique_tokens"),
    size={"num_params": 1.0, "tokens": 1.0},
    lacking=_lacking,
    typical=_PUBLISHED | {"R_N": 3.0},
    ranges={"num_params": (1e8, 1e11), "tokens": (1e9, 1e12), "unique_tokens": (1e8, 1e11)},
)

PUBLISHED = Instance(
    name="Muennighoff et al. 2023, C4",
    law=LAW,
    params=_PUBLISHED,
    scope="causal models up to 9B parameters and 900B tokens on C4; R_D and R_N are a local optimum of their data, "
    "which bound R_D below but not above",
    source="Muennighoff et al. 2023, arXiv 2305.16264; values from the release of its code (datablations, README)",
)

LAWS = (LAW,)
