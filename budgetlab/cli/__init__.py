"""The command line: one verb each, the same functions as the Python API; rooms load when their verb is called."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from budgetlab.cli.tables import fit_table, numbers, pairs, timed_elsewhere
from budgetlab.errors import BudgetlabError, CallerError

if TYPE_CHECKING:
    from budgetlab.cli.workbench import Workbench
    from budgetlab.reporting import Report

__all__ = ["app", "run_command"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Is it better to distil, or to pretrain on more tokens? Profile, plan, run, evaluate, fit, report.",
)

StudyArg = Annotated[str, typer.Argument(help="Study file, or presets/NAME.toml.", metavar="STUDY")]
Results = Annotated[Path, typer.Option("--results", help="Folder for results.", metavar="DIR")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Where corpus and task paths are looked for first.", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]
RESULTS = Path("results")
INTERRUPTED = 130
STOPPED = "stopped; what was finished is kept, and the same command goes on from there"


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit status.

    0; 2 for a caller's mistake; 1 for a failure; 75 where SIGTERM ended a run that goes on when started again; 130 for
    Ctrl-C.
    """
    try:
        status = app(args=arguments or ["--help"], prog_name="budgetlab", standalone_mode=False) or 0
        return _fail(arguments, STOPPED, status) if status == INTERRUPTED else status
    except TyperException as error:
        return _fail(arguments, f"{error}; see budgetlab --help, or budgetlab COMMAND --help", 2)
    except BudgetlabError as error:
        return _fail(arguments, str(error), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, STOPPED, INTERRUPTED)
    except OSError as error:
        return _fail(arguments, f"{error}; nothing that was finished is lost", 1)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(arguments, f"unexpected failure: {line}; run again with --debug and report it", 1)


def _fail(arguments: list[str], message: str, status: int) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    print(f"budgetlab: {message}", file=sys.stderr)
    return status


def _bench(study: str, results: Path, data_root: Path | None, **further: Any) -> Workbench:
    from budgetlab.cli.screen import Screen
    from budgetlab.cli.workbench import open_workbench

    # Waiting OpenMP threads that spin make a shared machine several times slower; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return open_workbench(study, results, data_root, Screen(), **further)


def _print_json(found: Any) -> None:
    print(json.dumps(found, allow_nan=False))


def _show(found: Any, plain: Any, sheet: str, as_json: bool) -> None:
    """Print plain values as JSON, or the named sheet of what was found."""
    if as_json:
        _print_json(plain)
        return
    from budgetlab.reporting import tables

    tables.print_sheets([getattr(tables, sheet)(found)])


def _show_report(report: Report, as_json: bool) -> None:
    if as_json:
        _print_json(report.as_json())
    else:
        report.print()


@app.command()
def profile(
    study: StudyArg = "presets/demo.toml",
    count_only: Annotated[bool, typer.Option("--count-only", help="Count FLOPs; time nothing.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Six rounds; no memory, energy, time model or calibration.")
    ] = False,
    predict: Annotated[
        str | None,
        typer.Option("--predict", help="Cost at another shape, from the time model.", metavar="batch=N,seq=N"),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="Predict for the device of this profile.json.", metavar="FILE"),
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", help="Show these profiles side by side; repeated.", metavar="FILE")
    ] = None,
    peak: Annotated[
        float | None, typer.Option("--peak", help="FLOPs a second that the device can do at most.", min=1.0, max=1e24)
    ] = None,
    throughput: Annotated[
        Path | None,
        typer.Option(
            "--throughput", help="Count, and take seconds from a CSV or JSON of arm, tokens_per_second.", metavar="FILE"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Count this language model alone: a folder, config.json, hub id or gpt2."),
    ] = None,
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, help="Positions of a sequence, with --model.")] = 128,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what a token costs: FLOPs, seconds, memory and energy of each arm's step, by phase."""
    from budgetlab.cli import profiles

    if model is not None:
        counted = profiles.count_one_model(model, seq_len)
        _show(counted, counted.model_dump(mode="json"), "model_sheet", as_json)
        return
    if compare:
        found = profiles.compare_profiles(compare)
        _show(found, [made.model_dump(mode="json") for made in found], "comparison_sheet", as_json)
        return
    asked = {"--predict": predict, "--calibration": calibration, "--throughput": throughput}
    alone = [name for name, value in asked.items() if value is not None]
    measuring = {"--quick": quick, "--count-only": count_only, "--peak": peak is not None}
    too = alone[1:] + [name for name, given in measuring.items() if given] if alone else []
    if too and (alone, too) != (["--throughput"], ["--count-only"]):
        raise CallerError(f"profile {alone[0]} with {', '.join(too)}", "each prices in its own way", "give one of them")
    bench = _bench(study, results, data_root)
    figures: Path | None = bench.store.folder / "figures"
    if calibration is not None or predict is not None:
        figures = None
        priced = (
            profiles.predict_elsewhere(bench, calibration)
            if calibration is not None
            else profiles.predict_shape(bench, predict or "")
        )
    else:
        counting, depth = count_only or throughput is not None, "quick" if quick else "full"
        priced = bench.profile(fresh=True, count_only=counting, depth=depth, peak=peak, keep=throughput is None)
    if throughput is not None:
        priced = timed_elsewhere(priced, throughput, bench.study.execution)
        bench.keep_profile(priced)
    if as_json:
        _print_json(priced.model_dump(mode="json"))
        return
    profiles.show_profile(priced, figures)


