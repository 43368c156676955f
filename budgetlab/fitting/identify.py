"""Which variation a table lacks for a form's parameters to be told apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from budgetlab.fitting.forms import build_form_design
from budgetlab.fitting.table import Points
from budgetlab.laws import Form

__all__ = ["lacking"]

_DEAD = 1e-7
"""Share of the steepest direction below which the predictions do not notice a change of the parameters."""
_PLACES = 6


def lacking(points: Points, law: Form, pinned: Mapping[str, float]) -> str:
    """Name the missing variation in one sentence; empty where the parameters can be told apart.

    The test is of the form on these inputs, not of the outcomes: the smallest singular value of the derivatives of all
    predictions in all free parameters, columns scaled to one length, at the best of several plausible places.
    """
    free = tuple(name for name in law.params if name not in pinned)
    if law.lacking is not None and (said := law.lacking(points.inputs, free)):
        return f"{said}: {', '.join(free)} cannot be told apart"
    design = build_form_design(law, points.inputs, points.outcome, pinned=pinned, groups=None, shared=())
    proposed = law.starts(points.inputs, points.outcome, _PLACES)
    best, blurred = 0.0, np.zeros(design.size)
    for theta in design.to_theta({None: dict(zip(law.params, proposed.T, strict=True))}):
        gradients = design.gradients(theta)
        lengths = np.linalg.norm(gradients, axis=0)
        if not np.isfinite(gradients).all() or (lengths == 0).any():
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
    among = [name for name, part in zip(design.names, np.abs(blurred), strict=True) if part > 0.05] or design.names
    said = f"every row has the same {' and '.join(constant)}" if constant else "the inputs vary together"
    return f"{said}: {', '.join(among)} cannot be told apart; vary it, pin parameters, or choose a smaller law"
