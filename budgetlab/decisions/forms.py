"""Assumptions about the curves: the law itself, what arms or tasks have in common, and how parameters are counted."""

from __future__ import annotations

import numpy as np

from budgetlab.decisions.evidence import runs_by_size
from budgetlab.decisions.question import Question, outcome_words, tested_row, untested_row
from budgetlab.errors import CallerError
from budgetlab.fitting.arms import run_points
from budgetlab.fitting.curves import fit
from budgetlab.fitting.intervals import NestedTest, compare_nested, lack_of_fit, within_cell_noise
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.scores import LOSSES, averaged_tasks
from budgetlab.fitting.solve import solve
from budgetlab.fitting.table import Points
from budgetlab.laws import get_law
from budgetlab.resampling import holm
from budgetlab.values import Assumption

_SQUARED = Objective("squared_log")


def law_row(question: Question) -> Assumption:
    """Test whether the law describes each arm: lack of fit against the scatter of replicates."""
    law = get_law(question.spec.law)
    name, tested = "one law fits each arm", f"lack of fit of {law.formula} against the scatter between run seeds"
    points = question.points()
    noises = {arm: within_cell_noise(part) for arm, part in points.items()}
    if not any(noises.values()):
        return untested_row(name, tested, "a second run seed")
    found = {arm: p for arm, part in points.items() if (p := lack_of_fit_of(part, noises[arm])) is not None}
    if not found:
        most = max(len(np.unique(part.cells())) for part in points.values())
        return untested_row(name, tested, f"more than {len(law.params)} budgets (there are {most})")
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    bad = [arm for arm, p in adjusted.items() if p < question.alpha]
    said = ", ".join(f"{arm} p = {p:.2g}" for arm, p in adjusted.items())
    return tested_row(
        name, tested, bool(bad), f"{said} (Holm)", p_value=min(adjusted.values()),
        effect="multiplier and crossover are taken between budgets, from chords" if bad else "curves may be used",
    )  # fmt: skip


def lack_of_fit_of(points: Points, noise: object) -> float | None:
    """P-value of the law's lack of fit to an arm's points; None where no budget is left over to see one."""
    if len(np.unique(points.cells())) <= len(points.law.params):
        return None
    solution = solve(points, points.law, _SQUARED, pinned={}, certify=False)
    return lack_of_fit(solution, points, noise)  # type: ignore[arg-type]


def floor_row(question: Question) -> Assumption:
    """Test whether the arms share a floor."""
    floor = get_law(question.spec.law).floor
    if floor is None:
        return untested_row("one floor for all arms", "a floor", f"a law with a floor; {question.spec.law} has none")
    return _shared_row(question, floor, "one floor for all arms")


def exponent_row(question: Question) -> Assumption:
    """Test whether the arms share an exponent."""
    exponents = get_law(question.spec.law).exponents
    if not exponents:
        missing = f"a law with an exponent; {question.spec.law} has none"
        return untested_row("one exponent for all arms", "an exponent", missing)
    return _shared_row(question, exponents[0], "one exponent for all arms")


def _shared_row(question: Question, parameter: str, name: str) -> Assumption:
    law = get_law(question.spec.law)
    tested = f"joint fit of {law.formula} with one {parameter} against one for each arm, parametric bootstrap"
    if parameter in question.spec.pinned:
        return untested_row(name, tested, f"a fit in which {parameter} is free: it is pinned")
    points = question.points()
    found = compare_nested(points, law, parameter, simulations=question.simulations, seed=question.spec.seed)
    if found is None:
        return untested_row(name, tested, _why_not(points, len(law.params)))
    used = parameter in question.spec.shared
    violated = found.p_value < question.alpha
    effect = {
        (True, True): "the curves of this study share it, and should not",
        (True, False): "the curves of this study share it",
        (False, True): "the curves of this study do not share it",
        (False, False): "the curves of this study do not share it, though they might",
    }[used, violated]
    return tested_row(name, tested, violated, _shared_words(found, parameter), effect=effect, p_value=found.p_value)


def _shared_words(found: NestedTest, parameter: str) -> str:
    own = ", ".join(f"{name} {_small(value)}" for name, value in found.own.items())
    return f"p = {found.p_value:.2g}; {parameter} together {_small(found.together)}, by themselves {own}"


