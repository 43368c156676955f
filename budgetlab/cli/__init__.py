"""The command line: one verb each, the same functions as the Python API; rooms load when their verb is called."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from budgetlab.cli.app import RESULTS, DataRoot, Debug, Json, Results, StudyArg, app, bench_of, print_json
from budgetlab.cli.pricing import plan, profile
from budgetlab.cli.tables import TableQuestion, fit_table, numbers, pairs
from budgetlab.errors import BudgetlabError, CallerError, LostRank, Terminated, place_in_own_code

if TYPE_CHECKING:
    from budgetlab.cli.workbench import Workbench
    from budgetlab.ranks import Ranks
    from budgetlab.reporting import Report

__all__ = ["app", "plan", "profile", "run_command"]

INTERRUPTED = 130
STOPPED = "stopped; what was finished is kept, and the same command goes on from there"


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit status.

    0; 2 for a caller's mistake; 1 for a failure; 75 where SIGTERM ended a run that goes on when started again; 130 for
    Ctrl-C.
    """
    try:
        with _leave_on_sigterm():
            status = app(args=arguments or ["--help"], prog_name="budgetlab", standalone_mode=False) or 0
        return _fail(arguments, STOPPED, status) if status == INTERRUPTED else status
    except TyperException as error:
        return _fail(arguments, f"{error}; see budgetlab --help, or budgetlab COMMAND --help", 2)
    except LostRank as error:
        # Of many processes that all lost the same one, the first says so.
        return _fail(arguments, str(error), error.exit_status) if os.environ.get("RANK", "0") == "0" else 1
    except (BudgetlabError, Terminated) as error:
        return _fail(arguments, str(error), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, STOPPED, INTERRUPTED)
    except OSError as error:
        return _fail(arguments, f"{error}; nothing that was finished is lost", 1)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        if (place := place_in_own_code(error)) is not None:
            return _fail(arguments, f"{place}: {line}; correct your file", 2)
        return _fail(arguments, f"unexpected failure: {line}; run again with --debug and report it", 1)


@contextmanager
def _leave_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end any verb as it ends a run: with the status that asks to be started again."""

    def leave(number: int, frame: object) -> None:
        raise Terminated("stopped", "give the same command again; what was finished is kept")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(arguments: list[str], message: str, status: int) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    print(f"budgetlab: {message}", file=sys.stderr)
    return status


def _show_report(report: Report, as_json: bool) -> None:
    if as_json:
        print_json(report.as_json())
    else:
        report.print()


@app.command()
def run(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every planned run that is not finished; STUDY may also be a plan.json. For several GPUs, under torchrun."""
    from budgetlab.ranks import joined

    with joined() as ranks:
        bench, made = _planned_together(study, results, data_root, ranks)
        records = bench.run(bench.tune(made), ranks)
    if not ranks.first:
        return
    if as_json:
        print_json([record.model_dump(mode="json", exclude={"points"}) for record in records])
    else:
        _print_status(made, records)
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


