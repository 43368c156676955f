"""The verbs that say what things cost and what a budget buys: profile and plan."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Option

from budgetlab.cli.options import Options, StudyArg, print_json
from budgetlab.errors import CallerError, unknown_name

if TYPE_CHECKING:
    from budgetlab.cli.open_study import OpenStudy
    from budgetlab.reporting.tables import Sheet
    from budgetlab.studies import Study
    from budgetlab.values import CostProfile, Plan

    Block = tuple[dict[str, Any], list[str]]
    """A part of the plan's answer as JSON, and in words."""

_SHAPES = {"batch": (1, 2**20), "seq": (8, 8192)}
"""What --predict takes, from least to most."""


def profile(
    study: StudyArg = "presets/demo.toml",
    count_only: bool = Option(False, "--count-only", help="Count FLOPs; time nothing."),
    quick: bool = Option(False, "--quick", help="Six rounds; no memory, energy or time model."),
    predict: str | None = Option(None, help="Cost at another shape, from the time model.", metavar="batch=N,seq=N"),
    peak: float | None = Option(None, help="FLOPs a second that the device can do at most.", min=1.0, max=1e24),
    throughput: Path | None = Option(
        None, help="Count, and take seconds from a CSV or JSON of arm, tokens_per_second.", metavar="FILE"
    ),
    model: str | None = Option(None, help="Count this language model alone: a folder, config.json, hub id or gpt2."),
    seq_len: int = Option(128, min=1, help="Positions of a sequence, with --model."),
    *,
    options: Options,
) -> None:
    """Measure what a token costs: FLOPs, seconds, memory and energy of each arm's step, by phase."""
    if model is not None:
        from budgetlab.models import read_model
        from budgetlab.profiler.single_model import count_model
        from budgetlab.reporting.tables import model_sheet

        counted = count_model(read_model(model), seq_len=seq_len)
        options.print(lambda: counted.model_dump(mode="json"), lambda: [model_sheet(counted)])
        return
    alone = [name for name, value in (("--predict", predict), ("--throughput", throughput)) if value is not None]
    measuring = {"--quick": quick, "--count-only": count_only and predict is not None, "--peak": peak}
    if too := alone[1:] + [name for name, value in measuring.items() if alone and value]:
        asked = f"profile {alone[0]} with {', '.join(too)}"
        raise CallerError(asked, "each prices in its own way", "give one of them")
    opened = options.open(study)
    if predict is not None:
        priced = _predict_shape(opened, predict)
    elif throughput is not None:
        counted_here = opened.profile(fresh=True, count_only=True, keep=False)
        priced = _timed_elsewhere(counted_here, throughput, opened)
        opened.keep_profile(priced)
    else:
        depth = "quick" if quick else "full"
        priced = opened.profile(fresh=True, count_only=count_only, depth=depth, peak=peak)
    options.print(lambda: priced.model_dump(mode="json"), lambda: _profile_sheets(priced))
    if not options.as_json and predict is None:
        from budgetlab.reporting.figures import costs_table, draw_costs, render

        caption = f"cost of a training token of {priced.study} by phase; {priced.environment.device_name}"
        folder = opened.store.folder / "figures"
        print(f"\nfigure  {render('cost_per_arm', draw_costs, costs_table(priced), folder, caption).png}")


def _profile_sheets(priced: CostProfile) -> Sequence[Sheet]:
    from budgetlab.reporting.tables import phase_sheet, profile_sheet, ratio_sheet, time_model_sheet

    if not priced.arms_have_seconds:
        return [profile_sheet(priced)]
    models = None if priced.predicted_for else time_model_sheet(priced)
    return [profile_sheet(priced), phase_sheet(priced), ratio_sheet(priced), *([models] if models else [])]


