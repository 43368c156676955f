"""Tables of the answers: verdicts, fits, assumptions, the verdict map, the next run, and the records behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from budgetlab.fitting.scores import OUTCOMES
from budgetlab.reporting.tables.sheets import Column, Sheet, bracketed, fixed, number, plain_rows, text
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import Assumption, CurveFit, RunRecord, Verdict
from budgetlab.values.scoring import LOSSES

Links = dict[tuple[int, int], str]
"""(row, column) -> a path relative to the study's folder."""

_ANSWER = "answer"
_MOST_VERDICTS, _MOST_SCORES = 200, 2000
"""A table with more rows than this helps nobody."""


def decimals_of(unit: str) -> int:
    """Return the decimals of a difference in points, or in nats."""
    return 1 if unit == "points" else 3


def verdict_sheet(verdicts: Sequence[Verdict]) -> Sheet:
    """Return the contrasts, each with its interval and the smallest difference that the design could have seen.

    Of very many, those against a reference come first and the rest is left to verdict.json.
    """
    references = {verdict.contrast[1] for verdict in verdicts if verdict.primary}
    left_out = max(0, len(verdicts) - _MOST_VERDICTS)
    if left_out:
        verdicts = sorted(verdicts, key=lambda v: (not v.primary, v.contrast[1] not in references))[:_MOST_VERDICTS]

    def difference(v: Verdict) -> str:
        return "n/a" if v.difference is None else f"{v.difference:+.{decimals_of(v.unit)}f}"

    def p_value(v: Verdict) -> str:
        p = v.p_value if v.adjusted_p_value is None else v.adjusted_p_value
        return "n/a" if p is None else f"{p:.2g}"

    def answer(v: Verdict) -> str:
        a, b = v.contrast
        return {"a_better": f"{a} is better", "b_better": f"{b} is better"}.get(
            v.verdict, v.verdict.replace("_", " ")
        )  # fmt: skip

    columns = (
        Column("contrast", lambda v: " - ".join(v.contrast) + " *" * v.primary, left=True),
        Column("budget", lambda v: format_amount(v.at.amount, v.at.unit), left=True),
        Column("of", lambda v: f"{OUTCOMES.get(v.y, str(v.y)).removeprefix('the ')} ({v.unit})", left=True),
        Column("difference", difference, group=_ANSWER),
        Column("interval", lambda v: bracketed(v.interval, decimals_of(v.unit)), group=_ANSWER),
        Column("MDD", lambda v: fixed(v.minimum_detectable_difference, decimals_of(v.unit)), group=_ANSWER),
        Column("pairs", "num_pairs", group=_ANSWER),
        Column("p", p_value, group=_ANSWER),
        Column("adjusted", lambda v: bracketed(v.adjusted_interval, decimals_of(v.unit)), group=_ANSWER),
        Column("verdict", answer, group=_ANSWER, left=True),
    )
    further = f"{left_out:,} further contrasts are in verdict.json" if left_out else ""
    return Sheet.of("Contrasts", verdicts, columns, [further, *_verdict_notes(verdicts)])


def _verdict_notes(verdicts: Sequence[Verdict]) -> list[str]:
    """Say how to read the contrasts, what averages are of, and which tasks are subsets."""
    if not verdicts:
        return []
    margins = " and ".join(f"{m:g} {unit}" for m, unit in sorted({(v.margin, v.unit) for v in verdicts}))
    levels = " and ".join(f"{100 * level:g} %" for level in sorted({verdict.interval_level for verdict in verdicts}))
    primary = "* primary, stated beforehand; " if any(verdict.primary for verdict in verdicts) else ""
    said = dict.fromkeys(note for verdict in verdicts for note in verdict.notes)
    subsets = [note.replace(": a subset, ", " ") for note in said if ": a subset, " in note]
    return [
        f"{primary}first minus second arm, positive when the first is better; interval of each by itself at {levels}; "
        f"MDD: minimum detectable difference; equivalence margin {margins}; a pair is two runs of one run seed; "
        "p and adjusted: by Holm's procedure over the primary contrasts, and over all others; the verdict is read off "
        "the adjusted interval",
        *(note for note in said if note.startswith("mean score: ")),
        f"subsets: {'; '.join(subsets)}" if subsets else "",
    ]


def fit_sheet(fits: Sequence[CurveFit]) -> Sheet:
    """Return every fitted law with its parameters and its status; the notes say what a status allows."""

    def parameters(fit: CurveFit) -> str:
        shown = []
        for name, value in fit.params.items():
            ends = fit.intervals.get(name)
            shown.append(f"{name} {value:.4g}" + ("" if ends is None else f" [{ends[0]:.4g}, {ends[1]:.4g}]"))
        return ", ".join(shown) or "none"

    notes: dict[str, list[str]] = {}
    for fit in fits:
        notes.setdefault(f"{fit.status}: {fit.status_text}", []).append(fit.arm or "all")
    columns = (
        Column("arm", lambda fit: fit.arm or "all", left=True),
        Column("law", "law", left=True),
        Column("points", "num_points", group="fit"),
        Column("status", "status", group="fit", left=True),
        Column("parameters [interval]", parameters, group="fit", left=True),
    )
    return Sheet.of("Fits", fits, columns, [f"{', '.join(arms)}: {status}" for status, arms in notes.items()])


