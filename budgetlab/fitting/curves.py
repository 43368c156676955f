"""Fitting a law to a table, and to each arm of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.certificate import GAP_TOLERANCE, Solution, contradicted
from budgetlab.fitting.intervals import choose_interval, draw, lack_of_fit, within_cell_noise
from budgetlab.fitting.objectives import OBJECTIVES, Objective
from budgetlab.fitting.prepare import Prepared, prepare
from budgetlab.fitting.solve import sensitivity_rows, solve, validation_rows
from budgetlab.fitting.status import FitStatus, describe
from budgetlab.fitting.table import Points, one_ratio, read_points
from budgetlab.laws import Law, get_law
from budgetlab.laws.law import Array
from budgetlab.resampling import PooledVariance, percentile_interval
from budgetlab.values import CurveFit

_BAND_POINTS = 49
_ROUNDING = 1e-8
"""Log residuals up to this are rounding of parameters given with ten digits."""
_MISFIT = 0.01
"""Below this probability a lack of fit is said, and a smaller law than asked for is not offered."""


def fit(
    table: pd.DataFrame,
    *,
    law: str = "power",
    columns: dict[str, str] | None = None,
    objective: str = "huber_log",
    delta: float = 1e-3,
    asymmetry: float = 1.0,
    weights: str | None = None,
    clusters: str | None = None,
    pinned: dict[str, float] | None = None,
    resamples: int = 1000,
    interval: str = "auto",
    interval_level: float = 0.95,
    seed: int = 0,
    arm: str | None = None,
    exclude_invalid: bool = False,
    higher_is_better: bool = False,
    starts: int = 8,
    definitions: dict[str, str] | None = None,
    diagnostics: bool = False,
) -> CurveFit:
    """Fit a scaling law to a table, certify the optimum and give intervals.

    Parameters
    ----------
    table
        One row per point.
    law
        Name of a law in `budgetlab.laws`, or the path of a file that defines one.
    columns
        Where the law's inputs and outcome are, such as ``{"tokens": "D"}``.
    objective
        One of `OBJECTIVES`; always a weighted sum, never a mean.
    delta
        Of the Huber objective, in log residuals.
    asymmetry
        Weight of points above the curve relative to points below it.
    weights, clusters
        Columns of positive weights, and of labels of rows that are one run.
    pinned
        Parameters held at a value, such as ``{"E": 1.69}``; a floor may be pinned to 0.
    resamples
        Of the interval; 0 for none.
    interval
        One of `INTERVALS`, or ``auto``.
    interval_level
        Nominal coverage.
    seed
        Of the resampling.
    arm
        Whose fit this is, for the record.
    exclude_invalid
        Leave rows out that no power law can have (counted in the record), instead of refusing the table.
    higher_is_better
        Fit the outcome's distance from 1, as the laws of losses fall; it is then a fraction.
    starts
        How many independent starts.
    definitions
        What the inputs mean, for the record, such as ``{"tokens": "C / (6 N)"}``.
    diagnostics
        Whether to add held-out errors (`validation`) and other objectives (`sensitivity`).

    Returns
    -------
    CurveFit
        With a `status` whose text says whether the numbers may be used.

    Raises
    ------
    CallerError
        For a table that cannot be read, an unknown name, or fewer points than parameters.

    Examples
    --------
    >>> x = np.geomspace(1e13, 1e15, 7)
    >>> table = pd.DataFrame({"flops": x, "loss": 2.0 + 3.0 * (x / 1e13) ** -0.3})
    >>> found = fit(table, columns={"x": "flops", "y": "loss"}, resamples=0)
    >>> found.status, round(found.params["E"], 6), round(found.params["a"], 6)
    ('converged', 2.0, 0.3)
    """
    for wrong, asked, why, remedy in (
        (not 0 < interval_level < 1, f"interval_level = {interval_level!r}", "not between 0 and 1",
         "give a fraction such as 0.95"),
        (resamples < 0, f"resamples = {resamples!r}", "negative", "give a number, or 0 for no interval"),
        (starts < 1, f"starts = {starts!r}", "no start", "give at least 1; 8 lets the certificate compare them"),
    ):  # fmt: skip
        if wrong:
            raise CallerError(asked, why, remedy)
    form, goal = get_law(law), Objective(objective, delta, asymmetry)
    record: dict[str, object] = {"arm": arm, "weights": weights, "clusters": clusters, "definitions": definitions or {}}
    if higher_is_better:
        column, asked = (columns or {}).get(form.outcome, form.outcome), f"law {law}, {len(table)} rows"
        if column not in table.columns:
            raise unknown_name("column", column, map(str, table.columns), asked)
        values = pd.to_numeric(table[column], errors="coerce")
        if (largest := float(values.max())) > 1:
            raise CallerError(f"{asked}, {column}", f"a score of {largest:g}", "give fractions of 1, not points")
        table = table.assign(**{column: 1.0 - values})
        record["outcome_transform"] = "1 - y"
    points = read_points(table, form, columns, weights=weights, clusters=clusters, exclude_invalid=exclude_invalid)
    prepared = prepare(points, pinned or {})
    if diagnostics and not prepared.refusal:
        record["validation"] = validation_rows(points, goal, pinned or {})
        record["sensitivity"] = sensitivity_rows(points, pinned or {})
    return fit_points(
        prepared, goal, resamples=resamples, interval=interval, interval_level=interval_level, seed=seed,
        starts=starts, record=record,
    )  # fmt: skip


def fit_points(
    prepared: Prepared,
    objective: Objective,
    *,
    resamples: int,
    interval: str,
    interval_level: float,
    seed: int,
    starts: int = 8,
    noise: PooledVariance | None = None,
    record: Mapping[str, object] | None = None,
) -> CurveFit:
    """Fit prepared points; `fit` is the public door."""
    points = prepared.points
    if prepared.refusal:
        return refused(prepared.refusal, points, objective, record)
    solution = solve(points, prepared.law, objective, pinned=prepared.pinned, starts=starts, level=interval_level)
    misfit, misses = lack_of_fit(solution, points, noise or within_cell_noise(points)), ""
    if misfit is not None and misfit < _MISFIT:
        misses = f"the curve misses the means of the runs by more than their scatter explains (p = {misfit:.1e})"
    if prepared.reason and misses:
        return refused(f"{prepared.reason}; with that smaller law {misses}", points, objective, record)
    method, note = choose_interval(points, interval) if noise is None else ("pooled_t", None)
    draws, failed = np.empty((0, solution.design.size)), 0
    if resamples and method != "none" and solution.status is not FitStatus.NOT_CONVERGED:
        draws, failed = draw(solution, points, method, resamples, np.random.default_rng(seed), noise)
    elif method != "none":
        method, note = "none", None
    notes = [note] if note else []
    if misses:
        notes.append(f"{misses}: the intervals hold for the law, not for the truth")
    if failed:
        notes.append(f"{failed} of {resamples} resamples did not converge and are left out of the intervals")
    solution = replace(solution, certificate=dict(solution.certificate) | {"lack_of_fit_p_value": misfit})
    return report_fit(
        prepared, solution, draws, method=method, level=interval_level, seed=seed, notes=notes, record=record
    )


def report_fit(
    prepared: Prepared,
    solution: Solution,
    draws: Array,
    *,
    method: str,
    level: float,
    seed: int,
    notes: Sequence[str] = (),
    record: Mapping[str, object] | None = None,
    group: str | None = None,
) -> CurveFit:
    """Write a solution and its draws down as a value."""
    points, law, objective = prepared.points, prepared.law, solution.objective
    params = solution.design.to_params(solution.theta, group)
    drawn = solution.design.to_params(draws, group) if len(draws) > 1 else {}
    if one_ratio(points):  # no budget can be split by such a table
        law = replace(law, derived={})
    derived = {name: float(value) for name, value in law.derive(params).items() if np.isfinite(value)}
    everything = dict(drawn) | (law.derive(drawn) if drawn else {})
    # A resample at the edge (both exponents zero) leaves a derived quantity undefined.
    everything = {
        name: values[np.isfinite(values)] for name, values in everything.items() if name not in prepared.pinned
    }
    intervals = {name: percentile_interval(values, level) for name, values in everything.items() if len(values) > 1}
    status, detail = solution.status, solution.detail
    if status is FitStatus.CONVERGED and drawn and (open_ends := contradicted(law, points, params, drawn, level)):
        status, detail = FitStatus.WEAKLY_IDENTIFIED, open_ends
    if prepared.reason:
        detail = "; ".join(filter(None, (prepared.reason, detail)))
        status = FitStatus.REDUCED if status not in (FitStatus.NOT_CONVERGED, FitStatus.SEVERAL_BASINS) else status
    text, use = describe(status, detail)
    ranges = {name: (float(v.min()), float(v.max())) for name, v in points.inputs.items() if name in law.inputs}
    fields = {
        "law": law.name,
        "formula": law.formula,
        "params": {name: float(value) for name, value in params.items()},
        "derived": derived,
        "intervals": intervals,
        "standard_errors": {name: sd for name in intervals if np.isfinite(sd := _spread(everything[name]))},
        "interval_level": level,
        "interval_method": method if drawn else "none",
        "resamples": len(draws),
        "seed": seed,
        "objective": solution.value,
        "status": str(status),
        "status_text": text,
        "usable_for": use,
        "certificate": dict(solution.certificate),
        "x_range": next(iter(ranges.values()), None),
        "input_ranges": ranges,
        "pinned": dict(prepared.pinned),
        "shared": solution.design.shared,
        "draws": {name: tuple(values.tolist()) for name, values in drawn.items()},
    }  # fmt: skip
    fields |= _common(points, objective, record)
    fields["flags"] = (*points.flags, *notes, *([law.scope] if law.scope else []))
    if len(law.inputs) == 1:
        fields["band"] = _band(law, params, drawn, ranges[law.inputs[0]], level, fields["outcome_transform"])
    return CurveFit.model_validate(fields)


def _spread(draws: Array) -> float:
    """Return the standard deviation of draws; infinite where a coefficient's tail overflows."""
    with np.errstate(over="ignore"):
        return float(np.std(draws, ddof=1))


