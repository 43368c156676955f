"""The records that bear on a comparison, and arms that differ in one thing: what an assumption is tested with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.fitting.contrast import Contrast, contrast, make_panel, satterthwaite
from budgetlab.fitting.scores import AGGREGATE, LOSSES, run_values
from budgetlab.resampling import t_quantile
from budgetlab.values import Plan

_SAME_BUDGET = 0.01
_SAME_SIZE = 0.05
"""Students within this share of parameters are of one size."""


@dataclass(frozen=True)
class Evidence:
    """One study: its name, its plan, and its tidy scores."""

    study: str
    plan: Plan
    scores: pd.DataFrame


@dataclass(frozen=True)
class Alternative:
    """Two arms that differ from the two of a contrast in one thing alone, in this study or another."""

    where: Evidence
    a: str
    b: str
    budget: float
    """There; within 1 % of the one in the study itself."""
    own_budget: float
    setting: str
    """What is different, such as "linear"."""


@dataclass(frozen=True)
class Shift:
    """How a contrast changes between two settings: second minus first, its standard error and degrees of freedom."""

    first: Contrast
    second: Contrast

    @property
    def value(self) -> float:
        """The change, in the contrasts' unit."""
        return self.second.difference - self.first.difference

    @property
    def spread(self) -> tuple[float, float] | None:
        """Standard error, and degrees of freedom by Welch and Satterthwaite; None where either noise is unknown."""
        errors = (self.first.standard_error, self.second.standard_error)
        freedom = (self.first.degrees_of_freedom, self.second.degrees_of_freedom)
        if None in errors or None in freedom:
            return None
        squares = np.array(errors, dtype=float) ** 2
        return float(squares.sum()) ** 0.5, satterthwaite(squares, list(freedom))  # type: ignore[arg-type]

    def p_value(self) -> float | None:
        """Two-sided p-value of no change."""
        if (spread := self.spread) is None:
            return None
        return Contrast(self.value, *spread, 0, False).p_value()

    def interval(self, level: float) -> tuple[float, float] | None:
        """Interval of the change by Student's t."""
        if (spread := self.spread) is None:
            return None
        half = t_quantile((1 + level) / 2, spread[1]) * spread[0]
        return self.value - half, self.value + half


def may_test(plan: Plan, other: Plan) -> bool:
    """Whether another study may test an assumption of this one: it read the same text, all of it or a part."""
    texts = [p.corpus.model_copy(update={"unique_tokens": None}) for p in (plan, other)]
    return texts[0] == texts[1] and plan.match == other.match and plan.charge == other.charge


def lead(evidence: Evidence, a: str, b: str, y: str, budget: float) -> Contrast | None:
    """Contrast two arms of a study at a budget, A minus B, positive when A is better; None without runs of both."""
    return contrast(make_panel(run_values(evidence.scores, y), y), a, b, budget)


def alternatives(
    own: Evidence, beside: Sequence[Evidence], a: str, b: str, y: str, *, differs_in: str
) -> Iterator[Alternative]:
    """Find pairs of arms that are the two of a contrast but for one thing, at a budget that both pairs have."""
    if differs_in in ("schedule", "learning_rate"):
        settings = {getattr(own.plan.arms[arm].recipe, differs_in) for arm in (a, b) if arm in own.plan.arms}
        if len(settings) > 1:  # the contrast is of this setting itself
            return
    amounts = _budgets(own, a, b, y)
    for where in (own, *beside):
        pairs = [
            (one, other)
            for one in where.plan.arms
            for other in where.plan.arms
            if one != other and (where is not own or (one, other) != (a, b))
        ]
        for one, other in pairs:
            setting = _setting(own.plan, where.plan, (a, b), (one, other), differs_in)
            if setting is None or not evaluated_alike(own, where, y):
                continue
            for amount in _budgets(where, one, other, y):
                near = [x for x in amounts if abs(x / amount - 1) <= _SAME_BUDGET]
                if near:
                    yield Alternative(where, one, other, amount, near[0], setting)


def _budgets(evidence: Evidence, a: str, b: str, y: str) -> list[float]:
    rows = _rows_of(evidence, y)
    amounts = [set(rows.loc[rows["arm"] == arm, "budget_amount"].dropna()) for arm in (a, b)]
    return sorted(amounts[0] & amounts[1])


def _rows_of(evidence: Evidence, y: str) -> pd.DataFrame:
    scores = evidence.scores
    wanted = ~scores["task"].isin(LOSSES) if y == AGGREGATE else scores["task"] == y
    return scores[(scores["subject"] == "run") & wanted]


