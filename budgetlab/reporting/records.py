"""Which files beside the page its numbers are in, as far as they exist."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from budgetlab.reporting.page import Section, details_html, link_html, sheet_html
from budgetlab.reporting.tables.answers import Links, runs_sheet, score_files_sheet
from budgetlab.values import RunRecord

_FILES = {
    "Gates": ("scores.csv",),
    "Verdicts": ("verdict.json", "scores.csv"),
    "Assumptions": ("assumptions.csv", "assumptions.md"),
    "The teacher's budget": ("verdict_map.csv", "best_split.csv", "all_in.csv", "capacity_gap.csv"),
    "Next run, predicted": ("next_runs.csv",),
    "All budgets": ("scores.csv", "plan.csv"),
    "Scores": ("scores.csv",),
    "The average and its tasks": ("scores.csv",),
    "What if": ("plan.json", "profile.json"),
    "Plan": ("plan.json", "plan.csv"),
    "Methods": ("study.toml", "plan.json"),
    "What differs between the arms": ("study.toml", "plan.json"),
    "Cost of a training step": ("profile.json", "profile.csv"),
    "Fits": ("fits.json", "fits.csv"),
    "How things are counted": ("profile.json",),
    "Environment": ("profile.json",),
}
"""Heading -> files; sections whose numbers have other homes bring them themselves."""


def with_records(sections: Iterable[Section], folder: Path) -> list[Section]:
    """Return sections that lead to the files which their numbers are in; a file that is not there is not named."""
    found = []
    for section in sections:
        names = section.records or _FILES.get(section.heading, ())
        found.append(replace(section, records=tuple(name for name in names if (folder / name).exists())))
    return found


def footer_html(folder: Path) -> str:
    """Return one line that leads to all files of a study's folder."""
    names = sorted({name for names in _FILES.values() for name in names if (folder / name).exists()})
    return f"Numbers behind this page: {', '.join(map(link_html, names))}, and beside each figure its own."


def records_html(records: Sequence[RunRecord], scores: pd.DataFrame, folder: Path) -> str:
    """Return every run and every score as tables that open when asked for, each row leading to its file."""
    parts = []
    if records:
        sheet, links = runs_sheet(records)
        html = sheet_html(sheet, links=_existing(links, folder))
        parts.append(details_html(f"{len(records)} runs: what each read and spent", html))
    if len(scores):
        sheet, links = score_files_sheet(scores)
        html = sheet_html(sheet, links=_existing(links, folder))
        parts.append(details_html(f"{len(scores)} scores, one by one", html))
    return "\n".join(parts)


def _existing(links: Links, folder: Path) -> Links:
    return {place: path for place, path in links.items() if (folder / path).exists()}
