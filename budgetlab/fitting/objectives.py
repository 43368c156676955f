"""Outcomes with their weights, and what a misfit costs, with exact derivatives in the logarithm of the prediction.

Every objective is a weighted *sum* over points, never a mean: solvers that stop on absolute tolerances stop early
on means. Residuals are of log y, except for ``squared`` and ``squared_log1p``, where they are of y and of log(1 + y).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.laws.law import Array

OBJECTIVES = {
    "huber_log": "sum of Huber(delta) of log residuals: r^2/2 within delta, delta (|r| - delta/2) beyond",
    "lad": "sum of |log residual|",
    "squared": "sum of squared residuals",
    "squared_log": "sum of squared log residuals",
    "squared_log1p": "sum of squared residuals of log(1 + y), whose mean is the square of RMSLE",
}
"""Name and definition of every objective."""

_INTERNAL = ("_smooth_lad", "_coarse_lad")
LAD_DELTAS = tuple(1e-2 * 0.3**k for k in range(14))
"""Least absolute deviations is the limit of sqrt(r^2 + delta^2): it is reached by this continuation.

Unlike Huber's, this curve bends everywhere, so that Newton always knows how far to go.
"""


@dataclass(frozen=True)
class Sample:
    """Outcomes and weights, of shape (points,) or one row per problem: what is resampled while inputs stay."""

    outcome: Array
    weights: Array
    log_outcome: Array

    @classmethod
    def of(cls, outcome: Array, weights: Array) -> Sample:
        """Make a sample, taking the logarithm once."""
        return cls(outcome, weights, np.log(outcome))

    def take(self, rows: np.ndarray | slice) -> Sample:
        """Keep some problems."""
        return Sample(*(part if part.ndim == 1 else part[rows] for part in self.parts()))

    def of_problems(self, rows: np.ndarray) -> Sample:
        """Keep some problems of a sample that `Design.lay_out` made."""
        return Sample(*(part if part.shape[1] == 1 else part[:, rows] for part in self.parts()))

    def parts(self) -> tuple[Array, Array, Array]:
        """Return outcomes, weights and log outcomes."""
        return self.outcome, self.weights, self.log_outcome


@dataclass(frozen=True)
class Objective:
    """A named objective."""

    name: str = "huber_log"
    delta: float = 1e-3
    asymmetry: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in (*OBJECTIVES, *_INTERNAL):
            raise unknown_name("objective", self.name, OBJECTIVES)
        for what, value in (("delta", self.delta), ("asymmetry", self.asymmetry)):
            if not (np.isfinite(value) and value > 0):
                raise CallerError(f"{what} = {value!r}", "not a positive number", "give one above zero")

    @property
    def for_draws(self) -> Objective:
        """What to minimise in resamples: least absolute deviations to a millionth, any other objective itself."""
        return Objective("_coarse_lad", self.delta, self.asymmetry) if self.name == "lad" else self

    @property
    def stages(self) -> tuple[Objective, ...]:
        """The smooth problems to solve in turn; the last one is the objective itself, or as good as it."""
        if self.name not in ("lad", "_coarse_lad"):
            return (self,)
        deltas = LAD_DELTAS if self.name == "lad" else LAD_DELTAS[:9]
        return tuple(Objective("_smooth_lad", delta, self.asymmetry) for delta in deltas)

    def value(self, log_prediction: Array, sample: Sample) -> Array:
        """Return the objective itself, summed over the last axis."""
        if self.name == "lad":
            residual = sample.log_outcome - log_prediction
            cost = np.abs(residual) * np.where(residual > 0, self.asymmetry, 1.0)
        else:
            cost = self.derivatives(log_prediction, sample.outcome, sample.log_outcome)[0]
        return (sample.weights * cost).sum(-1)

    def derivatives(
        self, log_prediction: Array, outcome: Array, log_outcome: Array, damping: Array | float = 0.0
    ) -> tuple[Array, Array, Array]:
        """Return value, first and second derivative of each point's cost in the log prediction.

        `damping` adds this share of ``delta/|r|`` to Huber's second derivative beyond delta, where it is zero: at 1
        this is the curvature of the parabola that touches the cost from above, along which no full step can fail.
        """
        residual = log_outcome - log_prediction
        if self.name == "squared":
            prediction = np.exp(log_prediction)
            residual = outcome - prediction
            value = residual * residual
            first = -2.0 * residual * prediction
            second = first + 2.0 * prediction * prediction
        elif self.name == "squared_log":
            value, first, second = residual * residual, -2.0 * residual, np.full_like(residual, 2.0)
        elif self.name == "squared_log1p":
            prediction = np.exp(log_prediction)
            share = prediction / (1.0 + prediction)
            residual = np.log1p(outcome) - np.log1p(prediction)
            value = residual * residual
            first = -2.0 * residual * share
            second = 2.0 * share * share - 2.0 * residual * share / (1.0 + prediction)
        elif self.name == "_smooth_lad":
            value = np.sqrt(residual * residual + self.delta**2)
            first = -residual / value
            second = self.delta**2 / value**3
        else:
            clipped = np.clip(residual, -self.delta, self.delta)
            value = clipped * (residual - 0.5 * clipped)
            first = -clipped
            second = (clipped == residual).astype(float)
            if np.any(damping):
                np.maximum(second, damping * (clipped / (residual + 1e-300)), out=second)
        if self.asymmetry != 1.0:
            side = np.where(residual > 0, self.asymmetry, 1.0)
            value, first, second = side * value, side * first, side * second
        return value, first, second
