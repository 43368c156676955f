"""Decisions on paper: their tables as files, their sections of the page, their lines on a terminal."""

from __future__ import annotations

from pathlib import Path

from budgetlab.decisions import Decisions, assumptions_frame
from budgetlab.reporting.figures.maps import draw_map, map_table
from budgetlab.reporting.figures.style import FigureFiles, render
from budgetlab.reporting.page import Section, figure_html, list_html, sheet_html
from budgetlab.reporting.tables import assumption_sheet, assumption_words, map_sheet, markdown, next_sheet
from budgetlab.store import write_csv, write_whole


def write_decisions(decisions: Decisions, folder: Path) -> tuple[FigureFiles, ...]:
    """Write the tables into a study's folder as CSV and Markdown, and draw the map; nothing where nothing is known."""
    rows, charted, ahead = decisions.assumptions, decisions.verdict_map, decisions.next_runs
    sheets = {
        "assumptions": assumption_sheet(rows) if rows else None,
        "verdict_map": map_sheet(charted) if len(charted) else None,
        "next_run": next_sheet(ahead) if len(ahead) else None,
    }
    for name, sheet in sheets.items():
        if sheet is not None:
            write_whole(folder / f"{name}.md", markdown(sheet))
    tables = {"all_in": decisions.frontier, "capacity_gap": decisions.gap, "verdict_map": charted, "next_runs": ahead}
    tables["assumptions"] = assumptions_frame(rows)
    for name, table in tables.items():
        if len(table):
            write_csv(folder / f"{name}.csv", table)
    if not len(charted):
        return ()
    caption = (
        "Who is ahead at equal all-in required compute of one student, by how many students share the teacher's "
        "pretraining (free: it exists anyway); from the curves between the budgets that were run, a dot where a fit "
        "was extrapolated"
    )
    told = "; ".join([caption, *charted.attrs.get("notes", ())]) + "."
    return (render("verdict_map", draw_map, map_table(charted), folder / "figures", told),)


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
