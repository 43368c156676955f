"""What `budgetlab plan` prints besides its table: sensitivity, power, the words for a paper, the figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budgetlab.errors import CallerError
from budgetlab.planner import (
    all_in,
    cached_teacher,
    definition_notes,
    latex_table,
    methods_paragraph,
    power,
    sensitivity,
)
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import CostProfile, Plan

if TYPE_CHECKING:
    from budgetlab.store import Store
    from budgetlab.studies import Study

__all__ = ["draw", "paper_words", "power_words", "sensitivity_words"]


def sensitivity_words(study: Study, prices: CostProfile) -> str:
    """Tabulate tokens relative to the first arm under every meaning of compute, and what depends on it."""
    found = sensitivity(study, prices)
    wide = found.pivot_table(index=["match", "charge"], columns="arm", values="ratio", sort=False, dropna=False)
    wide = wide.dropna(how="all").rename_axis(columns=None)
    first = next(iter(study.arms))
    head = f"Tokens relative to {first} in this plan's largest budget, under every meaning of compute:"
    shown = wide.to_string(float_format="{:.3f}".format, na_rep="n/a")
    further = [*definition_notes(found), *_all_in_words(study, prices), *_cache_words(study, prices)]
    return "\n".join([head, "", shown, "", *further])


def _all_in_words(study: Study, prices: CostProfile) -> Iterator[str]:
    table = all_in(study, prices)
    for row in table[table["rung"] == table["rung"].max()].to_dict("records") if len(table) else ():
        if row["all_in_flops"] is None or math.isnan(row["all_in_flops"]):
            yield f"{row['arm']}, all in: n/a, the cost of its teacher is unknown"
            continue
        cost, teacher = (format_amount(row[name], "required_flops") for name in ("all_in_flops", "teacher_flops"))
        tokens = f"{row['reference']} would read {format_quantity(row['reference_tokens'], 'tokens')} for that"
        yield f"{row['arm']}, all in: {cost}, of which {teacher} for its teacher; {tokens}"


def _cache_words(study: Study, prices: CostProfile) -> Iterator[str]:
    kept = {"all": cached_teacher(study, prices), "the top 64": cached_teacher(study, prices, top_k=64)}
    for number, first in enumerate(kept["all"].to_dict("records")):
        if not first["possible"]:
            yield f"{first['arm']}, teacher cached: not possible, {first['why_not']}"
            continue
        pays = "it would pay from the second pass on, and there is one"
        if first["saves"]:
            live, cached = (format_quantity(first[f"tokens_{how}"], "tokens") for how in ("live", "cached"))
            pays = f"{cached} instead of {live} in {first['passes']:.1f} passes"
        sizes = []
        for name, table in kept.items():
            row = table.iloc[number]
            each, total = (format_quantity(row[what], "B") for what in ("bytes_per_token", "total_bytes"))
            sizes.append(f"{name} logits {each} a token, {total} in all{' (absurd)' if row['absurd'] else ''}")
        yield f"{first['arm']}, teacher cached: {pays}; {'; '.join(sizes)}"


def paper_words(made: Plan) -> str:
    """Write the methods paragraph and the LaTeX table; the compute statement stands under every plan."""
    return "\n".join([methods_paragraph(made), "", latex_table(made)])


def power_words(made: Plan, store: Store, differences: Sequence[float], spread: float | None) -> str:
    """Tabulate the seeds and the compute that would resolve differences, by a stated spread or that of the results."""
    unit, basis = "", "as stated"
    if spread is None:
        verdicts = [verdict for verdict in store.read_fits()[1] if verdict.primary and verdict.run_sd]
        if not verdicts:
            raise CallerError("--power", "no results say how much runs differ", "state it with --spread")
        top = max(verdicts, key=lambda verdict: verdict.at.amount)
        spread, unit, basis = top.run_sd, f" {top.unit}", f"measured here on {top.y}"
    assert spread is not None
    found = power(made, run_sd=spread, differences=differences)
    lines = [f"Runs of one arm differ by {spread:.4g}{unit} (standard deviation, {basis}). To resolve, 4 times in 5,"]
    for row in found.to_dict("records"):
        if row["seeds"] is None or row["seeds"] != row["seeds"]:
            lines.append(f"  {row['difference']:g}{unit}: more than 100,000 seeds")
            continue
        flops = row["required_flops"]
        cost = "n/a" if flops is None else format_amount(flops, "required_flops")
        now = "; this plan does" if row["resolved_now"] else ""
        time = format_seconds(row["device_seconds"])
        lines.append(
            f"  {row['difference']:g}{unit}: {row['seeds']} seeds, {cost} in the arms, {time} of device time{now}"
        )
    return "\n".join(lines)


def draw(study: Study, prices: CostProfile, folder: Path) -> Path:
    """Draw tokens per arm under every meaning of compute."""
    from budgetlab.reporting.figures import draw_plan, plan_table, render

    caption = f"tokens that the largest budget of {study.name} buys each arm, under every meaning of compute"
    return render("plan", draw_plan, plan_table(sensitivity(study, prices)), folder, caption).png
