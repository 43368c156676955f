"""One curve per arm of a study, from its scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.certificate import Solution
from budgetlab.fitting.curves import fit_points, refused, report_fit
from budgetlab.fitting.intervals import choose_interval, draw, within_cell_noise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import Prepared, prepare
from budgetlab.fitting.scores import COMPUTE_COLUMNS, run_values
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points, read_points, stack_points
from budgetlab.laws import Law, get_law
from budgetlab.laws.law import Array
from budgetlab.values import CurveFit, FitSpec

_DEFINITIONS = {
    "required_flops": "each matmul of the lean step once, trained parts three times, two FLOPs per multiply-add",
    "executed_flops": "required FLOPs with recompute and whatever else ran, two FLOPs per multiply-add",
    "device_seconds": "time on the device, summed over devices",
    "tokens": "positions fed to the student, without padding",
    "target_tokens": "positions that carry loss",
    "budget_amount": "the budget itself, in its own unit",
}


def fit_arms(scores: pd.DataFrame, spec: FitSpec) -> tuple[CurveFit, ...]:
    """Fit the law of a study to each arm.

    Parameters
    ----------
    scores
        The tidy table of the store; yardsticks are ignored, fine-tuning seeds averaged first.
    spec
        Law, columns, objective, resamples, what is pinned and what the arms share.

    Returns
    -------
    tuple of CurveFit
        One per arm, in order of name. A score is fitted as its distance from 1 (`outcome_transform`). An arm that
        cannot carry a curve is refused in its status, and the others go on.

    Raises
    ------
    CallerError
        For a law with more than one input, an unknown column or outcome, or a score that occurs twice.
    """
    law, objective = get_law(spec.law), Objective(spec.objective, spec.delta)
    if law.inputs != ("x",):
        wrong, remedy = f"it has {len(law.inputs)} inputs", 'choose a law of one input, such as "power"'
        if len(law.inputs) == 1:
            wrong = f"its input is {law.inputs[0]}, not compute"
            remedy = "choose power or bnsl, or fit a table with --table"
        raise CallerError(f"law {law.name} for arms", wrong, remedy)
    runs = run_values(scores, spec.y)
    points = points_by_arm(runs, law, spec.x)
    prepared: dict[str, Prepared] = {}
    for arm, part in points.items():
        try:
            prepared[arm] = prepare(part, spec.pinned)
        except CallerError as error:
            if not error.wrong.endswith("need at least as many points"):
                raise
            prepared[arm] = Prepared(part, law, spec.pinned, refusal=f"{len(part)} points: {error.wrong}")
    joint = solve_jointly(points, spec, certify=True) if spec.shared else None
    fits = []
    for arm, part in points.items():
        record = _record(arm, runs, spec)
        if joint is not None and arm in joint.arms:
            others = ", ".join(other for other in joint.arms if other != arm)
            fits.append(report_fit(
                Prepared(part, law, spec.pinned), joint.solution, joint.draws, method=joint.method,
                level=spec.interval_level, seed=spec.seed, record=record, group=arm,
                notes=[f"fitted jointly with {others}; shared: {', '.join(spec.shared)}"],
            ))  # fmt: skip
        else:
            fits.append(fit_points(
                prepared[arm], objective, resamples=spec.resamples, interval="auto",
                interval_level=spec.interval_level, seed=spec.seed, noise=within_cell_noise(part), record=record,
            ))  # fmt: skip
    of_runs = scores[scores["subject"] == "run"] if "subject" in scores else scores
    for arm in sorted(set(of_runs["arm"].dropna().astype(str)) - set(points)):
        why = f"no run has a value of {spec.y}"
        if arm in set(runs["arm"].astype(str)):
            why = "every run scores 100 %: there is no distance from it to fit"
        fits.append(refused(why, None, objective, {"arm": arm}, law.name))
    return tuple(fits)


def _record(arm: str, runs: pd.DataFrame, spec: FitSpec) -> dict[str, object]:
    """Write down what a reader needs to make the points of an arm again."""
    rises = bool(runs["higher_is_better"].iloc[0])
    perfect = int((runs.loc[runs["arm"] == arm, "value"] == 1.0).sum()) if rises else 0
    left_out = {"a task is missing": runs.attrs.get("missing", 0), "a perfect score": perfect}
    return {
        "arm": arm,
        "clusters": "run_seed",
        "outcome_transform": "1 - y" if rises else "y",
        "columns": {"x": spec.x, "y": spec.y},
        "definitions": {spec.x: _DEFINITIONS.get(spec.x, ""), spec.y: "mean over fine-tuning seeds of one run"},
        "excluded": {why: count for why, count in left_out.items() if count},
    }


def points_by_arm(runs: pd.DataFrame, law: Law, x: str) -> dict[str, Points]:
    """Make the points of every arm from its runs; an arm that has none is left out."""
    found = {str(arm): run_points(rows, law, x) for arm, rows in runs.groupby("arm", sort=True)}
    return {arm: points for arm, points in found.items() if points is not None}


def run_points(rows: pd.DataFrame, law: Law, x: str) -> Points | None:
    """Make points of runs; a score becomes its distance from 1, and a perfect one, which has none, is left out."""
    if x not in rows.columns or x not in COMPUTE_COLUMNS:
        raise unknown_name("column of compute", x, [c for c in COMPUTE_COLUMNS if c in rows.columns], f"x = {x!r}")
    table = rows.assign(outcome=np.where(rows["higher_is_better"], 1.0 - rows["value"], rows["value"]))
    table = table[~(table["higher_is_better"].astype(bool) & table["outcome"].eq(0.0))]
    if table.empty:
        return None
    try:
        return read_points(table, law, {law.inputs[0]: x, law.outcome: "outcome"}, clusters="run_seed")
    except CallerError as error:
        if "constant" not in error.wrong:
            raise
        # One budget, or identical scores: no curve, but no mistake of the caller either.
        return Points(
            law, {law.inputs[0]: table[x].to_numpy(float)}, table["outcome"].to_numpy(float), np.ones(len(table)),
            table["run_seed"].to_numpy(), {law.inputs[0]: x, law.outcome: "outcome"},
        )  # fmt: skip


class Joint(NamedTuple):
    """A fit of several arms with parameters in common, and its draws."""

    arms: tuple[str, ...]
    solution: Solution
    draws: Array
    method: str


def solve_jointly(points: Mapping[str, Points], spec: FitSpec, *, certify: bool) -> Joint | None:
    """Fit the arms at once with `spec.shared` in common; None when fewer than two can take part.

    What is shared is estimated by all arms together, so that three budgets can carry a common floor.
    """
    law = get_law(spec.law)
    for name in spec.shared:
        if name not in law.params:
            raise unknown_name("parameter", name, law.params, f"shared {name}")
    own = [name for name in law.params if name not in spec.shared and name not in spec.pinned]
    arms = tuple(arm for arm, part in points.items() if part.num_cells > max(1, len(own)))
    if not spec.shared or len(arms) < 2:
        return None
    stacked = stack_points([points[arm] for arm in arms], law)
    groups = [arm for arm in arms for _ in range(len(points[arm]))]
    solution = solve(
        stacked, law, Objective(spec.objective, spec.delta), pinned=spec.pinned, groups=groups, shared=spec.shared,
        level=spec.interval_level, certify=certify,
    )  # fmt: skip
    # The arms differ in their noise: each run's own residuals stand for it.
    method = choose_interval(stacked, "wild")[0]
    draws = np.empty((0, solution.design.size))
    if spec.resamples and solution.status is not FitStatus.NOT_CONVERGED:
        draws = draw(solution, stacked, method, spec.resamples, np.random.default_rng(spec.seed))[0]
    return Joint(arms, solution, draws, method)