@app.command()
def plan(
    study: StudyArg,
    recorded: Annotated[
        Path | None, typer.Option("--profile", help="Use this recorded profile.", metavar="FILE")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help='Instead of the study\'s, such as "4 h".', metavar="AMOUNT")
    ] = None,
    match: Annotated[
        str | None, typer.Option("--match", help="What is matched: required_flops, device_seconds, tokens:ARM, ...")
    ] = None,
    teacher_charge: Annotated[
        str | None, typer.Option("--teacher-charge", help="none, inference, pretraining or amortised:K.")
    ] = None,
    throughput: Annotated[
        Path | None,
        typer.Option("--throughput", help="CSV of arm, tokens_per_second measured elsewhere.", metavar="FILE"),
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Tokens under every meaning of compute.")] = False,
    paper: Annotated[bool, typer.Option("--paper", help="Methods paragraph and LaTeX table.")] = False,
    figure: Annotated[bool, typer.Option("--figure", help="Draw the sensitivity into the results folder.")] = False,
    power: Annotated[
        list[float] | None,
        typer.Option("--power", help="Seeds and compute that resolve this difference; repeated.", metavar="DIFFERENCE"),
    ] = None,
    spread: Annotated[
        float | None, typer.Option("--spread", help="Standard deviation of a run; else that of the results.")
    ] = None,
    export: Annotated[
        str | None, typer.Option("--export", help="Print ARM's largest run as TrainingArguments.", metavar="ARM")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="With --export: JSON for any trainer instead.")] = False,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn each budget into matched token schedules, in integer steps that never cost more."""
    from budgetlab.store import read_value
    from budgetlab.values import CostProfile

    bench = _bench(study, results, data_root)
    prices = bench.profile() if recorded is None else read_value(CostProfile, recorded)
    if throughput is not None:
        prices = timed_elsewhere(prices, throughput, bench.study.execution)
    bench.ask(budgets=budget or (), match=match, teacher_charge=teacher_charge)
    made = bench.plan(profile=prices)
    if export is not None:
        from budgetlab.planner import run_description, training_arguments

        _print_json((run_description if plain else training_arguments)(made, export))
        return
    from budgetlab.cli.plans import Extras

    extras = Extras(bench.study, prices, made, bench.store)
    asked = {
        "sensitivity": sensitivity,
        "power": bool(power),
        "paper": paper,
        "figure": figure,
    }
    if as_json:
        blocks = extras.as_json([name for name, wanted in asked.items() if wanted], power or (), spread)
        _print_json(made.model_dump(mode="json") | blocks)
        return
    from budgetlab.reporting.tables import plan_sheet, print_sheets

    print_sheets([plan_sheet(made)])
    lines = [f"warning: {line}" for line in made.warnings]
    lines += extras.lines([name for name, wanted in asked.items() if wanted], power or (), spread)
    print("\n".join([*lines, "", "What differs between the arms:", *(f"  {line}" for line in made.audit)]))


@app.command()
def run(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every planned run that is not finished; STUDY may also be a plan.json."""
    bench, made = _planned(study, results, data_root)
    made = bench.tune(made)
    records = bench.run(made)
    if as_json:
        _print_json([record.model_dump(mode="json", exclude={"points"}) for record in records])
        return
    _print_status(made, records)