def assumption_sheet(rows: Sequence[Assumption]) -> Sheet:
    """Return every assumption with its test, its outcome and what becomes of the answer without it."""

    def tested(row: Assumption) -> str:
        return f"{row.tested} (in {', '.join(row.studies)})" if row.studies else row.tested

    columns = (
        Column("assumption", "name", left=True),
        Column("outcome", lambda row: row.outcome.replace("_", " "), left=True),
        Column("how it was tested here", tested, left=True),
        Column(
            "what was found, or is missing",
            lambda row: f"missing: {row.missing}" if row.outcome == "not_tested" else row.evidence,
            left=True,
        ),
        Column("the answer without it", lambda row: row.effect or "n/a", left=True),
    )
    note = (
        "holds: these records do not contradict it at the level of the study's tests, which is no proof; p of "
        "shared parameters by parametric bootstrap, several contrasts under Holm's procedure"
    )
    return Sheet.of("Assumptions", rows, columns, [note] if rows else [])


def assumption_words(rows: Sequence[Assumption]) -> str:
    """Return one line: how many assumptions hold, are violated, or were not tested, and which are violated."""
    outcomes = [row.outcome for row in rows]
    violated = ", ".join(row.name for row in rows if row.outcome == "violated")
    return (
        f"assumptions: {outcomes.count('holds')} hold, {outcomes.count('violated')} violated"
        f"{f' ({violated})' if violated else ''}, {outcomes.count('not_tested')} not tested"
    )


def map_sheet(found: pd.DataFrame) -> Sheet:
    """Return a verdict map, a row a cell in which both arms can be compared; the others are counted in notes."""
    known = found[found["difference"].notna()] if len(found) else found

    def interval(row: Mapping[str, Any]) -> str:
        return bracketed(None if row["low"] is None else (row["low"], row["high"]), decimals_of(row["unit"]))

    columns = (
        Column("student", "student", left=True),
        Column("contrast", lambda row: f"{row['arm']} - {row['reference']}", left=True),
        Column("all-in\nrequired", lambda row: format_amount(row["total_flops"], "required_flops")),
        Column("students\nper teacher", "students_per_teacher", lambda n: "free" if math.isinf(n) else f"{n:g}"),
        Column("teacher's\n% of it", "teacher_share", number(0, times=100.0)),
        Column(
            f"difference\n{known['unit'].iloc[0] if len(known) else 'nats'}",
            lambda row: f"{row['difference']:+.{decimals_of(row['unit'])}f}",
        ),
        Column("interval", interval),
        Column(
            "answer",
            lambda row: f"{row[row['answer']]} better" if row["answer"] in ("arm", "reference") else row["answer"],
            left=True,
        ),
        Column("basis", "basis", left=True),
    )
    about = (
        "all-in: the student's training, the teacher's forward passes, and its pretraining over the number of students "
        "that share it; the reference spends the same on itself; free: the teacher exists anyway"
    )
    notes = [about]
    for answer in ("infeasible", "n/a"):
        reasons = found.loc[found["answer"] == answer, "reason"]
        if len(reasons):
            notes.append(f"{len(reasons)} cells are {answer}, such as: {reasons.iloc[0]}")
    return Sheet.of("Verdict map", known, columns, [*notes, *found.attrs.get("notes", ())])


def next_sheet(table: pd.DataFrame) -> Sheet:
    """Return the candidates for a next run, best first."""

    def width(value: float | None) -> str:
        return "n/a" if value is None else f"±{value:.3g}"

    columns = (
        Column("what it adds", "adds", left=True),
        Column("cost\nrequired", "cost_flops", lambda flops: format_amount(flops, "required_flops")),
        Column("device\ntime", "cost_seconds", format_seconds),
        Column("interval\nnow", "half_width_now", width),
        Column("interval\nafter", "half_width_after", width),
    )
    return Sheet.of("Next run (predicted)", table, columns, [table.attrs["sentence"]] if len(table) else [])


def runs_sheet(records: Sequence[RunRecord]) -> tuple[Sheet, Links]:
    """Return what each run read and spent; its name leads to record.json, its tokens to the points on the way."""

    def budget(record: RunRecord) -> str:
        planned = record.schedule
        return "" if planned is None else format_amount(planned.budget.amount, planned.budget.unit)

    columns = (
        Column("run", "run_id", left=True),
        Column("arm", "arm", left=True),
        Column("budget", budget, left=True),
        Column("seed", "run_seed", str),
        Column("status", "status", left=True),
        Column("steps", "steps"),
        Column("tokens", "tokens", format_quantity),
        Column("required\n{unit}", "required_flops", "FLOP"),
        Column("device\ns", "device_seconds", 1),
    )
    links = {(i, 0): f"runs/{r.run_id}/record.json" for i, r in enumerate(records)}
    links |= {(i, 6): f"runs/{r.run_id}/points.jsonl" for i, r in enumerate(records)}
    return Sheet.of("Every run, as it was recorded", records, columns), links


def score_files_sheet(scores: pd.DataFrame) -> tuple[Sheet, Links]:
    """Return every single score; its value leads to the file that holds it."""
    rows = plain_rows(scores.head(_MOST_SCORES))
    columns = (
        Column("checkpoint", "run_id", left=True),
        Column("task", "task", left=True),
        Column("fine-tuning\nseed", "finetune_seed", lambda seed: text(None if seed is None else int(seed))),
        Column("metric", "metric", left=True),
        Column("value", lambda row: fixed(row["value"], 4) if row["task"] in LOSSES else fixed(100 * row["value"], 2)),
        Column("examples", "num_examples"),
    )
    links = {(i, 4): f"runs/{row['run_id']}/scores/{row['key']}.json" for i, row in enumerate(rows) if row.get("key")}
    notes = ["losses in nats per target token, all else in points"]
    if len(rows) < len(scores):
        notes.append(f"the first {len(rows)} of {len(scores)} scores; all of them are in scores.csv")
    return Sheet.of("Every score, as it was measured", rows, columns, notes), links
