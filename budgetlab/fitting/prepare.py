"""Which law the points can carry: the one asked for, a smaller one, or none; and which variation they lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.design import Design, build_design, start_all
from budgetlab.fitting.table import Points
from budgetlab.laws import Law, Term
from budgetlab.laws.law import Array

_DEAD = 1e-7
"""Share of the steepest direction below which the predictions do not notice a change of the parameters."""
_ROUNDING = 1e-12
"""A parameter whose derivatives are this small beside another's has no effect but rounding."""
_PLACES = 6


@dataclass(frozen=True)
class Prepared:
    """Points with the law that they can carry.

    `reason` says why it is smaller than the one asked for; `refusal` why there is none.
    """

    points: Points
    law: Law
    pinned: Mapping[str, float]
    reason: str = ""
    refusal: str = ""


def prepare(points: Points, pinned: Mapping[str, float], *, saturated: bool = False) -> Prepared:
    """Find the law that the points can carry: the one asked for, or a smaller one, or none.

    A sum of power terms may lose its floor and the terms whose inputs never vary; of any other law the floor may be
    taken as zero, and nothing else can go.

    Parameters
    ----------
    points
        Checked points.
    pinned
        Parameters held at a value.
    saturated
        Whether a law may have as many parameters as there are distinct inputs: it then passes through the points
        and is no more than a smooth way to interpolate between them.

    Raises
    ------
    CallerError
        For a pinned name or value that the law cannot have, outcomes beyond the law's largest, or fewer points than
        free parameters.
    """
    law, reasons, pinned = points.law, [], dict(pinned)
    asked = f"law {law.name}, {len(points)} points"
    for name, value in pinned.items():
        if name not in law.params:
            raise unknown_name("parameter", name, law.params, f"{asked}, pinned {name}")
        low, high = law.bounds[name]
        if not (low <= value <= high and np.isfinite(value)) or (
            value == 0 and name not in (law.floor, *law.exponents)
        ):
            raise CallerError(f"{asked}, pinned {name} = {value:g}", "outside its bounds", f"give {low:g} to {high:g}")
    if law.terms and law.floor is not None and pinned.get(law.floor) == 0:
        law, pinned = _without_floor(law, pinned)
    free = [name for name in law.params if name not in pinned]
    if len(points) < len(free):
        raise CallerError(
            asked,
            f"{len(free)} free parameters ({', '.join(free)}) need at least as many points",
            "add points, pin parameters, or choose a smaller law",
        )
    if (largest := float(points.outcome.max())) > law.most:
        raise CallerError(
            asked,
            f"{points.columns.get(law.outcome, law.outcome)} is {largest:.4g} in a row, and cannot pass {law.most:g}",
            "give fractions, not points" if law.most == 1 else "correct it",
        )
    constant = [name for name in law.inputs if np.ptp(points.inputs[name]) == 0] if law.terms else []
    if constant:
        law = _without_inputs(law, constant)
        pinned = {name: value for name, value in pinned.items() if name in law.params}
        columns = [
            f"{points.columns.get(name, name)} never varies (every row has {points.inputs[name][0]:.4g})"
            for name in constant
        ]
        reasons.append(f"{', '.join(columns)}, so that its term cannot be told from the floor")
        if not law.inputs:
            return Prepared(points, law, pinned, refusal=f"{reasons[0]}, and nothing else does")
    cells = points.num_cells
    carried = cells + 1 if saturated else cells
    free = [name for name in law.params if name not in pinned]
    if carried <= len(free) and law.floor in free:
        reasons.append(
            f"{cells} distinct inputs cannot identify {len(free)} parameters, so the floor {law.floor} is taken as 0"
        )
        law, pinned = _without_floor(law, pinned)
        free = [name for name in law.params if name not in pinned]
    points = replace(points, law=law)
    if carried <= len(free) or not free:
        refusal = f"{cells} distinct inputs cannot carry {len(free)} free parameters ({', '.join(free) or 'none'})"
    else:
        refusal = "" if law.terms else _lacking(points, pinned)
    return Prepared(points, law, pinned, "; ".join(reasons), refusal)


def _without_floor(law: Law, pinned: Mapping[str, float]) -> tuple[Law, dict[str, float]]:
    """Take the floor as zero: a sum loses its term, any other formula has it pinned."""
    floor = law.floor or ""
    if not law.terms:
        return law, {**pinned, floor: 0.0}
    return law.without(floor), {name: value for name, value in pinned.items() if name != floor}


def _without_inputs(law: Law, constant: list[str]) -> Law:
    """Drop inputs from a sum: a term without any other merges with the floor, or becomes it."""
    terms: list[Term] = []
    floor = law.floor
    for term in law.terms:
        varying = {name: power for name, power in term.exponents.items() if name not in constant}
        if varying or not term.exponents or floor is None:
            terms.append(Term(term.coefficient, varying))
            floor = floor if varying else term.coefficient
    return law.of_terms(terms)


def _lacking(points: Points, pinned: Mapping[str, float]) -> str:
    """Name the variation that the inputs lack in one sentence; empty where the parameters can be told apart.

    The test is of the law on these inputs, not of the outcomes: the smallest singular value of the derivatives of all
    predictions in all free parameters, columns scaled to one length, at the best of several plausible places.
    """
    law = points.law
    free = tuple(name for name in law.params if name not in pinned)
    if law.lacking is not None and (said := law.lacking(points.inputs, free)):
        return f"{said}: {', '.join(free)} cannot be told apart"
    if len(law.inputs) == 1:
        return ""  # one input that takes more values than there are parameters has all the variation there is
    design = build_design(law, points.inputs, points.outcome, pinned=pinned)
    best, blurred = 0.0, np.zeros(design.size)
    seen = np.zeros(design.size, dtype=bool)
    for theta in _places(design, points):
        gradients = design.gradients(theta)
        lengths = np.linalg.norm(gradients, axis=0)
        dead = lengths <= _ROUNDING * lengths.max()
        seen |= ~dead
        if not np.isfinite(gradients).all() or dead.any():
            continue
        sizes, directions = np.linalg.svd(gradients / lengths, full_matrices=False)[1:]
        if sizes[-1] / sizes[0] > best:
            best, blurred = float(sizes[-1] / sizes[0]), directions[-1]
        if best > _DEAD:
            return ""
    weak = np.abs(blurred) > 0.05 if seen.all() else ~seen
    among = ", ".join(name for name, part in zip(design.names, weak.tolist(), strict=True) if part)
    constant = [
        f"{points.columns.get(name, name)} ({values[0]:.4g})"
        for name, values in points.inputs.items()
        if np.ptp(values) == 0
    ]
    if constant:
        same = " and ".join(constant)
        said = f"every row has the same {same}, so that nothing identifies {among or 'the parameters'}"
    elif seen.all():
        said = f"the inputs vary together, so that nothing identifies {among or 'the parameters'}"
    else:
        said = f"no row's prediction depends on {among}"
    return f"{said}: vary it, pin parameters, or choose a smaller law"


def _places(design: Design, points: Points) -> Iterator[Array]:
    """Yield free parameters: those the law is tested on, which cost nothing, then the starts of a fit."""
    if design.law.typical:
        yield design.to_theta({None: design.law.typical})
    yield from start_all(design, points.inputs, points.outcome, count=_PLACES)
