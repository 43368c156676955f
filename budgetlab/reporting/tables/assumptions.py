"""The table of assumptions: how each was tested here, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from budgetlab.reporting.tables.sheets import Column, Sheet
from budgetlab.values import Assumption

_OUTCOMES = {"holds": "holds", "violated": "violated", "not_tested": "not tested"}


def assumption_sheet(rows: Sequence[Assumption]) -> Sheet:
    """Return every assumption with its test, its outcome and what becomes of the answer without it."""
    cells = []
    for row in rows:
        found = row.evidence if row.outcome != "not_tested" else f"missing: {row.missing}"
        where = f"{row.tested} (in {', '.join(row.studies)})" if row.studies else row.tested
        cells.append((row.name, _OUTCOMES[row.outcome], where, found, row.effect or "n/a"))
    return Sheet(
        title="Assumptions",
        columns=(
            Column("assumption", left=True), Column("outcome", left=True), Column("how it was tested here", left=True),
            Column("what was found, or is missing", left=True), Column("the answer without it", left=True),
        ),
        rows=tuple(cells),
        notes=(
            "holds: these records do not contradict it at the level of the study's tests, which is no proof; p of "
            "shared parameters by parametric bootstrap, several contrasts under Holm's procedure",
        ) if rows else (),
    )  # fmt: skip


def assumption_words(rows: Sequence[Assumption]) -> str:
    """Return one line: how many assumptions hold, are violated, or were not tested, and which are violated."""
    counts = {outcome: [row.name for row in rows if row.outcome == outcome] for outcome in _OUTCOMES}
    violated = f" ({', '.join(counts['violated'])})" if counts["violated"] else ""
    return (
        f"assumptions: {len(counts['holds'])} hold, {len(counts['violated'])} violated{violated}, "
        f"{len(counts['not_tested'])} not tested"
    )
