"""The next run of a study: which further seed or budget would narrow the answer most per FLOP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from budgetlab.decisions.evidence import Evidence
from budgetlab.decisions.precision import best_first, log_gradients, variance_factor
from budgetlab.decisions.question import outcome_words
from budgetlab.errors import CallerError
from budgetlab.fitting.arms import points_by_arm
from budgetlab.fitting.contrast import contrast, paired_noise, signed_values, unit_of
from budgetlab.fitting.intervals import within_cell_noise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.scores import run_values
from budgetlab.fitting.solve import solve
from budgetlab.fitting.table import Points
from budgetlab.laws import get_law
from budgetlab.laws.base import Array
from budgetlab.resampling import t_quantile
from budgetlab.units import format_amount
from budgetlab.values import FitSpec, Plan, Verdict

__all__ = ["least_resolved", "next_budgets", "next_runs"]

_FEWEST_DEGREES_OF_FREEDOM = 3
"""As in a verdict: with fewer at a budget its noise is pooled over all budgets."""


def least_resolved(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the primary contrast whose interval is the widest for what it says: the one nearest to undecided.

    The largest p-value of the primary contrasts (of all, where none is primary); None where no noise is known.
    """
    known = [verdict for verdict in verdicts if verdict.p_value is not None]
    chosen = [verdict for verdict in known if verdict.primary] or known

    def distance(verdict: Verdict) -> float:
        return abs(verdict.difference or 0.0) / verdict.standard_error if verdict.standard_error else np.inf

    return min(chosen, key=distance, default=None)


def next_runs(own: Evidence, verdict: Verdict, *, most_seeds: int = 3) -> pd.DataFrame:
    """Say which further seeds would narrow the interval of a contrast most per FLOP.

    The interval is the one of the verdict: Student's t about the paired difference, its noise pooled over the arms at
    the budget. A seed of the two arms adds a pair; a seed of every arm adds degrees of freedom as well; a seed at
    another budget adds nothing, since noise is not pooled over budgets (but where there are too few runs for that).

    Parameters
    ----------
    own
        The study: its plan has the cost of a run, its scores have the noise.
    verdict
        The contrast.
    most_seeds
        How many seeds a candidate may add.

    Returns
    -------
    DataFrame
        A row a candidate, best first: `adds` (in words), `arms`, `budget_amount`, `seeds`, `cost_flops` and
        `cost_seconds` (of runs from their first step, the teacher's forward pass included, its pretraining not; missing
        where unknown), `half_width_now`, `half_width_after`, `narrowing`, `narrowing_per_exaflop`, `predicted`
        (always). ``attrs["sentence"]`` names the best.

    Raises
    ------
    CallerError
        Where the noise is unknown, so that no width can be foretold.
    """
    a, b = verdict.contrast
    signed = signed_values(run_values(own.scores, verdict.y), verdict.y)
    budget = verdict.at.amount
    found = contrast(signed, a, b, budget, paired_noise(signed, budget))
    asked = f"next runs for {a} - {b} on {verdict.y}"
    if found is None or found.standard_error is None or found.degrees_of_freedom is None or found.noise is None:
        raise CallerError(asked, "nothing is known of the noise between runs", "run a second seed first")
    if not found.paired:
        raise CallerError(asked, "the two arms have no run seed in common", "run both with one seed first")
    tail = (1 + verdict.interval_level) / 2
    here = _Runs.of(signed)
    now = here.freedom(budget)
    rows = []
    for arms, amount, seeds in _seed_candidates(own.plan, (a, b), here, most_seeds):
        after = here.with_seeds(arms, amount, seeds)
        freedom = found.degrees_of_freedom * after.freedom(budget) / now
        pairs = len(after.seeds[a, budget] & after.seeds[b, budget])
        half = t_quantile(tail, freedom) * found.noise.sd * (2 / pairs) ** 0.5
        rows.append({
            "adds": _seed_words(arms, amount, seeds, verdict), "arms": ", ".join(arms), "budget_amount": amount,
            "seeds": seeds, **_cost(own.plan, arms, amount, seeds),
            "half_width_now": t_quantile(tail, found.degrees_of_freedom) * found.standard_error,
            "half_width_after": half,
        })  # fmt: skip
    if not rows:
        raise CallerError(asked, "the plan has no feasible run of both arms", "plan a budget that both can spend")
    at = format_amount(budget, verdict.at.unit)
    table = best_first(pd.DataFrame(rows), f"{a} - {b} on {outcome_words(verdict.y)} at {at}, in {verdict.unit}")
    if verdict.verdict != "not_resolved":
        table.attrs["sentence"] += " (This contrast is resolved already; it is the least so of the primary ones.)"
    return table


