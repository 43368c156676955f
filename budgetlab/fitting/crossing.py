"""What follows from two curves: compute multiplier, crossover, and where a difference comes from.

Their intervals are jackknives over run seeds: everything is computed again with each seed left out of all arms, and
the scatter of these answers is a standard error with Student's t (Tukey 1958; Miller 1974, Biometrika 61). To first
order that is the paired t of each seed's own answer, whatever the noise of an arm or a budget and however arms with one
seed or runs with one trunk err together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.arms import points_by_arm, run_points, solve_jointly
from budgetlab.fitting.contrast import satterthwaite, unit_of
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import Law, get_law
from budgetlab.laws.base import Array
from budgetlab.resampling import t_quantile
from budgetlab.values import FitSpec
from budgetlab.values.base import Interval

_GRID = 200
_SAME_TOKENS = 0.02
"""Runs within this share of tokens count as runs at equal tokens."""


@dataclass(frozen=True)
class _Curve:
    """An arm's curve over one column of compute: of all its runs first, then with one run seed left out after another.

    Rows of `levels` are log outcomes at `places`, the logarithms of compute, when it is interpolated; otherwise
    `params` feed the law.
    """

    method: str
    low: float
    high: float
    seeds: tuple[object, ...]
    """Left out one by one; empty where a budget has fewer than two runs."""
    law: Law | None
    params: Mapping[str, Array]
    places: Array
    levels: Array

    def at(self, log_x: Array) -> Array:
        """Log outcome at the logarithms of compute, shape (1 + seeds, places)."""
        if self.law is not None:
            columns = {name: values[:, None] for name, values in self.params.items()}
            return np.log(self.law.predict(columns, {self.law.inputs[0]: np.exp(log_x)[None]}))
        return np.stack([np.interp(log_x, self.places, row) for row in self.levels])


@dataclass(frozen=True)
class _Pairing:
    """Which rows of two arms belong together: all runs first, then each run seed left out of both."""

    rows: tuple[tuple[int, int], ...]
    shared: int
    """Run seeds that both arms have."""
    own: tuple[int, int]

    @classmethod
    def of(cls, one: Sequence[object], other: Sequence[object]) -> _Pairing:
        index = [{seed: 1 + k for k, seed in enumerate(seeds)} for seeds in (one, other)]
        # A seed that an arm does not have leaves it as it is.
        known = tuple((index[0].get(seed, 0), index[1].get(seed, 0)) for seed in dict.fromkeys((*one, *other)))
        return cls(((0, 0), *known), len(index[0].keys() & index[1].keys()), (len(one), len(other)))

    def take(self, one: Array, other: Array) -> tuple[Array, Array]:
        """Bring the rows of both arms into one order."""
        first, second = zip(*self.rows, strict=True)
        return one[list(first)], other[list(second)]

    def interval(self, values: Array, level: float) -> Interval | None:
        """Jackknife interval of the first value; None with fewer than two seeds, or where one leaves no answer."""
        left_out = values[1:]
        if min(self.own) < 2 or not np.isfinite(values).all():
            return None
        if self.shared > 1:
            n = len(left_out)
            square, freedom = (n - 1) * float(left_out.var()), self.shared - 1.0
        elif self.shared == 1:
            return None
        else:
            parts = np.split(left_out, [self.own[0]])
            squares = np.array([(n - 1) * float(part.var()) for n, part in zip(self.own, parts, strict=True)])
            square, freedom = float(squares.sum()), satterthwaite(squares, [n - 1 for n in self.own])
        half = t_quantile((1 + level) / 2, freedom) * square**0.5
        return float(values[0]) - half, float(values[0]) + half


@dataclass(frozen=True)
class Curves:
    """The curves of all arms over compute and over tokens, and what follows from two of them.

    Outcomes are losses, or distances of a score from 1; differences are in nats or points.
    """

    by_compute: Mapping[str, _Curve]
    by_tokens: Mapping[str, _Curve]
    runs: pd.DataFrame
    x: str
    y: str
    level: float

    def difference(self, a: str, b: str, at: Mapping[str, float]) -> tuple[float, Interval | None]:
        """Difference A minus B in nats or points, positive when A is better, each arm at its own amount of compute.

        Read from curves over compute, inside the range of each; no interval where nothing is known of the noise.
        """
        one, other = self._both(a, b, {arm: np.log(np.array([at[arm]])) for arm in (a, b)})
        scale = 100.0 if unit_of(self.y) == "points" else 1.0
        values = scale * (np.exp(other) - np.exp(one))[:, 0]
        return float(values[0]), self._pairing(a, b).interval(values, self.level)

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
        end_a, end_b = (rows[:, 0] for rows in self._both(a, b, {a: end, b: end}))
        grids = {arm: np.linspace(np.log(self.by_compute[arm].low), end[0], _GRID) for arm in (a, b)}
        at_a, at_b = self._both(a, b, grids)
        log_ratio = np.where(
            end_a <= end_b,
            end[0] - _first_reach(grids[a], at_a, end_b),
            _first_reach(grids[b], at_b, end_a) - end[0],
        )
        known = bool(np.isfinite(log_ratio[0]))
        result: dict[str, Any] = {
            "value": float(np.exp(log_ratio[0])) if known else None,
            "interval": _exp(self._pairing(a, b).interval(log_ratio, self.level)),
            "interval_level": self.level,
            "at_outcome": self._shown(float(max(end_a[0], end_b[0]))),
            "method": self._methods(a, b),
        }
        if not known:
            better = a if end_a[0] <= end_b[0] else b
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
        at_a, at_b = self._both(a, b, {a: grid, b: grid})
        crossed = _first_zero(grid, at_a - at_b)
        known = bool(np.isfinite(crossed[0]))
        result: dict[str, Any] = {
            "value": float(np.exp(crossed[0])) if known else None,
            "unit": self.x,
            "interval": _exp(self._pairing(a, b).interval(crossed, self.level)),
            "interval_level": self.level,
            "range": [float(low), float(high)],
            "method": self._methods(a, b),
        }
        if not known:
            result["reason"] = "never in range"
        elif result["interval"] is None:
            result["reason"] = "no interval: with a run seed left out, the curves need not cross in range"
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
        curve = self.by_tokens.get(b)
        if not same.empty:
            method, seeds_b = "runs at equal tokens", tuple(at_b["run_seed"])
            own = _means(at_b, seeds_b)
            middle = own if abs(tokens_a / tokens_b - 1) <= _SAME_TOKENS else _means(same, seeds_b)
        elif curve is not None and curve.low <= tokens_a <= curve.high:
            method, seeds_b = f"{curve.method} of {b} over tokens", curve.seeds
            middle, own = np.exp(curve.at(np.log(np.array([tokens_a, min(tokens_b, curve.high)])))).T
        else:
            return {
                "method": None,
                "reason": f"no run of {b} at {tokens_a:.4g} tokens, and its curve over tokens does not reach there",
            }
        seeds_a = tuple(at_a["run_seed"])
        pairing = _Pairing.of(seeds_a, seeds_b)
        distilled, own = pairing.take(_means(at_a, seeds_a), own)
        middle = pairing.take(_means(at_a, seeds_a), middle)[1]
        scale = -100.0 if unit_of(self.y) == "points" else -1.0
        parts = {"difference": distilled - own, "gain_per_token": distilled - middle, "effect_of_tokens": middle - own}
        result: dict[str, Any] = {
            "method": method,
            "tokens_a": tokens_a,
            "tokens_b": tokens_b,
            "interval_level": self.level,
        }
        for name, values in parts.items():
            ends = pairing.interval(scale * values, self.level)
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
        return 1.0 - float(np.exp(log_outcome)) if unit_of(self.y) == "points" else float(np.exp(log_outcome))

    def _pairing(self, a: str, b: str) -> _Pairing:
        return _Pairing.of(self.by_compute[a].seeds, self.by_compute[b].seeds)

    def _both(self, a: str, b: str, at: Mapping[str, Array]) -> tuple[Array, Array]:
        """Both curves over compute, each at its own places, with rows that belong together."""
        return self._pairing(a, b).take(self.by_compute[a].at(at[a]), self.by_compute[b].at(at[b]))


def make_curves(runs: pd.DataFrame, y: str, spec: FitSpec) -> Curves:
    """Fit or interpolate every arm over compute and over tokens, with each run seed left out in turn."""
    law = get_law(spec.law)
    maps = []
    for column in (spec.x, "tokens"):
        found: dict[str, _Curve] = {}
        if column in runs:
            found |= _joint_curves(runs, law, column, spec)
            for arm, rows in runs.groupby("arm", sort=True):
                curve = None if arm in found else _curve(rows, law, column, spec)
                if curve is not None:
                    found[str(arm)] = curve
        maps.append(found)
    return Curves(maps[0], maps[1], runs, spec.x, y, spec.interval_level)


def _joint_curves(runs: pd.DataFrame, law: Law, column: str, spec: FitSpec) -> dict[str, _Curve]:
    """Curves of the arms that share parameters of the law; nothing where one fit does not converge."""
    if not spec.shared:
        return {}
    lean = spec.model_copy(update={"resamples": 0})
    seeds = tuple(runs["run_seed"].unique())
    subsets = [runs, *(runs[runs["run_seed"] != seed] for seed in seeds if len(seeds) > 1)]
    joint = [solve_jointly(points_by_arm(rows, law, column), lean, certify=False) for rows in subsets]
    fits = [part for part in joint if part is not None and part.solution.status is FitStatus.CONVERGED]
    if len(fits) < len(subsets) or len({part.arms for part in fits}) > 1:
        return {}
    name = f"laws fitted jointly, shared {', '.join(spec.shared)}"
    theta = np.vstack([part.solution.theta for part in fits])
    made = {}
    for arm in fits[0].arms:
        x = runs.loc[runs["arm"] == arm, column]
        params = fits[0].solution.design.to_params(theta, arm)
        made[arm] = _Curve(name, float(x.min()), float(x.max()), seeds if len(seeds) > 1 else (), law, params,
                           np.empty(0), np.empty((0, 0)))  # fmt: skip
    return made


def _curve(rows: pd.DataFrame, law: Law, column: str, spec: FitSpec) -> _Curve | None:
    points = run_points(rows, law, column)
    if points is None or len(cells := np.unique(points.cells())) < 2:
        return None
    x = points.inputs[law.inputs[0]]
    low, high = float(x.min()), float(x.max())
    seeds = tuple(rows["run_seed"].unique())
    if rows.groupby("budget_amount").size().min() < 2:
        seeds = ()
    subsets = [points] + [points.take(np.flatnonzero(points.clusters != seed)) for seed in seeds]
    if any(len(np.unique(part.cells())) < len(cells) for part in subsets):
        seeds, subsets = (), subsets[:1]
    fits = [_law_through(part, spec) for part in subsets]
    methods = {fit[0] for fit in fits if fit is not None}
    if None not in fits and len(methods) == 1:
        params = {name: np.concatenate([fit[2][name] for fit in fits if fit]) for name in fits[0][2]}  # type: ignore[index]
        return _Curve(methods.pop(), low, high, seeds, fits[0][1], params, np.empty(0), np.empty((0, 0)))  # type: ignore[index]
    # A smaller law than the one asked for would bend the answer; between budgets a chord does not.
    means = [[np.log(part.outcome[part.cells() == c]).mean() for c in range(len(cells))] for part in subsets]
    places = np.array([np.log(x[points.cells() == c]).mean() for c in cells])
    order = np.argsort(places)
    none: Mapping[str, Array] = {}
    return _Curve("interpolation between budgets", low, high, seeds, None, none, places[order],
                  np.array(means)[:, order])  # fmt: skip


def _law_through(points: Points, spec: FitSpec) -> tuple[str, Law, Mapping[str, Array]] | None:
    """Least squares of log outcomes: a robust objective would be free to go anywhere between two replicates."""
    try:
        prepared = prepare(points, spec.pinned, saturated=True)
    except CallerError:
        return None
    if prepared.refusal or prepared.reason:
        return None
    solution = solve(prepared.points, prepared.law, Objective("squared_log"), pinned=prepared.pinned, certify=False)
    if solution.status is not FitStatus.CONVERGED:
        return None
    through = len(np.unique(points.cells())) <= len(prepared.law.params) - len(prepared.pinned)
    name = "law through the means at the budgets" if through else "fitted law"
    return name, prepared.law, solution.design.to_params(solution.theta[None])


def _outcome(rows: pd.DataFrame) -> Array:
    return np.where(rows["higher_is_better"], 1.0 - rows["value"], rows["value"]).astype(float)


def _means(rows: pd.DataFrame, seeds: Sequence[object]) -> Array:
    """Mean outcome of runs, then with each seed left out; NaN where nothing is left."""
    outcome, own = _outcome(rows), rows["run_seed"].to_numpy()
    kept = [outcome, *(outcome[own != seed] for seed in seeds)]
    return np.array([part.mean() if len(part) else np.nan for part in kept])


def _exp(ends: Interval | None) -> list[float] | None:
    return None if ends is None else [float(np.exp(end)) for end in ends]


def _first_reach(grid: Array, levels: Array, targets: Array) -> Array:
    """Where each row first comes down to its target; NaN where it starts below."""
    above = levels - targets[:, None]
    return np.where(above[:, 0] < 0, np.nan, _first_zero(grid, above))


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
