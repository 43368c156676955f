"""The sentence that a study ends with: its verdict in the four-way form, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence

from budgetlab.reporting.frames import OUTCOMES
from budgetlab.reporting.gates import Gate
from budgetlab.units import format_amount
from budgetlab.values import Verdict

__all__ = ["BELOW_THRESHOLD", "MANY", "conclude"]

BELOW_THRESHOLD = "below the learning threshold"

MANY = 8
"""More contrasts than these are counted in a sentence, and told one by one in a table."""


def conclude(gates: Sequence[Gate], verdicts: Sequence[Verdict]) -> str:
    """Return one sentence: what the primary contrasts at the largest budget say, if the gates allow it.

    Parameters
    ----------
    gates
        The learning gates; one that failed replaces the verdict, and so does one that lacks its numbers.
    verdicts
        Where none is primary, all count.
    """
    failed = [gate.name for gate in gates if not gate.passed and gate.judged]
    if failed:
        return f"{BELOW_THRESHOLD} (not so: {'; '.join(failed)}): no verdict is given."
    missing = [gate.name for gate in gates if not gate.passed]
    if missing:
        return f"no verdict: numbers are missing to judge whether {', whether '.join(missing)}."
    chosen = [verdict for verdict in verdicts if verdict.primary] or list(verdicts)
    if not chosen:
        return "no verdict: no two arms have been scored at the same budget yet."
    largest = max(verdict.at.amount for verdict in chosen)
    chosen = [verdict for verdict in chosen if verdict.at.amount == largest]
    if len(chosen) == 1:
        return chosen[0].sentence
    # What the contrasts share is said once.
    groups: dict[tuple[str, str, bool], list[Verdict]] = {}
    for verdict in chosen:
        groups.setdefault((verdict.y, verdict.unit, verdict.one_teacher), []).append(verdict)
    parts = [_group(*key, members) for key, members in groups.items()]
    return f"At {format_amount(largest, chosen[0].at.unit)}, {'; '.join(parts)}."


def _group(y: str, unit: str, one_teacher: bool, verdicts: Sequence[Verdict]) -> str:
    levels = sorted({verdict.interval_level for verdict in verdicts if verdict.interval is not None})
    intervals = f" with {' and '.join(f'{100 * level:g} %' for level in levels)} intervals" if levels else ""
    scope = " and for this teacher" if one_teacher else ""
    clauses = _count(verdicts) if len(verdicts) > MANY else "; ".join(_clause(verdict) for verdict in verdicts)
    return f"on {OUTCOMES.get(y, y)}{scope}, in {unit}{intervals}: {clauses}"


def _count(verdicts: Sequence[Verdict]) -> str:
    against = dict.fromkeys(verdict.contrast[1] for verdict in verdicts)
    reference = next(iter(against)) if len(against) == 1 else "their references"
    words = {"a_better": "better", "b_better": "worse", "equivalent": "equivalent", "not_resolved": "not resolved"}
    counts = {word: sum(verdict.verdict == key for verdict in verdicts) for key, word in words.items()}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    best = max(verdicts, key=lambda verdict: -1e9 if verdict.difference is None else verdict.difference)
    return f"of {len(verdicts)} arms against {reference}, {told}; the highest difference: {_clause(best)}"


def _clause(verdict: Verdict) -> str:
    a, b = verdict.contrast
    digits = 3 if verdict.unit == "nats" else 1
    if verdict.difference is None:
        return f"{a} against {b} is n/a"
    signed = f"{verdict.difference:+.{digits}f}"
    if verdict.interval is None:
        return f"these checkpoints of {a} and {b} differ by {signed}, which one run per arm cannot resolve"
    low, high = verdict.interval
    around = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    if verdict.verdict == "equivalent":
        return f"{a} and {b} are equivalent within {verdict.margin:g} ({signed} {around})"
    if verdict.verdict == "not_resolved":
        smallest = verdict.minimum_detectable_difference
        detectable = "n/a" if smallest is None else f"{smallest:.{digits}f}"
        return f"{a} against {b} is not resolved ({signed} {around}, detectable {detectable})"
    better, worse = (a, b) if verdict.verdict == "a_better" else (b, a)
    if verdict.verdict == "b_better":
        around = f"[{-high:+.{digits}f}, {-low:+.{digits}f}]"
    small = f", less than the margin of {verdict.margin:g}," if abs(verdict.difference) < verdict.margin else ""
    return f"{better} is better than {worse} by {abs(verdict.difference):.{digits}f}{small} {around}"
