"""The statistics of one contrast: a paired difference of runs, and what the design could have seen.

The run is the unit of replication. At one budget the model is arm + run seed + noise, since arms with the same seed
saw the same samples in the same order. The noise is pooled over all arms at that budget and enters with Student's t:
then intervals cover as they say however the noise changes from budget to budget. Pooled over budgets too they are an
eighth narrower with three seeds, but where the noise grew tenfold with compute (the demo's read-out losses) they
covered 90 %, and where it shrank threefold 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr

from budgetlab.fitting.scores import LOSSES
from budgetlab.laws.base import Array
from budgetlab.resampling import (
    PooledVariance,
    detectable_difference,
    pool_variance,
    seeds_to_resolve,
    t_quantile,
)

__all__ = ["Contrast", "contrast", "paired_noise", "runs_to_resolve", "signed_values", "unit_of"]

_FEWEST_DEGREES_OF_FREEDOM = 3
"""With fewer at a budget its noise is pooled over all budgets: Student's t would say nothing at all."""


@dataclass(frozen=True)
class Contrast:
    """A difference A minus B, positive when A is better, with its uncertainty.

    `standard_error` is None where no cell has a replicate: then only these checkpoints can be spoken of.
    """

    difference: float
    standard_error: float | None
    degrees_of_freedom: float | None
    num_pairs: int
    paired: bool
    noise: PooledVariance | None

    def interval(self, level: float) -> tuple[float, float] | None:
        """Interval of the difference by Student's t."""
        if self.standard_error is None or self.degrees_of_freedom is None:
            return None
        half = t_quantile((1 + level) / 2, self.degrees_of_freedom) * self.standard_error
        return self.difference - half, self.difference + half

    def p_value(self) -> float | None:
        """Two-sided p-value of no difference."""
        tail = self._tail(abs(self.difference))
        return None if tail is None else min(1.0, 2 * tail)

    def p_equivalence(self, margin: float) -> float | None:
        """P-value of the two one-sided tests: small when the difference lies within the margin."""
        return self._tail(margin - abs(self.difference))

    def detectable(self, level: float) -> float | None:
        """Smallest true difference that an equal design resolves with probability `POWER`."""
        if self.standard_error is None or self.degrees_of_freedom is None:
            return None
        return detectable_difference(self.standard_error, self.degrees_of_freedom, level)

    def _tail(self, distance: float) -> float | None:
        if self.standard_error is None or self.degrees_of_freedom is None:
            return None
        if self.standard_error == 0.0:
            return 1.0 if distance < 0 else 0.0 if distance > 0 else 0.5
        return float(stdtr(self.degrees_of_freedom, -distance / self.standard_error))


def unit_of(y: str) -> str:
    """Unit of an outcome's differences: nats for losses, points (0.01) for scores."""
    return "nats" if y in LOSSES else "points"


def signed_values(runs: pd.DataFrame, y: str) -> pd.DataFrame:
    """Put run values into points or nats, turned so that higher is better."""
    scale = 1.0 if unit_of(y) == "nats" else 100.0
    sign = np.where(runs["higher_is_better"], 1.0, -1.0)
    return runs.assign(value=runs["value"] * sign * scale)


def contrast(runs: pd.DataFrame, a: str, b: str, budget: float, noise: PooledVariance | None) -> Contrast | None:
    """Contrast two arms at one budget.

    Parameters
    ----------
    runs
        Signed values, one row per run.
    a, b
        The arms.
    budget
        Its amount.
    noise
        From `paired_noise`, at this budget.

    Returns
    -------
    Contrast or None
        None when an arm has no run there.
    """
    here = runs[runs["budget_amount"] == budget]
    one, other = (here[here["arm"] == arm].set_index("run_seed")["value"] for arm in (a, b))
    if one.empty or other.empty:
        return None
    common = one.index.intersection(other.index)
    if len(common):
        difference, pairs = float((one[common] - other[common]).mean()), len(common)
        share = 2.0 / pairs
    else:
        # No seed in common: the seeds' own effects do not cancel.
        noise = _noise_at(runs, budget, _one_way_residuals)
        difference, pairs = float(one.mean() - other.mean()), 0
        share = 1.0 / len(one) + 1.0 / len(other)
    if noise is None:
        return Contrast(difference, None, None, pairs, pairs > 0, None)
    error = noise.sd * float(np.sqrt(share))
    return Contrast(difference, error, noise.degrees_of_freedom, pairs, pairs > 0, noise)


