"""Which variation a table lacks for a form's parameters to be told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from budgetlab.fitting.forms import FormDesign, build_form_design
from budgetlab.fitting.table import Points
from budgetlab.laws import Form
from budgetlab.laws.base import Array

_DEAD = 1e-7
"""Share of the steepest direction below which the predictions do not notice a change of the parameters."""
_ROUNDING = 1e-12
"""A parameter whose derivatives are this small beside another's has no effect but rounding."""
_PLACES = 6


def lacking(points: Points, law: Form, pinned: Mapping[str, float]) -> str:
    """Name the missing variation in one sentence; empty where the parameters can be told apart.

    The test is of the form on these inputs, not of the outcomes: the smallest singular value of the derivatives of all
    predictions in all free parameters, columns scaled to one length, at the best of several plausible places.
    """
    free = tuple(name for name in law.params if name not in pinned)
    if law.lacking is not None and (said := law.lacking(points.inputs, free)):
        return f"{said}: {', '.join(free)} cannot be told apart"
    if len(law.inputs) == 1:
        return ""  # one input that takes more values than there are parameters has all the variation there is
    design = build_form_design(law, points.inputs, points.outcome, pinned=pinned, groups=None, shared=())
    best, blurred = 0.0, np.zeros(design.size)
    seen = np.zeros(design.size, dtype=bool)
    for theta in _places(law, points, pinned, design):
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
    constant = [
        f"{points.columns.get(name, name)} ({values[0]:.4g})"
        for name, values in points.inputs.items()
        if np.ptp(values) == 0
    ]
    weak = np.abs(blurred) > 0.05 if seen.all() else ~seen
    among = ", ".join(name for name, part in zip(design.names, weak.tolist(), strict=True) if part)
    if constant:
        said = (
            f"every row has the same {' and '.join(constant)}, so that nothing identifies {among or 'the parameters'}"
        )
    elif seen.all():
        said = f"the inputs vary together, so that nothing identifies {among or 'the parameters'}"
    else:
        said = f"no row's prediction depends on {among}"
    return f"{said}: vary it, pin parameters, or choose a smaller law"


def _places(law: Form, points: Points, pinned: Mapping[str, float], design: FormDesign) -> Iterator[Array]:
    """Yield free parameters: those the law is tested on, which cost nothing, then the starts of a fit."""
    if law.typical:
        yield design.to_theta({None: law.typical})
    proposed = law.starts(points.inputs, points.outcome, _PLACES, pinned)
    yield from design.to_theta({None: dict(zip(law.params, proposed.T, strict=True))})
