"""What follows from two curves: compute multiplier, crossover, and where a difference comes from.

Their intervals are jackknives over run seeds: everything is computed again with each seed left out of all arms, and
the scatter of these answers is a standard error with Student's t (Tukey 1958; Miller 1974, Biometrika 61). To first
order that is the paired t of each seed's own answer, whatever the noise of an arm or a budget and however arms with one
seed or runs with one trunk err together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.arm_curves import points_by_arm, run_points, solve_jointly
from budgetlab.fitting.contrast import Panel, make_panel, satterthwaite
from budgetlab.fitting.design import build_design, start_all
from budgetlab.fitting.intervals import without_each
from budgetlab.fitting.newton import minimise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import Law, get_law
from budgetlab.laws.law import Array
from budgetlab.resampling import t_quantile
from budgetlab.values import FitSpec
from budgetlab.values.base import Interval
from budgetlab.values.scoring import unit_of

APPROXIMATE = "approximate: nominal 95 % covered 90 to 99 % in simulation"
"""Of multipliers and crossovers; `benchmarks/fitting.py --coverage`, docs/statistics.md."""
_GRID = 200
_SAME_TOKENS = 0.02
"""Runs within this share of tokens count as runs at equal tokens."""
EDGE = 1.0001
"""An amount this little beyond a curve's range counts as inside: budgets are spent in whole steps."""


@dataclass(frozen=True)
class Curve:
    """An arm's curve over one column of compute, of all its runs and with one run seed left out after another."""

    method: str
    low: float
    high: float
    seeds: tuple[object, ...]
    """Left out one by one; empty where a budget has fewer than two runs."""
    at: Callable[[Array], Array]
    """Log outcome at logarithms of compute, shape (1 + seeds, places)."""


class _Pairing:
    """Which rows of two arms belong together: all runs first, then each run seed left out of both."""

    def __init__(self, one: Sequence[object], other: Sequence[object]) -> None:
        index = [{seed: 1 + k for k, seed in enumerate(seeds)} for seeds in (one, other)]
        # A seed that an arm does not have leaves it as it is.
        self.rows = [[0, *(known.get(seed, 0) for seed in dict.fromkeys((*one, *other)))] for known in index]
        self.own, self.shared = (len(one), len(other)), len(index[0].keys() & index[1].keys())

    def take(self, one: Array, other: Array) -> tuple[Array, Array]:
        """Bring the rows of both arms into one order."""
        return one[self.rows[0]], other[self.rows[1]]

    def interval(self, values: Array, level: float) -> Interval | None:
        """Jackknife interval of the first value; None with fewer than two seeds, or where one leaves no answer."""
        if min(self.own) < 2 or self.shared == 1 or not np.isfinite(values).all():
            return None
        left_out, freedom = values[1:], self.shared - 1.0
        if self.shared:
            square = (len(left_out) - 1) * float(left_out.var())
        else:
            parts = np.split(left_out, [self.own[0]])
            squares = np.array([(n - 1) * float(part.var()) for n, part in zip(self.own, parts, strict=True)])
            square, freedom = float(squares.sum()), satterthwaite(squares, [n - 1 for n in self.own])
        half = t_quantile((1 + level) / 2, freedom) * square**0.5
        return float(values[0]) - half, float(values[0]) + half


