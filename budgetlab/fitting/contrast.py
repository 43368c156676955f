"""The statistics of one contrast: a paired difference of runs, and what the design could have seen.

The run is the unit of replication. Arms with the same run seed saw the same samples in the same order, so the
difference of two arms is taken seed by seed, and the noise is that of these differences alone (the paired t test). Arms
differ in their noise, up to thirtyfold in recorded studies, and a variance pooled over them covers 53 to 100 % at a
nominal 95 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from budgetlab.laws.law import Array
from budgetlab.resampling import detectable_difference, seeds_to_resolve, t_quantile
from budgetlab.values.scoring import unit_of


@dataclass(frozen=True)
class Contrast:
    """A difference A minus B, positive when A is better, with its uncertainty.

    `standard_error` is None where fewer than two differences are known: then only these checkpoints can be spoken of.
    """

    difference: float
    standard_error: float | None
    degrees_of_freedom: float | None
    num_pairs: int
    paired: bool

    @property
    def run_sd(self) -> float | None:
        """Standard deviation of one run, as if both arms had the same: that of the differences over the root of two."""
        if self.standard_error is None or not self.paired:
            return None
        return self.standard_error * (self.num_pairs / 2) ** 0.5

    @property
    def identical(self) -> bool:
        """Whether all runs of both arms have the same values, as those of a cache and of the teacher that it holds."""
        return self.difference == 0.0 and self.standard_error == 0.0

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

    def runs_to_resolve(self, difference: float, level: float) -> int | None:
        """Runs per arm that would resolve a true difference with probability `POWER`, the noise taken as measured."""
        return None if self.run_sd is None else seeds_to_resolve(difference, self.run_sd, level)

    def _tail(self, distance: float) -> float | None:
        if self.standard_error is None or self.degrees_of_freedom is None:
            return None
        if self.standard_error == 0.0:
            return 1.0 if distance < 0 else 0.0 if distance > 0 else 0.5
        from scipy.special import stdtr

        return float(stdtr(self.degrees_of_freedom, -distance / self.standard_error))


@dataclass(frozen=True)
class Panel:
    """The runs of one outcome as one array, so that a contrast needs no search of a table.

    Attributes
    ----------
    arms, budgets, seeds
        What the axes stand for; budgets rise.
    values
        Shape (arms, budgets, seeds), in `unit_of` the outcome, higher is better; NaN where there is no run.
    """

    arms: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: tuple[object, ...]
    values: Array

    def at(self, arm: str, budget: float) -> Array:
        """Values of an arm at a budget, one a seed, NaN where there is no run."""
        if arm not in self.arms or budget not in self.budgets:
            return np.full(len(self.seeds), np.nan)
        return self.values[self.arms.index(arm), self.budgets.index(budget)]

    def common_budgets(self, a: str, b: str) -> list[float]:
        """Budgets at which both arms have a run, smallest first."""
        both = [np.isfinite(self.values[self.arms.index(arm)]).any(axis=1) for arm in (a, b) if arm in self.arms]
        return [budget for budget, here in zip(self.budgets, np.logical_and(*both), strict=True) if here]


def make_panel(runs: pd.DataFrame, y: str) -> Panel:
    """Arrange the runs of an outcome, in its unit, turned so that higher is better."""
    scale = 100.0 if unit_of(y, bool(runs["higher_is_better"].any())) == "points" else 1.0
    signed = runs["value"].to_numpy(float) * np.where(runs["higher_is_better"], scale, -scale)
    names, places = zip(*(np.unique(runs[c], return_inverse=True) for c in ("arm", "budget_amount", "run_seed")),
                        strict=True)  # fmt: skip
    values = np.full(tuple(len(part) for part in names), np.nan)
    values[places] = signed
    return Panel(tuple(map(str, names[0])), tuple(map(float, names[1])), tuple(names[2].tolist()), values)


def contrast(panel: Panel, a: str, b: str, budget: float) -> Contrast | None:
    """Contrast two arms at one budget, by the paired t of this contrast alone.

    Where the arms have no run seed in common, by Welch's t with Satterthwaite's degrees of freedom.
    """
    one, other = panel.at(a, budget), panel.at(b, budget)
    if not (np.isfinite(one).any() and np.isfinite(other).any()):
        return None
    differences = (one - other)[np.isfinite(one - other)]
    if pairs := len(differences):
        value = float(differences.mean())
        if pairs < 2:
            return Contrast(value, None, None, pairs, True)
        return Contrast(value, float(differences.std(ddof=1)) / pairs**0.5, float(pairs - 1), pairs, True)
    parts = [values[np.isfinite(values)] for values in (one, other)]
    value = float(parts[0].mean() - parts[1].mean())
    if min(map(len, parts)) < 2:
        return Contrast(value, None, None, 0, False)
    squares = np.array([part.var(ddof=1) / len(part) for part in parts])
    return Contrast(value, float(squares.sum() ** 0.5), satterthwaite(squares, [len(p) - 1 for p in parts]), 0, False)


def satterthwaite(squares: Array, freedoms: list[int] | list[float]) -> float:
    """Degrees of freedom of a sum of independent squared errors (Satterthwaite 1946, Biometrics Bulletin 2)."""
    total = float(squares.sum())
    return float(min(freedoms)) if total == 0.0 else total**2 / float((squares**2 / np.array(freedoms)).sum())


def change(first: Contrast, second: Contrast) -> Contrast | None:
    """How a contrast changes between two settings, second minus first; None where either noise is unknown.

    The standard error is Welch's, the degrees of freedom Satterthwaite's.
    """
    errors = (first.standard_error, second.standard_error)
    freedoms = (first.degrees_of_freedom, second.degrees_of_freedom)
    if None in errors or None in freedoms:
        return None
    squares = np.array(errors, dtype=float) ** 2
    freedom = satterthwaite(squares, list(freedoms))  # type: ignore[arg-type]
    return Contrast(second.difference - first.difference, float(squares.sum()) ** 0.5, freedom, 0, False)