def paired_noise(runs: pd.DataFrame, budget: float) -> PooledVariance | None:
    """Pool the residuals of arm + run seed at a budget over all arms.

    Where that leaves fewer than three degrees of freedom (two arms with three seeds or fewer), over all budgets. None
    where it leaves none: then nothing is known of the noise at this budget.
    """
    return _noise_at(runs, budget, _two_way_residuals)


def _noise_at(
    runs: pd.DataFrame, budget: float, residuals_of: Callable[[Array], tuple[Array, float]]
) -> PooledVariance | None:
    own = _pool(runs[runs["budget_amount"] == budget], residuals_of)
    enough = own is None or own.degrees_of_freedom >= _FEWEST_DEGREES_OF_FREEDOM
    return own if enough else _pool(runs, residuals_of)


def _pool(runs: pd.DataFrame, residuals_of: Callable[[Array], tuple[Array, float]]) -> PooledVariance | None:
    arms, budgets, seeds = (np.unique(runs[c], return_inverse=True) for c in ("arm", "budget_amount", "run_seed"))
    values = np.full((len(budgets[0]), len(arms[0]), len(seeds[0])), np.nan)
    values[budgets[1], arms[1], seeds[1]] = runs["value"].to_numpy(dtype=float)
    found = [residuals_of(matrix) for matrix in values]
    residuals = np.stack([part for part, _ in found]).reshape(len(found), -1)
    cells, runs_of = np.nonzero(np.isfinite(residuals))
    return pool_variance(residuals[cells, runs_of], cells, np.array([freedom for _, freedom in found]), runs_of)


def _two_way_residuals(matrix: Array) -> tuple[Array, float]:
    """Residuals of row + column effects, and their degrees of freedom; entries may be missing."""
    if np.isfinite(matrix).all():
        residuals = matrix - matrix.mean(axis=0) - matrix.mean(axis=1, keepdims=True) + matrix.mean()
        return residuals, float((matrix.shape[0] - 1) * (matrix.shape[1] - 1))
    rows, columns = np.nonzero(np.isfinite(matrix))
    design = np.zeros((len(rows), sum(matrix.shape)))
    design[np.arange(len(rows)), rows] = 1.0
    design[np.arange(len(rows)), matrix.shape[0] + columns] = 1.0
    values = matrix[rows, columns]
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    residuals = np.full(matrix.shape, np.nan)
    residuals[rows, columns] = values - design @ solution
    return residuals, float(len(values) - rank)


def _one_way_residuals(matrix: Array) -> tuple[Array, float]:
    counts = np.isfinite(matrix).sum(axis=1)
    means = np.nansum(matrix, axis=1) / np.maximum(counts, 1)
    return matrix - means[:, None], float(np.maximum(counts - 1, 0).sum())


def runs_to_resolve(found: Contrast, difference: float, level: float) -> int | None:
    """Return the runs per arm that would resolve a true difference with probability `POWER`.

    The noise is taken as measured; the degrees of freedom grow with the runs.
    """
    if found.noise is None or found.degrees_of_freedom is None or found.num_pairs < 2:
        return None
    per_pair = found.degrees_of_freedom / (found.num_pairs - 1)
    return seeds_to_resolve(difference, found.noise.sd, lambda seeds: per_pair * (seeds - 1), level)
