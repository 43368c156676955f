"""A student's loss by its teacher's, its own size and its tokens (Busbridge et al.).

``L_S = L_T + L_T^-c0 (1 + (L_T / (L d1))^(1/f1))^(-c1 f1) (A/N^alpha + B/D^beta)^gamma``, where L is the loss of the
same student trained without a teacher on as many tokens, such as `chinchilla_gamma` predicts it.

Fitted on causal models; not validated for MLM or feature losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from budgetlab.laws import chinchilla_gamma
from budgetlab.laws.law import Instance, Law, Parameter
from budgetlab.laws.terms import Array

SCOPE = "fitted on causal models; not validated for MLM or feature losses"


def _log_loss(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    width = np.exp(p["f1"])
    break_ = np.logaddexp(0.0, (x["teacher_loss"] - x["supervised_loss"] - p["d1"]) / width)
    inner = np.logaddexp(p["A"] - p["alpha"] * x["num_params"], p["B"] - p["beta"] * x["tokens"])
    above = np.exp(p["gamma"]) * inner - p["c0"] * x["teacher_loss"] - np.exp(p["c1"]) * width * break_
    return np.logaddexp(x["teacher_loss"], above)


def _propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """Peel the teacher's part off, on a small grid: what is left is a sum of two power terms to a power."""
    teacher, supervised = np.log(inputs["teacher_loss"]), np.log(inputs["supervised_loss"])
    excess = np.log(np.maximum(outcome - inputs["teacher_loss"], 1e-3 * outcome))
    starts = []
    for c0, steep, d1, f1, gamma in product((0.5, 2.5), (5.0, 50.0), (1.0, 1.3), (0.1, 0.3), (0.4, 0.8)):
        c1 = steep / f1
        left = excess + c0 * teacher + steep * np.logaddexp(0.0, (teacher - supervised - np.log(d1)) / f1)
        inner = chinchilla_gamma.INNER.starts(inputs, np.exp(np.clip(left / gamma, -60.0, 60.0)), 1)[0]
        starts.append([*inner, gamma, c0, c1, d1, f1])
    return np.array(starts)


def _lacking(inputs: Mapping[str, Array], free: tuple[str, ...]) -> str:
    gap = np.log(inputs["teacher_loss"]) - np.log(inputs["supervised_loss"])
    if "d1" in free and np.ptp(gap) < 1e-6:
        return "every student had a teacher as far ahead of it as every other, so that no capacity gap can be seen"
    return chinchilla_gamma.lacking_two_scales(inputs, free)


LAW = Law(
    name="distillation",
    outcome="student_loss",
    inputs=("num_params", "tokens", "teacher_loss", "supervised_loss"),
    parameters=(
        Parameter("A", centred={"num_params": "alpha"}),
        Parameter("B", centred={"tokens": "beta"}),
        Parameter("alpha", high=10.0, positive=False),
        Parameter("beta", high=10.0, positive=False),
        Parameter("gamma", 0.02, 20.0),
        Parameter("c0", high=20.0, positive=False),
        Parameter("c1", 1e-3, 1e5),
        Parameter("d1", 0.1, 10.0),
        Parameter("f1", 1e-3, 10.0),
    ),
    rule=_log_loss,
    propose=_propose,
    formula="L_T + L_T^-c0*(1 + (L_T/(L*d1))^(1/f1))^(-c1*f1)*(A/num_params^alpha + B/tokens^beta)^gamma",
    source="Busbridge et al. 2025, arXiv 2502.08606, equation 8",
    falling=("num_params", "tokens"),
    rising=("supervised_loss",),
    size={"num_params": 1.0, "tokens": 1.0},
    lacking=_lacking,
    scope=SCOPE,
    typical={
        "A": 2243.0, "B": 24181.0, "alpha": 0.321, "beta": 0.637, "gamma": 0.764, "c0": 2.5, "c1": 40.0, "d1": 1.2,
        "f1": 0.2,
    },
    ranges={
        "num_params": (1e8, 1e10), "tokens": (1e9, 5e11), "teacher_loss": (1.8, 2.6), "supervised_loss": (1.9, 2.8),
    },
)  # fmt: skip

PUBLISHED = Instance(
    name="Busbridge et al. 2025, distillation",
    law=LAW,
    params={
        "A": 2243.0, "B": 24181.0, "alpha": 0.321, "beta": 0.637, "gamma": 0.764, "c0": 2.549, "c1": 522.6,
        "d1": 1.315, "f1": 0.090,
    },
    intervals={
        "A": (2227.0, 2255.0), "B": (24084.0, 24266.0), "alpha": (0.319, 0.324), "beta": (0.634, 0.640),
        "gamma": (0.732, 0.788), "c0": (2.425, 2.615), "c1": (522.6, 522.6), "d1": (1.302, 1.327),
        "f1": (0.088, 0.093),
    },
    interval_level=0.9,
    scope=f"{SCOPE}; 143M to 12.6B non-embedding parameters on C4, no repeated data, 697 runs; the rounded values of "
    "the table, whose interval of c1 has no width: it was not identified",
    source="Busbridge et al. 2025, arXiv 2502.08606, table 6",
)  # fmt: skip

LAWS = (LAW,)


def student_loss(
    num_params: float | Array,
    tokens: float | Array,
    teacher_loss: float | Array,
    *,
    distillation: Instance = PUBLISHED,
    supervised: Instance = chinchilla_gamma.PUBLISHED,
) -> Array:
    """Predict a distilled student's loss, taking its supervised loss from the supervised law."""
    scale = {"num_params": num_params, "tokens": tokens}
    without = supervised.predict(scale)
    return distillation.predict({**scale, "teacher_loss": teacher_loss, "supervised_loss": without})
