"""Curves of the groups of a table, compared where all of them have points."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from budgetlab.fitting import predict
from budgetlab.fitting.use import interval_ends, law_of
from budgetlab.values import CurveFit


def compare_groups(fits: Mapping[str, CurveFit], higher_is_better: bool) -> list[dict[str, Any]]:
    """Compare each pair of curves of one input at the largest input that both were fitted to.

    The groups' runs are apart, so that any pairing of their draws is a draw of both. Without draws there is no
    interval, and no word on which is better.
    """
    compared = []
    for (a, one), (b, other) in combinations(fits.items(), 2):
        row: dict[str, Any] = {"a": a, "b": b, "at": None, "difference": None, "interval": None, "better": None}
        common = _common(one, other)
        if common is None:
            compared.append(
                {**row, "sentence": f"{a} and {b}: not compared, no input at which both have a usable curve"}
            )
            continue
        (name, x), ends = common, None
        here = [float(predict(found, {name: x})["prediction"].iloc[0]) for found in (one, other)]
        difference = here[0] - here[1]
        if one.draws and other.draws:
            clouds = [
                law_of(found).predict({key: np.array(v) for key, v in found.draws.items()}, {name: x})
                for found in (one, other)
            ]
            count = min(map(len, clouds))
            sign = -1.0 if one.outcome_transform == "1 - y" else 1.0
            low, high = interval_ends(sign * (clouds[0][:count] - clouds[1][:count]), one.interval_level)
            ends = [float(low), float(high)]
        better = None
        if ends is not None and not ends[0] <= 0 <= ends[1]:
            better = a if (difference > 0) == higher_is_better else b
        around = (
            "no interval" if ends is None else f"{100 * one.interval_level:g} % interval {ends[0]:.4g} to {ends[1]:.4g}"
        )
        word = "not resolved" if better is None else f"{better} is better"
        sentence = f"At {name} = {x:.4g}, predicted {a} - {b} = {difference:.4g} ({around}): {word}."
        compared.append(
            {**row, "at": {name: x}, "difference": difference, "interval": ends, "better": better, "sentence": sentence}
        )
    return compared


def _common(one: CurveFit, other: CurveFit) -> tuple[str, float] | None:
    """Input and largest value of it inside both curves' ranges."""
    if "nothing" in (one.usable_for, other.usable_for) or len(one.input_ranges) != 1:
        return None
    if one.input_ranges.keys() != other.input_ranges.keys():
        return None
    name = next(iter(one.input_ranges))
    low = max(found.input_ranges[name][0] for found in (one, other))
    high = min(found.input_ranges[name][1] for found in (one, other))
    return (name, high) if low <= high else None