@app.command()
def evaluate(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score every finished run: read-out loss, own loss, fine-tuned tasks, and the yardsticks."""
    from budgetlab.store import scores_frame

    bench, made = _planned(study, results, data_root)
    scores = bench.evaluate(made, bench.records())
    if as_json:
        _print_json([score.model_dump(mode="json") for score in scores])
        return
    shown = ["arm", "rung", "run_seed", "finetune_seed", "task", "metric", "value", "num_examples"]
    print(scores_frame(scores)[shown].to_string(index=False, float_format="{:.4f}".format, na_rep="n/a"))


@app.command()
def fit(
    study: Annotated[str | None, typer.Argument(help="Study file.", metavar="STUDY")] = None,
    table: Annotated[Path | None, typer.Option("--table", help="Fit this CSV instead.", metavar="FILE")] = None,
    law: Annotated[str, typer.Option("--law", help="power or chinchilla, with --table.")] = "power",
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="NAME=COLUMN of the table, repeated.", metavar="NAME=COLUMN")
    ] = None,
    objective: Annotated[str, typer.Option("--objective", help="huber_log, lad, squared, squared_log.")] = "huber_log",
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
        found = fit_table(
            table,
            out,
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
        )
        if as_json:
            _print_json(found.model_dump(mode="json"))
        else:
            print(found)
        return
    from budgetlab.store import scores_frame

    bench = _bench(study or "", results, data_root)
    scores = scores_frame(bench.store.scores())
    if scores.empty:
        raise CallerError(f"fit {study}", "it has no scores", "run and evaluate it first")
    fits, verdicts = bench.fit(scores)
    if as_json:
        _print_json(
            {
                "fits": [f.model_dump(mode="json") for f in fits],
                "verdicts": [v.model_dump(mode="json") for v in verdicts],
            }
        )
        return
    from budgetlab.reporting.tables import fit_sheet, print_sheets, verdict_sheet

    print_sheets([fit_sheet(fits), verdict_sheet(verdicts)])
    print("\n".join(["", *(verdict.sentence for verdict in verdicts if verdict.primary)]))


@app.command()
def report(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the figures, tables and page of what is known so far; trains nothing."""
    from budgetlab.store import scores_frame

    bench, made = _planned(study, results, data_root)
    scores = scores_frame(bench.store.scores())
    fits, verdicts = bench.fit(scores) if len(scores) else ((), ())
    _show_report(bench.report(made, bench.profile(), bench.records(), scores, fits, verdicts), as_json)


@app.command()
def study(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do all of it, in order, resuming: profile, plan, run, evaluate, fit, report."""
    _show_report(_bench(study, results, data_root).study_through(), as_json)


@app.command()
def status(
    study: StudyArg,
    results: Results = RESULTS,
    data_root: DataRoot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is planned, running, complete, failed and missing."""
    bench = _bench(study, results, data_root)
    made = bench.store.read_plan()
    if made is None:
        raise CallerError(f"status of {bench.study.name}", "it has no plan yet", f"run budgetlab plan {study}")
    records = bench.records()
    if as_json:
        _print_json([record.model_dump(mode="json", exclude={"points"}) for record in records])
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
    _show_report(_bench(preset, results, data_root).study_through(), as_json)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine has, and what would keep a study from running here."""
    from budgetlab.cli.doctor import examine

    found = examine()
    if as_json:
        _print_json(found)
        return
    width = max(len(name) for name in found)
    print("\n".join(f"{name:<{width}}  {'n/a' if value is None else value}" for name, value in found.items()))


def _planned(study: str, results: Path, data_root: Path | None) -> tuple[Workbench, Any]:
    """Open a study and its plan, making the plan where there is none; or a plan.json and the study beside it."""
    if not study.endswith(".json"):
        bench = _bench(study, results, data_root)
        if bench.study.corpus.source == "docs" or bench.store.read_plan() is None:
            bench.corpus()
        return bench, bench.plan(profile=bench.profile(to_run=True))
    from budgetlab.planner import checked
    from budgetlab.store import read_value
    from budgetlab.values import Plan

    made = checked(read_value(Plan, Path(study)))
    beside = Path(study).parent
    return _bench(str(beside / "study.toml"), beside.parent, data_root), made


def _print_status(made: Any, records: Any) -> None:
    from budgetlab.reporting.tables import print_sheets, status_sheet

    print_sheets([status_sheet(made, records)])
