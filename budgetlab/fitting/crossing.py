"""What follows from two curves: compute multiplier, crossover, and where a difference comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.arms import Joint, points_by_arm, solve_jointly
from budgetlab.fitting.contrast import unit_of
from budgetlab.fitting.intervals import draw, within_cell_noise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import AnyLaw, get_law
from budgetlab.laws.base import Array
from budgetlab.resampling import PooledVariance, percentile_interval
from budgetlab.values import FitSpec

__all__ = ["Curves", "make_curves"]

_GRID = 200
_SAME_TOKENS = 0.02
"""Runs within this share of tokens count as runs at equal tokens."""


@dataclass(frozen=True)
class _Curve:
    """An arm's curve over one column of compute: the estimate first, then the draws.

    Rows of `levels` are log outcomes at `places`, the logarithms of compute, when it is interpolated; otherwise
    `params` feed the law.
    """

    method: str
    low: float
    high: float
    law: AnyLaw | None
    params: Mapping[str, Array]
    places: Array
    levels: Array

    def at(self, log_x: Array) -> Array:
        """Log outcome at the logarithms of compute, shape (1 + draws, places)."""
        if self.law is not None:
            columns = {name: values[:, None] for name, values in self.params.items()}
            return np.log(self.law.predict(columns, {self.law.inputs[0]: np.exp(log_x)[None]}))
        return np.stack([np.interp(log_x, self.places, row) for row in self.levels])


@dataclass(frozen=True)
class Curves:
    """The curves of all arms over compute and over tokens, and what follows from two of them.

    Outcomes are losses, or distances of a score from 1; `scale` turns their differences into nats or points.
    """

    by_compute: Mapping[str, _Curve]
    by_tokens: Mapping[str, _Curve]
    runs: pd.DataFrame
    noise: PooledVariance | None
    x: str
    y: str
    level: float
    resamples: int
    seed: int

    def multiplier(self, a: str, b: str, budget: float) -> dict[str, Any]:
        """Compute multiplier C_B / C_A at equal outcome: above 1, A needs less.

        The outcome is the worse of the two at the budget, so that one arm spends the budget itself and the other
        what it needs to be as good: it is looked for in that arm's fitted range only.
        """
        if (why := self._lacking(a, b)) is not None:
            return {"value": None, "interval": None, "reason": why}
        one, other = self.by_compute[a], self.by_compute[b]
        top = self._spent(a, b, budget)
        if not (one.low <= top <= one.high * 1.0001 and other.low <= top <= other.high * 1.0001):
            return {"value": None, "interval": None, "reason": "the budget is outside both fitted ranges"}
        end = np.log(np.array([top]))
        ends = tuple(values[:, 0] for values in _both(one, other, end))
        a_better = ends[0] <= ends[1]
        needed_a = _first_reach(one, np.log(top), ends[1])
        needed_b = _first_reach(other, np.log(top), ends[0])
        log_ratio = np.where(a_better, np.log(top) - needed_a, needed_b - np.log(top))
        found = np.isfinite(log_ratio[1:])
        without = float(1 - found.mean()) if len(found) else None
        value = float(np.exp(log_ratio[0])) if np.isfinite(log_ratio[0]) else None
        result: dict[str, Any] = {
            "value": value,
            "interval": None,
            "interval_level": self.level,
            "at_outcome": self._shown(float(max(ends[0][0], ends[1][0]))),
            "share_without_crossing": without,
            "method": self._methods(a, b),
        }
        if found.sum() > 20 and without is not None:
            result["interval"] = _exp(percentile_interval(log_ratio[1:][found], self.level))
        if value is None:
            better = a if a_better[0] else b
            result["reason"] = f"{better} is better at its smallest budget already: outside both ranges"
        return result

    def crossover(self, a: str, b: str) -> dict[str, Any]:
        """Compute at which the curves cross, inside the range that both share."""
        if (why := self._lacking(a, b)) is not None:
            return {"value": None, "interval": None, "reason": why}
        one, other = self.by_compute[a], self.by_compute[b]
        low, high = max(one.low, other.low), min(one.high, other.high)
        if not low < high:
            return {"value": None, "interval": None, "reason": "the fitted ranges do not overlap"}
        grid = np.linspace(np.log(low), np.log(high), _GRID)
        at_a, at_b = _both(one, other, grid)
        crossed = _first_zero(grid, at_a - at_b)
        found = np.isfinite(crossed[1:])
        result: dict[str, Any] = {
            "value": float(np.exp(crossed[0])) if np.isfinite(crossed[0]) else None,
            "unit": self.x,
            "interval": None,
            "interval_level": self.level,
            "range": [float(low), float(high)],
            "share_without_crossing": float(1 - found.mean()) if len(found) else None,
            "method": self._methods(a, b),
        }
        if result["value"] is None:
            result["reason"] = "never in range"
        elif found.sum() > 20:
            result["interval"] = _exp(percentile_interval(crossed[1:][found], self.level))
        return result

    def decomposition(self, a: str, b: str, budget: float) -> dict[str, Any]:
        """Split the difference at equal compute into gain per token and effect of the tokens that B can afford.

        Difference = (A - B at A's tokens) + (B at A's tokens - B at its own tokens). B at A's tokens comes from
        its runs where there are any (``equal_tokens``), else from its curve over tokens.
        """
        runs = self.runs
        at_a = runs[(runs["arm"] == a) & (runs["budget_amount"] == budget)]
        at_b = runs[(runs["arm"] == b) & (runs["budget_amount"] == budget)]
        if "tokens" not in runs or at_a.empty or at_b.empty:
            return {"method": None, "reason": "the scores have no tokens"}
        if perfect := [arm for arm, rows in ((a, at_a), (b, at_b)) if not _outcome(rows).any()]:
            return {"method": None, "reason": f"every run of {' and '.join(perfect)} scores 100 %"}
        tokens_a, tokens_b = float(at_a["tokens"].mean()), float(at_b["tokens"].mean())
        same = runs[(runs["arm"] == b) & (abs(runs["tokens"] / tokens_a - 1) <= _SAME_TOKENS)]
        rng = np.random.default_rng(self.seed)
        count = 1 + (self.resamples if self.noise is not None else 0)
        kd = self._mean_draws(at_a, count, rng)
        if not same.empty:
            method = "runs at equal tokens"
            own = self._mean_draws(at_b, count, rng)
            middle = own if abs(tokens_a / tokens_b - 1) <= _SAME_TOKENS else self._mean_draws(same, count, rng)
        elif b in self.by_tokens and self.by_tokens[b].low <= tokens_a <= self.by_tokens[b].high:
            curve = self.by_tokens[b]
            method = f"{curve.method} of {b} over tokens"
            reach = np.log(np.array([tokens_a, min(tokens_b, curve.high)]))
            middle, own = np.exp(curve.at(reach)).T
            kd = kd[: len(own)]
        else:
            return {
                "method": None,
                "reason": f"no run of {b} at {tokens_a:.4g} tokens, and its curve over tokens does not reach there",
            }
        scale = -1.0 if unit_of(self.y) == "nats" else -100.0
        parts = {"difference": kd - own, "gain_per_token": kd - middle, "effect_of_tokens": middle - own}
        result: dict[str, Any] = {
            "method": method,
            "tokens_a": tokens_a,
            "tokens_b": tokens_b,
            "interval_level": self.level,
        }
        for name, values in parts.items():
            ends = (
                percentile_interval(scale * values[1:], self.level)
                if self.noise is not None and len(values) > 2
                else None
            )
            result[name] = {"value": float(scale * values[0]), "interval": None if ends is None else list(ends)}
        return result

    def _lacking(self, a: str, b: str) -> str | None:
        absent = [arm for arm in (a, b) if arm not in self.by_compute]
        return f"no curve for {' and '.join(absent)}: fewer than two budgets with {self.x}" if absent else None

    def _spent(self, a: str, b: str, budget: float) -> float:
        here = self.runs[(self.runs["budget_amount"] == budget) & self.runs["arm"].isin([a, b])]
        return float(here.groupby("arm")[self.x].mean().min())

    def _methods(self, a: str, b: str) -> str:
        return " and ".join(dict.fromkeys([self.by_compute[a].method, self.by_compute[b].method]))

    def _shown(self, log_outcome: float) -> float:
        return float(np.exp(log_outcome)) if unit_of(self.y) == "nats" else 1.0 - float(np.exp(log_outcome))

    def _mean_draws(self, rows: pd.DataFrame, draws: int, rng: np.random.Generator) -> Array:
        outcome = _outcome(rows)
        spread = 0.0 if self.noise is None else self.noise.sd / np.sqrt(len(outcome))
        freedom = 1e9 if self.noise is None else self.noise.degrees_of_freedom
        unknown = np.sqrt(freedom / _shared(self.seed).chisquare(freedom, size=draws))
        noise = rng.standard_normal(draws) * unknown * spread
        noise[0] = 0.0
        return np.exp(np.log(outcome.mean()) + noise)


def _outcome(rows: pd.DataFrame) -> Array:
    return np.where(rows["higher_is_better"], 1.0 - rows["value"], rows["value"]).astype(float)


def make_curves(runs: pd.DataFrame, y: str, spec: FitSpec) -> Curves:
    """Fit or interpolate every arm over compute and over tokens, with draws that share one noise."""
    law = get_law(spec.law)
    noise, maps = None, []
    for column in (spec.x, "tokens"):
        found: dict[str, _Curve] = {}
        if column in runs:
            points = points_by_arm(runs, law, column)
            noise = within_cell_noise(*points.values())
            joint = solve_jointly(points, spec, noise, certify=False)
            if joint is not None and joint.solution.status is FitStatus.CONVERGED:
                found = {arm: _joint_curve(joint, arm, points[arm], spec) for arm in joint.arms}
            for k, (arm, part) in enumerate(points.items()):
                curve = None if arm in found else _curve(part, spec, noise, np.random.default_rng([spec.seed, k]))
                if curve is not None:
                    found[arm] = curve
        maps.append(found)
    return Curves(maps[0], maps[1], runs, noise, spec.x, y, spec.interval_level, spec.resamples, spec.seed)


def _joint_curve(joint: Joint, arm: str, points: Points, spec: FitSpec) -> _Curve:
    x = points.inputs[points.law.inputs[0]]
    params = joint.solution.design.to_params(np.vstack([joint.solution.theta[None], joint.draws]), arm)
    name = f"laws fitted jointly, shared {', '.join(spec.shared)}"
    return _Curve(name, float(x.min()), float(x.max()), points.law, params, np.empty(0), np.empty((0, 0)))


def _curve(points: Points, spec: FitSpec, noise: PooledVariance | None, rng: np.random.Generator) -> _Curve | None:
    x = points.inputs[points.law.inputs[0]]
    cells = np.unique(points.cells())
    if len(cells) < 2:
        return None
    low, high = float(x.min()), float(x.max())
    try:
        prepared = prepare(points, spec.pinned, saturated=True)
    except CallerError:
        prepared = None
    # A smaller law than the one asked for would bend the answer; between budgets a chord does not.
    if prepared is not None and not prepared.refusal and not prepared.reason:
        through = len(cells) <= len(prepared.law.params) - len(prepared.pinned)
        # A law with as many parameters as budgets goes through the means of the runs; a robust one would be free to
        # go anywhere between two replicates.
        objective = Objective("squared_log") if through else Objective(spec.objective, spec.delta)
        solution = solve(prepared.points, prepared.law, objective, pinned=prepared.pinned, certify=False)
        if solution.status is FitStatus.CONVERGED:
            drawn = solution.theta[None]
            if noise is not None and spec.resamples:
                found = draw(solution, prepared.points, "pooled_t", spec.resamples, rng, noise, _shared(spec.seed))
                drawn = np.vstack([drawn, found.theta])
            name = "law through the means at the budgets" if through else "fitted law"
            params = solution.design.to_params(drawn)
            return _Curve(name, low, high, prepared.law, params, np.empty(0), np.empty((0, 0)))
    labels = points.cells()
    places = np.array([np.log(x[labels == c]).mean() for c in cells])
    means = np.array([np.log(points.outcome[labels == c]).mean() for c in cells])
    counts = np.array([(labels == c).sum() for c in cells])
    order = np.argsort(places)
    levels = means[None]
    if noise is not None and spec.resamples:
        freedom = noise.degrees_of_freedom
        spread = noise.sd * np.sqrt(freedom / _shared(spec.seed).chisquare(freedom, size=(spec.resamples, 1)))
        levels = np.vstack(
            [levels, means + spread / np.sqrt(counts) * rng.standard_normal((spec.resamples, len(means)))]
        )
    return _Curve("interpolation between budgets", low, high, None, {}, places[order], levels[:, order])


def _shared(seed: int) -> np.random.Generator:
    """Source of what is not known of the noise that all arms pool: a difference of two arms has it once."""
    return np.random.default_rng([seed, 2**31])


def _exp(ends: tuple[float, float]) -> list[float]:
    return [math.exp(end) for end in ends]


def _both(one: _Curve, other: _Curve, log_x: Array) -> tuple[Array, Array]:
    """Both curves with as many draws as the one that lost more resamples."""
    rows_a, rows_b = one.at(log_x), other.at(log_x)
    count = min(len(rows_a), len(rows_b))
    return rows_a[:count], rows_b[:count]


def _first_reach(curve: _Curve, end: float, targets: Array) -> Array:
    """Where each row of a curve first comes down to its target, before `end`; NaN where it starts below."""
    grid = np.linspace(np.log(curve.low), end, _GRID)
    above = curve.at(grid)[: len(targets)] - targets[:, None]
    reached = _first_zero(grid, above)
    return np.where(above[:, 0] < 0, np.nan, reached)


def _first_zero(grid: Array, rows: Array) -> Array:
    """Where each row first changes sign, by linear interpolation; NaN where it never does."""
    flips = (rows[:, :-1] > 0) != (rows[:, 1:] > 0)
    index = flips.argmax(axis=1)
    left = np.take_along_axis(rows, index[:, None], axis=1)[:, 0]
    right = np.take_along_axis(rows, index[:, None] + 1, axis=1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(left == right, 0.0, left / (left - right))
    place = grid[index] + share * (grid[1] - grid[0])
    return np.where(flips.any(axis=1), place, np.nan)
