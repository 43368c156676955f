"""IsoFLOP parabolas: the optimum at each budget as approach 2 reads it, a check on the surface's and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.curves import fit_points
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.table import read_points
from budgetlab.laws import get_law
from budgetlab.laws.law import Array
from budgetlab.resampling import percentile_interval
from budgetlab.values import CurveFit

_FEWEST_SIZES = 3
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
    draws_left_out
        Share of a budget's draws, at most, that have no minimum inside the sizes tried; they enter no interval.
    """

    exponent: float
    coefficient: float
    exponent_interval: tuple[float, float] | None = None
    draws_left_out: float = 0.0


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
    size
        What the parabolas are over: ``num_params``, or ``tokens`` where the sizes that were given are of data. The
        names above stay; the printed lines and the JSON say which.
    columns
        Where flops, sizes and losses were found.
    """

    optima: pd.DataFrame
    num_params: PowerLine | None
    fits: tuple[CurveFit, ...]
    size: str = "num_params"
    columns: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON: the optima and the line; unknown is null."""
        table = self.table().astype(object)
        table = table.where(table.notna(), None)
        line = None if self.num_params is None else vars(self.num_params)
        return {"optima": table.to_dict("records"), "line": line, "size": self.size}

    def table(self) -> pd.DataFrame:
        """Return the optima with their sizes under the name of what they are: `num_params` or `tokens`."""
        return self.optima.rename(columns=lambda name: name.replace("num_params", self.size))

    def __str__(self) -> str:
        """Say each optimum in a line, and how they grow."""
        best, tried = ("D*", "amounts of tokens") if self.size == "tokens" else ("N*", "sizes")
        lines = []
        for row in self.optima.to_dict("records"):
            low, high = row["num_params_low"], row["num_params_high"]
            ends = "" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]"
            unused = " (not used)" if row["interior"] else f" (minimum outside the {tried} tried: not used)"
            lines.append(
                f"{row['flops']:.4g} FLOP, {row['num_points']} runs: {best} = {row['num_params']:.4g}{ends}, loss "
                f"{row['loss']:.4g}; {row['status']}{'' if row['used'] else unused}"
            )
        line = self.num_params
        if line is None:
            return "\n".join([*lines, f"{best} over compute: n/a, fewer than two budgets have their minimum inside"])
        ends = line.exponent_interval
        around = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
        lines.append(f"{best} = {line.coefficient:.4g} C^{line.exponent:.3f}{around}")
        if line.draws_left_out:
            lines.append(
                f"note: up to {100 * line.draws_left_out:.2g} % of a budget's resamples have no minimum "
                f"inside the {tried} tried, and enter no interval of the exponent"
            )
        return "\n".join(lines)


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
        Where ``flops`` (equal within a budget), ``num_params`` and ``loss`` (nats per token) are. With ``tokens``
        in place of ``num_params`` the parabolas are over tokens.
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
    Where the exponents of the loss differ the parabola is biased even without noise (see `laws.one_input`): take N*
    and D* from `frontier` of a fitted surface, and this as a check.
    """
    given = dict(columns or {})
    asked_tokens = "tokens" in given or "num_params" not in table.columns
    sized = given.get("num_params", "tokens" if asked_tokens else "num_params")
    size = "tokens" if "token" in sized.lower() else "num_params"
    if size == "tokens" and "num_params" not in given:
        given["num_params"] = given.pop("tokens", "tokens" if "tokens" in table.columns else "num_params")
    place = {name: given.get(name, name) for name in ("flops", "num_params", "loss")}
    for name in given:
        if name not in place:
            raise unknown_name("name", name, (*place, "tokens"), f"isoflop, map {name}={given[name]}")
    for name, column in place.items():
        if column not in table.columns:
            raise unknown_name("column", column, map(str, table.columns), f"isoflop, {len(table)} rows, {name}")
    rows, fits, draws = [], [], []
    for flops, runs in table.groupby(place["flops"], sort=True):
        if nearest is not None:
            logs = np.log(runs[place["num_params"]].to_numpy(dtype=float))
            distance = np.abs(logs - logs[int(runs[place["loss"]].to_numpy().argmin())])
            runs = runs.iloc[np.argsort(distance, kind="stable")[:nearest]]
        sizes = runs[place["num_params"]]
        if sizes.nunique() < _FEWEST_SIZES:
            continue
        points = read_points(runs, get_law("isoflop"), {name: place[name] for name in ("num_params", "loss")})
        found = fit_points(
            prepare(points, {}, saturated=True), Objective("squared"), interval="auto", interval_level=interval_level,
            resamples=resamples if sizes.nunique() > _FEWEST_SIZES else 0, seed=seed,
        )  # fmt: skip
        best = found.params.get("N_opt", np.nan)
        low, high = found.intervals.get("N_opt") or (np.nan, np.nan)
        interior = bool(sizes.min() < best < sizes.max())
        rows.append({
            "flops": flops, "num_points": len(runs), "num_params": best, "num_params_low": low, "num_params_high": high,
            "loss": found.params.get("L_min", np.nan), "curvature": found.params.get("k", np.nan), "interior": interior,
            "status": found.status, "used": interior and found.usable_for != "nothing",
        })  # fmt: skip
        drawn = np.array(found.draws.get("N_opt", ()))
        inside = (drawn > sizes.min()) & (drawn < sizes.max())
        fits.append(found)
        draws.append((drawn[inside], 1 - float(inside.mean()) if len(drawn) else 0.0))
    if not rows:
        raise CallerError(
            f"isoflop, {len(table)} rows", f"no budget in {place['flops']} has {_FEWEST_SIZES} model sizes",
            "train more sizes at one budget, or fit a surface with law chinchilla",
        )  # fmt: skip
    optima = pd.DataFrame(rows)
    return IsoFlop(optima, _line(optima, draws, interval_level), tuple(fits), size, place)


def _line(optima: pd.DataFrame, draws: list[tuple[Array, float]], level: float) -> PowerLine | None:
    used = optima["used"].to_numpy()
    if used.sum() < 2:
        return None
    x, y = (optima.loc[used, name].to_numpy() for name in ("flops", "num_params"))
    line = power_line(x, y)
    kept = [part for part, keep in zip(draws, used, strict=True) if keep]
    count = min(len(drawn) for drawn, _ in kept)
    if count < 2:
        return line
    # The budgets' runs are apart, so that any pairing of their draws is a draw of all.
    logs = np.log(np.stack([drawn[:count] for drawn, _ in kept]))
    exponents = np.polyfit(np.log(x), logs, 1)[0]
    lost = max(share for _, share in kept)
    return PowerLine(line.exponent, line.coefficient, percentile_interval(exponents, level), lost)


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
    asked = f"a line through {len(x)} points"
    for name, values in (("x", x), ("y", y), ("weights", np.ones(1) if weights is None else np.asarray(weights))):
        if bad := int((~(np.isfinite(values) & (values > 0))).sum()):
            raise CallerError(asked, f"{bad} of {name} not finite and above zero", "drop them")
    if len(np.unique(x)) < 2:
        raise CallerError(asked, "x has fewer than two values", "give two budgets")
    exponent, log_coefficient = np.polyfit(np.log(x), np.log(y), 1, w=weights)
    return PowerLine(float(exponent), float(np.exp(log_coefficient)))