def _predict_shape(opened: OpenStudy, asked: str) -> CostProfile:
    """Price a study at "batch=SEQUENCES,seq=POSITIONS", from the time models of its profile."""
    from budgetlab.profiler.time_model import reshaped

    recipe = opened.study.recipe
    given = {"batch": recipe.batch_sequences, "seq": recipe.seq_len}
    for part in asked.split(","):
        name, _, value = part.partition("=")
        if name not in given:
            raise unknown_name("name", name, list(given), f"--predict {asked}")
        least, most = _SHAPES[name]
        if not value.isdecimal() or not least <= int(value) <= most:
            wrong = f"{name} is {value!r}, not a whole number from {least} to {most}"
            raise CallerError(f"--predict {asked}", wrong, "write batch=64,seq=128")
        given[name] = int(value)
    found = opened.known_profile()
    if found is None or all(cost.time_model is None for cost in (*found.arms, *found.teachers)):
        opened.screen.say("predict   no time models in the results folder yet: profiling in full first")
        found = opened.profile(fresh=True, depth="full")
    priced = reshaped(opened.study, found, given["batch"], given["seq"])
    for cost in (*priced.arms, *priced.teachers):
        sequences = cost.batch_tokens // (cost.seq_len or 1)
        size = min(priced.micro_batch_sequences or sequences, sequences)
        if cost.time_model is not None and cost.seq_len and not cost.time_model.covers(size, cost.seq_len):
            opened.screen.warn(f"{cost.arm}: this shape is outside what was measured; an extrapolation")
    return priced


def _timed_elsewhere(prices: CostProfile, path: Path, opened: OpenStudy) -> CostProfile:
    """Take the seconds of a profile from a CSV or JSON file of `arm` and `tokens_per_second`.

    A CSV file's lines after # say whence they are; a JSON file is a list of objects, one an arm.
    """
    import pandas as pd

    from budgetlab.planner import with_throughput

    kind, remedy = ("JSON", "list") if path.suffix == ".json" else ("CSV", "file with a header")
    source = path.name
    try:
        text = path.read_text(encoding="utf-8")
        if kind == "JSON":
            table = pd.DataFrame.from_records(json.loads(text))
        else:
            table = pd.read_csv(io.StringIO(text), comment="#")
            said = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
            source = " ".join([f"{path.name}:", *said]) if said else path.name
    except FileNotFoundError:
        raise CallerError(f"--throughput {path}", "no such file", f"give the path of a {kind} file") from None
    except (ValueError, TypeError, OSError) as error:
        wrong = f"no list of objects ({error})" if kind == "JSON" else f"not a CSV table ({error})"
        raise CallerError(f"--throughput {path}", wrong, f"give a {kind} {remedy}") from None
    return with_throughput(prices, table, source, opened.study.execution)


