"""Values -> tidy tables, one row a thing: what notebooks show and what the CSV files hold.

Numbers stay in the units of the values (the last word of a column's name); unknown is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Score, Verdict
from budgetlab.values.scoring import INFORMATIVE_POINTS, LOSSES


def costs_frame(profile: CostProfile) -> pd.DataFrame:
    """Tidy table, a row an arm, then a row a teacher to pretrain: the price of a token and its ratios to the first arm.

    Returns
    -------
    DataFrame
        `arm`, `required_flops_per_token`, `seconds_per_step` with `seconds_low` and `seconds_high`,
        `tokens_per_second`, `flops_ratio`, `seconds_ratio` (of paired rounds where steps were timed, else of seconds a
        token) with its `ratio_low` and `ratio_high`, `flops_ratio_off` (the first ratio over the second, less one),
        `peak_memory_bytes`, `joules_per_token`, and a column each for what the count was held against.
    """
    first = profile.arms[0]
    rows = []
    for cost in (*profile.arms, *profile.teachers):
        flops = cost.train_required_flops_per_token / first.train_required_flops_per_token
        ratio = cost.seconds_ratio
        seconds = ratio.value if ratio else None
        if ratio is None and cost.tokens_per_second and first.tokens_per_second:
            seconds = first.tokens_per_second / cost.tokens_per_second
        row = {"arm": cost.arm, "required_flops_per_token": cost.train_required_flops_per_token}
        row |= {"seconds_per_step": cost.seconds_per_step, **_ends("seconds", cost.seconds_per_step_interval)}
        row |= {"tokens_per_second": cost.tokens_per_second, "flops_ratio": flops, "seconds_ratio": seconds}
        row |= _ends("ratio", ratio.interval if ratio else None)
        row |= {"flops_ratio_off": flops / seconds - 1.0 if seconds else None}
        rows.append(row | {name: getattr(cost, name) for name in ("peak_memory_bytes", "joules_per_token")})
        rows[-1] |= cost.agreement
    return pd.DataFrame(rows)


def phases_frame(profile: CostProfile) -> pd.DataFrame:
    """Tidy table, a row an arm (or teacher to pretrain) and phase of its step: what ``profile.csv`` holds."""
    rows = [
        {"arm": cost.arm, "phase": phase, **price.model_dump(), "batch_tokens": cost.batch_tokens}
        for cost in (*profile.arms, *profile.teachers)
        for phase, price in cost.phases.items()
    ]
    return pd.DataFrame(rows)


def plan_frame(plan: Plan) -> pd.DataFrame:
    """Tidy table, a row an arm and budget: the fields of `Schedule`, what ``plan.csv`` holds."""
    return pd.DataFrame([_with_budget(schedule.model_dump()) for schedule in plan.schedules])


def _with_budget(row: dict[str, Any]) -> dict[str, Any]:
    budget = row.pop("budget") or {}
    return {**row, "budget_amount": budget.get("amount"), "budget_unit": budget.get("unit")}


_OF_VERDICTS = (
    "unit", "verdict", "primary", "p_value", "adjusted_p_value", "minimum_detectable_difference", "margin", "num_pairs",
)  # fmt: skip
_SPENT = ("steps", "tokens", "required_flops", "executed_flops", "device_seconds")


def records_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Tidy table, a row a run: what it spent, and beside it what was planned.

    Returns
    -------
    DataFrame
        `run_id`, `kind`, `arm`, `rung` and `run_seed`, `status`; `steps`, `tokens`, `required_flops`, `executed_flops`,
        `device_seconds` and `joules` as metered; of rungs `planned_...` of the first five, from the schedule.
    """
    rows = []
    for record in records:
        row = {name: getattr(record, name) for name in ("run_id", "kind", "arm")}
        row |= {"rung": getattr(record.schedule, "rung", None)}
        row |= {name: getattr(record, name) for name in ("run_seed", "status", *_SPENT, "joules")}
        rows.append(row | {f"planned_{name}": getattr(record.schedule, name, None) for name in _SPENT})
    whole = dict.fromkeys(("rung", "planned_steps", "planned_tokens"), "Int64")  # of teachers and trunks missing
    return pd.DataFrame(rows).astype(whole) if rows else pd.DataFrame()


