"""Tables of the files behind everything: a row a run, a row a score, each with the file that it is from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from budgetlab.reporting.frames import LOSSES
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed, scaled
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import RunRecord

Links = dict[tuple[int, int], str]
"""(row, column) -> a path relative to the study's folder."""

_MOST_SCORES = 2000
"""A page with more rows than this helps nobody."""


def runs_sheet(records: Sequence[RunRecord]) -> tuple[Sheet, Links]:
    """Return what each run read and spent; its name leads to record.json, its tokens to the points on the way."""
    unit, flops = scaled([record.required_flops for record in records], "FLOP")
    budgets = [None if r.schedule is None else r.schedule.budget for r in records]
    parts = [
        (Column("run", left=True), [r.run_id for r in records]),
        (Column("arm", left=True), [r.arm for r in records]),
        (Column("budget", left=True), ["" if b is None else format_amount(b.amount, b.unit) for b in budgets]),
        (Column("seed"), [str(r.run_seed) for r in records]),
        (Column("status", left=True), [r.status for r in records]),
        (Column("steps"), [str(r.steps) for r in records]),
        (Column("tokens"), [format_quantity(r.tokens) for r in records]),
        (Column(f"required\n{unit}"), flops),
        (Column("device\ns"), [fixed(r.device_seconds, 1) for r in records]),
    ]
    links = {(i, 0): f"runs/{r.run_id}/record.json" for i, r in enumerate(records)}
    links |= {(i, 6): f"runs/{r.run_id}/points.jsonl" for i, r in enumerate(records)}
    rows = tuple(zip(*(cells for _, cells in parts), strict=True))
    return Sheet("Every run, as it was recorded", tuple(column for column, _ in parts), rows), links


def score_files_sheet(scores: pd.DataFrame) -> tuple[Sheet, Links]:
    """Return every single score; its value leads to the file that holds it."""
    kept = scores.head(_MOST_SCORES)
    columns = (
        Column("checkpoint", left=True), Column("task", left=True), Column("fine-tuning\nseed"),
        Column("metric", left=True), Column("value"), Column("examples"),
    )  # fmt: skip
    rows, links = [], {}
    for i, row in enumerate(kept.to_dict("records")):
        loss, seed, key = row["task"] in LOSSES, row["finetune_seed"], row.get("key")
        value = fixed(row["value"], 4) if loss else fixed(100 * row["value"], 2)
        rows.append((
            str(row["run_id"]), str(row["task"]), "n/a" if pd.isna(seed) else str(int(seed)), str(row["metric"]),
            value, str(row["num_examples"]),
        ))  # fmt: skip
        if key:
            links[i, 4] = f"runs/{row['run_id']}/scores/{key}.json"
    notes = ["losses in nats per target token, all else in points"]
    if len(kept) < len(scores):
        notes.append(f"the first {len(kept)} of {len(scores)} scores; all of them are in scores.csv")
    return Sheet("Every score, as it was measured", columns, tuple(rows), tuple(notes)), links