def plan(
    study: StudyArg,
    recorded: Path | None = Option(None, "--profile", help="Use this recorded profile.", metavar="FILE"),
    budget: list[str] = Option((), help='Instead of the study\'s, such as "4 h".', metavar="AMOUNT"),
    match: str | None = Option(None, help="What is matched: required_flops, device_seconds, tokens:ARM, ..."),
    teacher_charge: str | None = Option(None, help="none, inference, cache, pretraining or amortised:K."),
    throughput: Path | None = Option(None, help="CSV of arm, tokens_per_second measured elsewhere.", metavar="FILE"),
    save: bool = Option(False, "--save", help="Keep the plan for run, although options above change the study's."),
    sensitivity: bool = Option(False, "--sensitivity", help="Tokens under every meaning of compute."),
    paper: bool = Option(False, "--paper", help="Methods paragraph and LaTeX table."),
    figure: bool = Option(False, "--figure", help="Draw the sensitivity into the results folder."),
    power: list[float] = Option(
        (), help="Seeds and compute that resolve this difference; repeated.", metavar="DIFFERENCE"
    ),
    spread: float | None = Option(None, help="Standard deviation of a run; else that of the results."),
    export: str | None = Option(None, help="Print ARM's largest run as TrainingArguments.", metavar="ARM"),
    plain: bool = Option(False, "--plain", help="With --export: JSON for any trainer instead."),
    to: str = Option("transformers", help="With --export: transformers, trl, distillkit or megatron."),
    *,
    options: Options,
) -> None:
    """Turn each budget into matched token schedules, in integer steps that never cost more."""
    from budgetlab.planner import latex_table, methods_paragraph, run_description, trainer_arguments
    from budgetlab.planner import sensitivity as of_meanings
    from budgetlab.store import read_profile

    opened = options.open(study)
    # Refused before anything is timed.
    opened.study = opened.study.asked(budgets=budget, match=match, teacher_charge=teacher_charge)
    if recorded is not None:
        prices = read_profile(recorded)
    else:
        prices = opened.profile() if throughput is None else opened.prices()
    if throughput is not None:
        prices = _timed_elsewhere(prices, throughput, opened)
    other = any([budget, match, teacher_charge])
    made = opened.plan(prices, keep=save or not other)
    if other and not save:
        opened.screen.say("plan      with other budgets, match or charge than the study's is not kept (--save)")
    if export is not None:
        print_json(run_description(made, export) if plain else trainer_arguments(made, export, to))
        return
    blocks: list[Block] = []
    if sensitivity:
        blocks.append(_sensitivity(opened, prices))
    if power:
        blocks.append(_power(opened, made, power, spread))
    if paper:
        words, table = methods_paragraph(made), latex_table(made)
        blocks.append(({"methods_paragraph": words, "latex_table": table}, [words, "", table]))
    if figure:
        from budgetlab.reporting.figures import draw_plan, plan_table, render

        caption = f"tokens that the largest budget of {opened.study.name} buys each arm, under every meaning of compute"
        table, figures = plan_table(of_meanings(opened.study, prices)), opened.store.folder / "figures"
        drawn = str(render("plan", draw_plan, table, figures, caption).png)
        blocks.append(({"figure": drawn}, [f"figure  {drawn}"]))
    found = made.model_dump(mode="json") | {"units": [unit.as_json() for unit in made.units()]}
    lines = [f"warning: {line}" for line in made.warnings]
    for plain_block, words in blocks:
        found |= plain_block
        lines += ["", *words]
    if opened.study.recipe.causal:
        plain_block, words = _written_text(opened.study, prices)
        found |= plain_block
        lines += words
    lines += ["", "What differs between the arms:", *(f"  {line}" for line in made.audit)]
    from budgetlab.reporting.tables import plan_sheet

    options.print(lambda: found, lambda: [plan_sheet(made)], *lines)


