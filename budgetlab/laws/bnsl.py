"""A broken power law in one input: ``y = a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1)``, with one break.

The law bends from the power c0 to the power c0 + c1 around d1, over a stretch that f1 measures; powers may be
negative. `bnsl_2` has two breaks; `broken` makes laws with more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, product
from typing import Any

import numpy as np

from budgetlab.laws.base import Array
from budgetlab.laws.form import Form, Parameter

_STEEPEST = 50.0
_PLACES = {1: 12, 2: 8}
_FEWEST_PLACES = 6
"""Places among the inputs that breaks are tried at."""


def broken(breaks: int) -> Form:
    """Make the law with a number of breaks; three need some 40 points, and more are seldom identified."""
    numbers = range(1, breaks + 1)
    factors = "".join(f" * (1 + (x/d{i})^(1/f{i}))^(-c{i}*f{i})" for i in numbers)
    parameters = [Parameter("a"), Parameter("b", centred={"x": "c0"}), _power("c0")]
    for i in numbers:
        parameters += [_power(f"c{i}"), Parameter(f"d{i}", place="x"), Parameter(f"f{i}", 1e-2, 10.0)]
    return Form(
        name="bnsl" if breaks == 1 else f"bnsl_{breaks}",
        outcome="y",
        inputs=("x",),
        parameters=tuple(parameters),
        rule=_rule(breaks),
        propose=_proposal(breaks),
        formula=f"a + b*x^-c0{factors}",
        source="Caballero et al. 2023, arXiv 2210.14891",
        floor="a",
        typical=_typical(breaks),
        ranges={"x": (1e2, 1e8)},
    )


def _power(name: str) -> Parameter:
    return Parameter(name, -_STEEPEST, _STEEPEST, positive=False)


def _rule(breaks: int) -> Callable[[Mapping[str, Any], Mapping[str, Array]], Any]:
    def log_outcome(p: Mapping[str, Any], x: Mapping[str, Array]) -> Any:
        power = p["b"] - p["c0"] * x["x"]
        for i in range(1, breaks + 1):
            width = np.exp(p[f"f{i}"])
            power = power - p[f"c{i}"] * width * np.logaddexp(0.0, (x["x"] - p[f"d{i}"]) / width)
        return np.logaddexp(p["a"], power)

    return log_outcome


def _proposal(breaks: int) -> Callable[[Mapping[str, Array], Array, int], Array]:
    def propose(inputs: Mapping[str, Array], outcome: Array, count: int) -> Array:
        """With floor, places and widths given, the logarithm above the floor is linear in the rest."""
        x = np.log(inputs["x"])
        order = np.argsort(x, kind="stable")
        places = np.quantile(x[order], np.linspace(0.05, 0.95, _PLACES.get(breaks, _FEWEST_PLACES)))
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

    return propose


def _typical(breaks: int) -> dict[str, float]:
    """Breaks at equal distances, up and down in turn."""
    params = {"a": 0.3, "b": 6.0, "c0": 0.05}
    for i in range(1, breaks + 1):
        place = 10 ** (2 + 6 * i / (breaks + 1))
        params |= {f"c{i}": 0.6 if i % 2 else -0.5, f"d{i}": place, f"f{i}": 0.2}
    return params


LAW = broken(1)
