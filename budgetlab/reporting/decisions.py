"""Decisions on paper: their tables as files, their sections of the page, their lines on a terminal."""

from __future__ import annotations

from pathlib import Path

from budgetlab.decisions import Decisions, assumptions_frame
from budgetlab.reporting.figures.maps import draw_map, map_table
from budgetlab.reporting.figures.style import FigureFiles, render
from budgetlab.reporting.page import Section, figure_html, list_html, sheet_html
from budgetlab.reporting.tables.assumptions import assumption_sheet, assumption_words
from budgetlab.reporting.tables.maps import map_sheet, next_sheet
from budgetlab.reporting.tables.sheets import markdown
from budgetlab.store import write_csv, write_whole


def write_decisions(decisions: Decisions, folder: Path) -> tuple[FigureFiles, ...]:
    """Write the tables into a study's folder as CSV and Markdown, and draw the map; nothing where nothing is known."""
    tables = {"all_in": decisions.frontier, "capacity_gap": decisions.gap, "verdict_map": decisions.verdict_map}
    if decisions.assumptions:
        tables["assumptions"] = assumptions_frame(decisions.assumptions)
        write_whole(folder / "assumptions.md", markdown(assumption_sheet(decisions.assumptions)))
    if len(decisions.verdict_map):
        write_whole(folder / "verdict_map.md", markdown(map_sheet(decisions.verdict_map)))
    if len(decisions.next_runs):
        write_whole(folder / "next_run.md", markdown(next_sheet(decisions.next_runs)))
        tables["next_runs"] = decisions.next_runs
    for name, table in tables.items():
        if len(table):
            write_csv(folder / f"{name}.csv", table)
    if not len(decisions.verdict_map):
        return ()
    caption = (
        "Who is ahead at equal all-in required compute of one student, by how many students share the teacher's "
        "pretraining (free: it exists anyway); from the curves between the budgets that were run, a dot where a fit "
        "was extrapolated"
    )
    notes = decisions.verdict_map.attrs.get("notes", ())
    told = "; ".join([caption, *notes]) + "."
    return (render("verdict_map", draw_map, map_table(decisions.verdict_map), folder / "figures", told),)


def decision_sections(decisions: Decisions, figures: tuple[FigureFiles, ...]) -> list[Section]:
    """Return the sections of the page; one without content is left out there."""
    rows, ahead = decisions.assumptions, next_sheet(decisions.next_runs)
    charted = figure_html(figures) + sheet_html(map_sheet(decisions.verdict_map)) if figures else ""
    return [
        Section("Assumptions", sheet_html(assumption_sheet(rows)) if rows else ""),
        Section("The teacher's budget", charted),
        Section("Next run, predicted", (sheet_html(ahead) if ahead.rows else "") + list_html(decisions.notes)),
    ]


def decision_lines(decisions: Decisions) -> list[str]:
    """Return what a terminal shows, a line each."""
    lines = [assumption_words(decisions.assumptions)] if decisions.assumptions else []
    return [*lines, *(table.attrs["sentence"] for table in (decisions.next_runs,) if len(table))]