def _sensitivity(opened: OpenStudy, prices: CostProfile) -> Block:
    """Tokens under every meaning of compute, costs all in, and what a cached teacher would save."""
    from budgetlab.planner import all_in, cached_teacher, definition_notes, sensitivity
    from budgetlab.reporting.tables import plain_rows
    from budgetlab.units import format_amount, format_quantity

    found, costs = sensitivity(opened.study, prices), all_in(opened.study, prices)
    caches = {top: cached_teacher(opened.study, prices, top_k=top) for top in (None, 64)}
    wide = found.pivot_table(index=["match", "charge"], columns="arm", values="ratio", sort=False, dropna=False)
    wide = wide[list(opened.study.arms)].dropna(how="all").rename_axis(columns=None)
    lines = [
        "Tokens in this plan's largest budget relative to the first feasible arm, under every meaning of compute:", "",
        wide.to_string(float_format="{:.3f}".format, na_rep="n/a"), "", *definition_notes(found),
    ]  # fmt: skip
    for row in plain_rows(costs[costs["rung"] == costs["rung"].max()] if len(costs) else costs):
        if row["all_in_flops"] is None:
            lines.append(f"{row['arm']}, all in: n/a, the cost of its teacher is unknown")
            continue
        cost, teacher = (format_amount(row[name], "required_flops") for name in ("all_in_flops", "teacher_flops"))
        tokens = f"{row['reference']} would read {format_quantity(row['reference_tokens'], 'tokens')} for that"
        lines.append(f"{row['arm']}, all in: {cost}, of which {teacher} for its teacher; {tokens}")
    for whole, top in zip(caches[None].to_dict("records"), caches[64].to_dict("records"), strict=True):
        if not whole["possible"]:
            lines.append(f"{whole['arm']}, teacher cached: not possible, {whole['why_not']}")
            continue
        pays = "it would pay from the second pass on, and there is one at most"
        if whole["saves"]:
            live, cached = (format_quantity(whole[f"tokens_{how}"], "tokens") for how in ("live", "cached"))
            pays = f"{cached} instead of {live} in {whole['passes']:.1f} passes"
        sizes = []
        for name, row in (("all", whole), ("the top 64", top)):
            each, total = (format_quantity(row[what], "B") for what in ("bytes_per_token", "total_bytes"))
            sizes.append(f"{name} logits {each} a token, {total} in all{' (absurd)' if row['absurd'] else ''}")
        lines.append(f"{whole['arm']}, teacher cached: {pays}; {'; '.join(sizes)}")
    return {
        "sensitivity": plain_rows(found), "all_in": plain_rows(costs), "cached_teacher": plain_rows(caches[None]),
    }, lines  # fmt: skip


def _written_text(study: Study, prices: CostProfile) -> Block:
    """What distillation on text that a model writes would read, beside the arms; it is not trained here."""
    from budgetlab.planner import written_text
    from budgetlab.reporting.tables import plain_rows
    from budgetlab.units import format_amount, format_quantity

    found = plain_rows(written_text(study, prices))
    whose = {
        "sequence_level": "sequence-level, the teacher writes the text",
        "on_policy": "on-policy, the student writes it",
    }
    lines = ["", "Planned alone, not trained here, for what the arm costs at its largest budget (required FLOPs):"]
    for row in found:
        tokens, price = (
            format_quantity(row["tokens"], "tokens"),
            format_amount(row["flops_per_token"], "required_flops"),
        )
        lines.append(
            f"  {row['arm']} {whose[row['method']]}: {tokens} at {price} a token, {row['ratio']:.2f} of the arm's"
        )
    return {"written_text": found}, lines if found else []


def _power(opened: OpenStudy, made: Plan, differences: Sequence[float], spread: float | None) -> Block:
    """What resolves a difference, by the spread that is stated or was measured here."""
    from budgetlab.planner import power
    from budgetlab.reporting.tables import plain_rows
    from budgetlab.units import format_amount, format_seconds

    if spread is not None:
        basis = f"{spread:.4g} (as stated)"
    else:
        known = [verdict for verdict in opened.store.read_fits()[1] if verdict.primary and verdict.run_sd]
        if not known:
            raise CallerError("--power", "no results say how much runs differ", "state it with --spread")
        top = max(known, key=lambda verdict: verdict.at.amount)
        spread = top.run_sd or 0.0
        basis = f"{spread:.4g} {top.unit} (measured here on {top.y})"
    found = plain_rows(power(made, run_sd=spread, differences=differences))
    lines = [f"Standard deviation of one run: {basis}. To resolve a difference four times in five:"]
    for row in found:
        if row["seeds"] is None:
            lines.append(f"  {row['difference']:g}: more than 100,000 seeds")
            continue
        cost = "n/a" if row["required_flops"] is None else format_amount(row["required_flops"], "required_flops")
        now = "; this plan does" if row["resolved_now"] else ""
        spent = f"{cost} in the arms, {format_seconds(row['device_seconds'])} of device time"
        lines.append(f"  {row['difference']:g}: {row['seeds']} seeds, {spent}{now}")
    return {"power": found}, lines
