"""Decisions on paper: their tables as files, their sections of the page, their lines on a terminal."""

from __future__ import annotations

from pathlib import Path

from budgetlab.decisions import Decisions, assumptions_frame
from budgetlab.reporting.page import Section, sheet_html
from budgetlab.reporting.tables.assumptions import assumption_sheet, assumption_words
from budgetlab.reporting.tables.sheets import markdown
from budgetlab.store import write_whole

__all__ = ["decision_lines", "decision_sections", "write_decisions"]


def write_decisions(decisions: Decisions, folder: Path) -> tuple[Path, ...]:
    """Write assumptions.csv and assumptions.md into a study's folder; nothing where there is nothing to say."""
    if not decisions.assumptions:
        return ()
    return (
        write_whole(folder / "assumptions.csv", assumptions_frame(decisions.assumptions).to_csv(index=False)),
        write_whole(folder / "assumptions.md", markdown(assumption_sheet(decisions.assumptions))),
    )


def decision_sections(decisions: Decisions) -> list[Section]:
    """Return the sections of the page; one without content is left out there."""
    rows = decisions.assumptions
    return [Section("Assumptions", sheet_html(assumption_sheet(rows)) if rows else "")]


def decision_lines(decisions: Decisions) -> list[str]:
    """Return what a terminal shows, a line each."""
    return [assumption_words(decisions.assumptions)] if decisions.assumptions else []
