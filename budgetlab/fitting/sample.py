"""Outcomes and weights: what is resampled while inputs stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetlab.laws.base import Array


@dataclass(frozen=True)
class Sample:
    """Outcomes and weights, of shape (points,) or one row per problem: (problems, points)."""

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

    def parts(self) -> tuple[Array, Array, Array]:
        """Return outcomes, weights and log outcomes."""
        return self.outcome, self.weights, self.log_outcome
