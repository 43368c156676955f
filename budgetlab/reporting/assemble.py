"""From values to a report: figures, tables, the page, and the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.decisions import Decisions, assumptions_frame
from budgetlab.planner import methods_paragraph
from budgetlab.reporting import tables
from budgetlab.reporting.averages import outcomes
from budgetlab.reporting.conclusion import BELOW_THRESHOLD, MANY, SanityCheck, conclude_study
from budgetlab.reporting.figures import FIGURES, FigureFiles, Known
from budgetlab.reporting.page import page_html
from budgetlab.reporting.whatif import whatif_form
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
    checks: tuple[SanityCheck, ...]
    closing_table: pd.DataFrame
    """Every arm at every budget and the yardsticks, in canonical units; unknown is missing."""
    sheet: tables.Sheet
    """The closing table as printed: the largest budget, or the plan where nothing was run."""
    page: Path
    scores: Path
    figures: tuple[FigureFiles, ...]
    decisions: Decisions = field(default_factory=Decisions)
    """What the verdicts rest on, and what follows from them."""

    def print(self, console: Console | None = None) -> None:
        """Print table, sanity checks, sentence and paths; plain lines where stdout is no terminal."""
        if console is None:
            from rich.console import Console

            console = Console()
        tables.print_sheets([self.sheet], console)
        marks = {"passed": "passed", "failed": "FAILED", "n/a": "n/a   "}
        lines = [f"{marks[check.outcome]}  {check.name}: {check.sentence}" for check in self.checks]
        lines += ["", self.sentence] if lines else [self.sentence]
        if self.decisions.assumptions:
            lines.append(tables.assumption_words(self.decisions.assumptions))
        if len(self.decisions.next_runs):
            lines.append(self.decisions.next_runs.attrs["sentence"])
        for line in ["", *lines, ""]:
            _say(line, console)
        for figure in self.figures:
            _say(f"figure  {figure.png}", console, whole=True)
        _say(f"page    {self.page}", console, whole=True)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON: sentence, sanity checks, closing table and paths; unknown is null."""
        return {
            "study": self.study,
            "sentence": self.sentence,
            "gates": [check.model_dump() for check in self.checks],
            "closing_table": tables.plain_rows(self.closing_table),
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
    checks: Sequence[SanityCheck] | None = None,
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
    checks
        The sanity checks; None judges them from the scores once there are any.
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
    found, arms = outcomes(scores, level), list(plan.arms)
    concluded = conclude_study(plan, found, verdicts, records, checks=checks)
    frame = tables.closing_frame(plan, records, found)
    decided = decisions or Decisions()
    known = Known(
        plan=plan,
        profile=profile,
        records=records,
        outcomes=found,
        fits=fits,
        verdicts=verdicts,
        decisions=decided,
        sensitivity=pd.DataFrame() if sensitivity is None else sensitivity,
        definitions=[*tables.subset_note(frame.attrs["subsets"]), *filter(None, [frame.attrs["average"]])],
        where=_hardware(profile),
    )
    drawn = [(figure.section, figure.write(known, folder / "figures")) for figure in FIGURES]
    figures = [(section, files) for section, files in drawn if files is not None]
    sheets = {
        "assumptions": tables.assumption_sheet(decided.assumptions),
        "verdict_map": tables.map_sheet(decided.verdict_map) if len(decided.verdict_map) else None,
        "next_run": tables.next_sheet(decided.next_runs),
    }
    _write_decisions(decided, sheets, folder)
    written = write_csv(folder / "scores.csv", scores if isinstance(scores, pd.DataFrame) else found.table)
    started = any(record.status == "complete" for record in records) or len(found.table) > 0
    planned = tables.plan_sheet(plan)
    primary = [f"{verdict.sentence} {' '.join(verdict.notes)}".strip() for verdict in verdicts if verdict.primary]
    page = page_html(
        folder,
        study=study,
        subtitle=_subtitle(plan),
        sentence=concluded.sentence,
        below=concluded.sentence.startswith(BELOW_THRESHOLD) or not verdicts,
        checks=concluded.checks,
        figures=figures,
        primary=primary if len(primary) <= MANY else [],
        notes=decided.notes,
        audit=plan.audit,
        methods=methods_paragraph(plan),
        conventions=_conventions(profile),
        environment=_environment(profile.environment, records),
        form=whatif_form(plan),
        num_runs=len(records),
        num_scores=len(found.table),
        sheets={
            **sheets,
            "verdicts": tables.verdict_sheet(verdicts),
            "budgets": tables.full_sheet(frame) if started else None,
            "scores": tables.score_sheet(found, arms=arms),
            "averages": tables.average_sheet(found, arms=arms),
            "plan": planned,
            "status": tables.status_sheet(plan, records),
            "profile": tables.profile_sheet(profile),
            "fits": tables.fit_sheet(fits),
            "runs": tables.runs_sheet(records),
            "scored": tables.score_files_sheet(found.table),
        },
    )
    return Report(
        study=study,
        sentence=concluded.sentence,
        checks=concluded.checks,
        closing_table=frame,
        sheet=tables.closing_sheet(frame) if started else planned,
        page=write_whole(folder / "report.html", page),
        scores=written,
        figures=tuple(files for _, files in figures),
        decisions=decided,
    )


def _write_decisions(decided: Decisions, sheets: Mapping[str, tables.Sheet | None], folder: Path) -> None:
    """Write the tables of what was decided as Markdown and CSV; nothing where nothing is known."""
    for name, sheet in sheets.items():
        if sheet is not None and sheet.rows:
            write_whole(folder / f"{name}.md", tables.markdown(sheet))
    frames = {
        "all_in": decided.frontier, "capacity_gap": decided.gap, "verdict_map": decided.verdict_map,
        "next_runs": decided.next_runs, "assumptions": assumptions_frame(decided.assumptions),
    }  # fmt: skip
    for name, frame in frames.items():
        if len(frame):
            write_csv(folder / f"{name}.csv", frame)


def _hardware(profile: CostProfile) -> str:
    where = profile.environment
    dtypes = ", ".join(dict.fromkeys(cost.dtype for cost in profile.arms))
    return f"{where.device_name} ({where.device}, {where.threads} threads), {dtypes}"


def _subtitle(plan: Plan) -> str:
    students = [arm.student for arm in plan.arms.values()]
    teachers = [arm.teacher for arm in plan.arms.values() if arm.teacher]
    shapes = {name: plan.models.get(name) for name in [*students, *teachers]}
    names = ", ".join(f"{name} {m.num_layers} × {m.hidden_size}" if m else name for name, m in shapes.items())
    seeds, matched = len(plan.seeds), plan.match.replace("_", " ").replace("flops", "FLOPs")
    return (
        f"{len(plan.arms)} arms matched in {matched}, {seeds} run seed{'s' * (seeds != 1)}, "
        f"teacher charge: {plan.charge}; {names}"
    )


def _conventions(profile: CostProfile) -> list[tuple[str, str]]:
    return [
        *((name.replace("_", " "), text) for name, text in profile.conventions.items()),
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
