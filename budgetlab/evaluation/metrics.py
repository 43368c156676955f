"""From predictions to a score: metrics, their error from the examples alone, the choice from a grid, paired models.

Nothing here needs a network: what was predicted is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from budgetlab.batches import keyed_uniform
from budgetlab.errors import CallerError, unknown_name
from budgetlab.resampling import percentile_interval
from budgetlab.values import FinetuneRecipe

Array = NDArray[Any]
_HALVES_STREAM = 3


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
    if labels.dtype.kind != "f":
        return {name: float(value) for name, value in _measure_tables(_count(labels, predictions)).items()}
    if not np.isfinite(predictions).all() or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return dict.fromkeys(("pearson", "spearman", "pearson_spearman"), 0.0)
    from scipy.stats import rankdata

    pearson = float(np.corrcoef(labels, predictions)[0, 1])
    spearman = float(np.corrcoef(rankdata(labels), rankdata(predictions))[0, 1])
    return {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}


def standard_errors(labels: Array, predictions: Array, *, resamples: int = 400, seed: int = 0) -> dict[str, float]:
    """Return each metric's standard deviation over bootstrap samples of the examples."""
    rng = np.random.default_rng(seed)
    if labels.dtype.kind != "f":
        drawn = _measure_tables(_resample(_count(labels, predictions), resamples, rng))
    else:
        rows = _draw_rows(len(labels), min(resamples, 200), rng)
        draws = [measure(labels[some], predictions[some]) for some in rows]
        drawn = {name: np.array([draw[name] for draw in draws]) for name in draws[0]}
    return {name: float(np.std(values, ddof=1)) for name, values in drawn.items()}


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
    first, second = (frame.set_index("example").sort_index() for frame in (a, b))
    if not (first.index.equals(second.index) and (first["label"] == second["label"]).all()):
        asked = f"{len(a)} and {len(b)} predictions"
        raise CallerError(asked, "they are not of the same examples", "take two scores of one task and split")
    labels, one, other = (column.to_numpy() for column in (first["label"], first["prediction"], second["prediction"]))
    values, others = measure(labels, one), measure(labels, other)
    if metric not in values:
        raise unknown_name("metric", metric, values, "paired_bootstrap")
    rng = np.random.default_rng(seed)
    if labels.dtype.kind != "f":
        joint = _resample(_count(labels, one, other), resamples, rng)
        draws = _measure_tables(joint.sum(-1))[metric] - _measure_tables(joint.sum(-2))[metric]
    else:
        rows = _draw_rows(len(labels), resamples, rng)
        pairs = [[measure(labels[some], model[some])[metric] for model in (one, other)] for some in rows]
        draws = -np.diff(pairs)[:, 0]
    # How often a resampled difference lies on the other side of none, counting the sample itself.
    tail = (min((draws <= 0).sum(), (draws >= 0).sum()) + 1) / (resamples + 1)
    interval = percentile_interval(draws, level)
    return Paired(metric, values[metric] - others[metric], interval, float(min(1.0, 2 * tail)), len(labels))


def predictions_frame(labels: Array, outputs: NDArray[np.float32]) -> pd.DataFrame:
    """Return one row an example: `example`, `label`, `prediction` and, of classes, `logit_0`, `logit_1`, ..."""
    frame = pd.DataFrame({"example": np.arange(len(labels)), "label": labels})
    if labels.dtype.kind == "f":
        return frame.assign(prediction=outputs[:, 0].astype(float))
    frame["prediction"] = outputs.argmax(-1)
    return frame.assign(**{f"logit_{k}": outputs[:, k] for k in range(outputs.shape[1])})


def score_predictions(frame: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return what a `Score` says of predictions: metrics and their errors, loss, whether one answer was all it gave."""
    labels, predictions = frame["label"].to_numpy(), frame["prediction"].to_numpy()
    metrics = measure(labels, predictions)
    if labels.dtype.kind == "f":
        loss = float(np.mean((predictions - labels) ** 2))
    else:
        logits = frame.filter(regex="^logit_").to_numpy(dtype=float)
        highest = logits.max(-1)
        of_right = logits[np.arange(len(labels)), labels]
        loss = float(np.mean(highest + np.log(np.exp(logits - highest[:, None]).sum(-1)) - of_right))
    return {
        "metric": metric,
        "value": metrics[metric],
        "metrics": metrics,
        "standard_errors": standard_errors(labels, predictions),
        "validation_loss": loss if np.isfinite(loss) else None,
        "degenerate": not np.isfinite(predictions).all() or bool(np.ptp(predictions) == 0),
        "higher_is_better": True,
        "num_examples": len(labels),
    }


def select(
    trials: Mapping[FinetuneRecipe, Sequence[pd.DataFrame]], metric: str, rule: str
) -> tuple[list[pd.DataFrame], str]:
    """Choose a point of the grid by the mean of a metric over seeds."""
    examples = next(iter(trials.values()))[0]["example"].to_numpy()
    first = keyed_uniform(0, _HALVES_STREAM, examples) < 0.5

    def best(rows: NDArray[np.bool_]) -> FinetuneRecipe:
        def mean(recipe: FinetuneRecipe) -> float:
            some = [frame[rows] for frame in trials[recipe]]
            return float(np.mean([measure(f["label"].to_numpy(), f["prediction"].to_numpy())[metric] for f in some]))

        return max(trials, key=mean)

    if rule == "maximum" or first.all() or not first.any():
        one = best(np.ones(len(examples), dtype=bool))
        return list(trials[one]), f"{one.words()}; best of {len(trials)} on the set it is reported on"
    on_first, on_second = best(first), best(~first)
    halves = zip(trials[on_second], trials[on_first], strict=True)
    joined = [pd.concat([a[first], b[~first]]).sort_values("example", ignore_index=True) for a, b in halves]
    chosen = " and ".join(dict.fromkeys(recipe.words() for recipe in (on_second, on_first)))
    return joined, f"{chosen}; of {len(trials)}, each half of the set by the best on the other half"


def _count(*columns: Array) -> NDArray[np.float64]:
    """Count how often each combination of classes occurs, [K, K] for two columns."""
    size = int(max(column.max() for column in columns)) + 1
    flat = np.ravel_multi_index(tuple(column.astype(np.int64) for column in columns), (size,) * len(columns))
    return np.bincount(flat, minlength=size ** len(columns)).reshape((size,) * len(columns)).astype(float)


def _resample(table: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Tables of resampled examples, [resamples, K, ...]: which example it is does not matter, only its cell."""
    total = int(table.sum())
    return rng.multinomial(total, table.ravel() / total, size=resamples).reshape(resamples, *table.shape).astype(float)


def _draw_rows(examples: int, resamples: int, rng: np.random.Generator) -> list[Array]:
    return [rng.integers(0, examples, size=examples) for _ in range(resamples)]


def _measure_tables(tables: NDArray[np.float64]) -> dict[str, Array]:
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
