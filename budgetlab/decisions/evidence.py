"""The records that bear on a comparison, what is asked of them, and arms that differ in one thing alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from budgetlab.fitting.arm_curves import points_by_arm
from budgetlab.fitting.contrast import Contrast, contrast, make_panel
from budgetlab.fitting.crossing import Curves
from budgetlab.fitting.scores import AGGREGATE, LOSSES, OUTCOMES, run_values
from budgetlab.fitting.table import Points
from budgetlab.laws import get_law
from budgetlab.values import FitSpec, Plan, Verdict
from budgetlab.values.base import Interval
from budgetlab.values.scoring import unit_of

_SAME_BUDGET = 0.01
_SAME_SIZE = 0.05
"""Students within this share of parameters are of one size."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """One study: its name, its plan, and its tidy scores."""

    study: str
    plan: Plan
    scores: pd.DataFrame
    known: dict[object, Any] = field(default_factory=dict, init=False, repr=False)
    """What was worked out of the scores already."""

    def runs(self, y: str) -> pd.DataFrame:
        """One row a run, of an outcome."""
        if ("runs", y) not in self.known:
            self.known["runs", y] = run_values(self.scores, y)
        return self.known["runs", y]

    def curves(self, y: str, spec: FitSpec, *, replicates: bool = False) -> Curves:
        """Curves of an outcome over `spec.x`, each solved once.

        With `replicates` the runs of one arm at one budget are replicates, whatever each took: they get their mean.
        """
        runs, cell = self.runs(y), ["arm", "budget_amount"]
        replicates = replicates and bool((runs.groupby(cell)[spec.x].nunique() > 1).any())
        key = ("curves", y, spec.model_dump_json(), replicates)
        if key not in self.known:
            mean = {spec.x: runs.groupby(cell)[spec.x].transform("mean")} if replicates else {}
            self.known[key] = Curves(runs.assign(**mean), y, spec)
        return self.known[key]

    def take(self, verdicts: Sequence[object]) -> None:
        """Keep the curves that verdicts of these scores were read from, so that they are not solved again."""
        if (curves := getattr(verdicts, "curves", None)) is not None:
            self.known["runs", curves.y] = curves.runs
            self.known["curves", curves.y, curves.spec.model_dump_json(), False] = curves

    def contrast(self, a: str, b: str, y: str, budget: float) -> Contrast | None:
        """Contrast two arms, A minus B, positive when A is better; None without runs of both."""
        return contrast(make_panel(self.runs(y), y), a, b, budget)

    def rows(self, y: str) -> pd.DataFrame:
        """Scores of the runs on an outcome, on all tasks for their mean."""
        wanted = ~self.scores["task"].isin(LOSSES) if y == AGGREGATE else self.scores["task"] == y
        return self.scores[(self.scores["subject"] == "run") & wanted]

    def budgets(self, a: str, b: str, y: str) -> list[float]:
        """Amounts at which both arms were scored."""
        rows = self.rows(y)
        amounts = [set(rows.loc[rows["arm"] == arm, "budget_amount"].dropna()) for arm in (a, b)]
        return sorted(amounts[0] & amounts[1])


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


def may_test(plan: Plan, other: Plan) -> bool:
    """Whether another study may test an assumption of this one: it read the same text, all of it or a part."""
    texts = [p.corpus.model_copy(update={"unique_tokens": None}) for p in (plan, other)]
    return texts[0] == texts[1] and plan.match == other.match and plan.charge == other.charge


def alternatives(
    own: Evidence, beside: Sequence[Evidence], a: str, b: str, y: str, *, differs_in: str
) -> Iterator[Alternative]:
    """Find pairs of arms that are the two of a contrast but for one thing, at a budget that both pairs have."""
    plan, text = own.plan, differs_in == "text"
    if differs_in in ("schedule", "learning_rate"):
        settings = {getattr(plan.arms[arm].recipe, differs_in) for arm in (a, b) if arm in plan.arms}
        if len(settings) > 1:  # the contrast is of this setting itself
            return
    amounts = own.budgets(a, b, y)
    for where in (own, *beside):
        unique = where.plan.corpus.unique_tokens
        if not may_test(plan, where.plan) or (plan.corpus.unique_tokens != unique) != text:
            continue
        if not evaluated_alike(own, where, y):
            continue
        alike = [_alike(own, where, arm, differs_in) for arm in (a, b)]
        for one, other in itertools.product(*alike):
            settings = {alike[0][one], alike[1][other]} - {""}
            if text:
                settings = {"all of the text" if unique is None else f"{unique / 1e6:g}M tokens of text"}
            # Two settings at once would be two changes.
            if one == other or len(settings) != 1 or (where is own and (one, other) == (a, b)):
                continue
            for amount in where.budgets(one, other, y):
                near = [x for x in amounts if abs(x / amount - 1) <= _SAME_BUDGET]
                if near:
                    yield Alternative(where, one, other, amount, near[0], next(iter(settings)))


def evaluated_alike(one: Evidence, other: Evidence, y: str) -> bool:
    """Whether an outcome was measured alike in two studies: by one recipe, or random weights scored equally in both."""
    tables = [evidence.scores for evidence in (one, other)]
    random = [table[(table["task"] == y) & (table["subject"] == "random")] for table in tables]
    marks = [rows.groupby("run_seed")["value"].first() for rows in random]
    common = marks[0].index.intersection(marks[1].index)
    if one is other or (len(common) and bool((marks[0][common] == marks[1][common]).all())):
        return True
    hashes = [set(evidence.rows(y)["recipe_hash"].dropna()) for evidence in (one, other)]
    return len(hashes[0]) > 0 and hashes[0] == hashes[1]


def _alike(own: Evidence, where: Evidence, name: str, differs_in: str) -> dict[str, str]:
    """Arms of another study that are this one but for one thing, and what they have there; "" where it has none."""
    found = {}
    for other in where.plan.arms:
        key = ("difference", where, name, other)
        if key not in own.known:
            own.known[key] = _difference(own.plan, where.plan, name, other)
        difference = own.known[key]
        # Only the distilled arm of a pair has a teacher to exchange.
        untaught = differs_in == "teacher" and own.plan.arms[name].teacher is None
        if not difference and (untaught or differs_in == "text"):
            found[other] = ""
        elif set(difference) == {differs_in}:
            found[other] = difference[differs_in]
    return found


def _difference(plan: Plan, other_plan: Plan, name: str, other_name: str) -> dict[str, str]:
    """What differs between two arms, and what the second one has; "other" for what is no single assumption."""
    arm, other = plan.arms[name], other_plan.arms[other_name]
    if arm.strategy != other.strategy:
        return {"other": "strategy"}
    found: dict[str, str] = {}
    for key in set(type(arm.recipe).model_fields) - {"dtype", "attention"}:  # which are settled by the machine
        value = getattr(other.recipe, key)
        if getattr(arm.recipe, key) != value:
            known = key in ("schedule", "learning_rate")
            found[key if known else "other"] = f"{value:g}" if isinstance(value, float) else str(value)
    students = plan.models[arm.student], other_plan.models[other.student]
    if students[0] != students[1]:
        costs = plan.costs.get(name), other_plan.costs.get(other_name)
        sizes = [cost.num_params_non_embedding for cost in costs if cost is not None]
        alike = len(sizes) == 2 and abs(sizes[1] / sizes[0] - 1) <= _SAME_SIZE
        found["student" if alike else "other"] = f"{students[1].num_layers} x {students[1].hidden_size}"
    teachers = [None if a.teacher is None else p.models[a.teacher] for p, a in ((plan, arm), (other_plan, other))]
    if teachers[0] != teachers[1]:
        found["teacher"] = str(other.teacher)
    return found


def runs_by_size(plan: Plan, runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the strategy with the most student sizes: both counts of parameters, and the loss; empty for scores.

    Of several with as many sizes, one without a teacher.
    """
    if not bool((~runs["higher_is_better"]).all()):
        return pd.DataFrame()
    parts: dict[str, list[pd.DataFrame]] = {}
    arms = [arm for arm in sorted(set(runs["arm"])) if arm in plan.costs and arm in plan.arms]
    for arm in sorted(arms, key=lambda arm: plan.arms[arm].teacher is not None):
        cost, rows = plan.costs[arm], runs[runs["arm"] == arm]
        known = rows.assign(loss=rows["value"], num_params_total=cost.num_params_total,
                            num_params_non_embedding=cost.num_params_non_embedding)  # fmt: skip
        parts.setdefault(plan.arms[arm].strategy.model_dump_json(), []).append(known)
    tables = [pd.concat(found, ignore_index=True) for found in parts.values()]
    return max(tables, key=lambda table: table["num_params_total"].nunique(), default=pd.DataFrame())


