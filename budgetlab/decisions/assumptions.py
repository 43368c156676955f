"""The assumptions behind a comparison, each tested on the records at hand or named as untested.

A test takes the question and returns what it found, or in words the one thing that it lacks; `TESTS` is the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from budgetlab.decisions.evidence import Evidence, Question, answer_in, answer_of, outcome_words, runs_by_size
from budgetlab.decisions.settings import (
    CURRENCIES,
    Found,
    at_tried_rates,
    in_all_outcomes,
    in_currency,
    other_currency,
    under_another,
    with_repeated_text,
    with_teacher_charged,
)
from budgetlab.errors import CallerError
from budgetlab.fitting.arm_curves import run_points
from budgetlab.fitting.curves import fit
from budgetlab.fitting.intervals import compare_nested, draw, lack_of_fit, within_cell_noise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.scores import LOSSES, averaged_tasks
from budgetlab.fitting.solve import solve
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import get_law
from budgetlab.laws.law import Array
from budgetlab.resampling import PooledVariance, holm, percentile_interval
from budgetlab.units import format_amount
from budgetlab.values import Assumption, FitSpec, Plan, Verdict

_SQUARED = Objective("squared_log")
_DRAWS = 999


def assumptions(
    scores: pd.DataFrame,
    plan: Plan,
    spec: FitSpec,
    verdicts: Sequence[Verdict],
    *,
    beside: Sequence[Evidence] = (),
    simulations: int = 199,
) -> tuple[Assumption, ...]:
    """Test every assumption that a study's verdicts rest on.

    Parameters
    ----------
    scores
        The tidy table of the store.
    plan
        What was run: arms, recipes, passes over the text, trials of learning rates.
    spec
        Law, columns and level of the study.
    verdicts
        From `compare_arms`; the primary ones are what is asked of, all of them where none is.
    beside
        Other studies, used where their arms are those of this one but for the one thing under test.
    simulations
        Tables drawn for each test of a shared parameter.

    Returns
    -------
    tuple of Assumption
        One row an assumption, always all of them and in one order; what the records do not test says what is missing.

    Raises
    ------
    CallerError
        When there is no verdict to rest on anything.
    """
    return assumptions_of(Evidence(plan.study, plan, scores), spec, verdicts, beside, simulations)


def assumptions_of(
    own: Evidence, spec: FitSpec, verdicts: Sequence[Verdict], beside: Sequence[Evidence], simulations: int = 199
) -> tuple[Assumption, ...]:
    """Test every assumption of a study, as `assumptions` does."""
    if not verdicts:
        raise CallerError(f"assumptions of {own.study}", "there is no verdict", "evaluate and fit the study first")
    own.take(verdicts)
    question, law = Question(own, tuple(beside), spec, tuple(verdicts), simulations), get_law(spec.law)
    words = {"formula": law.formula, "floor": law.floor or "floor", "exponent": next(iter(law.exponents), "exponent")}
    words |= {x: CURRENCIES[other_currency(x, spec.x)] for x in CURRENCIES}
    rows = []
    for name, how, test in TESTS:
        found, tested = test(question), how.format(**words)
        if isinstance(found, str):
            rows.append(Assumption(name=name, tested=tested, outcome="not_tested", missing=found))
            continue
        rows.append(Assumption(
            name=name, tested=found.how.replace("{}", tested), outcome="violated" if found.violated else "holds",
            evidence=found.evidence, effect=found.effect, p_value=found.p_value, studies=found.studies,
        ))  # fmt: skip
    return tuple(rows)


def assumptions_frame(rows: Sequence[Assumption]) -> pd.DataFrame:
    """Tidy table, a row an assumption: what ``assumptions.csv`` holds."""
    found = [{**row.model_dump(), "studies": ", ".join(row.studies)} for row in rows]
    return pd.DataFrame(found, columns=list(Assumption.model_fields))


def _by_holm(p_values: Mapping[str, float], q: Question) -> tuple[dict[str, float], list[str], str]:
    """Adjusted p-values by arm, the arms that are rejected, and the p-values in words."""
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    words = ", ".join(f"{arm} p = {p:.2g}" for arm, p in adjusted.items())
    return adjusted, [arm for arm, p in adjusted.items() if p < q.alpha], f"{words} (Holm)"


def law_fits(q: Question) -> Found | str:
    """Test whether the law describes each arm: lack of fit against the scatter of replicates."""
    noises = {arm: within_cell_noise(points) for arm, points in q.points.items()}
    if not any(noises.values()):
        return "a second run seed"
    counts, found = {arm: points.num_cells for arm, points in q.points.items()}, {}
    size = len(get_law(q.spec.law).params)
    for arm, points in q.points.items():
        if counts[arm] > size:
            solution = solve(points, points.law, _SQUARED, pinned={}, certify=False)
            if (p := lack_of_fit(solution, points, noises[arm])) is not None:
                found[arm] = p
    if not found:
        return f"more than {size} budgets (there are {max(counts.values())})"
    adjusted, bad, said = _by_holm(found, q)
    effect = "multiplier and crossover are taken between budgets, from chords" if bad else "curves may be used"
    return Found(bool(bad), said, effect, min(adjusted.values()))


def arms_share(kind: str, q: Question) -> Found | str:
    """Test whether the arms share the law's floor, or its first exponent."""
    law = get_law(q.spec.law)
    parameter = law.floor if kind == "a floor" else next(iter(law.exponents), None)
    if parameter is None:
        return f"a law with {kind}; {q.spec.law} has none"
    if parameter in q.spec.pinned:
        return f"a fit in which {parameter} is free: it is pinned"
    found = compare_nested(q.points, law, parameter, simulations=q.simulations, seed=q.spec.seed)
    if found is None:
        replicated = within_cell_noise(*q.points.values()) is not None
        return f"{len(law.params)} budgets in at least two arms" if replicated else "a second run seed"

    def small(value: float) -> str:  # what has all but vanished is 0
        return "0" if value < 1e-3 else f"{value:.3g}"

    own = ", ".join(f"{name} {small(value)}" for name, value in found.own.items())
    shared, violated = parameter in q.spec.shared, found.p_value < q.alpha
    effect = "the curves of this study share it" if shared else "the curves of this study do not share it"
    if shared == violated:
        effect += ", and should not" if shared else ", though they might"
    said = f"p = {found.p_value:.2g}; {parameter} together {small(found.together)}, by themselves {own}"
    return Found(violated, said, effect, found.p_value)


