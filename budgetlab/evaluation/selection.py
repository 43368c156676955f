"""From a classifier's outputs to a score; from the fine-tunings of a grid to the one that is reported.

Nothing here needs a network: what was predicted is on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from budgetlab.batches import keyed_uniform
from budgetlab.evaluation.metrics import measure, standard_errors
from budgetlab.evaluation.tasks import Task
from budgetlab.values import FinetuneRecipe

HALVES_STREAM = 3


def predictions_frame(labels: NDArray[Any], outputs: NDArray[np.float32]) -> pd.DataFrame:
    """Return one row an example: `example`, `label`, `prediction` and, of classes, `logit_0`, `logit_1`, ..."""
    frame = pd.DataFrame({"example": np.arange(len(labels)), "label": labels})
    if labels.dtype.kind == "f":
        return frame.assign(prediction=outputs[:, 0].astype(float))
    frame["prediction"] = outputs.argmax(-1)
    return frame.assign(**{f"logit_{k}": outputs[:, k] for k in range(outputs.shape[1])})


def scored(task: Task, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what a `Score` says of predictions: metrics and their errors, loss, whether one answer was all it gave."""
    labels, predictions = frame["label"].to_numpy(), frame["prediction"].to_numpy()
    metrics = measure(labels, predictions)
    if task.regression:
        loss = float(np.mean((predictions - labels) ** 2))
    else:
        logits = frame[[f"logit_{k}" for k in range(task.num_labels)]].to_numpy(dtype=float)
        highest = logits.max(-1)
        of_right = logits[np.arange(len(labels)), labels]
        loss = float(np.mean(highest + np.log(np.exp(logits - highest[:, None]).sum(-1)) - of_right))
    return {
        "metric": task.metric,
        "value": metrics[task.metric],
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
    first = keyed_uniform(0, HALVES_STREAM, examples) < 0.5

    def best(rows: NDArray[np.bool_]) -> FinetuneRecipe:
        means = {
            recipe: np.mean([_measured(frame[rows], metric) for frame in frames]) for recipe, frames in trials.items()
        }
        return max(means, key=lambda recipe: means[recipe])

    if rule == "maximum" or first.all() or not first.any():
        one = best(np.ones(len(examples), dtype=bool))
        return list(trials[one]), f"{one.words()}; best of {len(trials)} on the set it is reported on"
    on_first, on_second = best(first), best(~first)
    halves = zip(trials[on_second], trials[on_first], strict=True)
    joined = [pd.concat([a[first], b[~first]]).sort_values("example", ignore_index=True) for a, b in halves]
    chosen = " and ".join(dict.fromkeys(recipe.words() for recipe in (on_second, on_first)))
    return joined, f"{chosen}; of {len(trials)}, each half of the set by the best on the other half"


def _measured(frame: pd.DataFrame, metric: str) -> float:
    return measure(frame["label"].to_numpy(), frame["prediction"].to_numpy())[metric]
