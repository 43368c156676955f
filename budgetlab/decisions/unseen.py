"""The assumption behind every extrapolation: the largest budget left out, and predicted from the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetlab.decisions.question import Question, amount_words, answer_words, outcome_words, tested_row, untested_row
from budgetlab.errors import CallerError
from budgetlab.fitting.contrast import unit_of
from budgetlab.fitting.intervals import draw, within_cell_noise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import get_law
from budgetlab.laws.base import Array
from budgetlab.resampling import PooledVariance, holm, percentile_interval
from budgetlab.units import format_amount
from budgetlab.values import Assumption

_DRAWS = 999


@dataclass(frozen=True)
class Prediction:
    """One arm at the budget that its curve has not seen: logarithms of the outcome.

    `draws` hold what the curve may be and what the mean of so many new runs may add.
    """

    formula: str
    predicted: float
    measured: float
    draws: Array

    @property
    def p_value(self) -> float:
        """Share of draws at least as far from the prediction as what was measured, on both sides."""
        above = (1 + (self.draws >= self.measured).sum()) / (1 + len(self.draws))
        below = (1 + (self.draws <= self.measured).sum()) / (1 + len(self.draws))
        return float(min(1.0, 2 * min(above, below)))


def predict_largest(points: Points, noise: PooledVariance, *, draws: int = _DRAWS, seed: int = 0) -> Prediction | str:
    """Fit all inputs but the largest, and predict that; the reason where there is no curve.

    Two budgets carry a power law without a floor, which then goes through both.
    """
    x = points.inputs[points.law.inputs[0]]
    seen = x < x.max()
    if len(np.unique(x[seen])) < 2:
        return "three budgets"
    try:
        prepared = prepare(points.take(np.flatnonzero(seen)), {}, saturated=True)
    except CallerError as error:
        return error.wrong
    if prepared.refusal:
        return prepared.refusal
    solution = solve(prepared.points, prepared.law, Objective("squared_log"), pinned={}, certify=False)
    if solution.status is not FitStatus.CONVERGED:
        return "a fit that converges without the largest budget"
    rng = np.random.default_rng([seed, 1])
    found = draw(solution, prepared.points, "pooled_t", draws, rng, noise)
    at = {prepared.law.inputs[0]: np.array([x.max()])}
    theta = np.vstack([solution.theta[None], found.theta])
    params = {name: np.asarray(v)[:, None] for name, v in solution.design.to_params(theta).items()}
    logs = np.log(prepared.law.predict(params, at))[:, 0]
    measured = np.log(points.outcome[~seen])
    freedom = noise.degrees_of_freedom
    scale = noise.sd * np.sqrt(freedom / rng.chisquare(freedom, size=len(logs) - 1) / len(measured))
    new = logs[1:] + scale * rng.standard_normal(len(logs) - 1)
    return Prediction(prepared.law.formula, float(logs[0]), float(measured.mean()), new)


def largest_row(question: Question) -> Assumption:
    """Test extrapolation: whether the largest budget is where the smaller ones say."""
    name = "extrapolation to the largest budget"
    law = get_law(question.spec.law)
    tested = f"{law.formula} fitted without the largest budget, as far as the others carry it, predicts it"
    points = question.points()
    noises = {arm: within_cell_noise(part) for arm, part in points.items()}
    found = {
        arm: predict_largest(part, noise, seed=_seed(question, k)) if (noise := noises[arm]) else "a second run seed"
        for k, (arm, part) in enumerate(points.items())
    }
    known = {arm: p for arm, p in found.items() if isinstance(p, Prediction)}
    if not known:
        return untested_row(name, tested, next(str(why) for why in found.values()))
    adjusted = dict(zip(known, holm([p.p_value for p in known.values()]), strict=True))
    bad = [arm for arm, p in adjusted.items() if p < question.alpha]
    top = max(float(part.inputs[law.inputs[0]].max()) for part in points.values())
    second = max(float(x[x < x.max()].max()) for part in points.values() for x in [part.inputs[law.inputs[0]]]
                 if (x < x.max()).any())  # fmt: skip
    said = "; ".join(
        f"{arm} {_shown(question, p.measured)}, predicted {_shown(question, p.predicted)} (p = {adjusted[arm]:.2g})"
        for arm, p in known.items()
    )
    reach = f"{format_amount(top, question.spec.x)} from at most {format_amount(second, question.spec.x)}"
    unit = "of 1" if unit_of(question.y) == "points" else unit_of(question.y)
    return tested_row(
        name, f"{tested} ({next(iter(known.values())).formula})", bool(bad),
        f"{outcome_words(question.y)} at {reach}, {unit}: {said} (Holm)",
        effect=_effect(question, known), p_value=min(adjusted.values()),
    )  # fmt: skip


def _seed(question: Question, k: int) -> int:
    return 1000 * question.spec.seed + k


def _shown(question: Question, log_outcome: float) -> str:
    value = float(np.exp(log_outcome))
    return f"{1 - value:.3f}" if unit_of(question.y) == "points" else f"{value:.3f}"


def _effect(question: Question, known: dict[str, Prediction]) -> str:
    """What the smaller budgets would have said of every contrast."""
    scale = 100.0 if unit_of(question.y) == "points" else 1.0
    said = []
    for verdict in question.primary:
        a, b = verdict.contrast
        if a not in known or b not in known:
            continue
        one, other = known[a], known[b]
        count = min(len(one.draws), len(other.draws))
        cloud = scale * (np.exp(other.draws[:count]) - np.exp(one.draws[:count]))
        predicted = scale * float(np.exp(other.predicted) - np.exp(one.predicted))
        ends = percentile_interval(cloud, question.level)
        measured = scale * float(np.exp(other.measured) - np.exp(one.measured))
        word = answer_words(predicted, ends, a, b)
        real = {"a_better": f"{a} better", "b_better": f"{b} better"}.get(verdict.verdict, "not resolved")
        same = "the same answer" if word == real else f"predicted {word}, measured {real}"
        said.append(f"{a} - {b} predicted {amount_words(predicted, question.y, ends)}, measured "
                    f"{amount_words(measured, question.y)}: {same}")  # fmt: skip
    return "; ".join(said)
