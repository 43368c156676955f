"""Workers that an engine starts elsewhere: what would be started, what that costs by the plan, and starting them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetlab.cli.options import Options
from budgetlab.errors import FAILED_FOR_GOOD

if TYPE_CHECKING:
    from budgetlab.cli.open_study import OpenStudy
    from budgetlab.engines import Fleet
    from budgetlab.values import Plan

EngineOption = Annotated[str, typer.Option("--engine", help="What starts the workers: local, slurm or ray.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Instead of execution.workers.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be started, and what it costs.")]


def with_workers(value: Any, workers: int | None) -> Any:
    """Return a study or a plan with so many workers, where that is said."""
    if workers is None:
        return value
    return value.model_copy(update={"execution": value.execution.model_copy(update={"workers": workers})})


def fleet_of(study: str, options: Options, opened: OpenStudy, made: Plan, only: str | None) -> Fleet:
    """Return the workers of a plan: so many of `budgetlab work`."""
    from budgetlab.cli import run_command
    from budgetlab.engines import Fleet

    root, execution = options.data_root or os.environ.get("BUDGETLAB_DATA_ROOT"), made.execution
    file = str(Path(study).absolute()) if Path(study).exists() else study
    arguments = ["work", file, "--results", str(options.results.absolute())]
    arguments += ["--data-root", str(Path(root).absolute())] if root else []
    return Fleet(
        name=opened.study.name,
        arguments=(*arguments, *(["--only", only] if only else [])),
        run_command=run_command,
        workers=execution.side_by_side,
        gpus=0 if execution.device == "cpu" else execution.devices,
        threads=execution.threads,
        slurm=execution.slurm,
        logs=opened.store.folder.absolute() / "logs",
    )


def started(study: str, engine: str, workers: int | None, dry_run: bool, only: str | None, options: Options) -> bool:
    """Start workers by an engine, or say what would be started; False where the work is to be done here."""
    from budgetlab.engines import check_engine, start_workers

    check_engine(engine)
    if engine == "local" and not dry_run:
        return False
    opened = options.open(study)
    made = with_workers(opened.store.read_plan() or opened.plan(opened.prices(), keep=False), workers)
    fleet = fleet_of(study, options, opened, made, only)
    cost = _cost(opened, made, only)
    say = opened.screen.say
    if dry_run:
        options.print(lambda: {"engine": engine, "workers": fleet.workers, **cost}, list, *_lines(engine, fleet, cost))
        return True
    for line in _lines(engine, fleet, cost):
        say(line)
    statuses = start_workers(engine, fleet, say)
    if statuses is None:
        say(f"follow them with budgetlab status {study} --watch")
    elif any(statuses):
        raise typer.Exit(FAILED_FOR_GOOD if FAILED_FOR_GOOD in statuses else next(filter(None, statuses)))
    return statuses is None


def _cost(opened: OpenStudy, made: Plan, only: str | None) -> dict[str, Any]:
    from budgetlab.planner import workload

    left = workload(made, [] if only == "evaluate" else opened.store.records(last_point=True))
    hours = None if left.device_seconds is None else left.device_seconds / 3600.0
    execution, longest = made.execution, left.longest_seconds
    usd = None if hours is None or execution.usd_per_device_hour is None else hours * execution.usd_per_device_hour
    at_best = None
    if hours is not None and longest is not None:
        at_best = max(hours / (execution.side_by_side * execution.devices), longest / 3600.0)
    longest_hours = None if longest is None else longest / 3600.0
    return {
        "units": 0 if only == "evaluate" else left.units, "device_hours": hours, "hours": at_best,
        "longest_chain_hours": longest_hours, "usd": usd,
    }  # fmt: skip


def _lines(engine: str, fleet: Fleet, cost: dict[str, Any]) -> list[str]:
    shown = {name: "n/a" if value is None else f"{value:.3g}" for name, value in cost.items()}
    each = f"{fleet.threads} cores" + (f" and {fleet.gpus} GPU{'s' * (fleet.gpus > 1)}" if fleet.gpus else "")
    lines = [f"{engine}: {fleet.workers} workers of {each}, each budgetlab {' '.join(fleet.arguments)}"]
    if cost["units"]:
        price = "" if cost["usd"] is None else f", {shown['usd']} USD"
        lines += [
            f"training: {cost['units']} units left, {shown['device_hours']} device hours by the plan{price}; "
            f"{shown['hours']} h with so many workers, {shown['longest_chain_hours']} h with any number"
        ]
    return [*lines, "scores come on top; they are not in the plan"]
