"""Assumptions about what compute is: executed FLOPs, device seconds, and the teacher's pretraining."""

from __future__ import annotations

import pandas as pd

from budgetlab.decisions.question import Question, amount_words, answer_words, tested_row, untested_row
from budgetlab.fitting.contrast import unit_of
from budgetlab.fitting.crossing import Curves, make_curves
from budgetlab.units import format_amount
from budgetlab.values import Assumption

_SAME = "every answer stays as it is"
_WORDS = {"required_flops": "required FLOPs", "executed_flops": "executed FLOPs", "device_seconds": "device seconds"}


def curves_in(runs: pd.DataFrame, question: Question, x: str) -> Curves:
    """Curves of all arms over another column of compute.

    Runs of one arm at one budget are replicates, whatever the clock says of each: they get their mean.
    """
    lean = runs.drop(columns="tokens", errors="ignore") if x != "tokens" else runs  # no curve over tokens is needed
    placed = lean.assign(**{x: runs.groupby(["arm", "budget_amount"])[x].transform("mean")})
    return make_curves(placed, question.y, question.spec.model_copy(update={"x": x}))


def flops_row(question: Question) -> Assumption:
    """Test whether executed FLOPs in the place of required ones give another answer, or the other way round."""
    other = "required_flops" if question.spec.x == "executed_flops" else "executed_flops"
    return _currency_row(question, "required or executed FLOPs", other)


def seconds_row(question: Question) -> Assumption:
    """Test whether device seconds in the place of FLOPs give another answer."""
    other = "required_flops" if question.spec.x == "device_seconds" else "device_seconds"
    return _currency_row(question, "FLOPs or device seconds", other)


def _currency_row(question: Question, name: str, x: str) -> Assumption:
    tested = f"curves over {_WORDS[x]}, each contrast at the largest amount that both arms reached"
    runs = question.runs()
    if x not in runs or not (runs[x] > 0).all():
        return untested_row(name, tested, f"{_WORDS[x]} of every run")
    if runs.groupby("arm")["budget_amount"].nunique().min() < 2:
        same = runs[x] / runs[question.spec.x] if question.spec.x in runs else None
        if same is not None and same.std() / same.mean() < 1e-9:
            ratio = f"{_WORDS[x]} over {_WORDS.get(question.spec.x, question.spec.x)} of every run"
            return tested_row(name, ratio, False, f"{same.mean():.4g} in every run", effect=_SAME)
        return untested_row(name, tested, "a second budget")
    curves = curves_in(runs, question, x)
    said, turned, left_out = [], [], []
    for verdict in question.primary:
        a, b = verdict.contrast
        both = [curves.by_compute[arm] for arm in (a, b) if arm in curves.by_compute]
        top = min((curve.high for curve in both), default=0.0)
        if len(both) < 2 or top < max(curve.low for curve in both):
            left_out.append(f"{a} - {b}")
            continue
        value, ends = curves.difference(a, b, {a: top, b: top})
        word = answer_words(value, ends, a, b)
        real = {"a_better": f"{a} better", "b_better": f"{b} better"}.get(verdict.verdict, "not resolved")
        said.append(f"{a} - {b} {amount_words(value, question.y, ends)} at {format_amount(top, x)}")
        if word != real:
            turned.append(f"{a} - {b}: {word}, {real} by {_WORDS.get(question.spec.x, question.spec.x)}")
    if not said:
        return untested_row(name, tested, f"arms whose {_WORDS[x]} overlap")
    apart = f"; no common range: {', '.join(left_out)}" if left_out else ""
    return tested_row(
        name, tested, bool(turned), f"in {unit_of(question.y)}: {'; '.join(said)}{apart}",
        effect=f"another answer: {'; '.join(turned)}" if turned else _SAME,
    )  # fmt: skip


def all_in_row(question: Question) -> Assumption:
    """Test whether charging the teacher's pretraining to one student gives another answer."""
    name = "teacher's pretraining not charged"
    plan = question.own.plan
    tested = "each distilled arm at its largest budget against its reference at the same and the teacher's pretraining"
    if plan.charge == "pretraining":
        return tested_row(name, "the study's own charge", False, "its pretraining is charged", effect="nothing to add")
    bills = {teacher.model: teacher.required_flops for teacher in plan.teachers if teacher.weights is None}
    runs = question.runs()
    if question.spec.x != "required_flops" or "required_flops" not in runs:
        return untested_row(name, tested, "a study matched in required FLOPs")
    curves: Curves | None = None
    said, turned, lacking = [], [], []
    for verdict in question.primary:
        a, b = verdict.contrast
        teacher = plan.arms[a].teacher if a in plan.arms else None
        bill = bills.get(teacher or "")
        if teacher is None:
            continue
        if not bill:
            lacking.append(f"the cost of {teacher}'s pretraining")
            continue
        curves = curves or curves_in(runs, question, "required_flops")
        if a not in curves.by_compute or b not in curves.by_compute:
            lacking.append("a second budget")
            continue
        spent = curves.by_compute[a].high
        if spent + bill > curves.by_compute[b].high * 1.0001:
            need, have = (format_amount(v, "required_flops") for v in (spent + bill, curves.by_compute[b].high))
            lacking.append(f"a run of {b} at {need}, which is {a} with its teacher (the largest is {have})")
            continue
        value, ends = curves.difference(a, b, {a: spent, b: spent + bill})
        word = answer_words(value, ends, a, b)
        real = {"a_better": f"{a} better", "b_better": f"{b} better"}.get(verdict.verdict, "not resolved")
        said.append(
            f"{a} - {b} {amount_words(value, question.y, ends)} at {format_amount(spent + bill, 'required_flops')}"
        )
        if word != real:
            turned.append(f"{a} - {b}: {word}")
    if not said:
        missing = next(iter(dict.fromkeys(lacking)), "a distilled arm")
        return untested_row(name, tested, missing)
    effect = f"another answer: {'; '.join(turned)}" if turned else _SAME
    return tested_row(name, tested, bool(turned), f"in {unit_of(question.y)}: {'; '.join(said)}", effect=effect)