def _small(value: float) -> str:
    """Print a floor or an exponent; what has all but vanished is 0."""
    return "0" if value < 1e-3 else f"{value:.3g}"


def _why_not(points: dict[str, Points], needed: int) -> str:
    if within_cell_noise(*points.values()) is None:
        return "a second run seed"
    return f"{needed} budgets in at least two arms"


def tasks_row(question: Question) -> Assumption:
    """Test whether the tasks of an arm share an exponent, so that one law of their mean says something of each."""
    law = get_law(question.spec.law)
    name = "one law for all tasks"
    if not law.exponents:
        return untested_row(name, "an exponent", f"a law with an exponent; {question.spec.law} has none")
    parameter = law.exponents[0]
    tested = f"for each arm, joint fit of {law.formula} to all tasks with one {parameter} against one for each task"
    losses = [loss for loss in LOSSES if loss == question.y]
    tasks = [*losses, *averaged_tasks(question.own.scores)]
    if len(tasks) < 2:
        return untested_row(name, tested, "a second task that is scored at every budget")
    found: dict[str, NestedTest] = {}
    for arm in question.points():
        points = {}
        for task in tasks:
            runs = question.runs(task)
            own = runs[runs["arm"] == arm]
            known = run_points(own, law, question.spec.x) if len(own) else None
            if known is not None:
                points[task] = known
        test = compare_nested(points, law, parameter, simulations=question.simulations, seed=question.spec.seed)
        if test is not None:
            found[arm] = test
    if not found:
        return untested_row(name, tested, f"{len(law.params)} budgets with two run seeds each, on two tasks")
    adjusted = dict(zip(found, holm([test.p_value for test in found.values()]), strict=True))
    bad = [arm for arm, p in adjusted.items() if p < question.alpha]
    said = ", ".join(f"{arm} p = {p:.2g}" for arm, p in adjusted.items())
    return tested_row(
        name, f"{tested} ({', '.join(outcome_words(task) for task in tasks)})", bool(bad), f"{said} (Holm)",
        p_value=min(adjusted.values()),
        effect=f"no one curve for the tasks of {', '.join(bad)}: read each task by itself" if bad
        else "a curve of the mean describes its tasks as far as can be seen",
    )  # fmt: skip


def parameters_row(question: Question) -> Assumption:
    """Test whether counting parameters with or without embeddings moves the exponent of the optimal size."""
    name = "total or non-embedding parameters"
    tested = "E + A/N^alpha + B/D^beta with N either way: exponent of the optimal N in compute"
    table = runs_by_size(question.own.plan, question.runs())
    sizes = 0 if table.empty else table["num_params_total"].nunique()
    if sizes < 3:
        seen = "one student size" if sizes <= 1 else f"{sizes} student sizes"
        return untested_row(name, tested, f"three student sizes in one arm's strategy (there is {seen})")
    found = {}
    for column in ("num_params_total", "num_params_non_embedding"):
        names = {"num_params": column, "tokens": "tokens", "loss": "loss"}
        try:
            found[column] = fit(table, law="chinchilla", columns=names, objective="squared_log", resamples=200,
                                seed=question.spec.seed)  # fmt: skip
        except CallerError as error:
            return untested_row(name, tested, error.wrong)
    exponent = "optimal_num_params_exponent"
    values = {column: f.derived.get(exponent) for column, f in found.items()}
    intervals = {column: f.intervals.get(exponent) for column, f in found.items()}
    if None in values.values() or None in intervals.values():
        return untested_row(name, tested, "runs that identify both exponents")
    one, other = found
    apart = any(
        not (low <= value <= high)  # type: ignore[operator]
        for value, (low, high) in ((values[one], intervals[other]), (values[other], intervals[one]))  # type: ignore[misc]
    )
    said = ", ".join(
        f"{column.removeprefix('num_params_').replace('_', '-')} {values[column]:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
        for column, ends in intervals.items()
        if ends is not None
    )
    effect = "the optimal size depends on how parameters are counted" if apart else "the optimal size grows alike"
    return tested_row(name, tested, apart, said, effect=effect)
