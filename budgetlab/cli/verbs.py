"""The verbs that work through a planned study: run, evaluate, report, study, status; and doctor."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from budgetlab.cli.fleets import DryRunOption, EngineOption, WorkersOption, fleet_of, started, with_workers
from budgetlab.cli.options import Options, StudyArg, print_json
from budgetlab.errors import FAILED_FOR_GOOD, CallerError, Terminated, unknown_name

if TYPE_CHECKING:
    from budgetlab.cli.open_study import OpenStudy
    from budgetlab.ranks import Ranks
    from budgetlab.reporting import Report
    from budgetlab.reporting.tables import Sheet
    from budgetlab.values import Plan, RunRecord


def run(
    study: StudyArg,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    *,
    options: Options,
) -> None:
    """Train every planned run that is not finished; STUDY may also be a plan.json. For several GPUs, under torchrun."""
    if started(study, engine, workers, dry_run, "run", options):
        return
    from budgetlab.ranks import joined

    with joined() as ranks:
        opened, made = _plan_together(study, options, ranks, workers)
        records = opened.run(opened.tune(made), ranks)
    if not ranks.first:
        return
    _show_status(made, records, options)
    if any(record.status == "failed" for record in records):
        raise typer.Exit(FAILED_FOR_GOOD)


def evaluate(
    study: StudyArg,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    *,
    options: Options,
) -> None:
    """Score every finished run: read-out loss, own loss, fine-tuned tasks, and the yardsticks."""
    if started(study, engine, workers, dry_run, "evaluate", options):
        return
    opened, made = _planned(study, options, workers=workers)
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


def study(
    study: StudyArg,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    *,
    options: Options,
) -> None:
    """Do all of it, in order, resuming: profile, plan, run, evaluate, fit, report."""
    if started(study, engine, workers, dry_run, None, options):
        return
    opened = options.open(study)
    opened.study = with_workers(opened.study, workers)
    show_report(opened.study_through(), options)
    _fail_if_left_out(opened)


def work(
    study: StudyArg,
    only: str | None = typer.Option(None, "--only", help="run or evaluate; without it both.", metavar="VERB"),
    manifest: str | None = typer.Option(None, "--manifest", help="Print the manifest for kubernetes.", metavar="NAME"),
    workers: WorkersOption = None,
    *,
    options: Options,
) -> None:
    """Be a worker: take what is left to train and score and nobody is at, as long as there is some.

    Any number on any number of machines. Exit status 0: nothing is left; 42: a unit failed for good; 75: asked to stop,
    or all that is left is at work elsewhere.
    """
    for option, given, known in (("--only", only, ("run", "evaluate")), ("--manifest", manifest, ("kubernetes",))):
        if given not in (None, *known):
            raise unknown_name("value", str(given), known, option)
    if manifest is not None:
        from budgetlab.engines.kubernetes import manifest as kubernetes

        opened = options.open(study)
        made = with_workers(opened.store.read_plan() or opened.plan(opened.prices(), keep=False), workers)
        print(kubernetes(fleet_of(study, options, opened, made, only), os.getcwd()), end="")
        return
    try:
        left = _work(study, only, workers, options)
    except KeyboardInterrupt:
        raise Terminated("stopped", "give the same command again; what was finished is kept", "SIGINT") from None
    if left:
        raise typer.Exit(left)


def _work(study: str, only: str | None, workers: int | None, options: Options) -> int:
    """Train and score in turn, until nothing can come any more; return the exit status."""
    from budgetlab.ranks import Ranks

    opened, made = _plan_together(study, options, Ranks(), workers)
    made = opened.tune(made)
    pause, before = _PAUSE_SECONDS, None
    while True:
        training: list[str] = []
        scoring: list[str] = []
        records = opened.store.records() if only == "evaluate" else opened.run(made, left=training)
        if only != "run" and any(record.kind == "rung" and record.status == "complete" for record in records):
            opened.evaluate(made, records, scoring)
        if not training:
            break
        # What others train may bring something to do.
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS) if training == before else _PAUSE_SECONDS
        before = training
        time.sleep(pause)
    _show_status(made, records, options, opened)
    failed = [record for record in records if record.status == "failed"]
    if scoring:
        opened.screen.say(f"work      {len(scoring)} scores are at work elsewhere")
        return Terminated.exit_status
    for line in opened.left_out:
        opened.screen.say(f"work      not scored: {line}")
    return FAILED_FOR_GOOD if failed or opened.left_out else 0


_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 60.0


def retry(
    study: StudyArg,
    unit: str | None = typer.Option(None, "--unit", help="Only this one, as status names it.", metavar="ID"),
    *,
    options: Options,
) -> None:
    """Have the next run or worker train failed units anew; what they left is kept in their folders."""
    opened = options.open(study)
    failed = {record.run_id: record for record in opened.store.records(last_point=True) if record.status == "failed"}
    chosen = [name for name in failed if unit in (None, name, name.rpartition("-")[0])]
    if unit is not None and not chosen:
        raise unknown_name("failed unit", unit, failed, "--unit")
    kept = {name: str(opened.store.set_aside(name)) for name in chosen}
    lines = [f"{name}: {failed[name].message or 'no message'}; kept in {folder}" for name, folder in kept.items()]
    options.print(lambda: kept, list, *(lines or ["no unit has failed"]))


def status(
    study: StudyArg,
    watch: bool = typer.Option(False, "--watch", help="Again and again, until nothing is left."),
    *,
    options: Options,
) -> None:
    """Show what is planned, running, complete, failed and missing, and who is at work on what, from files alone."""
    opened = options.open(study)
    made = opened.store.read_plan()
    if made is None:
        raise CallerError(f"status of {opened.study.name}", "it has no plan yet", f"run budgetlab plan {study}")
    while True:
        records = opened.store.records(last_point=True)
        if watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        _show_status(made, records, options, opened)
        if not watch or (not any((opened.store.folder / "leases").glob("[!.]*")) and _all_ended(made, records)):
            return
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)


_WATCH_SECONDS = 5.0


def _all_ended(made: Plan, records: list[RunRecord]) -> bool:
    from budgetlab.planner import workload

    return workload(made, records).units == 0


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


def _planned(
    study: str, options: Options, ranks: Ranks | None = None, workers: int | None = None
) -> tuple[OpenStudy, Plan]:
    """Open a study and its plan, making the plan where there is none; or a plan.json and the study beside it.

    With `ranks` it is planned for a run, from prices that were timed here.
    """
    from budgetlab.planner import checked
    from budgetlab.store import read_value
    from budgetlab.values import Plan

    if study.endswith(".json"):
        made = checked(read_value(Plan, Path(study)))
        return options.open(study, ranks=ranks), with_workers(made, workers)
    opened = options.open(study, ranks=ranks)
    opened.study = with_workers(opened.study, workers)
    if ranks is None:
        if opened.study.corpus.source == "docs" or opened.store.read_plan() is None:
            opened.corpus()
        return opened, opened.plan(opened.prices())
    with opened.alone():
        if opened.study.corpus.source == "docs" or opened.store.read_plan() is None:
            opened.corpus()
        return opened, opened.plan(opened.profile(to_run=True))


def _plan_together(study: str, options: Options, ranks: Ranks, workers: int | None = None) -> tuple[OpenStudy, Plan]:
    """Let the first process plan, and build the corpus; all others take its plan."""
    from budgetlab.values import Plan

    if not ranks.first:
        shared = ranks.share(None)
        if not shared:
            raise CallerError(f"run, rank {ranks.rank}", "the first process could not begin", "see what it said")
        return options.open(study, ranks=ranks), Plan.model_validate_json(shared)
    try:
        opened, made = _planned(study, options, ranks, workers)
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


def _show_status(made: Plan, records: list[RunRecord], options: Options, opened: OpenStudy | None = None) -> None:
    from budgetlab.engines.leases import read_leases
    from budgetlab.reporting.tables import status_sheet, workers_sheet

    leases = [] if opened is None else read_leases(opened.store.folder / "leases")
    options.print(
        lambda: [record.model_dump(mode="json", exclude={"points"}) for record in records],
        lambda: [status_sheet(made, records), workers_sheet(leases, made, records)],
    )


def show_report(report: Report, options: Options) -> None:
    """Print what a report says, as tables or as one JSON object."""
    if options.as_json:
        print_json(report.as_json())
    else:
        report.print()
