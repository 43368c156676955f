"""A metric from scale in two steps: loss from scale, then the metric from the loss, with one interval through both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.use import interval_ends, law_of, predict
from budgetlab.laws.base import Array
from budgetlab.values import CurveFit


@dataclass(frozen=True)
class TwoStep:
    """Two fitted curves, one after the other.

    Attributes
    ----------
    loss
        A fit of a loss (any law), which the first step predicts.
    metric
        A fit of a bounded metric with that loss as its only input, such as ``sigmoid`` or ``exponential``.
    """

    loss: CurveFit
    metric: CurveFit

    def predict(self, inputs: Mapping[str, Array | float | list[float]], seed: int = 0) -> pd.DataFrame:
        """Predict the metric at given scale.

        Parameters
        ----------
        inputs
            Positive values by the names of the first law's inputs.
        seed
            Of the pairing of draws, where the two fits were not resampled together.

        Returns
        -------
        DataFrame
            The inputs, `loss` and `prediction` (the metric) with ``loss_low``, ``loss_high``, ``low`` and ``high``
            (of the curve, not of a new run; NaN without draws), and `extrapolated`: the scale is outside the first
            fit's range, or the predicted loss outside the second's.

        Raises
        ------
        CallerError
            When one of the fits may not be used, or an input is missing or not positive.

        Notes
        -----
        Errors of the first step pass through the second: each draw of the metric is a draw of the second curve at a
        draw of the loss. Draws are paired one to one where both fits resampled the same rows with the same seed, so
        that what the steps share is kept; otherwise at random, as if they were independent.
        """
        table = predict(self.loss, inputs).rename(
            columns={"prediction": "loss", "low": "loss_low", "high": "loss_high"}
        )
        second, name = law_of(self.metric), self._input
        table["prediction"] = second.predict(self.metric.params, {name: table["loss"].to_numpy()})
        table["low"], table["high"] = np.nan, np.nan
        if self.loss.draws and self.metric.draws:
            scale = {key: table[key].to_numpy()[None] for key in law_of(self.loss).inputs}
            first = {key: np.array(values)[:, None] for key, values in self.loss.draws.items()}
            losses = law_of(self.loss).predict(first, scale)
            rows = self._paired(len(losses), seed)
            then = {key: np.array(values)[rows, None] for key, values in self.metric.draws.items()}
            cloud = second.predict(then, {name: losses[: len(rows)]})
            table["low"], table["high"] = interval_ends(cloud, self.loss.interval_level)
        low, high = self.metric.input_ranges[name]
        beyond = (table["loss"] < low) | (table["loss"] > high)
        table["extrapolated"] = table["extrapolated"].to_numpy() | beyond.to_numpy()
        return table

    @property
    def _input(self) -> str:
        return law_of(self.metric).inputs[0]

    def _paired(self, count: int, seed: int) -> np.ndarray:
        available = len(next(iter(self.metric.draws.values())))
        one, other = self.loss, self.metric
        together = (
            one.interval_method == other.interval_method != "wild"
            and one.seed == other.seed
            and count == available
            and (one.num_points, one.clusters) == (other.num_points, other.clusters)
        )
        if together:
            return np.arange(count)
        return np.random.default_rng(seed).integers(0, available, count)


def two_step(loss: CurveFit, metric: CurveFit) -> TwoStep:
    """Chain a fit of a loss with a fit of a metric by that loss.

    Parameters
    ----------
    loss, metric
        As in `TwoStep`; both must be usable.

    Raises
    ------
    CallerError
        When one of the fits may not be used, the first predicts no loss, or the second has another input than one.

    References
    ----------
    Bhagia et al. 2024, arXiv 2412.04403.
    """
    if law_of(loss).outcome == "metric" or loss.outcome_transform != "y":
        raise CallerError(f"two steps from law {loss.law}", "it predicts a metric, not a loss", "fit a loss first")
    inputs = law_of(metric).inputs
    if len(inputs) != 1:
        raise CallerError(
            f"two steps to law {metric.law}",
            f"it has {len(inputs)} inputs ({', '.join(inputs)})",
            "fit sigmoid or exponential",
        )
    return TwoStep(loss, metric)
