"""The teacher's budget as a variable: who is ahead when its pretraining is paid for, and by how many it is shared.

All-in compute of one student is its own training, the teacher's forward passes, and its share of the teacher's
pretraining: ``C = C_student + C_inference + C_pretraining / k`` with k students that share the teacher. The reference
spends the same C on itself. Outcomes come from the fitted curves of the study's own arms; what lies outside the
budgets that were run is a prediction, and only where a fit may be extrapolated at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from budgetlab.decisions.evidence import Evidence
from budgetlab.errors import CallerError
from budgetlab.fitting.crossing import EDGE, Curves
from budgetlab.laws import get_law
from budgetlab.laws.law import Array
from budgetlab.values import CurveFit, FitSpec, Plan
from budgetlab.values.base import Interval
from budgetlab.values.specs import reference_arm

SHARES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, math.inf)
"""Students that share a teacher; infinite where it exists anyway."""
_AMOUNTS = 9
_ALIKE = 1.01
"""Amounts within this factor are one: budgets are spent in whole steps."""


@dataclass(frozen=True)
class _Pair:
    """A distilled arm, its reference, and what its teacher's pretraining cost."""

    arm: str
    reference: str
    student: str
    teacher: str
    teacher_flops: float | None


def verdict_map(
    own: Evidence,
    spec: FitSpec,
    *,
    fits: Sequence[CurveFit] = (),
    totals: Sequence[float] = (),
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """Map the answer over student size, all-in compute and the number of students that share the teacher.

    Parameters
    ----------
    own
        A study whose arms are charged the teacher's forward pass, with required FLOPs in its scores.
    spec
        Outcome, law, level and resamples.
    fits
        The arms' fits with their draws: beyond the budgets that were run, only what may be used for everything is.
    totals
        All-in required FLOPs of one student; by default from the smallest budget to the largest and the teacher
        together, equally spaced in logarithms.
    shares
        Numbers of students that share the teacher.

    Returns
    -------
    DataFrame
        A row a distilled arm, amount and number of students: `student`, `num_params_non_embedding`, `total_flops`,
        `students_per_teacher`, `arm`, `reference`, `teacher`, `teacher_flops` (its share), `student_flops` (what is
        left), `teacher_share`, `outcome` and `reference_outcome` (as in the scores), `difference` (arm minus reference,
        in `unit`, positive when the arm is better), `low`, `high`, `answer` ("arm", "reference", "not resolved",
        "infeasible", "n/a"), `basis` ("measured range", "predicted" or "none") and `reason`. ``attrs["notes"]`` names
        what was not varied.

    Raises
    ------
    CallerError
        For a study that is not charged by inference, without distilled arms, or without required FLOPs.
    """
    pairs, by_inputs = _pairs(own, spec), spec.model_copy(update={"x": "required_flops"})
    if "required_flops" not in own.runs(spec.y):
        raise CallerError(f"verdict map of {own.study}", "the scores have no required_flops", "pass the store's scores")
    curves = own.curves(spec.y, by_inputs)
    known = [pair for pair in pairs if curves.of(pair.arm) and curves.of(pair.reference)]
    if not known:
        raise CallerError(f"verdict map of {own.study}", "no two arms have curves", "run a second budget")
    by_arm = {fit.arm: fit for fit in fits if fit.arm and fit.usable_for == "everything"
              and fit.columns.get("x") == "required_flops" and fit.draws}  # fmt: skip
    totals = totals or _amounts(known, curves)
    found = pd.DataFrame([
        _cell(own, curves, by_arm, pair, float(total), float(k)) for pair in known for total in totals for k in shares
    ])  # fmt: skip
    notes, students, teachers = [], {pair.student for pair in known}, {pair.teacher for pair in known}
    if len(students) == 1:
        notes.append(f"student size was not varied: one student, {students.pop()}")
    if len(teachers) == 1:
        only = f"one teacher, {teachers.pop()}"
        notes.append(f"the teacher's budget was not varied: {only}, and only how many students share it is")
    found.attrs["notes"] = tuple(notes)
    return found


def _pairs(own: Evidence, spec: FitSpec) -> list[_Pair]:
    plan, asked = own.plan, f"verdict map of {own.study}"
    if plan.charge != "inference":
        raise CallerError(asked, f"its arms are charged {plan.charge}", 'plan with teacher_charge = "inference"')
    arms = sorted(str(arm) for arm in own.runs(spec.y)["arm"].unique() if str(arm) in plan.arms)
    students = {arm: plan.arms[arm].student for arm in arms}
    found = []
    for name in arms:
        arm, reference = plan.arms[name], reference_arm(name, arms, None, students)
        if arm.teacher is None or reference is None or plan.arms[reference].teacher is not None:
            continue
        if plan.models[plan.arms[reference].student] == plan.models[arm.student]:
            found.append(_Pair(name, reference, arm.student, arm.teacher, _pretraining(plan).get(arm.teacher)))
    if not found:
        raise CallerError(asked, "no distilled arm has a reference of the same student", "add an arm without a teacher")
    return found


def _pretraining(plan: Plan) -> dict[str, float | None]:
    """Required FLOPs of each teacher's pretraining; None where its weights were given."""
    return {t.model: t.required_flops if t.weights is None else None for t in plan.teachers}


def _amounts(pairs: Sequence[_Pair], curves: Curves) -> list[float]:
    """Amounts that all pairs are asked at: inside what every arm has run, and on to a teacher for one student."""
    ranges = [curve for pair in pairs for arm in (pair.arm, pair.reference) if (curve := curves.of(arm)) is not None]
    low, high = max(curve.low for curve in ranges), min(curve.high for curve in ranges)
    if low > high:
        low, high = min(curve.low for curve in ranges), max(curve.high for curve in ranges)
    top = high + max(pair.teacher_flops or 0.0 for pair in pairs)
    beyond = np.geomspace(high, top, _AMOUNTS - 4)[1:] if top > high * EDGE else np.empty(0)
    return [float(x) for x in (*np.geomspace(low, high, 5), *beyond)]


def _cell(
    own: Evidence, curves: Curves, fits: Mapping[str, CurveFit], pair: _Pair, total: float, shared_by: float
) -> dict[str, object]:
    """One row of the map: what is left for the student, and which arm is ahead with it."""
    cost = own.plan.costs.get(pair.arm)
    row: dict[str, object] = {
        "student": pair.student,
        "num_params_non_embedding": None if cost is None else cost.num_params_non_embedding,
        "total_flops": total, "students_per_teacher": shared_by, "arm": pair.arm, "reference": pair.reference,
        "teacher": pair.teacher, "teacher_flops": None, "student_flops": None, "teacher_share": None, "outcome": None,
        "reference_outcome": None, "difference": None, "unit": curves.unit, "low": None, "high": None,
        "answer": "n/a", "basis": "none", "reason": "",
    }  # fmt: skip
    if pair.teacher_flops is None and math.isfinite(shared_by):
        return row | {"reason": f"what pretraining {pair.teacher} cost is unknown"}
    bill = 0.0 if math.isinf(shared_by) else (pair.teacher_flops or 0.0) / shared_by
    left = total - bill
    row |= {"teacher_flops": bill, "student_flops": max(0.0, left), "teacher_share": min(1.0, bill / total)}
    if left <= 0:
        return row | {"answer": "infeasible", "reason": "the teacher's share alone costs more"}
    at = {pair.arm: left, pair.reference: total}
    outside = [
        f"{arm} at {amount:.3g}" for arm, amount in at.items()
        if (curve := curves.of(arm)) is None or not curve.low / EDGE <= amount <= curve.high * EDGE
    ]  # fmt: skip
    if not outside:
        difference, ends = curves.difference(pair.arm, pair.reference, at)
        levels = {arm: curves.outcome(arm, amount) for arm, amount in at.items()}
    elif set(at) <= set(fits):
        difference, ends, levels = _predicted(fits, curves, pair, at)
    else:
        return row | {"reason": f"not run ({', '.join(outside)} FLOPs), and no fit of both arms may be extrapolated"}
    resolved = ends is not None and not ends[0] <= 0.0 <= ends[1]
    return row | {
        "outcome": levels[pair.arm], "reference_outcome": levels[pair.reference], "difference": difference,
        "low": None if ends is None else ends[0], "high": None if ends is None else ends[1],
        "answer": "not resolved" if not resolved else "arm" if difference > 0 else "reference",
        "basis": "predicted" if outside else "measured range",
    }  # fmt: skip


def _predicted(
    fits: Mapping[str, CurveFit], curves: Curves, pair: _Pair, at: Mapping[str, float]
) -> tuple[float, Interval, dict[str, float]]:
    """Difference of two fitted laws with their draws, each at its own amount of compute."""
    clouds, levels = {}, {}
    for arm, amount in at.items():
        fit = fits[arm]
        law = get_law(fit.law)
        params = {name: np.array([fit.params[name], *values])[:, None] for name, values in fit.draws.items()}
        clouds[arm] = law.predict(params, {law.inputs[0]: np.array([amount])})[:, 0]
        level = float(clouds[arm][0])
        levels[arm] = level if fit.outcome_transform == "y" else 1.0 - level
    count, tail = min(len(cloud) for cloud in clouds.values()), (1 - curves.spec.interval_level) / 2
    scale = 100.0 if curves.unit == "points" else 1.0
    cloud: Array = scale * (clouds[pair.reference][:count] - clouds[pair.arm][:count])
    low, high = np.quantile(cloud[1:], [tail, 1 - tail])
    return float(cloud[0]), (float(low), float(high)), levels


def all_in_frontier(
    own: Evidence, spec: FitSpec, *, shares: Sequence[float] = (1.0, 10.0, 100.0, math.inf)
) -> pd.DataFrame:
    """Place every measured arm and budget on the axis of all-in compute, and say which are on the frontier.

    Returns
    -------
    DataFrame
        A row an arm, budget and number of students: `student`, `arm`, `budget_amount`, `students_per_teacher`,
        `all_in_flops` (missing where the teacher's cost is unknown), `outcome` (mean over runs, of `y`, and whether
        `higher_is_better`), `num_runs`,
        `on_frontier` (nothing of the same student that costs no more is better). All of it measured.
    """
    runs, plan = own.runs(spec.y), own.plan
    rises, pretraining = not bool((~runs["higher_is_better"]).all()), _pretraining(plan)
    rows = []
    for (arm, amount), cell in runs[runs["arm"].isin(list(plan.arms))].groupby(["arm", "budget_amount"], sort=True):
        teacher = plan.arms[str(arm)].teacher
        for k in shares:
            bill = 0.0 if teacher is None or math.isinf(k) else pretraining.get(teacher)
            share = math.nan if bill is None else 0.0 if math.isinf(k) else bill / k
            rows.append({
                "student": plan.arms[str(arm)].student, "arm": str(arm), "budget_amount": float(amount),  # type: ignore[arg-type]
                "students_per_teacher": k, "all_in_flops": float(cell["required_flops"].mean()) + share,
                "outcome": float(cell["value"].mean()), "y": spec.y, "higher_is_better": rises, "num_runs": len(cell),
            })  # fmt: skip
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    found["on_frontier"] = False
    for _, part in found.groupby(["student", "students_per_teacher"]):
        goodness = part["outcome"] if rises else -part["outcome"]
        found.loc[part.index, "on_frontier"] = on_frontier(part["all_in_flops"], goodness)
    return found


def on_frontier(flops: pd.Series, goodness: pd.Series) -> pd.Series:
    """Whether nothing that costs no more is better; what costs within 1 % costs the same, as budgets do in whole steps.

    What has no known cost is not on the frontier.
    """
    flags = [
        math.isfinite(cost) and value >= goodness[flops <= cost * _ALIKE].max()
        for cost, value in zip(flops, goodness, strict=True)
    ]
    return pd.Series(flags, flops.index, dtype=bool)


def capacity_gap(own: Evidence, spec: FitSpec) -> pd.DataFrame:
    """Put each student's outcome beside its teacher's, at equal compute of the student.

    A capacity gap is a better teacher with a worse student; it takes two teachers to see one.

    Returns
    -------
    DataFrame
        `strategy`, `student`, `budget_amount`, `teacher`, `teacher_outcome` (missing where it was not scored),
        `outcome`, `num_runs`, best teacher last. ``attrs["note"]`` says where the teacher was not varied.
    """
    plan, runs, scores = own.plan, own.runs(spec.y), own.scores
    teachers = scores[(scores["subject"] == "teacher") & (scores["task"] == spec.y)].groupby("arm")["value"].mean()
    rows = []
    for (arm, amount), cell in runs[runs["arm"].isin(list(plan.arms))].groupby(["arm", "budget_amount"], sort=True):
        made = plan.arms[str(arm)]
        if made.teacher is not None:
            known = teachers.get(made.teacher)
            rows.append({
                "strategy": made.strategy.name, "student": made.student, "budget_amount": float(amount),  # type: ignore[arg-type]
                "teacher": made.teacher, "teacher_outcome": math.nan if known is None else float(known),
                "outcome": float(cell["value"].mean()), "num_runs": len(cell),
            })  # fmt: skip
    columns = ["strategy", "student", "budget_amount", "teacher", "teacher_outcome", "outcome", "num_runs"]
    found = pd.DataFrame(rows, columns=columns)
    rising = bool(runs["higher_is_better"].all())
    found = found.sort_values(
        [*columns[:3], "teacher_outcome"], ascending=[True, True, True, rising], ignore_index=True
    )
    if found["teacher"].nunique() < 2:
        found.attrs["note"] = "the teacher was not varied: whether a better one would teach worse cannot be seen"
    return found