@dataclass(frozen=True)
class Question:
    """The contrasts whose assumptions are tested, and the records that may test them."""

    own: Evidence
    beside: tuple[Evidence, ...]
    spec: FitSpec
    verdicts: tuple[Verdict, ...]
    """All of the study's."""
    simulations: int

    @cached_property
    def primary(self) -> tuple[Verdict, ...]:
        """What is asked: the primary contrasts, or all of the first outcome where none is primary."""
        primary = tuple(verdict for verdict in self.verdicts if verdict.primary)
        return primary or tuple(verdict for verdict in self.verdicts if verdict.y == self.verdicts[0].y)

    @property
    def y(self) -> str:
        """Their outcome."""
        return self.primary[0].y

    @property
    def unit(self) -> str:
        """Unit of its differences."""
        return unit_of(self.y)

    @property
    def alpha(self) -> float:
        """Level of the tests: an assumption is rejected at one less the level of intervals."""
        return 1.0 - self.spec.interval_level

    @cached_property
    def points(self) -> dict[str, Points]:
        """Points for the law of the study, of each arm that is compared."""
        compared = {arm for verdict in self.primary for arm in verdict.contrast}
        found = points_by_arm(self.own.runs(self.y), get_law(self.spec.law), self.spec.x)
        return {arm: points for arm, points in found.items() if arm in compared}

    def amount(self, value: float, interval: Interval | None = None, sign: str = "+") -> str:
        """Print a difference of the outcome, with its interval."""
        digits = 1 if self.unit == "points" else 3
        ends = "" if interval is None else f" [{interval[0]:{sign}.{digits}f}, {interval[1]:{sign}.{digits}f}]"
        return f"{value:{sign}.{digits}f}{ends}"


def outcome_words(y: str) -> str:
    """How an outcome is called in a sentence."""
    return OUTCOMES.get(y, y).removeprefix("the ")


def answer_of(difference: float, interval: Interval | None, pair: Sequence[str]) -> str:
    """Return the answer that an interval gives: which arm is better, or that it is not resolved."""
    if interval is None or interval[0] <= 0.0 <= interval[1]:
        return "not resolved"
    return f"{pair[0] if difference > 0 else pair[1]} better"


def answer_in(verdict: Verdict) -> str:
    """Return the answer of a verdict in the same words."""
    better = {"a_better": 0, "b_better": 1}.get(verdict.verdict)
    return "not resolved" if better is None else f"{verdict.contrast[better]} better"
