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
from typing import Literal

import numpy as np
import pandas as pd

from budgetlab.decisions.evidence import Evidence
from budgetlab.errors import CallerError
from budgetlab.fitting.contrast import unit_of
from budgetlab.fitting.crossing import Curves, make_curves
from budgetlab.fitting.reference import reference_arm
from budgetlab.fitting.scores import run_values
from budgetlab.laws import get_law
from budgetlab.laws.base import Array
from budgetlab.values import CurveFit, FitSpec
from budgetlab.values.base import Interval

SHARES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, math.inf)
"""Students that share a teacher; infinite where it exists anyway."""
_AMOUNTS = 9
_EDGE = 1.0001
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
    pairs = _pairs(own, spec)
    runs = run_values(own.scores, spec.y)
    if "required_flops" not in runs:
        raise CallerError(f"verdict map of {own.study}", "the scores have no required_flops", "pass the store's scores")
    curves = make_curves(runs.drop(columns="tokens", errors="ignore"), spec.y, spec.model_copy(
        update={"x": "required_flops"}))  # fmt: skip
    known = [pair for pair in pairs if pair.arm in curves.by_compute and pair.reference in curves.by_compute]
    if not known:
        raise CallerError(f"verdict map of {own.study}", "no two arms have curves", "run a second budget")
    by_arm = {fit.arm: fit for fit in fits if fit.arm and fit.usable_for == "everything"
              and fit.columns.get("x") == "required_flops" and fit.draws}  # fmt: skip
    rows = []
    for pair in known:
        for total in totals or _amounts(known, curves):
            rows += [_cell(own, curves, by_arm, pair, float(total), float(k)) for k in shares]
    found = pd.DataFrame(rows)
    found.attrs["notes"] = tuple(_not_varied(known))
    return found


def _pairs(own: Evidence, spec: FitSpec) -> list[_Pair]:
    plan = own.plan
    asked = f"verdict map of {own.study}"
    if plan.charge != "inference":
        raise CallerError(asked, f"its arms are charged {plan.charge}", 'plan with teacher_charge = "inference"')
    bills = {t.model: t.required_flops if t.weights is None else None for t in plan.teachers}
    arms = sorted(str(arm) for arm in run_values(own.scores, spec.y)["arm"].unique() if str(arm) in plan.arms)
    students = {arm: plan.arms[arm].student for arm in arms}
    found = []
    for name in arms:
        arm, reference = plan.arms[name], reference_arm(name, arms, None, students)
        if arm.teacher is None or reference is None or plan.arms[reference].teacher is not None:
            continue
        if plan.models[plan.arms[reference].student] == plan.models[arm.student]:
            found.append(_Pair(name, reference, arm.student, arm.teacher, bills.get(arm.teacher)))
    if not found:
        raise CallerError(asked, "no distilled arm has a reference of the same student", "add an arm without a teacher")
    return found


def _amounts(pairs: Sequence[_Pair], curves: Curves) -> list[float]:
    """Amounts that all pairs are asked at: inside what every arm has run, and on to a teacher for one student."""
    ranges = [curves.by_compute[arm] for pair in pairs for arm in (pair.arm, pair.reference)]
    low, high = max(curve.low for curve in ranges), min(curve.high for curve in ranges)
    if low > high:
        low, high = min(curve.low for curve in ranges), max(curve.high for curve in ranges)
    top = high + max(pair.teacher_flops or 0.0 for pair in pairs)
    inside = np.geomspace(low, high, 5)
    beyond = np.geomspace(high, top, _AMOUNTS - 4)[1:] if top > high * _EDGE else np.empty(0)
    return [float(x) for x in (*inside, *beyond)]