@dataclass(frozen=True)
class Curves:
    """The runs of one outcome, and all arms' curves over compute and tokens, each solved when it is first asked for.

    Outcomes of curves are losses, or distances of a score from 1; differences are in nats or points.
    """

    runs: pd.DataFrame
    """One row a run, of one outcome."""
    y: str
    spec: FitSpec
    """Law, level, and the column of compute."""
    known: dict[str, dict[str, Curve | None]] = field(default_factory=dict, compare=False, repr=False)
    """By column and arm, what was solved already."""

    def of(self, arm: str, column: str | None = None) -> Curve | None:
        """Return an arm's curve over compute or another column; None where it has no two budgets."""
        column = column or self.spec.x
        if column not in self.runs:
            return None
        if column not in self.known:
            self.known[column] = dict(_joint_curves(self.runs, column, self.spec))
        found = self.known[column]
        if arm not in found:
            rows = self.runs[self.runs["arm"] == arm]
            found[arm] = _curve(rows, column, self.spec) if len(rows) else None
        return found[arm]

    def difference(self, a: str, b: str, at: Mapping[str, float]) -> tuple[float, Interval | None]:
        """Difference A minus B in nats or points, positive when A is better, each arm at its own amount of compute.

        Read from curves over compute, inside the range of each; no interval where nothing is known of the noise.
        """
        one, other = (self.of(arm) for arm in (a, b))
        assert one is not None and other is not None
        pairing = _Pairing(one.seeds, other.seeds)
        at_a, at_b = pairing.take(*(curve.at(_log(at[arm])) for arm, curve in ((a, one), (b, other))))
        values = self._scale * (np.exp(at_b) - np.exp(at_a))[:, 0]
        return float(values[0]), pairing.interval(values, self.spec.interval_level)

    def outcome(self, arm: str, amount: float) -> float:
        """Outcome of an arm at an amount of compute, as in the scores."""
        curve = self.of(arm)
        assert curve is not None
        return self._shown(float(curve.at(_log(amount))[0, 0]))

    def multiplier(self, a: str, b: str, budget: float) -> dict[str, Any]:
        """Compute multiplier C_B / C_A at equal outcome: above 1, A needs less.

        The outcome is the worse of the two at the budget, so that one arm spends the budget itself and the other
        what it needs to be as good: it is looked for in that arm's fitted range only.
        """
        one, other = (self.of(arm) for arm in (a, b))
        if one is None or other is None:
            return {"value": None, "interval": None, "reason": self._lacking(a, b)}
        top = min(self._spent[arm, budget] for arm in (a, b))
        if not all(curve.low <= top <= curve.high * EDGE for curve in (one, other)):
            return {"value": None, "interval": None, "reason": "the budget is outside both fitted ranges"}
        pairing, end = _Pairing(one.seeds, other.seeds), _log(top)
        end_a, end_b = (rows[:, 0] for rows in pairing.take(one.at(end), other.at(end)))
        grids = [np.linspace(np.log(curve.low), end[0], _GRID) for curve in (one, other)]
        at_a, at_b = pairing.take(one.at(grids[0]), other.at(grids[1]))
        log_ratio = np.where(
            end_a <= end_b,
            end[0] - _first_reach(grids[0], at_a, end_b),
            _first_reach(grids[1], at_b, end_a) - end[0],
        )
        value, ends = self._in_compute(pairing, log_ratio)
        result: dict[str, Any] = {
            "value": value,
            "interval": ends,
            "interval_level": self.spec.interval_level,
            "interval_note": APPROXIMATE,
            "at_outcome": self._shown(float(max(end_a[0], end_b[0]))),
            "method": _methods(one, other),
        }
        if value is None:
            better = a if end_a[0] <= end_b[0] else b
            result["reason"] = f"{better} is better at its smallest budget already: outside both ranges"
        return result

    def crossover(self, a: str, b: str) -> dict[str, Any]:
        """Compute at which the curves cross, inside the range that both share."""
        one, other = (self.of(arm) for arm in (a, b))
        if one is None or other is None:
            return {"value": None, "interval": None, "reason": self._lacking(a, b)}
        low, high = max(one.low, other.low), min(one.high, other.high)
        if not low < high:
            return {"value": None, "interval": None, "reason": "the fitted ranges do not overlap"}
        pairing, grid = _Pairing(one.seeds, other.seeds), np.linspace(np.log(low), np.log(high), _GRID)
        at_a, at_b = pairing.take(one.at(grid), other.at(grid))
        crossed = _first_zero(grid, at_a - at_b)
        value, ends = self._in_compute(pairing, crossed)
        result: dict[str, Any] = {
            "value": value,
            "unit": self.spec.x,
            "interval": ends,
            "interval_level": self.spec.interval_level,
            "interval_note": APPROXIMATE,
            "range": [float(low), float(high)],
            "method": _methods(one, other),
        }
        if value is None:
            result["reason"] = "never in range"
        elif ends is None:
            result["reason"] = "no interval: with a run seed left out, the curves need not cross in range"
        return result

    def decomposition(self, a: str, b: str, budget: float) -> dict[str, Any]:
        """Split the difference at equal compute into gain per token and effect of the tokens that B can afford.

        Difference = (A - B at A's tokens) + (B at A's tokens - B at its own tokens). B at A's tokens comes from
        its runs where there are any (``equal_tokens``), else from its curve over tokens.
        """
        if "tokens" not in self.runs:
            return {"method": None, "reason": "the scores have no tokens"}
        at_a, at_b = (self.cells[arm, budget] for arm in (a, b))
        if perfect := [arm for arm, rows in ((a, at_a), (b, at_b)) if not _outcome(rows).any()]:
            return {"method": None, "reason": f"every run of {' and '.join(perfect)} scores 100 %"}
        tokens_a, tokens_b = float(at_a["tokens"].mean()), float(at_b["tokens"].mean())
        of_b = self.runs[self.runs["arm"] == b]
        same = of_b[abs(of_b["tokens"] / tokens_a - 1) <= _SAME_TOKENS]
        if not same.empty:
            method, seeds_b = "runs at equal tokens", tuple(at_b["run_seed"])
            own = _means(at_b, seeds_b)
            middle = own if abs(tokens_a / tokens_b - 1) <= _SAME_TOKENS else _means(same, seeds_b)
        else:
            curve = self.of(b, "tokens")
            if curve is None or not curve.low <= tokens_a <= curve.high:
                why = f"no run of {b} at {tokens_a:.4g} tokens, and its curve over tokens does not reach there"
                return {"method": None, "reason": why}
            method, seeds_b = f"{curve.method} of {b} over tokens", curve.seeds
            middle, own = np.exp(curve.at(np.log(np.array([tokens_a, min(tokens_b, curve.high)])))).T
        seeds_a = tuple(at_a["run_seed"])
        pairing = _Pairing(seeds_a, seeds_b)
        distilled, own = pairing.take(_means(at_a, seeds_a), own)
        middle = pairing.take(_means(at_a, seeds_a), middle)[1]

        def part(values: Array) -> dict[str, Any]:
            values = -self._scale * values
            ends = pairing.interval(values, self.spec.interval_level)
            return {"value": float(values[0]), "interval": None if ends is None else list(ends)}

        return {
            "method": method, "tokens_a": tokens_a, "tokens_b": tokens_b, "interval_level": self.spec.interval_level,
            "difference": part(distilled - own), "gain_per_token": part(distilled - middle),
            "effect_of_tokens": part(middle - own),
        }  # fmt: skip

    @cached_property
    def panel(self) -> Panel:
        """Values by arm, budget and seed."""
        return make_panel(self.runs, self.y)

    @cached_property
    def cells(self) -> dict[tuple[str, float], pd.DataFrame]:
        """Runs of each arm at each budget."""
        return {key: rows for key, rows in self.runs.groupby(["arm", "budget_amount"])}  # type: ignore[misc]

    @cached_property
    def _spent(self) -> dict[tuple[str, float], float]:
        return self.runs.groupby(["arm", "budget_amount"])[self.spec.x].mean().to_dict()  # type: ignore[return-value]

    @cached_property
    def unit(self) -> str:
        """Unit of its differences."""
        return unit_of(self.y, bool(self.runs["higher_is_better"].any()))

    @property
    def _scale(self) -> float:
        return 100.0 if self.unit == "points" else 1.0

    def _in_compute(self, pairing: _Pairing, logs: Array) -> tuple[float | None, list[float] | None]:
        """An amount or ratio of compute and its interval, from logarithms."""
        ends = pairing.interval(logs, self.spec.interval_level)
        value = float(np.exp(logs[0])) if np.isfinite(logs[0]) else None
        return value, None if ends is None else [float(np.exp(end)) for end in ends]

    def _lacking(self, a: str, b: str) -> str:
        absent = [arm for arm in (a, b) if self.of(arm) is None]
        return f"no curve for {' and '.join(absent)}: fewer than two budgets with {self.spec.x}"

    def _shown(self, log_outcome: float) -> float:
        falls = not bool(self.runs["higher_is_better"].iloc[0])
        return float(np.exp(log_outcome)) if falls else 1.0 - float(np.exp(log_outcome))


