"""What a further point would do for a fitted law: the expected width of its answer, from the Fisher information.

With independent errors of equal spread s in the logarithm of the outcome, the estimate of an answer with gradient g
has the variance ``s^2 g' (J'J)^-1 g``, J the gradients of the log prediction at the points; a further point adds a row.
The gradients are taken at the fitted parameters (a locally optimal design: Chernoff 1953, Annals of Mathematical
Statistics 24), so that everything here is predicted, and holds if the law does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.table import read_points
from budgetlab.laws import AnyLaw, get_law
from budgetlab.laws.base import Array
from budgetlab.resampling import t_quantile
from budgetlab.units import format_amount, format_seconds

__all__ = ["best_first", "log_gradients", "next_points", "variance_factor"]

_STEP = 1e-5
_DEAD = 1e-9


def log_gradients(law: AnyLaw, params: Mapping[str, float], inputs: Mapping[str, Array]) -> Array:
    """Differentiate the log prediction in the logarithms of the coefficients and in the exponents.

    Returns
    -------
    Array
        Shape (points, parameters), in the order of `law.params`; by central differences.
    """
    columns = []
    for name in law.params:
        value = float(params[name])
        scale = _STEP * abs(value) if name in law.coefficients else _STEP
        ends = [np.log(law.predict({**params, name: value + sign * scale}, inputs)) for sign in (1.0, -1.0)]
        width = 2 * _STEP if name in law.coefficients else 2 * scale
        columns.append((ends[0] - ends[1]) / width)
    return np.stack(columns, axis=-1)


def variance_factor(rows: Array, target: Array) -> float:
    """``g' (J'J)^-1 g``; infinite where the points do not determine the answer."""
    size = np.sqrt((rows**2).sum(axis=0))
    size[size == 0.0] = 1.0
    _, singular, axes = np.linalg.svd(rows / size, full_matrices=False)
    turned = axes @ (target / size)
    alive = singular > _DEAD * singular[0]
    lost = target / size - axes[alive].T @ turned[alive]
    if np.abs(lost).max() > 1e-6 * max(1.0, float(np.abs(target / size).max())):
        return float("inf")
    return float(((turned[alive] / singular[alive]) ** 2).sum())


def best_first(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Add what each candidate gains per FLOP, sort by it, and name the best in `attrs["sentence"]`.

    Parameters
    ----------
    table
        With `adds`, `cost_flops`, `half_width_now` and `half_width_after`.
    what
        Of what the interval is, such as "minilm - no_kd on the read-out loss, in nats".
    """
    gain = table["half_width_now"] - table["half_width_after"]
    gain = gain.where(gain.abs() > 1e-9 * table["half_width_now"], 0.0)
    found = table.assign(narrowing=gain, narrowing_per_exaflop=gain / (table["cost_flops"] / 1e18))
    found = found.sort_values("narrowing_per_exaflop", ascending=False, kind="stable", ignore_index=True)
    found["predicted"] = True
    best = found.iloc[0]
    if not best["narrowing"] > 0:
        found.attrs["sentence"] = (
            f"Next run (predicted): none of {len(found)} candidates narrows the interval of {what}."
        )
        return found
    cost = _cost_words(float(best["cost_flops"]), best.get("cost_seconds"))
    widths = f"±{best['half_width_now']:.3g} to ±{best['half_width_after']:.3g}"
    found.attrs["sentence"] = (
        f"Next run (predicted): {best['adds']} would narrow the interval of {what}, from {widths} for {cost}: the most "
        f"per FLOP of {len(found)} candidates."
    )
    return found


def _cost_words(flops: float, seconds: object) -> str:
    known = isinstance(seconds, float) and np.isfinite(seconds)
    time = f" and {format_seconds(seconds)} of device time" if known else ""  # type: ignore[arg-type]
    return format_amount(flops, "required_flops") + time


