"""The verdict map and the next run as tables."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from budgetlab.reporting.tables.sheets import Column, Sheet, percent
from budgetlab.units import format_amount, format_seconds


def map_sheet(found: pd.DataFrame) -> Sheet:
    """Return a verdict map, a row a cell in which both arms can be compared; the others are counted in notes."""
    known = found[found["difference"].notna()] if len(found) else found
    rows = []
    for row in known.to_dict("records"):
        decimals = 1 if row["unit"] == "points" else 3
        better = {"arm": f"{row['arm']} better", "reference": f"{row['reference']} better"}
        known_ends = row["low"] is not None and not pd.isna(row["low"])
        ends = f"[{row['low']:+.{decimals}f}, {row['high']:+.{decimals}f}]" if known_ends else "n/a"
        difference = row["difference"]
        shared = row["students_per_teacher"]
        rows.append((
            str(row["student"]),
            f"{row['arm']} - {row['reference']}",
            format_amount(row["total_flops"], "required_flops"),
            "free" if math.isinf(shared) else f"{shared:g}",
            percent(row["teacher_share"], 0),
            "n/a" if difference is None or pd.isna(difference) else f"{difference:+.{decimals}f}",
            ends,
            better.get(row["answer"], row["answer"]),
            str(row["basis"]),
        ))  # fmt: skip
    said = []
    for answer, words in (("infeasible", "infeasible"), ("n/a", "n/a")):
        reasons = found.loc[found["answer"] == answer, "reason"]
        if len(reasons):
            said.append(f"{len(reasons)} cells are {words}, such as: {reasons.iloc[0]}")
    unit = known["unit"].iloc[0] if len(known) else "nats"
    about = (
        "all-in: the student's training, the teacher's forward passes, and its pretraining over the number of students "
        "that share it; the reference spends the same on itself; free: the teacher exists anyway"
    )
    return Sheet(
        title="Verdict map",
        columns=(
            Column("student", left=True), Column("contrast", left=True), Column("all-in\nrequired"),
            Column("students\nper teacher"), Column("teacher's\n% of it"), Column(f"difference\n{unit}"),
            Column("interval"), Column("answer", left=True), Column("basis", left=True),
        ),
        rows=tuple(rows),
        notes=(about, *said, *found.attrs.get("notes", ())),
    )  # fmt: skip


def next_sheet(table: pd.DataFrame) -> Sheet:
    """Return the candidates for a next run, best first."""

    def width(row: dict[Hashable, Any], name: str) -> str:
        return f"±{row[name]:.3g}" if pd.notna(row.get(name)) else "n/a"

    rows = [
        (
            str(row["adds"]), format_amount(row["cost_flops"], "required_flops"),
            format_seconds(row["cost_seconds"] if pd.notna(row["cost_seconds"]) else None),
            width(row, "half_width_now"), width(row, "half_width_after"),
        )
        for row in table.to_dict("records")
    ]  # fmt: skip
    return Sheet(
        title="Next run (predicted)",
        columns=(
            Column("what it adds", left=True), Column("cost\nrequired"), Column("device\ntime"),
            Column("interval\nnow"), Column("interval\nafter"),
        ),
        rows=tuple(rows),
        notes=(table.attrs["sentence"],) if rows else (),
    )  # fmt: skip