def _joint_curves(runs: pd.DataFrame, column: str, spec: FitSpec) -> dict[str, Curve]:
    """Curves of the arms that share parameters of the law; nothing where one fit does not converge."""
    if not spec.shared:
        return {}
    law, lean = get_law(spec.law), spec.model_copy(update={"resamples": 0})
    seeds = tuple(runs["run_seed"].unique())
    seeds = seeds if len(seeds) > 1 else ()
    subsets = [runs, *(runs[runs["run_seed"] != seed] for seed in seeds)]
    joint = [solve_jointly(points_by_arm(rows, law, column), lean, certify=False) for rows in subsets]
    fits = [part for part in joint if part is not None and part.solution.status is FitStatus.CONVERGED]
    if len(fits) < len(subsets) or len({part.arms for part in fits}) > 1:
        return {}
    name = f"laws fitted jointly, shared {', '.join(spec.shared)}"
    theta = np.vstack([part.solution.theta for part in fits])
    found = {}
    for arm in fits[0].arms:
        x = runs.loc[runs["arm"] == arm, column]
        params = fits[0].solution.design.to_params(theta, arm)
        found[arm] = Curve(name, float(x.min()), float(x.max()), seeds, _by_law(law, params))
    return found


def _curve(rows: pd.DataFrame, column: str, spec: FitSpec) -> Curve | None:
    """Fit an arm's law, or interpolate between its budgets, with each run seed left out in turn."""
    law = get_law(spec.law)
    points = run_points(rows, law, column)
    if points is None or (count := points.num_cells) < 2:
        return None
    x = points.inputs[law.inputs[0]]
    seeds = tuple(rows["run_seed"].unique()) if rows.groupby("budget_amount").size().min() > 1 else ()
    subsets = [points, *(points.take(np.flatnonzero(points.clusters != seed)) for seed in seeds)]
    if any(part.num_cells < count for part in subsets):
        seeds, subsets = (), subsets[:1]
    if (through := _law_through(points, spec, seeds)) is not None:
        method, law, params = through
        return Curve(method, float(x.min()), float(x.max()), seeds, _by_law(law, params))
    # A smaller law than the one asked for would bend the answer; between budgets a chord does not.
    cells = [part.cells for part in subsets]
    levels = [
        [np.log(part.outcome[codes == c]).mean() for c in range(count)]
        for part, codes in zip(subsets, cells, strict=True)
    ]
    places = np.array([np.log(x[cells[0] == c]).mean() for c in range(count)])
    order = np.argsort(places)
    chords = _by_chords(places[order], np.array(levels)[:, order])
    return Curve("interpolation between budgets", float(x.min()), float(x.max()), seeds, chords)