def next_points(
    table: pd.DataFrame,
    candidates: pd.DataFrame,
    *,
    target: Mapping[str, float] | str,
    law: str = "chinchilla",
    columns: dict[str, str] | None = None,
    flops_per_param_token: float = 6.0,
    interval_level: float = 0.95,
) -> pd.DataFrame:
    """Say which further points of a table would narrow an answer of a fitted law most per FLOP.

    Parameters
    ----------
    table
        One row a point that there is.
    candidates
        One row a point that there might be: the law's inputs by their own names, and `cost_flops`; where it is
        missing, ``k num_params tokens`` with k = `flops_per_param_token`, for laws of these two.
    target
        The answer: inputs at which the outcome is predicted, or the name of a parameter or derived quantity.
    law, columns
        As in `fit`; the law is fitted by least squares in logarithms.
    flops_per_param_token
        6 ignores attention and the head; a measured cost does not.
    interval_level
        Of the interval.

    Returns
    -------
    DataFrame
        A row a candidate, best first: the inputs, `cost_flops`, `half_width_now` and `half_width_after` (of the
        logarithm of the outcome, hence relative; or of the parameter itself), `narrowing`, `narrowing_per_exaflop`,
        `predicted` (always). ``attrs["sentence"]`` names the best.

    Raises
    ------
    CallerError
        For a table that cannot carry the law or says nothing of the answer, an unknown target, or candidates without
        an input or a cost.

    References
    ----------
    Chernoff 1953, Annals of Mathematical Statistics 24:586.
    """
    form = get_law(law)
    points = read_points(table, form, columns)
    asked = f"next points for {law}, {len(points)} points"
    missing = [name for name in form.inputs if name not in candidates]
    if missing or candidates.empty:
        wrong = f"no column {', '.join(missing)}" if missing else "no candidate"
        raise CallerError(asked, wrong, f"give a table with {', '.join(form.inputs)}")
    prepared = prepare(points, {})
    if prepared.refusal or prepared.reason:
        raise CallerError(asked, prepared.refusal or prepared.reason, "fit a smaller law, or add points first")
    solution = solve(points, form, Objective("squared_log"), pinned={}, certify=False)
    params = {name: float(value) for name, value in solution.design.to_params(solution.theta).items()}
    freedom = len(points) - len(form.params)
    if freedom < 1:
        raise CallerError(asked, "no point is left over to see the noise", "add points")
    residual = np.log(points.outcome) - np.log(form.predict(params, points.inputs))
    spread = float(np.sqrt((residual**2).sum() / freedom))
    answer = _target_gradient(form, params, target, asked)
    seen = log_gradients(form, params, points.inputs)
    now = variance_factor(seen, answer)
    if not np.isfinite(now):
        raise CallerError(asked, "these points say nothing of the answer", "name another target, or add points first")
    costs = _costs(candidates, form.inputs, flops_per_param_token, asked)
    new = log_gradients(form, params, {name: candidates[name].to_numpy(float) for name in form.inputs})
    tail = (1 + interval_level) / 2
    after = [variance_factor(np.vstack([seen, row]), answer) for row in new]
    found = candidates[list(form.inputs)].assign(
        adds=["a run at " + ", ".join(f"{name} = {row[name]:.3g}" for name in form.inputs)
              for row in candidates.to_dict("records")],
        cost_flops=costs,
        half_width_now=t_quantile(tail, freedom) * spread * now**0.5,
        half_width_after=[t_quantile(tail, freedom + 1) * spread * value**0.5 for value in after],
    )  # fmt: skip
    words = (
        target
        if isinstance(target, str)
        else "log outcome at " + ", ".join(f"{k} = {v:.3g}" for k, v in target.items())
    )
    return best_first(found, words)


def _target_gradient(law: AnyLaw, params: Mapping[str, float], target: Mapping[str, float] | str, asked: str) -> Array:
    if not isinstance(target, str):
        lacking = [name for name in law.inputs if name not in target]
        if lacking:
            raise CallerError(f"{asked}, target", f"no {', '.join(lacking)}", "give every input of the law")
        return log_gradients(law, params, {name: np.array([float(target[name])]) for name in law.inputs})[0]
    known = {*law.params, *law.derived}
    if target not in known:
        raise unknown_name("parameter", target, known, f"{asked}, target")
    gradient = []
    for name in law.params:
        # As in `log_gradients`: coefficients in logarithms.
        scale = _STEP * abs(params[name]) if name in law.coefficients else _STEP
        ends = [_value_of(law, {**params, name: params[name] + sign * scale}, target) for sign in (1.0, -1.0)]
        gradient.append((ends[0] - ends[1]) / (2 * _STEP))
    return np.array(gradient)


def _value_of(law: AnyLaw, params: Mapping[str, float], name: str) -> float:
    if name in params:
        return float(params[name])
    arrays = {key: np.asarray(value, dtype=float) for key, value in params.items()}
    return float(law.derived[name](arrays))


def _costs(candidates: pd.DataFrame, inputs: Sequence[str], per_param_token: float, asked: str) -> Array:
    if "cost_flops" in candidates:
        costs = candidates["cost_flops"].to_numpy(float)
    elif {"num_params", "tokens"} <= set(inputs):
        costs = per_param_token * candidates["num_params"].to_numpy(float) * candidates["tokens"].to_numpy(float)
    else:
        raise CallerError(asked, "no column cost_flops", "say what each candidate costs, in FLOPs")
    if not (np.isfinite(costs) & (costs > 0)).all():
        raise CallerError(asked, "a cost that is not above zero", "correct cost_flops")
    return costs