def points_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Tidy table, a row a point on the way of a run: its fields, a column a term of the loss and a column a sign."""
    rows = []
    for record in records:
        run = {"run_id": record.run_id, "kind": record.kind, "arm": record.arm, "run_seed": record.run_seed}
        for point in record.points:
            row = point.model_dump(exclude={"losses", "signs"})
            rows.append({**run, **row, **point.losses, **point.signs})
    return pd.DataFrame(rows)


def scores_frame(scores: Iterable[Score], *, informative_points: float = INFORMATIVE_POINTS) -> pd.DataFrame:
    """Tidy table, one row a score: the fields of `Score`, `budget` as `budget_amount` and `budget_unit`.

    `informative` says of a task whether it tells anything at the size of the row's student: every teacher that was
    scored on it is ahead, which the lowest decides: it is at least `informative_points` points and three standard
    errors (of examples and seeds) above random weights, both as fine-tuned with their own best rate of the study's
    grid. Fine-tunings of one run are averaged first. Missing where a teacher or random weights were not scored.
    """
    rows = []
    for score in scores:
        row = score.model_dump()
        row |= {name: json.dumps(row[name]) for name in ("metrics", "standard_errors")}
        row |= {"standard_error": score.standard_errors.get(score.metric), "subset": score.subset}
        rows.append(_with_budget(row))
    columns = [name for name in Score.model_fields if name not in ("budget", "schema_version")]
    columns += ["standard_error", "subset", "budget_amount", "budget_unit"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["informative"] = _informative(frame, informative_points)
    return frame.sort_values(["arm", "rung", "run_seed", "task", "finetune_seed"], kind="stable", ignore_index=True)


Level = tuple[float, float]
"""Mean over the runs of a yardstick, and its squared standard error."""


def baseline_levels(scores: pd.DataFrame) -> tuple[dict[str, Level], dict[tuple[str, str], Level]]:
    """Levels of the lowest teacher by task, and of random weights by task and student."""
    scored = scores[~scores["task"].isin(LOSSES)]
    lowest: dict[str, Level] = {}
    for (task, _), rows in scored[scored["subject"] == "teacher"].groupby(["task", "arm"], sort=False):
        level = _level(rows)
        lowest[str(task)] = min(lowest.get(str(task), level), level)
    random = scored[scored["subject"] == "random"].groupby(["task", "student"], sort=False)
    return lowest, {(str(task), str(student)): _level(rows) for (task, student), rows in random}


def _informative(frame: pd.DataFrame, points: float) -> pd.Series:
    lowest, random = baseline_levels(frame)
    known: dict[tuple[str, str], bool] = {}
    for (task, student), (floor, noise) in random.items():
        if task in lowest:
            above, other = lowest[task]
            lead = above - floor
            known[task, student] = 100 * lead >= points and lead >= 3 * (other + noise) ** 0.5
    asked = zip(frame["task"], frame["student"], frame["subject"], strict=True)
    values = [known.get((task, student)) if subject == "run" else None for task, student, subject in asked]
    return pd.Series(values, index=frame.index, dtype=object)


def _level(rows: pd.DataFrame) -> Level:
    """Level of one yardstick: the examples are the same for all its runs, the seeds are not."""
    values, examples = rows["value"].astype(float), rows["standard_error"].astype(float)
    runs = values.groupby(rows["run_id"]).mean()
    each = runs if len(runs) > 1 else values  # a run by itself: its fine-tunings are all that is known to vary
    of_seeds = float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0
    return float(runs.mean()), of_seeds + float(examples.fillna(0.0).pow(2).mean())


def fits_frame(fits: Iterable[CurveFit]) -> pd.DataFrame:
    """Tidy table, a row per parameter of each fit: what ``fits.csv`` holds."""
    columns = ["arm", "law", "formula", "parameter", "estimate", "low", "high", "interval_level", "interval_method",
               "status", "usable_for", "objective_name", "delta", "objective", "num_points"]  # fmt: skip
    rows = []
    for fit in fits:
        shared = {name: getattr(fit, name) for name in columns if name in type(fit).model_fields}
        for name, value in (fit.params | fit.derived or {"": None}).items():
            low, high = fit.intervals.get(name) or (None, None)
            rows.append(shared | {"parameter": name or None, "estimate": value, "low": low, "high": high})
    return pd.DataFrame(rows, columns=columns)


def verdicts_frame(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Tidy table, a row a verdict.

    Returns
    -------
    DataFrame
        `a` and `b`, the outcome `y`, `budget_amount`, `budget_unit`; `difference` (A minus B, positive when A is
        better) with `low` and `high` in `unit`, `adjusted_low` and `adjusted_high` at its own step of Holm's procedure,
        from which the verdict is read, `verdict`, `primary`, `p_value`, `adjusted_p_value`,
        `minimum_detectable_difference`, `margin`, `num_pairs`. Of the fitted curves, where there are any:
        `compute_multiplier` (what A would need, times this, B does need), `crossover_amount`, both in the amount of
        `curves_over`, `gain_per_token`, `effect_of_tokens`, each with `_low` and `_high`.
    """
    rows = []
    for verdict in verdicts:
        row: dict[str, Any] = {"a": verdict.contrast[0], "b": verdict.contrast[1], "y": verdict.y}
        row |= {"budget_amount": verdict.at.amount, "budget_unit": verdict.at.unit, "difference": verdict.difference}
        row |= _ends("", verdict.interval) | _ends("adjusted", verdict.adjusted_interval)
        row |= {name: getattr(verdict, name) for name in _OF_VERDICTS}
        row["curves_over"] = (verdict.crossover or {}).get("unit")
        parts = verdict.decomposition or {}
        curves: dict[str, Mapping[str, Any] | None] = {
            "compute_multiplier": verdict.compute_multiplier,
            "crossover_amount": verdict.crossover,
        }
        curves |= {name: parts.get(name) for name in ("gain_per_token", "effect_of_tokens")}
        for name, found in curves.items():
            row |= {name: (found or {}).get("value"), **_ends(name, (found or {}).get("interval"))}
        rows.append(row)
    return pd.DataFrame(rows)


def _ends(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    gap = "_" if name else ""
    return {f"{name}{gap}low": low, f"{name}{gap}high": high}
