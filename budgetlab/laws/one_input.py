"""Laws of one input: broken power laws, a growing power, and the isoFLOP parabola at one budget.

A broken law bends from the power c0 to the power c0 + c1 around d1, over a stretch that f1 measures; powers may be
negative. The parabola is a check and a plot: where the two exponents of the loss differ, or the grid is wide or off its
centre, its minimum is biased even without noise, and `frontier` of a fitted surface is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np

from budgetlab.laws.law import Law, Parameter
from budgetlab.laws.terms import Array

_STEEPEST = 50.0
_PLACES = {1: 12, 2: 8}
"""Places among the inputs that breaks are tried at."""


def broken(breaks: int) -> Law:
    """Make the law with one break, or two."""
    numbers = range(1, breaks + 1)
    factors = "".join(f" * (1 + (x/d{i})^(1/f{i}))^(-c{i}*f{i})" for i in numbers)
    powers = [Parameter(f"c{i}", -_STEEPEST, _STEEPEST, positive=False) for i in range(breaks + 1)]
    parameters = [Parameter("a"), Parameter("b", centred={"x": "c0"}), powers[0]]
    typical = {"a": 0.3, "b": 6.0, "c0": 0.05}
    for i in numbers:
        parameters += [powers[i], Parameter(f"d{i}", place="x"), Parameter(f"f{i}", 1e-2, 10.0)]
        # Breaks at equal distances, up and down in turn.
        typical |= {f"c{i}": 0.6 if i % 2 else -0.5, f"d{i}": 10 ** (2 + 6 * i / (breaks + 1)), f"f{i}": 0.2}
    return Law(
        name="bnsl" if breaks == 1 else f"bnsl_{breaks}",
        outcome="y",
        inputs=("x",),
        parameters=tuple(parameters),
        rule=partial(_log_broken, breaks),
        propose=partial(_propose_broken, breaks),
        formula=f"a + b*x^-c0{factors}",
        source="Caballero et al. 2023, arXiv 2210.14891",
        floor="a",
        typical=typical,
        ranges={"x": (1e2, 1e8)},
    )


def _log_broken(breaks: int, p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    power = p["b"] - p["c0"] * x["x"]
    for i in range(1, breaks + 1):
        width = np.exp(p[f"f{i}"])
        power = power - p[f"c{i}"] * width * np.logaddexp(0.0, (x["x"] - p[f"d{i}"]) / width)
    return np.logaddexp(p["a"], power)


def _propose_broken(breaks: int, inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """With floor, places and widths given, the logarithm above the floor is linear in the rest."""
    x = np.log(inputs["x"])
    places = np.quantile(x, np.linspace(0.05, 0.95, _PLACES[breaks]))
    starts = []
    for share, width in product((0.0, 0.5, 0.9, 0.99), (0.05, 0.2, 0.6, 1.5)):
        floor = share * float(outcome.min())
        above = np.log(outcome - floor)
        for at in combinations(places, breaks):
            bends = [-width * np.logaddexp(0.0, (x - place) / width) for place in at]
            found = np.linalg.lstsq(np.column_stack([np.ones_like(x), -x, *bends]), above, rcond=None)[0]
            row = [max(floor, 1e-6 * float(outcome.min())), np.exp(np.clip(found[0], -600, 600)), found[1]]
            for slope, place in zip(found[2:], at, strict=True):
                row += [slope, np.exp(place), width]
            starts.append(row)
    return np.array(starts)


def _log_loss(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return np.log(np.exp(p["L_min"]) + np.exp(p["k"]) * np.square(x["num_params"] - p["N_opt"]))


def _propose_parabola(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """The least-squares parabola, and one through the lowest point."""
    x = np.log(inputs["num_params"])
    bend, slope, _ = np.polyfit(x, outcome, 2) if len(np.unique(x)) > 2 else (0.0, 0.0, 0.0)
    lowest = float(outcome.min())
    wide = max(float(np.ptp(x)), 1e-3)
    starts = [[lowest, max(float(np.ptp(outcome)) / wide**2, 1e-9), np.exp(x[outcome.argmin()])]]
    if bend > 0:
        starts.append([lowest, bend, np.exp(np.clip(-slope / (2 * bend), x.min() - wide, x.max() + wide))])
    return np.array(starts)


ISOFLOP = Law(
    name="isoflop",
    outcome="loss",
    inputs=("num_params",),
    parameters=(Parameter("L_min"), Parameter("k", 1e-9), Parameter("N_opt", place="num_params")),
    rule=_log_loss,
    propose=_propose_parabola,
    formula="L_min + k*(log(num_params) - log(N_opt))^2",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approach 2",
    typical={"L_min": 2.5, "k": 0.05, "N_opt": 4e8},
    ranges={"num_params": (5e7, 3e9)},
)


def _log_value(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
    return p["A"] + p["a"] * x["x"]


def _propose_line(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
    """The straight line in logarithms."""
    slope, at_one = np.polyfit(np.log(inputs["x"]), np.log(outcome), 1)
    return np.array([[np.exp(np.clip(at_one, -600, 600)), max(slope, 1e-6)]])


GROWTH = Law(
    name="growth",
    outcome="y",
    inputs=("x",),
    parameters=(Parameter("A", centred={"x": "a"}, grows=True), Parameter("a", high=10.0, positive=False)),
    rule=_log_value,
    propose=_propose_line,
    formula="A*x^a",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approaches 1 and 2",
    rising=("x",),
    typical={"A": 0.6, "a": 0.49},
    ranges={"x": (1e17, 1e22)},
)

LAWS = (broken(1), broken(2), ISOFLOP, GROWTH)
