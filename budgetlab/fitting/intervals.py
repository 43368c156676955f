"""What resampling says of a fit: intervals of its parameters, and whether groups have one in common.

The fit is repeated on resampled points, every repetition converged from the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.certificate import Solution
from budgetlab.fitting.design import Design, build_design, evaluate, start_all
from budgetlab.fitting.newton import Optimum, minimise
from budgetlab.fitting.objectives import Objective, Sample
from budgetlab.fitting.table import Points, stack_points
from budgetlab.laws import Law
from budgetlab.laws.law import Array
from budgetlab.resampling import PooledVariance, bootstrap_weights, chunk_sizes, pool_variance, wild_multipliers

INTERVALS = {
    "none": "no interval",
    "rows": "bootstrap over rows, percentiles",
    "clusters": "bootstrap over clusters (runs), percentiles",
    "wild": "wild bootstrap of the residuals (of whole clusters, where there are any) with the tails of t, percentiles",
    "pooled_t": "noise pooled over the cells of replicates, heavy-tailed as t with its degrees of freedom",
}
"""Name and meaning of every kind of interval; ``auto`` chooses among them."""

_SQUARED = Objective("squared_log")
_FEW_CLUSTERS = 12
_FEW_POINTS = 100
"""Below, resampled rows leave parts of a surface empty, and intervals are too wide (98 % at 60 points)."""
_LIMIT_POINTS = 100_000
"""Above, a bootstrap over rows is drawn from its limit, which it then equals."""
_LARGEST_PULL = 0.9
_DEAD_DIRECTION = 1e-8
_FARTHEST = 30.0
"""Errors of a log outcome are cut here: with one degree of freedom, t has no variance and overflows."""


def choose_interval(points: Points, asked: str) -> tuple[str, str | None]:
    """Settle which interval to use, and what to say about it.

    ``auto`` takes pooled t where cells of replicates leave at least three degrees of freedom and there are too
    few clusters to resample, else the bootstrap over clusters where there are any, else over rows; of few rows or
    clusters the wild bootstrap.
    """
    if asked not in (*INTERVALS, "auto"):
        raise unknown_name("interval", asked, (*INTERVALS, "auto"))
    clusters = 0 if points.clusters is None else len(np.unique(points.clusters))
    if clusters == 1 and asked in ("auto", "clusters"):
        return "none", "all rows are of one run, and say nothing of the next one: no interval"
    if asked == "auto":
        noise = within_cell_noise(points)
        replicated = noise is not None and noise.degrees_of_freedom >= 3
        few = 0 < clusters < _FEW_CLUSTERS or points.num_cells < _FEW_CLUSTERS
        if replicated and few:
            return "pooled_t", None
        if clusters:
            asked = "wild" if clusters < _FEW_CLUSTERS else "clusters"
        else:
            asked = "wild" if len(points) < _FEW_POINTS else "rows"
    if asked == "pooled_t" and within_cell_noise(points) is None:
        raise CallerError(
            f"interval pooled_t, {len(points)} points",
            "no two runs have the same inputs, so there is no scatter to pool",
            "choose rows, clusters or wild",
        )
    if asked in ("clusters", "wild") and 0 < clusters < _FEW_CLUSTERS:
        return asked, f"only {clusters} clusters: a bootstrap over so few gives intervals that are too narrow"
    return asked, None


def within_cell_noise(*parts: Points) -> PooledVariance | None:
    """Pool the scatter of log outcomes over cells of replicates; None where no input point occurs twice.

    Of several arms every cell is its own, and so is every run.
    """
    residuals, cells, freedom, replicates = [], [], [], []
    first_cell = first_run = 0
    for points in parts:
        codes, logs = points.cells, np.log(points.outcome)
        counts = np.bincount(codes)
        runs = np.unique(points.run_labels(), return_inverse=True)[1]
        residuals.append(logs - (np.bincount(codes, weights=logs) / counts)[codes])
        cells.append(codes + first_cell)
        replicates.append(runs + first_run)
        freedom.append(counts - 1.0)
        first_cell, first_run = first_cell + len(counts), first_run + int(runs.max()) + 1
    return pool_variance(*(np.concatenate(column) for column in (residuals, cells, freedom, replicates)))


def lack_of_fit(solution: Solution, points: Points, noise: PooledVariance | None) -> float | None:
    """Probability that scatter alone takes the cells' means as far from the curve as they are; None if untestable.

    The F test of pure error: how far the curve misses the mean log outcome of each cell, against the scatter of the
    replicates within cells.
    """
    cells = points.cells
    counts = np.bincount(cells)
    freedom = len(counts) - solution.design.size
    if noise is None or freedom < 1:
        return None
    missed = np.log(points.outcome) - solution.design.log_prediction(solution.theta[None])[0]
    means = np.bincount(cells, weights=missed) / counts
    if noise.sd == 0:
        return 0.0 if np.abs(means).max() > 1e-9 else 1.0
    from scipy.special import fdtrc

    ratio = float((counts * means**2).sum()) / freedom / noise.sd**2
    return float(fdtrc(freedom, noise.degrees_of_freedom, ratio))


def draw(
    solution: Solution,
    points: Points,
    method: str,
    resamples: int,
    rng: np.random.Generator,
    noise: PooledVariance | None = None,
) -> tuple[Array, int]:
    """Repeat a fit on resampled points: where resamples converged, shape (resamples, free), and how many did not."""
    if method == "rows" and len(points) > _LIMIT_POINTS and solution.objective.name != "lad":
        return _limit_of_rows(solution, points, resamples, rng), 0
    kept, failed = [np.empty((0, solution.design.size))], 0
    if method == "wild":
        samples = _flip_residuals(solution, points, resamples, rng)
    elif method == "pooled_t":
        samples = _add_noise(solution, points, resamples, rng, noise or within_cell_noise(points))
    else:
        counted = bootstrap_weights(
            len(points), resamples, rng, points.run_labels().tolist() if method == "clusters" else None
        )
        samples = (Sample(points.outcome, counts * points.weights, np.log(points.outcome)) for counts in counted)
    for sample in samples:
        size = next(len(part) for part in (sample.outcome, sample.weights) if part.ndim == 2)
        start = np.tile(solution.theta, (size, 1))
        if method == "pooled_t":
            # Between two replicates a robust objective is flat: every curve there is an optimum. Beginning at each
            # draw's own means keeps the draws from staying where the estimate happens to be.
            start = minimise(solution.design, start, sample, _SQUARED, tolerance=1e-8).theta
        optima = minimise(solution.design, start, sample, solution.objective.for_draws, damping=0.1, tolerance=1e-10)
        kept.append(optima.theta[optima.converged])
        failed += int((~optima.converged).sum())
    return np.vstack(kept), failed


def without_each(points: Points, seeds: Sequence[object]) -> tuple[np.ndarray, Sample]:
    """Leave out each seed in turn: the rows of `two_a_cell`, and a problem a seed."""
    weights = points.weights * (points.run_labels() != np.array(seeds)[:, None])
    return two_a_cell(points.cells, np.log(points.outcome), weights)


def two_a_cell(codes: np.ndarray, logs: Array, weights: Array) -> tuple[np.ndarray, Sample]:
    """Let two points of each cell's mean and scatter stand for its rows: squares of logs see no more of them.

    Returns which rows they stand at, and their outcomes and weights, a problem a row of `logs` or `weights`.
    """
    order = np.argsort(codes, kind="stable")
    first = np.flatnonzero(np.diff(codes[order], prepend=-1))
    weight, total, squares = (
        np.add.reduceat((weights * logs**power)[..., order], first, axis=-1) for power in range(3)
    )
    mean = total / weight
    scatter = np.sqrt(np.maximum(squares / weight - mean**2, 0.0))
    outcome = np.exp(np.concatenate([mean - scatter, mean + scatter], axis=-1))
    return np.tile(order[first], 2), Sample.of(outcome, np.concatenate([weight, weight], axis=-1) / 2)


def _limit_of_rows(solution: Solution, points: Points, resamples: int, rng: np.random.Generator) -> Array:
    """Draw from what resampled rows tend to: one Newton step each, whose gradients are normal by their great number."""
    design, sample, objective = solution.design, solution.sample, solution.objective
    log_prediction = design.log_prediction(solution.theta[None])[0]
    slopes = objective.derivatives(log_prediction, sample.outcome, sample.log_outcome)[1]
    pulls = (points.weights * slopes)[:, None] * design.gradients(solution.theta)
    hessian = evaluate(design, solution.theta[None], sample, objective)[2][0]
    sizes, axes = np.linalg.eigh(pulls.T @ pulls)
    pulled = (rng.standard_normal((resamples, design.size)) * np.sqrt(np.maximum(sizes, 0.0))) @ axes.T
    return np.clip(solution.theta + pulled @ np.linalg.pinv(hessian), design.lower, design.upper)


def _add_noise(
    solution: Solution, points: Points, resamples: int, rng: np.random.Generator, noise: PooledVariance | None
) -> Iterator[Sample]:
    """Add errors to the curve as large as the scatter of replicates would as well allow, a run's own part in common."""
    if noise is None:
        return
    log_prediction = solution.design.log_prediction(solution.theta[None])[0]
    codes = np.unique(points.run_labels(), return_inverse=True)[1]
    of_run, own = noise.draw_components(resamples, rng)
    first = 0
    for size in chunk_sizes(resamples, len(points)):
        rows = slice(first, first + size)
        first += size
        errors = of_run[rows] * rng.standard_normal((size, codes.max() + 1))[:, codes]
        errors += own[rows] * rng.standard_normal((size, len(points)))
        # With one degree of freedom, t has no variance and overflows.
        yield Sample.of(np.exp(log_prediction + np.clip(errors, -_FARTHEST, _FARTHEST)), points.weights)