def certify(
    table: pd.DataFrame,
    params: Mapping[str, float],
    *,
    law: str = "power",
    columns: dict[str, str] | None = None,
    objective: str = "huber_log",
    delta: float = 1e-3,
    asymmetry: float = 1.0,
    weights: str | None = None,
    tolerance: float = GAP_TOLERANCE,
    exclude_invalid: bool = False,
) -> CurveFit:
    """Judge whether given parameters are the optimum of an objective on a table.

    Parameters
    ----------
    table, law, columns, objective, delta, asymmetry, weights, exclude_invalid
        As in `fit`.
    params
        A value for every parameter of the law, such as published ones.
    tolerance
        Relative gap to the best optimum found above which they are not the fit.

    Returns
    -------
    CurveFit
        The parameters as offered. Its certificate holds the `gap` and the `optimum`; its status is ``not_converged``
        when the gap is too wide, and otherwise what the optimum itself deserves.

    Raises
    ------
    CallerError
        As in `fit`, or for a parameter that is missing, unknown or outside its bounds.
    """
    form, offered = get_law(law), {name: float(value) for name, value in params.items()}
    if set(params) != set(form.params):
        raise CallerError(
            f"parameters {', '.join(sorted(params))}", f"law {law} has {', '.join(form.params)}", "give each a value"
        )
    for name, (low, high) in form.bounds.items():
        if not low <= offered[name] <= high:
            raise CallerError(f"{name} = {params[name]!r}", f"outside {low:g} to {high:g}", "no law has that")
    offered = {name: offered[name] for name in form.params}
    goal = Objective(objective, delta, asymmetry)
    points = read_points(table, form, columns, weights=weights, exclude_invalid=exclude_invalid)
    if len(points) < len(form.params):
        raise CallerError(f"law {law}, {len(points)} points", f"{len(form.params)} parameters need more", "add points")
    solution = solve(points, form, goal, pinned={}, also=offered)
    log_prediction = np.log(form.predict(offered, points.inputs))
    value = float(goal.value(log_prediction, solution.sample))
    missed = float(np.abs(solution.sample.log_outcome - log_prediction).max())
    # Of noise-free data nothing is left but rounding: then the misfit itself is the gap.
    rounded = missed if missed > _ROUNDING else 0.0
    gap = rounded if solution.exact else value / solution.value - 1
    best = {name: float(at) for name, at in solution.design.to_params(solution.theta).items()}
    certificate = {**solution.certificate, "offered_objective": value, "gap": gap, "optimum": best}
    judged = replace(solution, certificate=certificate)
    if gap > tolerance:
        detail = f"the objective {value:.8e} lies {gap:.1e} (relative) above the optimum {solution.value:.8e}, at "
        detail += ", ".join(f"{name} {at:.6g}" for name, at in best.items())
        judged = replace(judged, status=FitStatus.NOT_CONVERGED, detail=detail)
    none = np.empty((0, solution.design.size))
    report = report_fit(Prepared(points, form, {}), judged, none, method="none", level=0.95, seed=0)
    derived = {name: float(at) for name, at in form.derive(offered).items() if np.isfinite(at)}
    return report.model_copy(update={"params": offered, "derived": derived, "objective": value, "band": {}})