def _law_through(points: Points, spec: FitSpec, seeds: Sequence[object]) -> tuple[str, Law, Mapping[str, Array]] | None:
    """Least squares of log outcomes, of all points and with each seed left out, as one batch of problems.

    A robust objective would be free to go anywhere between two replicates.
    """
    try:
        prepared = prepare(points, spec.pinned, saturated=True)
    except CallerError:
        return None
    if prepared.refusal or prepared.reason:
        return None
    objective, points = Objective("squared_log"), prepared.points
    solution = solve(points, prepared.law, objective, pinned=prepared.pinned, certify=False)
    if solution.status is not FitStatus.CONVERGED:
        return None
    params = solution.design.to_params(solution.theta[None])
    if len(seeds):
        guesses = solution.design.to_params(start_all(solution.design, points.inputs, points.outcome))
        starts = {name: np.concatenate([values, guesses[name]]) for name, values in params.items()}
        at, sample = without_each(points, seeds)
        design = build_design(prepared.law, points.take(at).inputs, sample.outcome[0], pinned=prepared.pinned)
        begin = design.to_theta({None: starts})
        each = np.repeat(np.arange(len(seeds)), len(begin))
        ends = minimise(design, np.tile(begin, (len(seeds), 1)), sample.take(each), objective)
        values = np.where(ends.converged, ends.value, np.inf).reshape(len(seeds), len(begin))
        if np.isinf(values.min(axis=1)).any():
            return None
        left_out = design.to_params(ends.theta[values.argmin(axis=1) + len(begin) * np.arange(len(seeds))])
        params = {name: np.concatenate([values, left_out[name]]) for name, values in params.items()}
    through = points.num_cells <= len(prepared.law.params) - len(prepared.pinned)
    name = "law through the means at the budgets" if through else "fitted law"
    return name, prepared.law, params


def _by_law(law: Law, params: Mapping[str, Array]) -> Callable[[Array], Array]:
    columns = {name: values[:, None] for name, values in params.items()}
    return lambda log_x: np.log(law.predict(columns, {law.inputs[0]: np.exp(log_x)[None]}))


def _by_chords(places: Array, levels: Array) -> Callable[[Array], Array]:
    return lambda log_x: np.stack([np.interp(log_x, places, row) for row in levels])


def _outcome(rows: pd.DataFrame) -> Array:
    return np.where(rows["higher_is_better"], 1.0 - rows["value"], rows["value"]).astype(float)


def _means(rows: pd.DataFrame, seeds: Sequence[object]) -> Array:
    """Mean outcome of runs, then with each seed left out; NaN where nothing is left."""
    outcome, own = _outcome(rows), rows["run_seed"].to_numpy()
    parts = [outcome, *(outcome[own != seed] for seed in seeds)]
    return np.array([part.mean() if len(part) else np.nan for part in parts])


def _methods(one: Curve, other: Curve) -> str:
    return " and ".join(dict.fromkeys([one.method, other.method]))


def _log(amount: float) -> Array:
    return np.log(np.array([amount]))


def _first_reach(grid: Array, levels: Array, targets: Array) -> Array:
    """Where each row first comes down to its target; NaN where it starts below."""
    above = levels - targets[:, None]
    return np.where(above[:, 0] < 0, np.nan, _first_zero(grid, above))


def _first_zero(grid: Array, rows: Array) -> Array:
    """Where each row first changes sign, by linear interpolation; NaN where it never does."""
    flips = (rows[:, :-1] > 0) != (rows[:, 1:] > 0)
    index = flips.argmax(axis=1)
    left, right = (np.take_along_axis(rows, index[:, None] + step, axis=1)[:, 0] for step in (0, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(left == right, 0.0, left / (left - right))
    return np.where(flips.any(axis=1), grid[index] + share * (grid[1] - grid[0]), np.nan)
