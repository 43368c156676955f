"""Figure: a law fitted to any table, with its band, the fitted range, and what lies beyond it shaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting import optimum, predict
from budgetlab.laws import get_law
from budgetlab.reporting.figures.style import COLUMN_INCHES, arm_styles, grid, log_ticks, prefix_for
from budgetlab.values import CurveFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_REACH = 10.0
"""How far beyond the data the curve is drawn."""


def fit_table(fit: CurveFit, table: pd.DataFrame) -> pd.DataFrame:
    """Return what `draw_fit` draws: points, and the curve inside and outside the fitted range.

    For a law of one input x is that input. For ``chinchilla`` x is 6 N D, and the curve is the lowest loss that the
    law allows at that compute; points lie on it or above. For any other law x is the prediction and the curve the
    line of perfect prediction.

    Parameters
    ----------
    fit
        One that may be used.
    table
        What it was fitted to.

    Returns
    -------
    DataFrame
        `layer` ("point" or "curve"), `x`, `y`, `low`, `high`, `extrapolated`, and the names of the axes in `x_name`,
        `y_name`.

    Raises
    ------
    CallerError
        When the fit may not be used.
    """
    if fit.usable_for == "nothing":
        raise CallerError(f"figure of a fit of {fit.law}", f"its status is {fit.status}", "see its status text")
    law = get_law(fit.law.split()[0])
    columns = {name: table[fit.columns[name]].to_numpy(dtype=float) for name in (*law.inputs, law.outcome)}
    if len(law.inputs) == 1:
        x, x_name = columns[law.inputs[0]], fit.columns[law.inputs[0]]
    elif fit.law == "chinchilla":
        x, x_name = 6.0 * columns["num_params"] * columns["tokens"], "compute 6 N D (FLOP)"
    else:
        # Rows that the fit left out have no prediction either.
        usable = np.all([np.isfinite(values) & (values > 0) for values in columns.values()], axis=0)
        columns = {name: values[usable] for name, values in columns.items()}
        known = {name: columns[name] for name in law.inputs if name in fit.input_ranges}
        x = predict(fit, known)["prediction"].to_numpy()
        x_name = f"predicted {fit.columns[law.outcome]}"
    y = columns[law.outcome]
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    x, y = x[good], y[good]
    if x_name.startswith("predicted "):
        ends = np.geomspace(min(x.min(), y.min()), max(x.max(), y.max()), 97)
        curve = pd.DataFrame({"x": ends, "y": ends, "low": np.nan, "high": np.nan})
    elif fit.band:
        curve = pd.DataFrame({"x": fit.band["x"], "y": fit.band["prediction"]})
        curve["low"], curve["high"] = (fit.band.get(end, np.nan) for end in ("low", "high"))
    else:
        found = optimum(fit, np.geomspace(x.min() / 2, x.max() * _REACH, 97))
        curve = found.rename(columns={"flops": "x", "loss": "y", "loss_low": "low", "loss_high": "high"})
    curve = curve[["x", "y", "low", "high"]].assign(layer="curve")
    curve["extrapolated"] = (curve["x"] < x.min()) | (curve["x"] > x.max())
    drawn = pd.concat([pd.DataFrame({"layer": "point", "x": x, "y": y}), curve], ignore_index=True)
    return drawn.assign(x_name=x_name, y_name=fit.columns[law.outcome])


def draw_fit(table: pd.DataFrame) -> Figure:
    """Draw `fit_table`."""
    from matplotlib.figure import Figure

    style = arm_styles(["fit"])["fit"]
    points, curve = table[table["layer"] == "point"], table[table["layer"] == "curve"]
    figure = Figure(figsize=(COLUMN_INCHES, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    limits = (float(curve["x"].min()), float(curve["x"].max()))
    prefix, scale = prefix_for(float(curve["x"].max())) if table["x_name"].iloc[0].endswith("(FLOP)") else ("", 1.0)
    axes.set_xlim(*limits)
    if prefix:
        log_ticks(axes.xaxis, *limits, scale=scale, most=6)
    grid(axes)
    low, high = points["x"].min(), points["x"].max()
    for start, stop in ((limits[0], low), (high, limits[1])):
        axes.axvspan(start, stop, color="#F0F0F0", linewidth=0, zorder=0)
    inside = curve[~curve["extrapolated"].astype(bool)]
    axes.plot(curve["x"], curve["y"], color=style.colour, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
    axes.plot(inside["x"], inside["y"], color=style.colour, linewidth=1.3, zorder=2.1)
    if curve[["low", "high"]].notna().all(axis=None):
        axes.fill_between(
            curve["x"], curve["low"], curve["high"], color=style.colour, alpha=0.18, linewidth=0, zorder=1
        )
    axes.plot(points["x"], points["y"], linestyle="none", marker="o", markersize=2.4, markeredgewidth=0.4,
              markerfacecolor="white", color="#333333", zorder=3)  # fmt: skip
    name = table["x_name"].iloc[0]
    axes.set_xlabel(f"{name.replace('(FLOP)', f'({prefix}FLOP, log scale)')}" if prefix else f"{name} (log scale)")
    axes.set_ylabel(table["y_name"].iloc[0])
    axes.text(0.99, 0.97, "shaded: outside the fitted range", transform=axes.transAxes, ha="right", va="top",
              fontsize=6, color="#555555")  # fmt: skip
    return figure
