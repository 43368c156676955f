"""What became of a fit: one word, a sentence that says whether the numbers may be used, and for what."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Use = Literal["everything", "interpolation", "nothing"]


class FitStatus(StrEnum):
    """The possible ends of a fit, worst first."""

    REFUSED = "refused"
    NOT_CONVERGED = "not_converged"
    SEVERAL_BASINS = "several_basins"
    AT_BOUND = "at_bound"
    WEAKLY_IDENTIFIED = "weakly_identified"
    REDUCED = "reduced"
    CONVERGED = "converged"


_TEXT: dict[FitStatus, tuple[str, Use]] = {
    FitStatus.REFUSED: ("No curve: {}. There is no number to use; show the points.", "nothing"),
    FitStatus.NOT_CONVERGED: ("Not the optimum of its objective: {}. These numbers may not be used.", "nothing"),
    FitStatus.SEVERAL_BASINS: (
        "Converged, but another optimum fits as well: {}. The curve may be used inside the fitted range; the "
        "parameters may not be quoted as one number.",
        "interpolation",
    ),
    FitStatus.AT_BOUND: (
        "Converged with a parameter on its bound: {}. The curve may be used inside the fitted range; that "
        "parameter is the bound's and not the data's, and extrapolation is not supported.",
        "interpolation",
    ),
    FitStatus.WEAKLY_IDENTIFIED: (
        "Converged, but the data do not pin down {}. The curve may be used inside the fitted range; these "
        "parameters, and extrapolation, may not be used.",
        "interpolation",
    ),
    FitStatus.REDUCED: (
        "Converged, with a smaller law: {}. The curve may be used inside the fitted range only.",
        "interpolation",
    ),
    FitStatus.CONVERGED: (
        "Converged to the best optimum found, and every parameter is identified. The numbers may be used.",
        "everything",
    ),
}


def describe(status: FitStatus, detail: str = "") -> tuple[str, Use]:
    """Return the sentence for a status, and what the numbers may be used for."""
    text, use = _TEXT[status]
    return text.format(detail), use
