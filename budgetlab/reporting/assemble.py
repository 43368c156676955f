"""From values to a report: figures, tables, the page, and the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.decisions import Decisions
from budgetlab.planner import methods_paragraph
from budgetlab.reporting.conclusion import BELOW_THRESHOLD, MANY, SanityCheck, conclude_study
from budgetlab.reporting.decisions import decision_lines, decision_sections, write_decisions
from budgetlab.reporting.draw import answer_figures, cost_figures, score_figures, size_figures
from budgetlab.reporting.figures import FigureFiles
from budgetlab.reporting.frames import outcomes
from budgetlab.reporting.page import Section, figure_html, gates_html, list_html, page_html, pairs_html, sheet_html
from budgetlab.reporting.records import footer_html, records_html, with_records
from budgetlab.reporting.tables import (
    Sheet,
    average_sheet,
    closing_frame,
    closing_note,
    closing_sheet,
    fit_sheet,
    full_sheet,
    plain_rows,
    plan_sheet,
    print_sheets,
    profile_sheet,
    score_sheet,
    status_sheet,
    verdict_sheet,
)
from budgetlab.reporting.tables.scores import subset_note
from budgetlab.reporting.whatif import whatif_html
from budgetlab.store import write_csv, write_whole
from budgetlab.values import CostProfile, CurveFit, Environment, Plan, RunRecord, Score, Verdict

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Report:
    """What a study concludes, and where it is written down."""

    study: str
    sentence: str
    """The verdict, or why there is none."""
    gates: tuple[SanityCheck, ...]
    closing_table: pd.DataFrame
    """Every arm at every budget and the yardsticks, in canonical units; unknown is missing."""
    sheet: Sheet
    """The closing table as printed: the largest budget, or the plan where nothing was run."""
    page: Path
    scores: Path
    figures: tuple[FigureFiles, ...]
    decisions: Decisions = field(default_factory=Decisions)
    """What the verdicts rest on, and what follows from them."""

    def print(self, console: Console | None = None) -> None:
        """Print table, gates, sentence and paths; plain lines where stdout is no terminal."""
        if console is None:
            from rich.console import Console

            console = Console()
        print_sheets([self.sheet], console)
        marks = {"passed": "passed", "failed": "FAILED", "n/a": "n/a   "}
        checks = [f"{marks[check.outcome]}  {check.name}: {check.sentence}" for check in self.gates]
        for line in ["", *checks, *([""] if checks else []), self.sentence, *decision_lines(self.decisions), ""]:
            _say(line, console)
        for figure in self.figures:
            _say(f"figure  {figure.png}", console, whole=True)
        _say(f"page    {self.page}", console, whole=True)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON: sentence, gates, closing table and paths; unknown is null."""
        return {
            "study": self.study,
            "sentence": self.sentence,
            "gates": [gate.model_dump() for gate in self.gates],
            "closing_table": plain_rows(self.closing_table),
            "assumptions": [row.model_dump(mode="json") for row in self.decisions.assumptions],
            "next_run": self.decisions.next_runs.attrs.get("sentence"),
            "page": str(self.page),
            "scores": str(self.scores),
            "figures": [
                {"name": f.name, "svg": str(f.svg), "png": str(f.png), "csv": str(f.csv)} for f in self.figures
            ],
        }


