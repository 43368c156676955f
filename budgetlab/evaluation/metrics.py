"""Metrics of predictions, their error from the examples alone, and two models compared on the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from budgetlab.errors import CallerError, unknown_name
from budgetlab.resampling import percentile_interval

Array = NDArray[Any]
Values = dict[str, Any]


def measure(labels: Array, predictions: Array) -> dict[str, float]:
    """Return all metrics of predictions, by name.

    Parameters
    ----------
    labels, predictions
        Whole numbers are classes: accuracy, F1 of class 1, the mean of all classes' F1, Matthews' correlation. Floats
        are scores: Pearson's and Spearman's correlation and their mean.

    Returns
    -------
    metrics
        0 to 1, correlations -1 to 1; a constant or infinite prediction correlates as 0.
    """
    if labels.dtype.kind == "f":
        return _of_scores(labels, predictions)
    return {name: float(value) for name, value in _of_tables(_table(labels, predictions)).items()}


def standard_errors(labels: Array, predictions: Array, *, resamples: int = 400, seed: int = 0) -> dict[str, float]:
    """Return each metric's standard deviation over bootstrap samples of the examples."""
    rng = np.random.default_rng(seed)
    if labels.dtype.kind != "f":
        table = _table(labels, predictions)
        found = _of_tables(_resampled(table, resamples, rng))
    else:
        draws = [_of_scores(labels[rows], predictions[rows]) for rows in _rows(len(labels), min(resamples, 200), rng)]
        found = {name: np.array([draw[name] for draw in draws]) for name in draws[0]}
    return {name: float(np.std(values, ddof=1)) for name, values in found.items()}


@dataclass(frozen=True)
class Paired:
    """Two models on the same examples: the first minus the second.

    `p_value` is two-sided. It speaks of these two models and of other examples, not of other training runs.
    """

    metric: str
    difference: float
    interval: tuple[float, float] | None
    p_value: float
    num_examples: int


def paired_bootstrap(
    a: pd.DataFrame, b: pd.DataFrame, metric: str, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Paired:
    """Compare two models' predictions by resampling examples, the same ones for both.

    Parameters
    ----------
    a, b
        From `Store.predictions`.
    metric
        One that `measure` returns for these labels.
    resamples, level, seed
        Of the percentile interval.

    Raises
    ------
    CallerError
        When the two were not scored on the same examples, or the metric is none of theirs.
    """
    labels, one, other = _aligned(a, b)
    values, others = measure(labels, one), measure(labels, other)
    if metric not in values:
        raise unknown_name("metric", metric, values, "paired_bootstrap")
    rng = np.random.default_rng(seed)
    if labels.dtype.kind != "f":
        joint = _resampled(_table(labels, one, other), resamples, rng)
        draws = _of_tables(joint.sum(-1))[metric] - _of_tables(joint.sum(-2))[metric]
    else:
        draws = np.array([
            _of_scores(labels[rows], one[rows])[metric] - _of_scores(labels[rows], other[rows])[metric]
            for rows in _rows(len(labels), resamples, rng)
        ])  # fmt: skip
    # How often a resampled difference lies on the other side of none, counting the sample itself.
    tail = (min((draws <= 0).sum(), (draws >= 0).sum()) + 1) / (resamples + 1)
    interval = percentile_interval(draws, level)
    return Paired(metric, values[metric] - others[metric], interval, float(min(1.0, 2 * tail)), len(labels))


def mcnemar(a: pd.DataFrame, b: pd.DataFrame) -> Paired:
    """Compare two classifiers' accuracy by the examples on which exactly one of them is right.

    Exact: of those, the first is right on a binomial share of one half (McNemar 1947, Psychometrika 12).

    Raises
    ------
    CallerError
        When the two were not scored on the same examples, or these have no classes.
    """
    labels, one, other = _aligned(a, b)
    if labels.dtype.kind == "f":
        raise CallerError("mcnemar", "labels are scores, not classes", "use paired_bootstrap")
    first, second = (one == labels) & (other != labels), (one != labels) & (other == labels)
    n, k = int(first.sum() + second.sum()), int(first.sum())
    p_value = float(stats.binomtest(k, n).pvalue) if n else 1.0
    return Paired("accuracy", (2 * k - n) / len(labels), None, p_value, len(labels))


def _aligned(a: pd.DataFrame, b: pd.DataFrame) -> tuple[Array, Array, Array]:
    both = [frame.set_index("example").sort_index() for frame in (a, b)]
    if not (both[0].index.equals(both[1].index) and (both[0]["label"] == both[1]["label"]).all()):
        asked = f"{len(a)} and {len(b)} predictions"
        raise CallerError(asked, "they are not of the same examples", "take two scores of one task and split")
    return both[0]["label"].to_numpy(), both[0]["prediction"].to_numpy(), both[1]["prediction"].to_numpy()


def _table(*columns: Array) -> NDArray[np.float64]:
    """Count how often each combination of classes occurs, [K, K] for two columns."""
    size = int(max(column.max() for column in columns)) + 1
    flat = np.ravel_multi_index(tuple(column.astype(np.int64) for column in columns), (size,) * len(columns))
    return np.bincount(flat, minlength=size ** len(columns)).reshape((size,) * len(columns)).astype(float)


def _resampled(table: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Tables of resampled examples, [resamples, K, ...]: which example it is does not matter, only its cell."""
    total = int(table.sum())
    return rng.multinomial(total, table.ravel() / total, size=resamples).reshape(resamples, *table.shape).astype(float)


def _rows(examples: int, resamples: int, rng: np.random.Generator) -> list[Array]:
    return [rng.integers(0, examples, size=examples) for _ in range(resamples)]


def _of_tables(tables: NDArray[np.float64]) -> Values:
    """Metrics of confusion tables [..., label, prediction]."""
    total = tables.sum((-2, -1))
    right = np.diagonal(tables, axis1=-2, axis2=-1)
    of_labels, of_predictions = tables.sum(-1), tables.sum(-2)
    occurs = of_labels + of_predictions
    f1 = 2 * right / np.where(occurs > 0, occurs, 1.0)
    covariance = right.sum(-1) * total - (of_labels * of_predictions).sum(-1)
    spread = (total**2 - (of_labels**2).sum(-1)) * (total**2 - (of_predictions**2).sum(-1))
    return {
        "accuracy": right.sum(-1) / total,
        "f1": f1[..., 1] if f1.shape[-1] > 1 else np.zeros_like(total),
        "macro_f1": f1.sum(-1) / (occurs > 0).sum(-1),
        # Gorodkin 2004, Computational Biology and Chemistry 28, for any number of classes.
        "matthews": covariance / np.sqrt(np.where(spread > 0, spread, 1.0)) * (spread > 0),
    }


def _of_scores(labels: Array, predictions: Array) -> dict[str, float]:
    if not np.isfinite(predictions).all() or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return dict.fromkeys(("pearson", "spearman", "pearson_spearman"), 0.0)
    pearson = float(np.corrcoef(labels, predictions)[0, 1])
    spearman = float(np.corrcoef(stats.rankdata(labels), stats.rankdata(predictions))[0, 1])
    return {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}