def evaluated_alike(one: Evidence, other: Evidence, y: str) -> bool:
    """Whether an outcome was measured alike in two studies: by one recipe, or the yardsticks of both came out equal."""
    marks = [_yardsticks(evidence, y) for evidence in (one, other)]
    common = marks[0].index.intersection(marks[1].index)
    if len(common) and bool((marks[0][common] == marks[1][common]).all()):
        return True
    hashes = [set(_rows_of(evidence, y)["recipe_hash"].dropna()) for evidence in (one, other)]
    return one is other or (len(hashes[0]) > 0 and hashes[0] == hashes[1])


def _yardsticks(evidence: Evidence, y: str) -> pd.Series:
    """Scores of networks that are the same in every study of one corpus: random weights, by run seed."""
    scores = evidence.scores
    rows = scores[(scores["task"] == y) & (scores["subject"] == "random")]
    return rows.groupby("run_seed")["value"].first()


def _setting(
    plan: Plan, other_plan: Plan, pair: tuple[str, str], other_pair: tuple[str, str], differs_in: str
) -> str | None:
    """What differs between two pairs of arms, if nothing but this does."""
    if not may_test(plan, other_plan):
        return None
    changed = plan.corpus.unique_tokens != other_plan.corpus.unique_tokens
    if changed != (differs_in == "text"):
        return None
    settings = set()
    for name, other_name in zip(pair, other_pair, strict=True):
        found = _difference(plan, other_plan, name, other_name)
        # Only the distilled arm of a pair has a teacher to exchange.
        if differs_in == "teacher" and not found and plan.arms[name].teacher is None:
            continue
        allowed = set() if differs_in == "text" else {differs_in}
        if set(found) != allowed:
            return None
        settings |= set(found.values())
    if differs_in == "text":
        unique = other_plan.corpus.unique_tokens
        return "all of the text" if unique is None else f"{unique / 1e6:g}M tokens of text"
    # Two settings at once would be two changes.
    return settings.pop() if len(settings) == 1 else None


def _difference(plan: Plan, other_plan: Plan, name: str, other_name: str) -> dict[str, str]:
    """What differs between two arms, and what the second one has; "other" for what is no single assumption."""
    arm, other = plan.arms[name], other_plan.arms[other_name]
    found: dict[str, str] = {}
    if arm.strategy != other.strategy:
        return {"other": "strategy"}
    for field in type(arm.recipe).model_fields:
        # Precision and kernels are settled by the machine.
        if field in ("dtype", "attention"):
            continue
        value = getattr(other.recipe, field)
        if getattr(arm.recipe, field) != value:
            known = field in ("schedule", "learning_rate")
            found[field if known else "other"] = f"{value:g}" if isinstance(value, float) else str(value)
    students = plan.models[arm.student], other_plan.models[other.student]
    if students[0] != students[1]:
        sizes = [p.costs[n].num_params_non_embedding if n in p.costs else None
                 for p, n in ((plan, name), (other_plan, other_name))]  # fmt: skip
        alike = None not in sizes and abs(sizes[1] / sizes[0] - 1) <= _SAME_SIZE  # type: ignore[operator]
        found["student" if alike else "other"] = f"{students[1].num_layers} x {students[1].hidden_size}"
    if _teacher(plan, arm.teacher) != _teacher(other_plan, other.teacher):
        found["teacher"] = str(other.teacher)
    return found


def _teacher(plan: Plan, name: str | None) -> Any:
    return None if name is None else plan.models[name]


def runs_by_size(plan: Plan, runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the strategy with the most student sizes: both counts of parameters, and the loss; empty for scores.

    Of several with as many sizes, one without a teacher.
    """
    if not bool((~runs["higher_is_better"]).all()):
        return pd.DataFrame()
    parts: dict[str, list[pd.DataFrame]] = {}
    own = runs[runs["arm"].isin(list(plan.arms))]
    for arm, rows in sorted(own.groupby("arm"), key=lambda group: plan.arms[str(group[0])].teacher is not None):
        cost = plan.costs.get(str(arm))
        if cost is not None:
            known = rows.assign(loss=rows["value"], num_params_total=cost.num_params_total,
                                num_params_non_embedding=cost.num_params_non_embedding)  # fmt: skip
            parts.setdefault(plan.arms[str(arm)].strategy.model_dump_json(), []).append(known)
    tables = [pd.concat(found, ignore_index=True) for found in parts.values()]
    return max(tables, key=lambda table: table["num_params_total"].nunique(), default=pd.DataFrame())
