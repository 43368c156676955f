"""The verbs that say what things cost and what a budget buys: profile and plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from budgetlab.cli.app import (
    RESULTS,
    DataRoot,
    Debug,
    Json,
    Results,
    StudyArg,
    app,
    bench_of,
    print_json,
    show,
)
from budgetlab.cli.tables import timed_elsewhere


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
        show(counted, counted.model_dump(mode="json"), "model_sheet", as_json)
        return
    if compare:
        found = profiles.compare_profiles(compare)
        show(found, [made.model_dump(mode="json") for made in found], "comparison_sheet", as_json)
        return
    others = {"--predict": predict, "--calibration": calibration, "--throughput": throughput}
    measuring = {"--quick": quick, "--count-only": count_only, "--peak": peak}
    profiles.refuse_two_ways(others, measuring)
    bench = bench_of(study, results, data_root)
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
        print_json(priced.model_dump(mode="json"))
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
    save: Annotated[
        bool, typer.Option("--save", help="Keep the plan for run, although options above change the study's.")
    ] = False,
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

    bench = bench_of(study, results, data_root)
    bench.ask(budgets=budget or (), match=match, teacher_charge=teacher_charge)  # refused before anything is timed
    if recorded is not None:
        prices = read_value(CostProfile, recorded)
    else:
        prices = bench.profile() if throughput is None else bench.prices()
    if throughput is not None:
        prices = timed_elsewhere(prices, throughput, bench.study.execution)
    other = any([budget, match, teacher_charge])
    made = bench.plan(profile=prices, keep=save or not other)
    if other and not save:
        bench.screen.say("plan      with other budgets, match or charge than the study's is not kept (--save)")
    if export is not None:
        from budgetlab.planner import run_description, training_arguments

        print_json((run_description if plain else training_arguments)(made, export))
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
        print_json(made.model_dump(mode="json") | {"units": [unit.as_json() for unit in made.units()]} | blocks)
        return
    from budgetlab.reporting.tables import plan_sheet, print_sheets

    print_sheets([plan_sheet(made)])
    lines = [f"warning: {line}" for line in made.warnings]
    lines += extras.lines([name for name, wanted in asked.items() if wanted], power or (), spread)
    print("\n".join([*lines, "", "What differs between the arms:", *(f"  {line}" for line in made.audit)]))
