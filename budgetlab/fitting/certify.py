"""Judging parameters that somebody else offers as the fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.certificate import GAP_TOLERANCE
from budgetlab.fitting.curves import report_fit
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import Prepared
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import read_points
from budgetlab.laws import get_law
from budgetlab.values import CurveFit

_EXACT = 1e-8
"""Log residuals up to this are rounding of parameters given with ten digits."""


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
    rounded = missed if missed > _EXACT else 0.0
    gap = rounded if solution.exact else value / solution.value - 1
    best = {name: float(at) for name, at in solution.design.to_params(solution.theta).items()}
    certificate = {**solution.certificate, "offered_objective": value, "gap": gap, "optimum": best}
    judged = replace(solution, value=value, certificate=certificate)
    if gap > tolerance:
        detail = f"the objective {value:.8e} lies {gap:.1e} (relative) above the optimum {solution.value:.8e}, at "
        detail += ", ".join(f"{name} {at:.6g}" for name, at in best.items())
        judged = replace(judged, status=FitStatus.NOT_CONVERGED, detail=detail)
    none = np.empty((0, solution.design.size))
    report = report_fit(Prepared(points, form, {}), judged, none, method="none", level=0.95, seed=0)
    derived = {name: float(at) for name, at in form.derive(offered).items() if np.isfinite(at)}
    return report.model_copy(update={"params": offered, "derived": derived, "band": {}})