def _flip_residuals(solution: Solution, points: Points, resamples: int, rng: np.random.Generator) -> Iterator[Sample]:
    """Give each cluster's residuals, together, a random sign and size.

    Residuals of a fit are too small by what each cluster pulls the curve towards itself: they are divided by one minus
    its leverage (HC3, CR3 for clusters: MacKinnon and White 1985; Bell and McCaffrey 2002), and few clusters call for
    the tails of t. A robust fit uses points up whole: it passes exactly through some, whose residuals are replaced by
    the median size of the others.
    """
    log_prediction = solution.design.log_prediction(solution.theta[None])[0]
    residual = np.log(points.outcome) - log_prediction
    size = solution.design.size
    if solution.objective.name in ("huber_log", "lad") and len(points) > 2 * size:
        through = np.argsort(np.abs(residual), kind="stable")[:size]
        others = np.delete(np.abs(residual), through)
        residual[through] = np.where(residual[through] < 0, -1.0, 1.0) * np.median(others)
    labels = points.run_labels()
    freedom = max(1, len(np.unique(labels)) - size)
    residual = _without_own_pull(residual, solution.design.gradients(solution.theta), points.weights, labels)
    for factors in wild_multipliers(len(points), resamples, rng, labels.tolist()):
        tails = np.sqrt(freedom / rng.chisquare(freedom, size=(len(factors), 1)))
        errors = np.clip(tails * factors * residual, -_FARTHEST, _FARTHEST)
        yield Sample.of(np.exp(log_prediction + errors), points.weights)


