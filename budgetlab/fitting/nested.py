"""Do several groups have a parameter in common? The joint fit with it shared against the fits with their own.

The misfit that sharing adds is measured in the scatter between replicates and judged by a parametric bootstrap: tables
drawn from the shared fit, both fits repeated on each. An F table would not do: floors and exponents have bounds, and
three budgets leave a law with a floor no degree of freedom of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.arms import stack_points
from budgetlab.fitting.design import Design, build_design, start_all
from budgetlab.fitting.intervals import within_cell_noise
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.fitting.table import Points
from budgetlab.laws import Law
from budgetlab.laws.base import Array
from budgetlab.resampling import PooledVariance

_SQUARED = Objective("squared_log")


@dataclass(frozen=True)
class NestedTest:
    """What sharing a parameter costs.

    Attributes
    ----------
    p_value
        Share of tables drawn from the shared fit whose misfit grows as much by sharing.
    statistic
        Growth of the weighted sum of squared log residuals, in variances of one run.
    restrictions
        Parameters that sharing takes away.
    groups
        The groups that took part, in order.
    own, together
        The parameter of each group by itself; the common one.
    """

    p_value: float
    statistic: float
    restrictions: int
    groups: tuple[str, ...]
    own: Mapping[str, float]
    together: float


def compare_nested(
    points: Mapping[str, Points],
    law: Law,
    shared: str,
    *,
    simulations: int = 199,
    seed: int = 0,
) -> NestedTest | None:
    """Test whether groups share a parameter of a law."""
    if shared not in law.params:
        raise unknown_name("parameter", shared, law.params, f"shared {shared}")
    if simulations < 1:
        raise CallerError(f"{simulations} simulations", "a p-value needs at least one", "give 199 or more")
    able = {name: part for name, part in points.items() if len(np.unique(part.cells())) >= len(law.params)}
    if len(able) < 2:
        return None
    noises = {name: within_cell_noise(part) for name, part in able.items()}
    if any(noise is None or noise.sd == 0.0 for noise in noises.values()):
        return None
    known = {name: noise for name, noise in noises.items() if noise is not None}
    stacked = stack_points(list(able.values()), law)
    labels = [name for name, part in able.items() for _ in range(len(part))]
    scale = np.array([known[name].sd for name in labels])
    weighted = Points(law, stacked.inputs, stacked.outcome, scale**-2, stacked.clusters)
    null, full = (
        build_design(law, weighted.inputs, weighted.outcome, groups=labels, shared=names) for names in ((shared,), ())
    )
    sample = Sample.of(weighted.outcome, weighted.weights)
    best_full = _best(full, start_all(full, weighted.inputs, weighted.outcome, labels), sample)
    best_null = _best(null, np.vstack([start_all(null, weighted.inputs, weighted.outcome, labels), _across(full, null, best_full, able)]), sample)
    best_full = _best(full, np.vstack([best_full[None], _across(null, full, best_null, able)]), sample)
    pair = _Pair(null, full, tuple(able), weighted, best_full, best_null)
    errors = _errors(known, labels, weighted, simulations, np.random.default_rng(seed))
    log_null = null.log_prediction(best_null[None])[0]
    outcomes = np.vstack([weighted.outcome[None], np.exp(log_null + errors)])
    growth = pair.growth(outcomes) / _variance_ratio(outcomes, weighted, labels, scale, tuple(able))
    observed, drawn = growth[0], growth[1:]
    of_null = null.to_params(best_null, next(iter(able)))
    return NestedTest(
        p_value=float((1 + (drawn >= observed).sum()) / (1 + simulations)),
        statistic=float(observed),
        restrictions=len(able) - 1,
        groups=tuple(able),
        own={name: float(full.to_params(best_full, name)[shared]) for name in able},
        together=float(of_null[shared]),
    )


@dataclass(frozen=True)
class _Pair:
    """The two fits of the same rows, repeated on many outcomes."""

    null: Design
    full: Design
    groups: tuple[str, ...]
    points: Points
    full_theta: Array
    null_theta: Array

    def growth(self, outcomes: Array) -> Array:
        """How much larger the smallest sum of squares is with the parameter shared, a row of outcomes each."""
        sample, size = Sample.of(outcomes, self.points.weights), len(outcomes)
        from_full = _across(self.full, self.null, self.full_theta, self.groups)
        ends = [_descend(self.null, np.tile(start, (size, 1)), sample) for start in (self.null_theta, from_full[0])]
        first = np.where((ends[0].value <= ends[1].value)[:, None], ends[0].theta, ends[1].theta)
        shared = np.minimum(ends[0].value, ends[1].value)
        # The larger fit begins at the smaller one's end too, so that it can never end above it.
        starts = (_across(self.null, self.full, first, self.groups), np.tile(self.full_theta, (size, 1)))
        own = np.minimum(*(_descend(self.full, start, sample).value for start in starts))
        return np.maximum(0.0, shared - own)


def _descend(design: Design, start: Array, sample: Sample) -> Optimum:
    # A misfit is read to four digits; where a floor hides in a valley, the rest would take a thousand steps.
    return minimise(design, start, sample, _SQUARED, tolerance=1e-7, max_iterations=60)


def _best(design: Design, starts: Array, sample: Sample) -> Array:
    """Return the lowest end of all starts, carried through."""
    found = _descend(design, starts, sample)
    return minimise(design, found.theta[[int(found.value.argmin())]], sample, _SQUARED).theta[0]


def _across(one: Design, other: Design, theta: Array, groups: Iterable[str]) -> Array:
    """Put free parameters of one design into another's; shape (problems, free)."""
    return other.to_theta({name: one.to_params(np.atleast_2d(theta), name) for name in groups})


def _errors(
    noises: Mapping[str, PooledVariance],
    labels: Sequence[str],
    points: Points,
    size: int,
    rng: np.random.Generator,
) -> Array:
    """Draw errors of log outcomes.

    A run's own part is common to all its budgets, as seen in the residuals. How large the two parts are is drawn as
    well (`PooledVariance.draw_components`): from few runs their ratio is known badly, and the misfit hangs on it.
    """
    codes = np.unique(np.asarray(points.clusters), return_inverse=True)[1]
    names = np.array(labels)
    of_run = rng.standard_normal((size, codes.max() + 1))[:, codes]
    own = rng.standard_normal((size, len(labels)))
    drawn = {noise: noise.draw_components(size, rng) for noise in dict.fromkeys(noises.values())}
    errors = np.empty((size, len(labels)))
    for name, noise in noises.items():
        rows = names == name
        errors[:, rows] = drawn[noise][0] * of_run[:, rows] + drawn[noise][1] * own[:, rows]
    return errors


def _variance_ratio(
    outcomes: Array, points: Points, labels: Sequence[str], scale: Array, groups: Sequence[str]
) -> Array:
    """Pure-error variance of each table over the one that its weights were made of; the mean of the groups' own."""
    logs = np.log(outcomes)
    names = np.array(labels)
    ratios = []
    for name in groups:
        rows = np.flatnonzero(names == name)
        codes = points.take(rows).cells()
        counts = np.bincount(codes)
        means = np.stack([logs[:, rows[codes == c]].mean(axis=1) for c in range(len(counts))], axis=1)
        squares = ((logs[:, rows] - means[:, codes]) ** 2).sum(axis=1) / scale[rows[0]] ** 2
        ratios.append(squares / float((counts - 1).sum()))
    return np.mean(ratios, axis=0)
