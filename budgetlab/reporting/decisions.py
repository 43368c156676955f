"""Decisions on paper: their tables as files, their lines on a terminal."""

from __future__ import annotations

from pathlib import Path

from budgetlab.decisions import Decisions, assumptions_frame, best_split
from budgetlab.reporting.tables.assumptions import assumption_sheet, assumption_words
from budgetlab.reporting.tables.maps import map_sheet, next_sheet
from budgetlab.reporting.tables.sheets import markdown
from budgetlab.store import write_csv, write_whole


def write_decisions(decisions: Decisions, folder: Path) -> None:
    """Write the tables into a study's folder as CSV and Markdown; nothing where nothing is known."""
    tables = {"all_in": decisions.frontier, "capacity_gap": decisions.gap, "verdict_map": decisions.verdict_map}
    if decisions.assumptions:
        tables["assumptions"] = assumptions_frame(decisions.assumptions)
        write_whole(folder / "assumptions.md", markdown(assumption_sheet(decisions.assumptions)))
    if len(decisions.verdict_map):
        tables["best_split"] = best_split(decisions.verdict_map)
        write_whole(folder / "verdict_map.md", markdown(map_sheet(decisions.verdict_map)))
    if len(decisions.next_runs):
        write_whole(folder / "next_run.md", markdown(next_sheet(decisions.next_runs)))
        tables["next_runs"] = decisions.next_runs
    for name, table in tables.items():
        if len(table):
            write_csv(folder / f"{name}.csv", table)


def decision_lines(decisions: Decisions) -> list[str]:
    """Return what a terminal shows, a line each."""
    lines = [assumption_words(decisions.assumptions)] if decisions.assumptions else []
    return [*lines, *(table.attrs["sentence"] for table in (decisions.next_runs,) if len(table))]