def tasks_share(q: Question) -> Found | str:
    """Test whether the tasks of an arm share an exponent, so that one law of their mean says something of each."""
    law = get_law(q.spec.law)
    if not law.exponents:
        return f"a law with an exponent; {q.spec.law} has none"
    tasks = [*(loss for loss in LOSSES if loss == q.y), *averaged_tasks(q.own.scores)]
    if len(tasks) < 2:
        return "a second task that is scored at every budget"
    p_values = {}
    for arm in q.points:
        own = {task: runs[runs["arm"] == arm] for task in tasks for runs in [q.own.runs(task)]}
        known = {task: run_points(rows, law, q.spec.x) for task, rows in own.items() if len(rows)}
        points = {task: part for task, part in known.items() if part is not None}
        test = compare_nested(points, law, law.exponents[0], simulations=q.simulations, seed=q.spec.seed)
        if test is not None:
            p_values[arm] = test.p_value
    if not p_values:
        return f"{len(law.params)} budgets with two run seeds each, on two tasks"
    adjusted, bad, said = _by_holm(p_values, q)
    effect = "a curve of the mean describes its tasks as far as can be seen"
    if bad:
        effect = f"no one curve for the tasks of {', '.join(bad)}: read each task by itself"
    how = f"{{}} ({', '.join(map(outcome_words, tasks))})"
    return Found(bool(bad), said, effect, min(adjusted.values()), how=how)