def _cell(
    own: Evidence, curves: Curves, fits: Mapping[str, CurveFit], pair: _Pair, total: float, shared_by: float
) -> dict[str, object]:
    cost = own.plan.costs.get(pair.arm)
    row: dict[str, object] = {
        "student": pair.student,
        "num_params_non_embedding": None if cost is None else cost.num_params_non_embedding,
        "total_flops": total, "students_per_teacher": shared_by, "arm": pair.arm, "reference": pair.reference,
        "teacher": pair.teacher, "teacher_flops": None, "student_flops": None, "teacher_share": None, "outcome": None,
        "reference_outcome": None, "difference": None, "unit": unit_of(curves.y), "low": None, "high": None,
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
    inside = all(_inside(curves, arm, amount) for arm, amount in at.items())
    if inside:
        difference, ends = curves.difference(pair.arm, pair.reference, at)
        levels = {arm: _outcome(curves, arm, amount) for arm, amount in at.items()}
        basis: Literal["measured range", "predicted"] = "measured range"
    elif pair.arm in fits and pair.reference in fits:
        difference, ends, levels = _predicted(fits, curves, pair, at)
        basis = "predicted"
    else:
        where = ", ".join(f"{arm} at {amount:.3g}" for arm, amount in at.items() if not _inside(curves, arm, amount))
        return row | {"reason": f"not run ({where} FLOPs), and no fit of both arms may be extrapolated"}
    return row | {
        "outcome": levels[pair.arm], "reference_outcome": levels[pair.reference], "difference": difference,
        "low": None if ends is None else ends[0], "high": None if ends is None else ends[1], "basis": basis,
        "answer": _answer(difference, ends),
    }  # fmt: skip


def _inside(curves: Curves, arm: str, amount: float) -> bool:
    curve = curves.by_compute[arm]
    return curve.low / _EDGE <= amount <= curve.high * _EDGE


def _outcome(curves: Curves, arm: str, amount: float) -> float:
    value = float(np.exp(curves.by_compute[arm].at(np.log(np.array([amount])))[0, 0]))
    return value if unit_of(curves.y) != "points" or not bool(curves.runs["higher_is_better"].iloc[0]) else 1.0 - value


def _predicted(
    fits: Mapping[str, CurveFit], curves: Curves, pair: _Pair, at: Mapping[str, float]
) -> tuple[float, Interval, dict[str, float]]:
    """Difference of two fitted laws with their draws, each at its own amount of compute."""
    clouds, levels = {}, {}
    for arm, amount in at.items():
        fit = fits[arm]
        law = get_law(fit.law)
        where = {law.inputs[0]: np.array([amount])}
        point = float(law.predict(fit.params, where)[0])
        drawn = law.predict({name: np.array(values)[:, None] for name, values in fit.draws.items()}, where)[:, 0]
        clouds[arm] = np.concatenate([[point], drawn])
        levels[arm] = point if fit.outcome_transform == "y" else 1.0 - point
    count = min(len(cloud) for cloud in clouds.values())
    scale = 100.0 if unit_of(curves.y) == "points" else 1.0
    cloud: Array = scale * (clouds[pair.reference][:count] - clouds[pair.arm][:count])
    tail = (1 - curves.level) / 2
    low, high = np.quantile(cloud[1:], [tail, 1 - tail])
    return float(cloud[0]), (float(low), float(high)), levels


def _answer(difference: float, ends: Interval | None) -> str:
    if ends is None or ends[0] <= 0.0 <= ends[1]:
        return "not resolved"
    return "arm" if difference > 0 else "reference"


def _not_varied(pairs: Sequence[_Pair]) -> list[str]:
    notes = []
    students, teachers = {pair.student for pair in pairs}, {pair.teacher for pair in pairs}
    if len(students) == 1:
        notes.append(f"student size was not varied: one student, {students.pop()}")
    if len(teachers) == 1:
        only = f"one teacher, {teachers.pop()}"
        notes.append(f"the teacher's budget was not varied: {only}, and only how many students share it is")
    return notes


def best_split(found: pd.DataFrame) -> pd.DataFrame:
    """Of every cell of a verdict map the arm with the best outcome, and what of the compute its teacher takes.

    Parameters
    ----------
    found
        From `verdict_map`; where it has several teachers, this is the best split between teacher and student.

    Returns
    -------
    DataFrame
        A row a student, amount and number of students: `arm` (the reference where no arm is better), `teacher`,
        `teacher_share` of the all-in compute, `outcome`, `basis`, `compared` (arms with an outcome there). Cells where
        nothing is known are left out.
    """
    rows = []
    keys = ["student", "total_flops", "students_per_teacher"]
    known = found[found["difference"].notna()]
    for key, cell in known.groupby(keys, sort=True):
        best = cell.iloc[int(np.argmax(cell["difference"].to_numpy(float)))]
        own = dict(zip(keys, key, strict=True))  # type: ignore[call-overload]
        ahead = float(best["difference"]) > 0
        rows.append(own | {
            "arm": best["arm"] if ahead else best["reference"], "teacher": best["teacher"] if ahead else None,
            "teacher_share": float(best["teacher_share"]) if ahead else 0.0,
            "outcome": float(best["outcome"] if ahead else best["reference_outcome"]), "basis": best["basis"],
            "compared": len(cell) + 1,
        })  # fmt: skip
    columns = [*keys, "arm", "teacher", "teacher_share", "outcome", "basis", "compared"]
    return pd.DataFrame(rows, columns=columns)


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
    runs, plan = run_values(own.scores, spec.y), own.plan
    better = -1.0 if bool((~runs["higher_is_better"]).all()) else 1.0
    bills = {t.model: t.required_flops if t.weights is None else None for t in plan.teachers}
    rows = []
    for (arm, amount), cell in runs[runs["arm"].isin(list(plan.arms))].groupby(["arm", "budget_amount"], sort=True):
        teacher = plan.arms[str(arm)].teacher
        for k in shares:
            bill = 0.0 if teacher is None or math.isinf(k) else bills.get(teacher)
            spent = float(cell["required_flops"].mean())
            share = math.nan if bill is None else 0.0 if math.isinf(k) else bill / k
            rows.append({
                "student": plan.arms[str(arm)].student, "arm": str(arm), "budget_amount": float(amount),  # type: ignore[arg-type]
                "students_per_teacher": k, "all_in_flops": spent + share,
                "outcome": float(cell["value"].mean()), "y": spec.y, "higher_is_better": better > 0,
                "num_runs": len(cell),
            })  # fmt: skip
    found = pd.DataFrame(rows)
    if found.empty:
        return found
    found["on_frontier"] = False
    for _, part in found.groupby(["student", "students_per_teacher"]):
        found.loc[part.index, "on_frontier"] = on_frontier(part["all_in_flops"], better * part["outcome"])
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
    plan, runs = own.plan, run_values(own.scores, spec.y)
    scores = own.scores
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