@dataclass(frozen=True)
class _Runs:
    """Which seeds each arm has at each budget."""

    seeds: dict[tuple[str, float], frozenset[object]]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> _Runs:
        groups = runs.groupby(["arm", "budget_amount"])["run_seed"]
        return cls({(str(arm), float(amount)): frozenset(seeds) for (arm, amount), seeds in groups})  # type: ignore[misc]

    def with_seeds(self, arms: Iterable[str], amount: float, count: int) -> _Runs:
        """Add the same new seeds to some arms at a budget."""
        new = frozenset(("new", k) for k in range(count))
        return _Runs({
            key: seeds | new if key[0] in arms and key[1] == amount else seeds for key, seeds in self.seeds.items()
        })  # fmt: skip

    def freedom(self, budget: float) -> float:
        """Degrees of freedom of arm + seed at a budget; at all budgets together where it has too few by itself."""
        own = self._at(budget)
        if own >= _FEWEST_DEGREES_OF_FREEDOM:
            return own
        return sum(self._at(amount) for amount in {amount for _, amount in self.seeds})

    def _at(self, budget: float) -> float:
        cells = [(arm, seed) for (arm, amount), seeds in self.seeds.items() if amount == budget for seed in seeds]
        arms, labels = (list(dict.fromkeys(column)) for column in zip(*cells, strict=True)) if cells else ([], [])
        design = np.zeros((len(cells), len(arms) + len(labels)))
        for row, (arm, seed) in enumerate(cells):
            design[row, arms.index(arm)] = design[row, len(arms) + labels.index(seed)] = 1.0
        return float(len(cells) - np.linalg.matrix_rank(design)) if cells else 0.0


def _seed_candidates(
    plan: Plan, pair: tuple[str, str], runs: _Runs, most: int
) -> Iterator[tuple[tuple[str, ...], float, int]]:
    budgets = sorted({amount for _, amount in runs.seeds})
    for amount in budgets:
        present = tuple(sorted(arm for arm, at in runs.seeds if at == amount))
        feasible = {s.arm for s in plan.schedules if s.feasible and abs(s.budget.amount / amount - 1) < 1e-9}
        for arms in dict.fromkeys((pair, tuple(arm for arm in present if arm in feasible))):
            if set(pair) <= set(arms) <= feasible:
                for count in range(1, most + 1):
                    yield arms, amount, count


def _seed_words(arms: Sequence[str], amount: float, seeds: int, verdict: Verdict) -> str:
    number = {1: "one more run seed", 2: "two more run seeds", 3: "three more run seeds"}.get(
        seeds, f"{seeds} more run seeds"
    )
    whom = " and ".join(arms) if len(arms) == 2 else "every arm"
    return f"{number} of {whom} at {format_amount(amount, verdict.at.unit)}"


def _cost(plan: Plan, arms: Iterable[str], amount: float, seeds: int) -> dict[str, float]:
    chosen = [s for s in plan.schedules if s.arm in arms and s.feasible and abs(s.budget.amount / amount - 1) < 1e-9]
    seconds = [s.device_seconds for s in chosen]
    return {
        "cost_flops": seeds * sum(s.required_flops for s in chosen),
        "cost_seconds": float("nan") if None in seconds else seeds * float(sum(seconds)),  # type: ignore[arg-type]
    }


