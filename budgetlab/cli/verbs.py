"""The verbs that work through a planned study: run, evaluate, report, study, status; and doctor."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from budgetlab.cli.options import Options, StudyArg, print_json
from budgetlab.errors import CallerError

if TYPE_CHECKING:
    from budgetlab.cli.open_study import OpenStudy
    from budgetlab.ranks import Ranks
    from budgetlab.reporting import Report
    from budgetlab.reporting.tables import Sheet
    from budgetlab.values import Plan, RunRecord


def run(study: StudyArg, options: Options) -> None:
    """Train every planned run that is not finished; STUDY may also be a plan.json. For several GPUs, under torchrun."""
    from budgetlab.ranks import joined

    with joined() as ranks:
        opened, made = _plan_together(study, options, ranks)
        records = opened.run(opened.tune(made), ranks)
    if not ranks.first:
        return
    _show_status(made, records, options)
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def evaluate(study: StudyArg, options: Options) -> None:
    """Score every finished run: read-out loss, own loss, fine-tuned tasks, and the yardsticks."""
    opened, made = _planned(study, options)
    scores = opened.evaluate(made, opened.store.records())

    def sheets() -> list[Sheet]:
        from budgetlab.reporting.tables import average_sheet, score_sheet

        table, arms = opened.table(scores), list(made.arms)
        return [score_sheet(table, arms=arms), average_sheet(table, arms=arms)]

    options.print(lambda: [score.model_dump(mode="json") for score in scores], sheets)
    _fail_if_left_out(opened)


def report(study: StudyArg, options: Options) -> None:
    """Draw the figures, tables and page of what is known so far; trains nothing."""
    opened, made = _planned(study, options)
    scores = opened.table(opened.store.scores())
    show_report(opened.report(made, opened.prices(), opened.store.records(last_point=True), scores), options)


def study(study: StudyArg, options: Options) -> None:
    """Do all of it, in order, resuming: profile, plan, run, evaluate, fit, report."""
    opened = options.open(study)
    show_report(opened.study_through(), options)
    _fail_if_left_out(opened)


def status(study: StudyArg, options: Options) -> None:
    """Show what is planned, running, complete, failed and missing."""
    opened = options.open(study)
    made = opened.store.read_plan()
    if made is None:
        raise CallerError(f"status of {opened.study.name}", "it has no plan yet", f"run budgetlab plan {study}")
    _show_status(made, opened.store.records(last_point=True), options)


def doctor(options: Options) -> None:
    """Say what this machine has, and what would keep a study from running here."""
    from budgetlab.hardware import environment, has_bfloat16, pick_device
    from budgetlab.values import ExecutionSpec

    execution = ExecutionSpec()
    device, here = pick_device(execution), environment(execution)
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else None, os.cpu_count() or 1
    found = {
        "budgetlab": here.budgetlab,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "datasets", "fvcore", "scipy", "pandas")},
        "device": device.type,
        "device_name": here.device_name,
        "cores": cores,
        "load": None if load is None else round(load, 2),
        "bfloat16_hardware": has_bfloat16(device),
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "data_root": os.environ.get("BUDGETLAB_DATA_ROOT"),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "advice": "other programs are running: timings will be noisy" if load and load > 0.5 * cores else "none",
    }
    width = max(len(name) for name in found)
    lines = [f"{name:<{width}}  {'n/a' if value is None else value}" for name, value in found.items()]
    options.print(lambda: found, list, *lines)


def _planned(study: str, options: Options, ranks: Ranks | None = None) -> tuple[OpenStudy, Plan]:
    """Open a study and its plan, making the plan where there is none; or a plan.json and the study beside it.

    With `ranks` it is planned for a run, from prices that were timed here.
    """
    from budgetlab.planner import checked
    from budgetlab.store import read_value
    from budgetlab.values import Plan

    if study.endswith(".json"):
        made = checked(read_value(Plan, Path(study)))
        return options.open(study, ranks=ranks), made
    opened = options.open(study, ranks=ranks)
    if opened.study.corpus.source == "docs" or opened.store.read_plan() is None:
        opened.corpus()
    return opened, opened.plan(opened.prices() if ranks is None else opened.profile(to_run=True))


def _plan_together(study: str, options: Options, ranks: Ranks) -> tuple[OpenStudy, Plan]:
    """Let the first process plan, and build the corpus; all others take its plan."""
    from budgetlab.values import Plan

    if not ranks.first:
        shared = ranks.share(None)
        if not shared:
            raise CallerError(f"run, rank {ranks.rank}", "the first process could not begin", "see what it said")
        return options.open(study, ranks=ranks), Plan.model_validate_json(shared)
    try:
        opened, made = _planned(study, options, ranks)
        if ranks.world > 1 and made.trials and not made.tried:
            asked = f"the trials of [tuning] on {ranks.world} processes"
            raise CallerError(asked, "one process runs them", "plan and tune with budgetlab study on one device first")
        opened.corpus()
    except BaseException:
        ranks.share("")
        raise
    ranks.share(made.model_dump_json())
    return opened, made


def _fail_if_left_out(opened: OpenStudy) -> None:
    for line in opened.left_out:
        print(f"budgetlab: not scored: {line}", file=sys.stderr)
    if opened.left_out:
        raise typer.Exit(min(opened.left_out.values()))  # a failure, 1, before a caller's mistake, 2


def _show_status(made: Plan, records: list[RunRecord], options: Options) -> None:
    from budgetlab.reporting.tables import status_sheet

    options.print(
        lambda: [record.model_dump(mode="json", exclude={"points"}) for record in records],
        lambda: [status_sheet(made, records)],
    )


def show_report(report: Report, options: Options) -> None:
    """Print what a report says, as tables or as one JSON object."""
    if options.as_json:
        print_json(report.as_json())
    else:
        report.print()
