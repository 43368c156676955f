"""IsoFLOP parabolas: the optimum at each budget as approach 2 reads it, a check on the surface's and a plot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.curves import fit
from budgetlab.laws.base import Array
from budgetlab.resampling import percentile_interval
from budgetlab.values import CurveFit

__all__ = ["IsoFlop", "PowerLine", "isoflop", "power_line"]

_FEWEST = 3
"""Model sizes that a parabola needs; as many pass through it exactly."""


@dataclass(frozen=True)
class PowerLine:
    """A straight line in logarithms, ``y = coefficient * x^exponent``.

    Attributes
    ----------
    exponent, coefficient
        Of the least-squares line.
    exponent_interval
        Percentiles of its draws; None without any.
    """

    exponent: float
    coefficient: float
    exponent_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class IsoFlop:
    """Optima of all budgets, and how they grow with compute.

    Attributes
    ----------
    optima
        One row a budget: `flops`, `num_points`, `num_params` (N*), `loss`, `curvature` (nats per squared unit of log
        N), each interval of N* as `num_params_low` and `num_params_high`, `interior` (whether the minimum lies among
        the sizes tried), `status` of its fit, and `used` in the lines.
    num_params
        N* over compute; None where fewer than two budgets have an interior minimum.
    fits
        The parabola of every budget.
    """

    optima: pd.DataFrame
    num_params: PowerLine | None
    fits: tuple[CurveFit, ...]


def isoflop(
    table: pd.DataFrame,
    *,
    columns: dict[str, str] | None = None,
    nearest: int | None = None,
    resamples: int = 200,
    interval_level: float = 0.95,
    seed: int = 0,
) -> IsoFlop:
    """Fit a parabola in log N at each budget, and a line through the optima.

    Parameters
    ----------
    table
        One row a run.
    columns
        Where ``flops`` (equal within a budget), ``num_params`` and ``loss`` (nats per token) are.
    nearest
        Sizes to keep of each budget, those nearest the lowest loss: a parabola holds only near its minimum. All by
        default.
    resamples
        Of each parabola's interval; 0 for none.
    interval_level, seed
        As in `fit`.

    Returns
    -------
    IsoFlop

    Raises
    ------
    CallerError
        For a missing column, or where no budget has three sizes.

    Notes
    -----
    Where the exponents of the loss differ the parabola is biased even without noise (see `laws.isoflop`): take N* and
    D* from `frontier` of a fitted surface, and this as a check.
    """
    place = {name: (columns or {}).get(name, name) for name in ("flops", "num_params", "loss")}
    for name in columns or {}:
        if name not in place:
            raise unknown_name("name", name, place, f"isoflop, map {name}={(columns or {})[name]}")
    for name, column in place.items():
        if column not in table.columns:
            raise unknown_name("column", column, map(str, table.columns), f"isoflop, {len(table)} rows, {name}")
    rows, fits, draws = [], [], []
    for flops, part in table.groupby(place["flops"], sort=True):
        runs = _near_minimum(part, place, nearest)
        sizes = runs[place["num_params"]]
        if sizes.nunique() < _FEWEST:
            continue
        found = fit(
            runs, law="isoflop", columns={name: place[name] for name in ("num_params", "loss")}, objective="squared",
            resamples=resamples if sizes.nunique() > _FEWEST else 0, interval_level=interval_level, seed=seed,
        )  # fmt: skip
        fits.append(found)
        best = found.params.get("N_opt", np.nan)
        low, high = found.intervals.get("N_opt") or (np.nan, np.nan)
        interior = bool(sizes.min() < best < sizes.max())
        rows.append({
            "flops": flops, "num_points": len(runs), "num_params": best, "num_params_low": low, "num_params_high": high,
            "loss": found.params.get("L_min", np.nan), "curvature": found.params.get("k", np.nan), "interior": interior,
            "status": found.status, "used": interior and found.usable_for != "nothing",
        })  # fmt: skip
        draws.append(np.array(found.draws.get("N_opt", ())))
    if not rows:
        raise CallerError(
            f"isoflop, {len(table)} rows", f"no budget in {place['flops']} has {_FEWEST} model sizes",
            "train more sizes at one budget, or fit a surface with law chinchilla",
        )  # fmt: skip
    optima = pd.DataFrame(rows)
    return IsoFlop(optima, _line(optima, draws, interval_level), tuple(fits))


def power_line(x: Array, y: Array, weights: Array | None = None) -> PowerLine:
    """Draw a straight line in logarithms by (weighted) least squares.

    Parameters
    ----------
    x, y
        Above zero, shape (points,).
    weights
        Of the residuals, before they are squared: one over each point's standard error.

    Raises
    ------
    CallerError
        When x has fewer than two values, or anything is not finite and above zero.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    for name, values in (("x", x), ("y", y), ("weights", np.ones(1) if weights is None else np.asarray(weights))):
        if not (np.isfinite(values).all() and (values > 0).all()):
            bad = int((~(np.isfinite(values) & (values > 0))).sum())
            raise CallerError(
                f"a line through {len(x)} points", f"{bad} of {name} not finite and above zero", "drop them"
            )
    if len(np.unique(x)) < 2:
        raise CallerError(f"a line through {len(x)} points", "x has fewer than two values", "give two budgets")
    exponent, log_coefficient = np.polyfit(np.log(x), np.log(y), 1, w=weights)
    return PowerLine(float(exponent), float(np.exp(log_coefficient)))


def _near_minimum(part: pd.DataFrame, place: dict[str, str], nearest: int | None) -> pd.DataFrame:
    if nearest is None:
        return part
    logs = np.log(part[place["num_params"]].to_numpy(dtype=float))
    lowest = logs[int(part[place["loss"]].to_numpy().argmin())]
    return part.iloc[np.argsort(np.abs(logs - lowest), kind="stable")[:nearest]]


def _line(optima: pd.DataFrame, draws: list[Array], level: float) -> PowerLine | None:
    used = optima["used"].to_numpy()
    if used.sum() < 2:
        return None
    x, y = (optima.loc[used, name].to_numpy() for name in ("flops", "num_params"))
    line = power_line(x, y)
    clouds = [values for values, keep in zip(draws, used, strict=True) if keep]
    count = min(len(values) for values in clouds)
    if count < 2:
        return line
    # The budgets' runs are apart, so that any pairing of their draws is a draw of all.
    logs = np.log(np.stack([values[:count] for values in clouds]))
    exponents = np.polyfit(np.log(x), logs, 1)[0]
    return PowerLine(line.exponent, line.coefficient, percentile_interval(exponents, level))