@app.command()
def evaluate(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score every finished run: read-out loss, own loss, fine-tuned tasks, and the yardsticks."""
    bench, made = _planned(study, results, data_root, to_run=False)
    scores = bench.evaluate(made, bench.records())
    if as_json:
        print_json([score.model_dump(mode="json") for score in scores])
    else:
        from budgetlab.reporting.tables import average_sheet, print_sheets, score_sheet

        table, arms = bench.table(scores), list(made.arms)
        sheets = (score_sheet(table, arms=arms), average_sheet(table, arms=arms))
        print_sheets([sheet for sheet in sheets if sheet.rows])
    _fail_if_left_out(bench)


@app.command()
def fit(
    study: Annotated[str | None, typer.Argument(help="Study file.", metavar="STUDY")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Fit this table instead.", metavar="FILE")] = None,
    form: Annotated[
        str, typer.Option("--from", help="What wrote it: auto, csv, trainer_state, tracker or harness.", metavar="FORM")
    ] = "auto",
    law: Annotated[
        str, typer.Option("--law", help="Name of a law, or path of a file with one, with --table: see docs/laws.md.")
    ] = "power",
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="NAME=COLUMN of the table, repeated.", metavar="NAME=COLUMN")
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", help="huber_log, lad, squared, squared_log, squared_log1p.")
    ] = "huber_log",
    delta: Annotated[float, typer.Option("--delta", help="Of the Huber loss.")] = 1e-3,
    resamples: Annotated[int, typer.Option("--resamples", help="Resamples of the interval; 0 for none.")] = 1000,
    interval: Annotated[str, typer.Option("--interval", help="auto, rows, clusters, wild or pooled_t.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Of the resampling.")] = 0,
    weights: Annotated[str | None, typer.Option("--weights", help="Column of positive weights.")] = None,
    clusters: Annotated[str | None, typer.Option("--clusters", help="Column that names the run of a row.")] = None,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", help="PARAMETER=VALUE held fixed, repeated.", metavar="NAME=VALUE")
    ] = None,
    define: Annotated[
        list[str] | None, typer.Option("--define", help="NAME=MEANING for the record, repeated.", metavar="NAME=TEXT")
    ] = None,
    exclude_invalid: Annotated[
        bool, typer.Option("--exclude-invalid", help="Leave out, and count, rows that no power law can have.")
    ] = False,
    by: Annotated[
        str | None, typer.Option("--by", help="Column of groups: a curve each, compared.", metavar="COLUMN")
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Keep the last row of each run.")] = False,
    higher: Annotated[
        bool | None,
        typer.Option("--higher-is-better/--lower-is-better", help="Which way an outcome goes whose name does not say."),
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", help="NAME=VALUE: predict there, repeated.", metavar="NAME=VALUE")
    ] = None,
    best: Annotated[
        list[float] | None, typer.Option("--optimum", help="Split this compute, repeated.", metavar="FLOPS")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write fits.json, fits.csv and the figure.", metavar="DIR")
    ] = None,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fit scaling curves and compare the arms; or, with --table and the options above --results, a law to any table."""
    if (study is None) == (table is None):
        raise CallerError("budgetlab fit", "give exactly one of STUDY and --table", "see budgetlab fit --help")
    if table is not None:
        found, plain = fit_table(
            table,
            out,
            form,
            law=law,
            columns=pairs("--map", mapping) or None,
            objective=objective,
            delta=delta,
            resamples=resamples,
            interval=interval,
            seed=seed,
            weights=weights,
            clusters=clusters,
            pinned=numbers("--pin", pin),
            definitions=pairs("--define", define),
            exclude_invalid=exclude_invalid,
            diagnostics=True,
            asked=TableQuestion(by, last, higher, numbers("--at", at), tuple(best or ())),
        )
        if as_json:
            print_json(plain)
        else:
            print(found)
        return
    bench = bench_of(study or "", results, data_root)
    scores = bench.table(bench.store.scores())
    if scores.empty:
        raise CallerError(f"fit {study}", "it has no scores", "run and evaluate it first")
    from budgetlab.reporting.conclusion import conclude_study
    from budgetlab.reporting.tables import fit_sheet, print_sheets, verdict_sheet

    plan = bench.store.read_plan()
    if plan is None:
        raise CallerError(f"fit {study}", "it has scores and no plan.json", f"make it again: budgetlab plan {study}")
    fits, verdicts = bench.fit(scores, plan)
    concluded = conclude_study(plan, scores, verdicts).sentence
    if as_json:
        print_json(
            {
                "sentence": concluded,
                "fits": [f.model_dump(mode="json") for f in fits],
                "verdicts": [v.model_dump(mode="json") for v in verdicts],
            }
        )
        return
    print_sheets([fit_sheet(fits), verdict_sheet(verdicts)])
    print(f"\n{concluded}")


@app.command()
def report(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the figures, tables and page of what is known so far; trains nothing."""
    bench, made = _planned(study, results, data_root, to_run=False)
    scores = bench.table(bench.store.scores())
    fits, verdicts = bench.fit(scores, made) if len(scores) else ((), ())
    _show_report(bench.report(made, bench.prices(), bench.records(), scores, fits, verdicts), as_json)


@app.command()
def study(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do all of it, in order, resuming: profile, plan, run, evaluate, fit, report."""
    bench = bench_of(study, results, data_root)
    _show_report(bench.study_through(), as_json)
    _fail_if_left_out(bench)


@app.command()
def status(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is planned, running, complete, failed and missing."""
    bench = bench_of(study, results, data_root)
    made = bench.store.read_plan()
    if made is None:
        raise CallerError(f"status of {bench.study.name}", "it has no plan yet", f"run budgetlab plan {study}")
    records = bench.records()
    if as_json:
        print_json([record.model_dump(mode="json", exclude={"points"}) for record in records])
        return
    _print_status(made, records)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="One seed, under four minutes.")] = False,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare four strategies at three matched budgets, on text that this machine already has."""
    preset = "presets/demo_quick.toml" if quick else "presets/demo.toml"
    _show_report(bench_of(preset, results, data_root).study_through(), as_json)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine has, and what would keep a study from running here."""
    from budgetlab.cli.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    width = max(len(name) for name in found)
    print("\n".join(f"{name:<{width}}  {'n/a' if value is None else value}" for name, value in found.items()))


def _planned(
    study: str, results: Path, data_root: Path | None, ranks: Ranks | None = None, *, to_run: bool = True
) -> tuple[Workbench, Any]:
    """Open a study and its plan, making the plan where there is none; or a plan.json and the study beside it."""
    if not study.endswith(".json"):
        bench = _opened(study, results, data_root, ranks)
        if bench.study.corpus.source == "docs" or bench.store.read_plan() is None:
            bench.corpus()
        return bench, bench.plan(profile=bench.profile(to_run=True) if to_run else bench.prices())
    from budgetlab.planner import checked
    from budgetlab.store import read_value
    from budgetlab.values import Plan

    made = checked(read_value(Plan, Path(study)))
    return _opened(study, results, data_root, ranks), made


def _opened(study: str, results: Path, data_root: Path | None, ranks: Ranks | None) -> Workbench:
    """Open a study, or the one beside a plan.json, in whose folder its results go."""
    if study.endswith(".json"):
        study, results = str(Path(study).with_name("study.toml")), Path(study).absolute().parent.parent
    return bench_of(study, results, data_root, ranks=ranks)


def _planned_together(study: str, results: Path, data_root: Path | None, ranks: Ranks) -> tuple[Workbench, Any]:
    """Let the first process plan, and build the corpus; all others take its plan."""
    from budgetlab.values import Plan

    if not ranks.first:
        shared = ranks.share(None)
        if not shared:
            raise CallerError(f"run, rank {ranks.rank}", "the first process could not begin", "see what it said")
        return _opened(study, results, data_root, ranks), Plan.model_validate_json(shared)
    try:
        bench, made = _planned(study, results, data_root, ranks)
        if ranks.world > 1 and made.trials and not made.tried:
            asked = f"the trials of [tuning] on {ranks.world} processes"
            raise CallerError(asked, "one process runs them", "plan and tune with budgetlab study on one device first")
        bench.corpus()
    except BaseException:
        ranks.share("")
        raise
    ranks.share(made.model_dump_json())
    return bench, made


def _fail_if_left_out(bench: Workbench) -> None:
    for line in bench.left_out:
        print(f"budgetlab: not scored: {line}", file=sys.stderr)
    if bench.left_out:
        raise typer.Exit(min(bench.left_out.values()))  # a failure, 1, before a caller's mistake, 2


def _print_status(made: Any, records: Any) -> None:
    from budgetlab.reporting.tables import print_sheets, status_sheet

    print_sheets([status_sheet(made, records)])
