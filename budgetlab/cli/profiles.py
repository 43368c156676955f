"""What `budgetlab profile` does with its options, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from budgetlab.errors import CallerError, unknown_name
from budgetlab.values import CostProfile, ModelCost

if TYPE_CHECKING:
    from budgetlab.cli.workbench import Workbench


_LEAST = {"batch": 1, "seq": 8}
_MOST = {"batch": 2**20, "seq": 8192}


def refuse_two_ways(others: Mapping[str, object], measuring: Mapping[str, object]) -> None:
    """Refuse options that price in different ways: each of `others` stands alone, without those of a measurement."""
    alone = [name for name, value in others.items() if value is not None]
    too = alone[1:] + [name for name, value in measuring.items() if value] if alone else []
    if too and (alone, too) != (["--throughput"], ["--count-only"]):
        raise CallerError(f"profile {alone[0]} with {', '.join(too)}", "each prices in its own way", "give one of them")


def count_one_model(name: str, seq_len: int) -> ModelCost:
    """Count one language model by itself."""
    from budgetlab.models import read_model
    from budgetlab.profiler.single_model import count_model

    return count_model(read_model(name), seq_len=seq_len)


def predict_shape(bench: Workbench, asked: str) -> CostProfile:
    """Price a study at "batch=SEQUENCES,seq=POSITIONS", from the time models of its profile."""
    from budgetlab.profiler.time_model import reshaped

    recipe = bench.study.recipe
    given = {"batch": recipe.batch_sequences, "seq": recipe.seq_len}
    for part in asked.split(","):
        name, _, value = part.partition("=")
        if name not in given:
            raise unknown_name("name", name, list(given), f"--predict {asked}")
        if not value.isdecimal() or not _LEAST[name] <= int(value) <= _MOST[name]:
            wrong = f"{name} is {value!r}, not a whole number from {_LEAST[name]} to {_MOST[name]}"
            raise CallerError(f"--predict {asked}", wrong, "write batch=64,seq=128")
        given[name] = int(value)
    found = bench.known_profile()
    if found is None or all(cost.time_model is None for cost in (*found.arms, *found.teachers)):
        bench.screen.say("predict   no time models in the results folder yet: profiling in full first")
        found = bench.profile(fresh=True, depth="full")
    return reshaped(bench.study, found, given["batch"], given["seq"])


def show_profile(found: CostProfile, figures: Path | None) -> None:
    """Print the tables, and draw the figure of stacked bars into a folder."""
    from budgetlab.reporting.tables import phase_sheet, print_sheets, profile_sheet, ratio_sheet, time_model_sheet

    sheets = [profile_sheet(found)]
    if found.arms_have_seconds:
        sheets += [phase_sheet(found), ratio_sheet(found)]
        further = None if found.predicted_for else time_model_sheet(found)
        sheets += [further] if further else []
    print_sheets(sheets)
    if found.predicted_for:
        for cost in (*found.arms, *found.teachers):
            model = cost.time_model
            whole = cost.batch_tokens // (cost.seq_len or 1)
            size = min(found.micro_batch_sequences or whole, whole)
            if model is not None and cost.seq_len and not model.covers(size, cost.seq_len):
                print(f"warning: {cost.arm}: this shape is outside what was measured; an extrapolation")
    if figures is not None:
        from budgetlab.reporting.figures import costs_table, draw_costs, render

        caption = f"cost of a training token of {found.study} by phase; {found.environment.device_name}"
        print(f"\nfigure  {render('cost_per_arm', draw_costs, costs_table(found), figures, caption).png}")
