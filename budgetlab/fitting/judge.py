"""What the certificate says: the findings as a record, and the status that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetlab.fitting.certificate import GAP_TOLERANCE, Profile, allowance, basins, bounds_hit, profile
from budgetlab.fitting.design import AnyDesign, Sample
from budgetlab.fitting.newton import Optimum
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.table import Points
from budgetlab.laws import AnyLaw, Law
from budgetlab.laws.base import Array
from budgetlab.resampling import percentile_interval

_WIDTH = 3.0
"""A parameter is determined when its profile interval is closed and its ends are within this factor."""
_FLOOR_SHARE = 0.5
"""A floor is determined when its interval is shorter than this share of what the outcomes have above it, on average."""
_SHORTEST_SPAN = 2.0
"""An input that varies less says nothing of its power: any steep curve is straight over so short a stretch."""
_EXACT = 1e-9


@dataclass(frozen=True)
class Candidate:
    """The best end of all starts, before it is judged.

    Attributes
    ----------
    optima, best
        Where the starts ended, and which of them is the best.
    theta, value
        The optimum (of the objective itself, where `optima` are of its smooth neighbour) and its objective.
    ended
        Whether the solver ended at an optimum.
    decrease
        The relative decrease that it still predicts.
    """

    design: AnyDesign
    sample: Sample
    objective: Objective
    optima: Optimum
    best: int
    theta: Array
    value: float
    ended: bool
    decrease: float

    @property
    def exact(self) -> bool:
        """Whether the data are noise-free: what is left is rounding, and no ratio of it means anything."""
        missed = self.sample.log_outcome - self.design.log_prediction(self.theta[None])[0]
        return float(np.abs(missed).max()) < _EXACT


def judge(found: Candidate, points: Points, other: float, level: float) -> tuple[FitStatus, str, dict[str, Any]]:
    """Certify a candidate."""
    design, theta, exact = found.design, found.theta, found.exact
    gap = 0.0 if exact else max(0.0, found.value / max(other, 1e-300) - 1)
    # The smoothed absolute deviations are only nearly solved before the vertex is found.
    same = 1e-6 if found.objective.name == "lad" else GAP_TOLERANCE
    values, ends = found.optima.value, found.optima.theta
    profiles = (
        {name: Profile(end, end, end) for name, end in zip(design.names, theta.tolist(), strict=True)}
        if exact
        else profile(design, theta, found.sample, found.objective, design.names, level, points.clusters)
    )
    distinct = basins(found.optima, found.best)
    rivals = [] if exact else _rivals(found, distinct, level, points.clusters)
    hits = bounds_hit(design, theta)
    decrease = 0.0 if exact else found.decrease
    gradient = float(np.linalg.norm(found.optima.gradient[found.best]))
    certificate = {
        "gradient_norm": None if found.objective.name == "lad" else gradient,
        "newton_decrement_relative": decrease,
        "iterations": found.optima.iterations,
        "starts": len(values),
        "starts_agreeing": int((values <= values[found.best] * (1 + same) + 1e-25).sum()),
        "basins": [{"objective": float(values[i]), "params": _natural(design, ends[i])} for i in distinct],
        "second_solver": "scipy L-BFGS-B, exact gradient, another start",
        "second_solver_objective": other,
        "gap": gap,
        "at_bound": list(hits),
        "profile_level": level,
        "profile": {_profiled(design, name): _profile_ends(design, name, profiles[name]) for name in design.names},
    }
    spans = {name: float(inputs.max() / inputs.min()) for name, inputs in points.inputs.items()}
    weak = [_weakness(design, name, profiles[name], spans) for name in design.names if name not in hits]
    weak = [text for text in weak if text]
    status, detail = FitStatus.CONVERGED, ""
    if not found.ended and not exact:
        status, detail = FitStatus.NOT_CONVERGED, f"the solver still predicts a relative decrease of {decrease:.1e}"
    elif gap > GAP_TOLERANCE:
        status, detail = FitStatus.NOT_CONVERGED, f"a second solver ends {gap:.1e} lower"
    elif rivals:
        status, detail = FitStatus.SEVERAL_BASINS, "; ".join(rivals)
    elif hits:
        status, detail = FitStatus.AT_BOUND, ", ".join(_bound_text(design, theta, name) for name in hits)
    elif weak:
        status, detail = FitStatus.WEAKLY_IDENTIFIED, "; ".join(weak)
    return status, detail, certificate


def contradicted(
    law: AnyLaw, points: Points, params: Mapping[str, Array], drawn: Mapping[str, Array], level: float
) -> str:
    """Say what the draws leave open, though the profile closed it; empty where they agree.

    Coefficients are looked at as the size of their term at the geometric mean of the inputs: at an input of 1 they
    hang on its unit.
    """
    found = []
    floor = law.floor
    if floor is not None and floor in drawn:
        low, high = percentile_interval(drawn[floor], level)
        above = float(np.average(points.outcome, weights=points.weights)) - float(params[floor])
        if high - low > _FLOOR_SHARE * above:
            found.append(f"{floor} (anywhere from {low:.3g} to {high:.3g}, with {above:.3g} above it)")
    centres = {name: float(np.log(values).mean()) for name, values in points.inputs.items()}
    for name in law.exponents:
        if name in drawn and name != floor:
            low, high = percentile_interval(drawn[name], level)
            if low <= 0 or high / low > _WIDTH:
                found.append(f"{name} (anywhere from {low:.3g} to {high:.3g})")
    for term in law.terms if isinstance(law, Law) else ():
        if term.exponents and term.coefficient in drawn:
            with np.errstate(divide="ignore"):
                size = np.log(drawn[term.coefficient])
            for name, power in term.exponents.items():
                size = size - drawn.get(power, params[power]) * centres[name]
            low, high = np.exp(percentile_interval(size, level))
            if high > _WIDTH * low:
                found.append(f"the {term.coefficient} term (anywhere from {low:.3g} to {high:.3g})")
    return "; ".join(found)


def _rivals(found: Candidate, distinct: list[int], level: float, clusters: np.ndarray | None) -> list[str]:
    """Describe the other optima that the data cannot tell from the best."""
    limit = allowance(found.design, found.theta, found.sample, found.objective, level, clusters)
    values, texts = found.optima.value, []
    for index in distinct[1:]:
        excess = float(values[index] - values[found.best])
        if limit is not None and excess <= limit:
            params = _natural(found.design, found.optima.theta[index])
            shown = ", ".join(f"{name} {value:.4g}" for name, value in params.items())
            texts.append(f"{shown} at an objective only {excess / values[found.best]:.1e} higher")
    return texts


def _natural(design: AnyDesign, theta: Array) -> dict[str, float]:
    values: dict[str, float] = {}
    for group in design.groups:
        for name, value in design.to_params(theta, group).items():
            key = name if group is None or name in design.names else f"{name}[{group}]"
            if key in design.names:
                values[key] = float(value)
    return values


def _is_exponent(design: AnyDesign, name: str) -> bool:
    return name.partition("[")[0] in design.law.exponents


def _is_term(design: AnyDesign, name: str) -> bool:
    return name.partition("[")[0] in design.law.centred


def _profiled(design: AnyDesign, name: str) -> str:
    """Name what is profiled: a coefficient is, as the size of its term at the geometric mean of the inputs."""
    return f"{name}_term_at_centre" if _is_term(design, name) else name


def _profile_ends(design: AnyDesign, name: str, found: Profile) -> list[float | None]:
    ends = [found.low, found.high]
    if _is_exponent(design, name):
        return ends
    return [None if end is None else float(np.exp(end)) for end in ends]


def _label(design: AnyDesign, name: str) -> str:
    return f"the {name} term" if _is_term(design, name) else name


def _weakness(design: AnyDesign, name: str, found: Profile, spans: Mapping[str, float]) -> str:
    low, high = found.low, found.high
    label = _label(design, name)
    for column, power in design.law.powers:
        if power == name.partition("[")[0] and spans[column] < _SHORTEST_SPAN:
            return f"{label} ({column} spans a factor of {spans[column]:.3g} only)"
    if low is None and high is None:
        return f"{label} (any value fits)"
    exponent = _is_exponent(design, name)
    if exponent and (low is None or low <= 0) and (high is None or high >= 0):
        return f"{label} (it may be zero)"
    if low is None:
        return f"{label} (it may be zero)" if _may_vanish(design, name) else f"{label} (unbounded below)"
    if high is None:
        return f"{label} (unbounded above)"
    if (max(abs(low), abs(high)) / min(abs(low), abs(high)) if exponent else np.exp(high - low)) > _WIDTH:
        ends = (low, high) if exponent else (np.exp(low), np.exp(high))
        return f"{label} (anywhere from {ends[0]:.3g} to {ends[1]:.3g})"
    return ""


def _may_vanish(design: AnyDesign, name: str) -> bool:
    return _is_term(design, name) or name.partition("[")[0] == design.law.floor


def _bound_text(design: AnyDesign, theta: Array, name: str) -> str:
    j = design.names.index(name)
    at_lower = theta[j] - design.lower[j] < design.upper[j] - theta[j]
    bound = design.lower[j] if at_lower else design.upper[j]
    if _is_exponent(design, name):
        return f"{name} at {bound:g}"
    if not _may_vanish(design, name):
        return f"{name} at {np.exp(bound):.4g}"
    return f"{_label(design, name)} at zero" if at_lower else f"{_label(design, name)} at its upper bound"