def _without_own_pull(residual: Array, gradients: Array, weights: Array, labels: np.ndarray) -> Array:
    """Residuals as they would be about a curve that had not seen their cluster, to first order."""
    root = np.sqrt(weights)
    basis, sizes, _ = np.linalg.svd(gradients * root[:, None], full_matrices=False)
    basis = basis[:, sizes > _DEAD_DIRECTION * sizes[0]]  # a term that has died out pulls at nothing
    codes = np.unique(labels, return_inverse=True)[1]
    weighted = root * residual
    freed = weighted.copy()
    for rows in np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]):
        # With B the cluster's part of the basis, (1 - B B')^-1 = 1 + B (1 - B' B)^-1 B'. A cluster that alone decides a
        # parameter would leave nothing: its pull is cut.
        own = basis[rows]
        pull, axes = np.linalg.eigh(own.T @ own)
        factor = axes / (1.0 - np.clip(pull, 0.0, _LARGEST_PULL))
        freed[rows] += own @ (factor @ (axes.T @ (own.T @ weighted[rows])))
    return freed / root


class NestedTest(NamedTuple):
    """What sharing a parameter costs."""

    p_value: float
    """Share of tables drawn from the shared fit whose misfit grows as much by sharing."""
    own: Mapping[str, float]
    """The parameter of each group by itself."""
    together: float
    """The common one."""