def refused(
    why: str, points: Points | None, objective: Objective, record: Mapping[str, object] | None = None, law: str = ""
) -> CurveFit:
    """Report that there is no curve, and why."""
    text, use = describe(FitStatus.REFUSED, why)
    fields: dict[str, object] = {
        "law": points.law.name if points is not None else law, "params": {}, "objective": None,
        "status": str(FitStatus.REFUSED), "status_text": text, "usable_for": use, "num_points": 0,
        "objective_name": objective.name, "delta": objective.delta if objective.name == "huber_log" else None,
    }  # fmt: skip
    if points is not None:
        first = next(iter(points.inputs.values()))
        fields |= {"x_range": (float(first.min()), float(first.max())), "flags": points.flags}
        fields |= _common(points, objective, record)
    return CurveFit.model_validate(fields | {k: v for k, v in (record or {}).items() if v is not None})


def _common(points: Points, objective: Objective, record: Mapping[str, object] | None) -> dict[str, object]:
    given = {key: value for key, value in (record or {}).items() if value is not None}
    definitions = {"objective": OBJECTIVES[objective.name], **dict(given.pop("definitions", {}) or {})}  # type: ignore[call-overload]
    return {
        "objective_name": objective.name,
        "delta": objective.delta if objective.name == "huber_log" else None,
        "asymmetry": objective.asymmetry,
        "num_points": len(points),
        "num_clusters": None if points.clusters is None else len(np.unique(points.clusters)),
        "columns": dict(points.columns),
        "excluded": dict(points.excluded),
        "definitions": definitions,
        "outcome_transform": "y",
    } | given


def _band(
    law: Law,
    params: Mapping[str, Array],
    drawn: Mapping[str, Array],
    x_range: tuple[float, float],
    level: float,
    transform: object,
) -> dict[str, tuple[float, ...]]:
    """Evaluate the curve over its range, and as far again (in logarithms, at most tenfold) on both sides."""
    reach = min(10.0, x_range[1] / x_range[0])
    x = np.geomspace(x_range[0] / min(reach, 2.0), x_range[1] * reach, _BAND_POINTS)
    curve = law.predict(params, {law.inputs[0]: x})
    band = {"x": x, "prediction": curve}
    if drawn:
        columns = {name: values[:, None] for name, values in drawn.items()}
        cloud = law.predict(columns, {law.inputs[0]: x[None]})
        band["low"], band["high"] = np.quantile(cloud, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if transform == "1 - y":
        band = {"x": x, **{name: 1.0 - values for name, values in band.items() if name != "x"}}
        if drawn:
            band["low"], band["high"] = band["high"], band["low"]
    return {name: tuple(values.tolist()) for name, values in band.items()}
