"""Tables of the answers: verdicts with their intervals, fits with their status, gates."""

from __future__ import annotations

from collections.abc import Sequence

from budgetlab.fitting.scores import OUTCOMES
from budgetlab.reporting.gates import Gate
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed
from budgetlab.units import format_amount
from budgetlab.values import CurveFit, Verdict

_ANSWER = "answer"
_MOST_ROWS = 200


def verdict_sheet(verdicts: Sequence[Verdict]) -> Sheet:
    """Return the contrasts, each with its interval and the smallest difference that the design could have seen.

    Of very many, those against a reference come first and the rest is left to verdict.json.
    """
    references = {verdict.contrast[1] for verdict in verdicts if verdict.primary}
    left_out = max(0, len(verdicts) - _MOST_ROWS)
    if left_out:
        verdicts = sorted(verdicts, key=lambda v: (not v.primary, v.contrast[1] not in references))[:_MOST_ROWS]
    words = {"equivalent": "equivalent", "not_resolved": "not resolved"}
    rows = []
    for verdict in verdicts:
        a, b = verdict.contrast
        decimals = 1 if verdict.unit == "points" else 3
        p_value = verdict.p_value if verdict.adjusted_p_value is None else verdict.adjusted_p_value
        rows.append((
            f"{a} - {b}{' *' if verdict.primary else ''}", format_amount(verdict.at.amount, verdict.at.unit),
            f"{OUTCOMES.get(verdict.y, verdict.y).removeprefix('the ')} ({verdict.unit})",
            "n/a" if verdict.difference is None else f"{verdict.difference:+.{decimals}f}",
            _interval(verdict.interval, decimals), fixed(verdict.minimum_detectable_difference, decimals),
            str(verdict.num_pairs), "n/a" if p_value is None else f"{p_value:.2g}",
            _interval(verdict.adjusted_interval, decimals),
            words.get(verdict.verdict, f"{a if verdict.verdict == 'a_better' else b} is better"),
        ))  # fmt: skip
    return Sheet(
        title="Contrasts",
        columns=(
            Column("contrast", left=True), Column("budget", left=True), Column("of", left=True),
            Column("difference", _ANSWER), Column("interval", _ANSWER), Column("MDD", _ANSWER),
            Column("pairs", _ANSWER), Column("p", _ANSWER), Column("adjusted", _ANSWER),
            Column("verdict", _ANSWER, left=True),
        ),
        rows=tuple(rows),
        notes=(
            *([f"{left_out:,} further contrasts are in verdict.json"] if left_out else []),
            *(_conventions(verdicts) if verdicts else ()), *_definitions(verdicts),
        ),
    )  # fmt: skip


def _conventions(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    margins = " and ".join(f"{m:g} {unit}" for m, unit in sorted({(v.margin, v.unit) for v in verdicts}))
    levels = " and ".join(f"{100 * level:g} %" for level in sorted({verdict.interval_level for verdict in verdicts}))
    primary = "* primary, stated beforehand; " if any(verdict.primary for verdict in verdicts) else ""
    return (
        f"{primary}first minus second arm, positive when the first is better; interval of each by itself at {levels}; "
        f"MDD: minimum detectable difference; equivalence margin {margins}; a pair is two runs of one run seed; "
        "p and adjusted: by Holm's procedure over the primary contrasts, and over all others; the verdict is read off "
        "the adjusted interval",
    )


def _definitions(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """What averages are of, and which tasks are subsets."""
    notes = dict.fromkeys(note for verdict in verdicts for note in verdict.notes)
    averages = [note for note in notes if note.startswith("mean score: ")]
    subsets = [note.replace(": a subset, ", " ") for note in notes if ": a subset, " in note]
    return (*averages, *([f"subsets: {'; '.join(subsets)}"] if subsets else []))


def fit_sheet(fits: Sequence[CurveFit]) -> Sheet:
    """Return every fitted law with its parameters and its status; the notes say what a status allows."""
    rows = []
    for fit in fits:
        params = ", ".join(f"{name} {value:.4g}{_around(fit, name)}" for name, value in fit.params.items())
        rows.append((fit.arm or "all", fit.law, str(fit.num_points), fit.status, params or "none"))
    notes: dict[str, list[str]] = {}
    for fit in fits:
        notes.setdefault(f"{fit.status}: {fit.status_text}", []).append(fit.arm or "all")
    return Sheet(
        title="Fits",
        columns=(
            Column("arm", left=True), Column("law", left=True), Column("points", "fit"),
            Column("status", "fit", left=True), Column("parameters [interval]", "fit", left=True),
        ),
        rows=tuple(rows),
        notes=tuple(f"{', '.join(arms)}: {text}" for text, arms in notes.items()),
    )  # fmt: skip


def gate_lines(gates: Sequence[Gate]) -> list[str]:
    """Return each gate as one line."""
    return [
        f"{'passed' if gate.passed else 'FAILED' if gate.judged else 'n/a   '}  {gate.name}: {gate.sentence}"
        for gate in gates
    ]


def _interval(interval: tuple[float, float] | None, decimals: int) -> str:
    return "n/a" if interval is None else f"[{interval[0]:+.{decimals}f}, {interval[1]:+.{decimals}f}]"


def _around(fit: CurveFit, name: str) -> str:
    interval = fit.intervals.get(name)
    return "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