def next_budgets(
    own: Evidence, spec: FitSpec, verdict: Verdict, *, at: float | None = None, budgets: Sequence[float] = ()
) -> pd.DataFrame:
    """Say at which compute a further run of both arms would narrow their difference at a compute most per FLOP.

    The two curves are fitted as far as the budgets carry the law; what is asked of them lies beyond.

    Parameters
    ----------
    own
        The study, matched in required FLOPs and fitted over them.
    spec
        Law and level.
    verdict
        The contrast.
    at
        Required FLOPs at which the difference is wanted; by default twice the largest budget.
    budgets
        Further candidates; by default the geometric means of neighbouring budgets, and `at` itself.

    Returns
    -------
    DataFrame
        A row a candidate, best first, as from `next_runs`; `law` says what was fitted. Predicted, and only if the law
        holds.

    Raises
    ------
    CallerError
        Where the study is not fitted over required FLOPs, the noise is unknown, or an arm has no curve.
    """
    a, b = verdict.contrast
    asked = f"next budgets for {a} - {b} on {verdict.y}"
    if spec.x != "required_flops":
        raise CallerError(asked, f"the curves are over {spec.x}", 'fit over x = "required_flops"')
    runs = run_values(own.scores, verdict.y)
    law = get_law(spec.law)
    points = points_by_arm(runs, law, spec.x)
    noise = within_cell_noise(*points.values())
    if noise is None:
        raise CallerError(asked, "nothing is known of the noise between runs", "run a second seed first")
    if perfect := [arm for arm in (a, b) if arm not in points]:
        raise CallerError(asked, f"every run of {', '.join(perfect)} scores 100 %", "ask of an outcome with room above")
    curves = [_CurveOf.of(arm, points[arm], spec, asked) for arm in (a, b)]
    known = sorted({float(x) for curve in curves for x in curve.amounts})
    target = 2 * max(known) if at is None else at
    candidates = sorted({*known, *(float((x * y) ** 0.5) for x, y in pairwise(known)), target, *budgets})
    tail, scale = (1 + spec.interval_level) / 2, 1.0 if unit_of(verdict.y) == "nats" else 100.0
    prices = [own.plan.costs[arm].train_required_flops_per_token for arm in (a, b)]
    rates = [own.plan.costs[arm].tokens_per_second for arm in (a, b)]
    rows = []
    now = scale * noise.sd * sum(curve.variance(target) for curve in curves) ** 0.5
    for amount in _apart(candidates):
        after = scale * noise.sd * sum(curve.variance(target, amount) for curve in curves) ** 0.5
        seconds = [None if rate is None else amount / price / rate for price, rate in zip(prices, rates, strict=True)]
        freedom = noise.degrees_of_freedom
        replicate = 2.0 if any(abs(amount / x - 1) < 0.01 for x in known) else 0.0
        rows.append({
            "adds": f"one run each of {a} and {b} at {format_amount(amount, spec.x)}", "arms": f"{a}, {b}",
            "budget_amount": amount, "seeds": 1, "cost_flops": 2 * amount,
            "cost_seconds": float("nan") if None in seconds else float(sum(seconds)),  # type: ignore[arg-type]
            "half_width_now": t_quantile(tail, freedom) * now,
            "half_width_after": t_quantile(tail, freedom + replicate) * after,
            "law": " and ".join(dict.fromkeys(curve.formula for curve in curves)),
        })  # fmt: skip
    where = f"at {format_amount(target, spec.x)}, in {verdict.unit}, by their curves"
    return best_first(pd.DataFrame(rows), f"{a} - {b} on {outcome_words(verdict.y)} {where}")


def _apart(amounts: Sequence[float]) -> list[float]:
    """Leave out amounts that are all but one that is there."""
    kept: list[float] = []
    for amount in amounts:
        if not kept or amount / kept[-1] > 1.01:
            kept.append(amount)
    return kept


@dataclass(frozen=True)
class _CurveOf:
    """One arm's curve, and the gradients of its log prediction at the runs."""

    formula: str
    amounts: Array
    seen: Array
    points: Points
    params: dict[str, float]

    @classmethod
    def of(cls, arm: str, points: Points, spec: FitSpec, asked: str) -> _CurveOf:
        try:
            prepared = prepare(points, spec.pinned, saturated=True)
        except CallerError as error:
            raise CallerError(asked, f"{arm}: {error.wrong}", error.remedy) from None
        if prepared.refusal:
            raise CallerError(asked, f"{arm}: {prepared.refusal}", "run another budget first")
        solution = solve(prepared.points, prepared.law, Objective("squared_log"), pinned=prepared.pinned, certify=False)
        params = {name: float(value) for name, value in solution.design.to_params(solution.theta).items()}
        law = prepared.law
        return cls(law.formula, np.unique(points.inputs[law.inputs[0]]),
                   log_gradients(law, params, prepared.points.inputs), prepared.points, params)  # fmt: skip

    def variance(self, target: float, further: float | None = None) -> float:
        """Variance of the outcome at `target`, in variances of one run's logarithm, with a run more or without."""
        law = self.points.law
        name = law.inputs[0]
        at = {name: np.array([target])}
        rows = self.seen
        if further is not None:
            rows = np.vstack([rows, log_gradients(law, self.params, {name: np.array([further])})])
        outcome = float(law.predict(self.params, at)[0])
        return outcome**2 * variance_factor(rows, log_gradients(law, self.params, at)[0])
