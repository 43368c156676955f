"""Which law the points can carry: the one asked for, a smaller one, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.identify import lacking
from budgetlab.fitting.table import Points
from budgetlab.laws import AnyLaw, Form, Law, Term


@dataclass(frozen=True)
class Prepared:
    """Points with the law that they can carry.

    `reason` says why it is smaller than the one asked for; `refusal` why there is none.
    """

    points: Points
    law: AnyLaw
    pinned: Mapping[str, float]
    reason: str = ""
    refusal: str = ""


def prepare(points: Points, pinned: Mapping[str, float], *, saturated: bool = False) -> Prepared:
    """Find the law that the points can carry: the one asked for, or a smaller one, or none.

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
        For a pinned name or value that the law cannot have, or fewer points than free parameters.
    """
    law, reasons = points.law, []
    asked = f"law {law.name}, {len(points)} points"
    for name, value in pinned.items():
        if name not in law.params:
            raise unknown_name("parameter", name, law.params, f"{asked}, pinned {name}")
        low, high = law.bounds[name]
        if not (np.isfinite(value) and low <= value <= high) or (
            value == 0 and name not in (law.floor, *law.exponents)
        ):
            raise CallerError(f"{asked}, pinned {name} = {value:g}", "outside its bounds", f"give {low:g} to {high:g}")
    pinned = dict(pinned)
    if isinstance(law, Form):
        return _prepare_form(points, law, pinned, asked, saturated)
    if law.floor is not None and pinned.get(law.floor) == 0:
        del pinned[law.floor]
        law = law.without(points.law.floor or "")
    free = _free(law, pinned, points, asked)
    constant = [name for name in law.inputs if np.ptp(points.inputs[name]) == 0]
    if constant:
        law = _without_inputs(law, constant)
        columns = ", ".join(
            f"{points.columns.get(name, name)} never varies (every row has {points.inputs[name][0]:.4g})"
            for name in constant
        )
        reasons.append(f"{columns}, so that its term cannot be told from the floor")
        pinned = {name: value for name, value in pinned.items() if name in law.params}
    free = [name for name in law.params if name not in pinned]
    if not law.inputs:
        return Prepared(points, law, pinned, refusal=f"{reasons[0]}, and nothing else does")
    cells = len(np.unique(points.cells()))
    carried = cells + 1 if saturated else cells
    if carried <= len(free) and law.floor in free:
        reasons.append(
            f"{cells} distinct inputs cannot identify {len(free)} parameters, so the floor {law.floor} is taken as 0"
        )
        law = law.without(law.floor)
        free = [name for name in law.params if name not in pinned]
    refusal = ""
    if carried <= len(free) or not free:
        refusal = f"{cells} distinct inputs cannot carry {len(free)} free parameters ({', '.join(free) or 'none'})"
    return Prepared(replace(points, law=law), law, pinned, "; ".join(reasons), refusal)


def _free(law: AnyLaw, pinned: Mapping[str, float], points: Points, asked: str) -> list[str]:
    free = [name for name in law.params if name not in pinned]
    if len(points) < len(free):
        raise CallerError(
            asked,
            f"{len(free)} free parameters ({', '.join(free)}) need at least as many points",
            "add points, pin parameters, or choose a smaller law",
        )
    return free


def _prepare_form(points: Points, law: Form, pinned: dict[str, float], asked: str, saturated: bool) -> Prepared:
    """Say whether the points can carry a form: its floor may be taken as zero, nothing else can go."""
    free = _free(law, pinned, points, asked)
    if (largest := float(points.outcome.max())) > law.most:
        raise CallerError(
            asked,
            f"{points.columns.get(law.outcome, law.outcome)} is {largest:.4g} in a row, and cannot pass {law.most:g}",
            "give fractions, not points" if law.most == 1 else "correct it",
        )
    cells, reason = len(np.unique(points.cells())), ""
    carried = cells + 1 if saturated else cells
    if carried <= len(free) and law.floor is not None and law.floor in free:
        reason = f"{cells} distinct inputs cannot identify {len(free)} parameters"
        reason += f", so the floor {law.floor} is taken as 0"
        pinned[law.floor] = 0.0
        free.remove(law.floor)
    if carried <= len(free) or not free:
        refusal = f"{cells} distinct inputs cannot carry {len(free)} free parameters ({', '.join(free) or 'none'})"
    else:
        refusal = lacking(points, law, pinned)
    return Prepared(points, law, pinned, reason, refusal)


def _without_inputs(law: Law, constant: list[str]) -> Law:
    terms = []
    for term in law.terms:
        varying = {name: power for name, power in term.exponents.items() if name not in constant}
        if varying or not term.exponents:
            terms.append(Term(term.coefficient, varying))
        elif law.floor is None:
            terms.append(Term(term.coefficient))
            law = replace(law, terms=(*law.terms, Term(term.coefficient)))
    gone = [term.coefficient for term in law.terms if term.coefficient not in {t.coefficient for t in terms}]
    smaller = law.without(*gone) if gone else law
    return replace(smaller, terms=tuple(terms), derived={})