def parameters_count_alike(q: Question) -> Found | str:
    """Test whether counting parameters with or without embeddings moves the exponent of the optimal size."""
    table = runs_by_size(q.own.plan, q.own.runs(q.y))
    sizes = 0 if table.empty else table["num_params_total"].nunique()
    if sizes < 3:
        seen = "one student size" if sizes <= 1 else f"{sizes} student sizes"
        return f"three student sizes in one arm's strategy (there is {seen})"
    values, intervals = {}, {}
    for name in ("total", "non_embedding"):
        columns = {"num_params": f"num_params_{name}", "tokens": "tokens", "loss": "loss"}
        try:
            found = fit(table, law="chinchilla", columns=columns, objective="squared_log", resamples=200,
                        seed=q.spec.seed)  # fmt: skip
        except CallerError as error:
            return error.wrong
        value = found.derived.get("optimal_num_params_exponent")
        ends = found.intervals.get("optimal_num_params_exponent")
        if value is None or ends is None:
            return "runs that identify both exponents"
        values[name], intervals[name] = value, ends
    apart = any(
        not intervals[other][0] <= values[one] <= intervals[other][1]
        for one, other in (("total", "non_embedding"), ("non_embedding", "total"))
    )
    said = [f"{n.replace('_', '-')} {values[n]:.3f} [{low:.3f}, {high:.3f}]" for n, (low, high) in intervals.items()]
    effect = "the optimal size depends on how parameters are counted" if apart else "the optimal size grows alike"
    return Found(apart, ", ".join(said), effect)


class _Prediction(NamedTuple):
    """One arm at the budget that its curve has not seen: logarithms of the outcome."""

    formula: str
    predicted: float
    measured: float
    draws: Array
    """What the curve may be and what the mean of so many new runs may add."""

    def p_value(self) -> float:
        """Share of draws at least as far from the prediction as what was measured, on both sides."""
        sides = (self.draws >= self.measured).sum(), (self.draws <= self.measured).sum()
        return float(min(1.0, 2 * (1 + min(sides)) / (1 + len(self.draws))))


def _predict_largest(points: Points, noise: PooledVariance | None, seed: int) -> _Prediction | str:
    """Fit all inputs but the largest, and predict that; the reason where there is no curve.

    Two budgets carry a power law without a floor, which then goes through both.
    """
    x = points.inputs[points.law.inputs[0]]
    seen = x < x.max()
    if noise is None or len(np.unique(x[seen])) < 2:
        return "a second run seed" if noise is None else "three budgets"
    try:
        prepared = prepare(points.take(np.flatnonzero(seen)), {}, saturated=True)
    except CallerError as error:
        return error.wrong
    if prepared.refusal:
        return prepared.refusal
    solution = solve(prepared.points, prepared.law, _SQUARED, pinned={}, certify=False)
    if solution.status is not FitStatus.CONVERGED:
        return "a fit that converges without the largest budget"
    rng = np.random.default_rng([seed, 1])
    theta = np.vstack([solution.theta[None], draw(solution, prepared.points, "pooled_t", _DRAWS, rng, noise)[0]])
    params = {name: np.asarray(v)[:, None] for name, v in solution.design.to_params(theta).items()}
    logs = np.log(prepared.law.predict(params, {prepared.law.inputs[0]: np.array([x.max()])}))[:, 0]
    measured, freedom, size = np.log(points.outcome[~seen]), noise.degrees_of_freedom, len(logs) - 1
    scale = noise.sd * np.sqrt(freedom / rng.chisquare(freedom, size=size) / len(measured))
    new = logs[1:] + scale * rng.standard_normal(size)
    return _Prediction(prepared.law.formula, float(logs[0]), float(measured.mean()), new)


def largest_follows(q: Question) -> Found | str:
    """Test extrapolation: whether the largest budget is where the smaller ones say."""
    found = {
        arm: _predict_largest(points, within_cell_noise(points), 1000 * q.spec.seed + k)
        for k, (arm, points) in enumerate(q.points.items())
    }
    known = {arm: p for arm, p in found.items() if isinstance(p, _Prediction)}
    if not known:
        return next(str(why) for why in found.values())
    adjusted, bad, _ = _by_holm({arm: p.p_value() for arm, p in known.items()}, q)
    amounts = [np.unique(points.inputs[points.law.inputs[0]]) for points in q.points.values()]
    top, second = max(x[-1] for x in amounts), max(x[-2] for x in amounts if len(x) > 1)

    def shown(log_outcome: float) -> str:
        value = float(np.exp(log_outcome))
        return f"{1 - value:.3f}" if q.unit == "points" else f"{value:.3f}"

    said = "; ".join(
        f"{arm} {shown(p.measured)}, predicted {shown(p.predicted)} (p = {adjusted[arm]:.2g})"
        for arm, p in known.items()
    )
    reach = f"{format_amount(float(top), q.spec.x)} from at most {format_amount(float(second), q.spec.x)}"
    evidence = f"{outcome_words(q.y)} at {reach}, {'of 1' if q.unit == 'points' else q.unit}: {said} (Holm)"
    how = f"{{}} ({next(iter(known.values())).formula})"
    return Found(bool(bad), evidence, _foretold(q, known), min(adjusted.values()), how=how)


