"""Figure: loss against model size at each budget with its parabola, and the optimal size against compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from budgetlab.fitting import IsoFlop
from budgetlab.laws import get_law
from budgetlab.reporting.figures.style import COLUMN_INCHES, grid, log_ticks, prefix_for, room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_DARKEST, _LIGHTEST = 0.15, 0.85
"""Of the colour map, for the smallest and the largest budget."""


def isoflop_table(found: IsoFlop, table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return what `draw_isoflop` draws.

    Parameters
    ----------
    found
        From `isoflop`.
    table
        What it was fitted to.
    columns
        As given to `isoflop`.

    Returns
    -------
    DataFrame
        `layer` ("run", "parabola", "optimum" or "line"), `flops`, `num_params` (of an optimum with
        `num_params_low` and `num_params_high`), `loss` (missing on the line), and `used`: whether an optimum is one
        of those that the line goes through. Where the sizes are of data the names say `tokens`.
    """
    place = {name: (columns or {}).get(name, place) for name, place in found.columns.items()}
    fitted = table[table[place["flops"]].isin(found.optima["flops"])]
    layers = [pd.DataFrame({name: fitted[column] for name, column in place.items()}).assign(layer="run")]
    law = get_law("isoflop")
    for row, parabola in zip(found.optima.to_dict("records"), found.fits, strict=True):
        if parabola.usable_for != "nothing":
            sizes = np.geomspace(*parabola.input_ranges["num_params"], 61)
            loss = law.predict(parabola.params, {"num_params": sizes})
            layers.append(pd.DataFrame({"layer": "parabola", "flops": row["flops"], "num_params": sizes, "loss": loss}))
    kept = ["flops", "num_params", "num_params_low", "num_params_high", "loss", "used"]
    layers.append(found.optima.loc[found.optima["status"] != "not_converged", kept].assign(layer="optimum"))
    if found.num_params is not None:
        ends = np.geomspace(found.optima["flops"].min(), found.optima["flops"].max(), 41)
        line = found.num_params.coefficient * ends**found.num_params.exponent
        layers.append(pd.DataFrame({"layer": "line", "flops": ends, "num_params": line}))
    drawn = pd.concat(layers, ignore_index=True)
    drawn["used"] = drawn["used"].eq(True)
    return drawn[["layer", *kept]].rename(columns=lambda name: name.replace("num_params", found.size))


def draw_isoflop(table: pd.DataFrame) -> Figure:
    """Draw `isoflop_table`: a parabola a budget, and below it the optima with the line through them."""
    import matplotlib
    from matplotlib.figure import Figure

    size = "tokens" if "tokens" in table else "num_params"
    table = table.rename(columns=lambda name: name.replace(size, "num_params"))

    budgets = sorted(table["flops"][table["layer"] == "run"].unique())
    shades = np.linspace(_DARKEST, _LIGHTEST, len(budgets))
    colours = {flops: matplotlib.colormaps["viridis"](shade) for flops, shade in zip(budgets, shades, strict=True)}
    figure = Figure(figsize=(COLUMN_INCHES, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1.3, 1.0))
    words = "tokens" if size == "tokens" else "parameters"
    _curves(above, table, colours, words)
    _optima(below, table, colours, words)
    return figure


def _curves(axes: Axes, table: pd.DataFrame, colours: Mapping[float, object], size: str) -> None:
    prefix, scale = prefix_for(max(colours))
    for flops, colour in colours.items():
        own = table[table["flops"] == flops]
        runs, curve, best = (own[own["layer"] == layer] for layer in ("run", "parabola", "optimum"))
        axes.plot(runs["num_params"], runs["loss"], "o", markersize=2.4, color=colour, markerfacecolor="white",
                  markeredgewidth=0.7, label=f"{flops / scale:.3g} {prefix}FLOP")  # fmt: skip
        axes.plot(curve["num_params"], curve["loss"], color=colour, linewidth=1.0)
        inside = best[best["used"]]
        axes.plot(inside["num_params"], inside["loss"], "D", markersize=3.6, color=colour)
    axes.set_xscale("log")
    _sizes(axes, table.loc[table["layer"] == "run", "num_params"], "x", size)
    axes.set_ylabel("loss (nats per token)")
    axes.legend(ncols=3 if len(colours) > 4 else 2, loc="best", handletextpad=0.1, columnspacing=0.8, fontsize=5.5)
    grid(axes)


def _optima(axes: Axes, table: pd.DataFrame, colours: Mapping[float, object], size: str) -> None:
    best, line = table[table["layer"] == "optimum"], table[table["layer"] == "line"]
    prefix, scale = prefix_for(max(colours))
    for row in best.to_dict("records"):
        colour = colours[row["flops"]]
        if np.isfinite(row["num_params_low"]):
            axes.plot([row["flops"]] * 2, [row["num_params_low"], row["num_params_high"]], color=colour, linewidth=0.9)
        fill = colour if row["used"] else "white"
        axes.plot(row["flops"], row["num_params"], "D", markersize=3.6, color=colour, markerfacecolor=fill)
    axes.plot(line["flops"], line["num_params"], color="#555555", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    limits = room(list(colours), log=True)
    axes.set_xlim(*limits)
    log_ticks(axes.xaxis, *limits, scale=scale, most=6)
    axes.set_xlabel(f"compute ({prefix}FLOP)")
    ends = best[["num_params", "num_params_low", "num_params_high"]].to_numpy(dtype=float).ravel()
    _sizes(axes, pd.Series(ends).dropna(), "y", size)
    grid(axes)


def _sizes(axes: Axes, sizes: pd.Series, along: str, what: str) -> None:
    prefix, scale = prefix_for(float(sizes.max()))
    limits = room(sizes.tolist(), log=True)
    axis = axes.xaxis if along == "x" else axes.yaxis
    (axes.set_xlim if along == "x" else axes.set_ylim)(*limits)
    log_ticks(axis, *limits, scale=scale, most=6)
    words = f"{what} ({prefix})" if prefix else what
    (axes.set_xlabel if along == "x" else axes.set_ylabel)(words if along == "x" else f"optimal {words}")