def report(
    *,
    study: str,
    plan: Plan,
    profile: CostProfile,
    records: Sequence[RunRecord],
    scores: Sequence[Score] | pd.DataFrame,
    fits: Sequence[CurveFit],
    verdicts: Sequence[Verdict],
    folder: Path,
    gates: Sequence[SanityCheck] | None = None,
    decisions: Decisions | None = None,
    sensitivity: pd.DataFrame | None = None,
) -> Report:
    """Write figures, scores.csv and report.html, and say what the study concludes.

    Parameters
    ----------
    study
        The study's name.
    plan, profile, records, scores, fits, verdicts
        What is known so far; what is missing is left out and said to be missing.
    folder
        The study's results folder.
    gates
        The learning gates; None judges them from the scores once there are any.
    decisions
        From `budgetlab.decide`.
    sensitivity
        From `budgetlab.sensitivity`: the plan under every meaning of compute.

    Returns
    -------
    Report
        The sentence, the closing table, and the paths.
    """
    level = verdicts[0].interval_level if verdicts else 0.95
    known = outcomes(scores, level)
    table, cells = known.table, known.cells
    concluded = conclude_study(plan, known, verdicts, records, gates=gates)
    sentence, gates = concluded.sentence, concluded.gates
    frame = closing_frame(plan, records, known)
    note = closing_note(frame, cells, level)
    definitions = (*subset_note(frame.attrs["subsets"]), *([frame.attrs["average"]] if frame.attrs["average"] else []))
    spread = score_sheet(known, arms=list(plan.arms))
    averages = average_sheet(known, arms=list(plan.arms))
    decided = decisions or Decisions()
    where, drawings = _hardware(profile), folder / "figures"
    drawn = score_figures(table, list(plan.arms), fits, drawings, level=level, definitions=definitions, where=where)
    answers = answer_figures(verdicts, decided.by_text, list(plan.arms), drawings, where=where)
    answers += size_figures(plan, table, decided.frontier, list(plan.arms), drawings, where=where)
    costs = cost_figures(plan, profile, records, drawings, sensitivity=sensitivity, where=where)
    charted = write_decisions(decided, folder)
    started = any(record.status == "complete" for record in records) or len(table) > 0
    tidy = scores if isinstance(scores, pd.DataFrame) else table
    written = write_csv(folder / "scores.csv", tidy)
    page = page_html(
        study,
        _subtitle(plan),
        sentence,
        below=sentence.startswith(BELOW_THRESHOLD) or not verdicts,
        sections=with_records([
            Section("Gates", gates_html(gates)),
            Section("Outcomes", figure_html(drawn)),
            Section("Verdicts", _verdicts(verdicts, figure_html(answers))),
            *decision_sections(decided, charted),
            Section("All budgets", sheet_html(full_sheet(frame, note=note)) if started else ""),
            Section("Scores", sheet_html(spread, titled=True) if spread.rows else ""),
            Section("The average and its tasks", sheet_html(averages) if averages.rows else ""),
            Section("Plan", sheet_html(plan_sheet(plan)) + sheet_html(status_sheet(plan, records), titled=True)
                    + figure_html(costs[1:])),
            Section("What if", whatif_html(plan)),
            Section("Methods", f"<p>{escape(methods_paragraph(plan))}</p>"),
            Section("What differs between the arms", list_html(plan.audit)),
            Section("Cost of a training step", figure_html(costs[:1]) + sheet_html(profile_sheet(profile))),
            Section("Fits", sheet_html(fit_sheet(fits)) if fits else ""),
            Section("How things are counted", pairs_html(_conventions(profile))),
            Section("Environment", pairs_html(_environment(profile.environment, records))),
            Section("Records", records_html(records, table, folder)),
        ], folder),
        footer=footer_html(folder),
    )  # fmt: skip
    return Report(
        study=study,
        sentence=sentence,
        gates=gates,
        closing_table=frame,
        sheet=closing_sheet(frame, note=note) if started else plan_sheet(plan),
        page=write_whole(folder / "report.html", page),
        scores=written,
        figures=(*drawn, *answers, *costs, *charted),
        decisions=decided,
    )


def _verdicts(verdicts: Sequence[Verdict], drawn: str) -> str:
    if not verdicts:
        return ""
    primary = [f"{verdict.sentence} {' '.join(verdict.notes)}".strip() for verdict in verdicts if verdict.primary]
    told = list_html(primary if len(primary) <= MANY else [])
    return told + drawn + sheet_html(verdict_sheet(verdicts))


def _hardware(profile: CostProfile) -> str:
    where = profile.environment
    dtypes = ", ".join(dict.fromkeys(cost.dtype for cost in profile.arms))
    return f"{where.device_name} ({where.device}, {where.threads} threads), {dtypes}"


def _subtitle(plan: Plan) -> str:
    students = dict.fromkeys(arm.student for arm in plan.arms.values())
    teachers = dict.fromkeys(arm.teacher for arm in plan.arms.values() if arm.teacher)
    names = ", ".join(f"{name} {_shape(plan, name)}" for name in [*students, *teachers])
    seeds = len(plan.seeds)
    return (
        f"{len(plan.arms)} arms matched in {plan.match.replace('_', ' ')}, {seeds} run seed{'s' * (seeds != 1)}, "
        f"teacher charge: {plan.charge}; {names}"
    )


def _shape(plan: Plan, name: str) -> str:
    model = plan.models.get(name)
    return "" if model is None else f"{model.num_layers} × {model.hidden_size}"


def _conventions(profile: CostProfile) -> list[tuple[str, str]]:
    shared: Mapping[str, str] = profile.conventions
    return [
        *((name.replace("_", " "), text) for name, text in shared.items()),
        ("losses", "nats per target token, on held-out text"),
        ("points", "a score times 100"),
        ("n/a", "unknown or not applicable, never zero"),
    ]


def _environment(profiled: Environment, records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return where prices were measured and runs were made: usually one place."""
    where = dict.fromkeys([profiled, *(record.environment for record in records)])
    devices = dict.fromkeys(f"{e.devices} × {e.device_name} ({e.device}), {e.threads} threads" for e in where)
    versions = dict.fromkeys(
        f"python {e.python}, torch {e.torch}, transformers {e.transformers}, budgetlab {e.budgetlab}" for e in where
    )
    return [("device", " | ".join(devices)), ("versions", " | ".join(versions))]


def _say(line: str, console: Console, *, whole: bool = False) -> None:
    from rich.text import Text

    if console.is_terminal:
        console.print(Text(line), soft_wrap=whole)
    else:
        console.out(line, highlight=False)