def compare_nested(
    points: Mapping[str, Points], law: Law, shared: str, *, simulations: int = 199, seed: int = 0
) -> NestedTest | None:
    """Test whether groups share a parameter of a law: the joint fit with it shared against the fits with their own.

    The misfit that sharing adds is measured in the scatter between replicates and judged by a parametric bootstrap:
    tables drawn from the shared fit, both fits repeated on each. An F table would not do: floors and exponents have
    bounds, and three budgets leave a law with a floor no degree of freedom of its own. None where fewer than two
    groups can carry the law, or replicates do not scatter.
    """
    if shared not in law.params:
        raise unknown_name("parameter", shared, law.params, f"shared {shared}")
    if simulations < 1:
        raise CallerError(f"{simulations} simulations", "a p-value needs at least one", "give 199 or more")
    able = {name: part for name, part in points.items() if part.num_cells >= len(law.params)}
    noises = {name: noise for name, part in able.items() if (noise := within_cell_noise(part)) and noise.sd > 0}
    if len(able) < 2 or len(noises) < len(able):
        return None
    groups, labels = tuple(able), np.array([name for name, part in able.items() for _ in range(len(part))])
    stacked = stack_points(list(able.values()), law)
    scale = np.array([noises[name].sd for name in labels])
    cells = np.unique([np.unique(labels, return_inverse=True)[1], stacked.cells], axis=1, return_inverse=True)[1]
    at, seen = two_a_cell(cells, np.log(stacked.outcome), scale**-2)
    points_of, owners = (stacked.take(at).inputs, seen.outcome), labels[at].tolist()
    null, full = (build_design(law, *points_of, groups=owners, shared=names) for names in ((shared,), ()))

    def descend(design: Design, start: Array, sample: Sample) -> Optimum:
        # A misfit is read to four digits; where a floor hides in a valley, the rest would take a thousand steps.
        return minimise(design, start, sample, _SQUARED, tolerance=1e-7, max_iterations=60)

    def lowest(design: Design, starts: Array) -> Array:
        """The lowest end of all starts, carried through."""
        ends = descend(design, starts, seen)
        return minimise(design, ends.theta[[int(ends.value.argmin())]], seen, _SQUARED).theta

    def across(one: Design, other: Design, theta: Array) -> Array:
        """Free parameters of one design, put into the other's."""
        return other.to_theta({name: one.to_params(theta, name) for name in groups})

    def growth(outcomes: Array) -> Array:
        """How much larger the smallest sum of squares is with the parameter shared, a row of outcomes each."""
        sample, size = two_a_cell(cells, np.log(outcomes), np.tile(scale**-2, (len(outcomes), 1)))[1], len(outcomes)
        starts = (best_null, across(full, null, best_full))
        one, other = (descend(null, np.tile(start, (size, 1)), sample) for start in starts)
        together = np.where((one.value <= other.value)[:, None], one.theta, other.theta)
        # The larger fit begins at the smaller one's end too, so that it can never end above it.
        starts = (across(null, full, together), np.tile(best_full, (size, 1)))
        apart = np.minimum(*(descend(full, start, sample).value for start in starts))
        return np.maximum(0.0, np.minimum(one.value, other.value) - apart)

    best_full = lowest(full, start_all(full, *points_of, owners))
    best_null = lowest(null, np.vstack([start_all(null, *points_of, owners), across(full, null, best_full)]))
    best_full = lowest(full, np.vstack([best_full, across(null, full, best_null)]))
    errors = _errors_of_runs(noises, labels, stacked, simulations, np.random.default_rng(seed))
    outcomes = np.vstack([stacked.outcome[None], np.exp(null.log_prediction(best_null)[:, cells] + errors)])
    statistic = growth(outcomes) / _variance_ratio(outcomes, stacked, labels, scale, groups)
    return NestedTest(
        p_value=float((1 + (statistic[1:] >= statistic[0]).sum()) / (1 + simulations)),
        own={name: float(full.to_params(best_full[0], name)[shared]) for name in groups},
        together=float(null.to_params(best_null[0], groups[0])[shared]),
    )


def _errors_of_runs(
    noises: Mapping[str, PooledVariance], labels: np.ndarray, points: Points, size: int, rng: np.random.Generator
) -> Array:
    """Draw errors of log outcomes.

    A run's own part is common to all its budgets, as seen in the residuals. How large the two parts are is drawn as
    well (`PooledVariance.draw_components`): from few runs their ratio is known badly, and the misfit hangs on it.
    """
    codes = np.unique(points.run_labels(), return_inverse=True)[1]
    of_run = rng.standard_normal((size, codes.max() + 1))[:, codes]
    own = rng.standard_normal((size, len(labels)))
    drawn = {noise: noise.draw_components(size, rng) for noise in dict.fromkeys(noises.values())}
    errors = np.empty((size, len(labels)))
    for name, noise in noises.items():
        rows = labels == name
        errors[:, rows] = drawn[noise][0] * of_run[:, rows] + drawn[noise][1] * own[:, rows]
    return errors


def _variance_ratio(outcomes: Array, points: Points, labels: np.ndarray, scale: Array, groups: Sequence[str]) -> Array:
    """Pure-error variance of each table over the one that its weights were made of; the mean of the groups' own."""
    logs, ratios = np.log(outcomes), []
    for name in groups:
        rows = np.flatnonzero(labels == name)
        codes = points.take(rows).cells
        counts = np.bincount(codes)
        means = np.stack([logs[:, rows[codes == c]].mean(axis=1) for c in range(len(counts))], axis=1)
        squares = ((logs[:, rows] - means[:, codes]) ** 2).sum(axis=1) / scale[rows[0]] ** 2
        ratios.append(squares / float((counts - 1).sum()))
    return np.mean(ratios, axis=0)