def _foretold(q: Question, known: Mapping[str, _Prediction]) -> str:
    """What the smaller budgets would have said of every contrast."""
    scale, said = 100.0 if q.unit == "points" else 1.0, []
    for verdict in q.primary:
        if not set(verdict.contrast) <= set(known):
            continue
        one, other = (known[arm] for arm in verdict.contrast)
        count = min(len(one.draws), len(other.draws))
        cloud = scale * (np.exp(other.draws[:count]) - np.exp(one.draws[:count]))
        predicted, measured = (
            scale * float(np.exp(at_b) - np.exp(at_a))
            for at_a, at_b in ((one.predicted, other.predicted), (one.measured, other.measured))
        )
        ends = percentile_interval(cloud, q.spec.interval_level)
        word, real = answer_of(predicted, ends, verdict.contrast), answer_in(verdict)
        same = "the same answer" if word == real else f"predicted {word}, measured {real}"
        pair = " - ".join(verdict.contrast)
        said.append(f"{pair} predicted {q.amount(predicted, ends)}, measured {q.amount(measured)}: {same}")
    return "; ".join(said)


_ALONE = "joint fit of {{formula}} with one {{{0}}} against one for each arm, parametric bootstrap"
_TOP = ", each contrast at the largest amount that both arms reached"

TESTS: tuple[tuple[str, str, Callable[[Question], Found | str]], ...] = (
    ("one law fits each arm", "lack of fit of {formula} against the scatter between run seeds", law_fits),
    ("one floor for all arms", _ALONE.format("floor"), partial(arms_share, "a floor")),
    ("one exponent for all arms", _ALONE.format("exponent"), partial(arms_share, "an exponent")),
    ("one law for all tasks",
     "for each arm, joint fit of {formula} to all tasks with one {exponent} against one for each task", tasks_share),
    ("one answer for all outcomes",
     "verdicts of every other outcome at the largest budget, under Holm's correction", in_all_outcomes),
    ("extrapolation to the largest budget",
     "{formula} fitted without the largest budget, as far as the others carry it, predicts it", largest_follows),
    ("learning rate", "every arm tuned alike, and the contrasts at the other rates", at_tried_rates),
    ("schedule", "the contrasts under another schedule", partial(
        under_another, "schedule", "arms under another schedule of the learning rate",
        'the same arms with [arms.X.recipe] schedule = "linear", at one of these budgets')),
    ("shape at equal N", "the contrasts with a student of another shape and equal N", partial(
        under_another, "student", "students of another depth and width, within 5 % of N",
        "a second student of the same number of parameters without embeddings, and another depth and width")),
    ("repeated data", "the contrasts with text that is repeated and with text that is not", with_repeated_text),
    ("another teacher", "the contrasts with another teacher", partial(
        under_another, "teacher", "arms that learn from another teacher",
        "a second teacher (another pretraining seed, budget or size)")),
    ("total or non-embedding parameters",
     "E + A/N^alpha + B/D^beta with N either way: exponent of the optimal N in compute", parameters_count_alike),
    ("required or executed FLOPs", "curves over {executed_flops}" + _TOP, partial(in_currency, "executed_flops")),
    ("FLOPs or device seconds", "curves over {device_seconds}" + _TOP, partial(in_currency, "device_seconds")),
    ("teacher's pretraining not charged",
     "each distilled arm at its largest budget against its reference at the same and the teacher's pretraining",
     with_teacher_charged),
)  # fmt: skip
"""Name of each assumption, how it is tested, and the test."""
