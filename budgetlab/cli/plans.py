"""What `budgetlab plan` shows besides its table: sensitivity, power, the words for a paper, the figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

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
from budgetlab.store import Store
from budgetlab.studies import Study
from budgetlab.units import format_amount, format_quantity, format_seconds
from budgetlab.values import CostProfile, EvaluateSpec, Plan


@dataclass(frozen=True)
class Extras:
    """The further blocks of one plan, each in words or as JSON."""

    study: Study
    prices: CostProfile
    plan: Plan
    store: Store

    def lines(self, asked: Sequence[str], differences: Sequence[float], spread: float | None) -> list[str]:
        """Return the blocks asked for, of "sensitivity", "power", "paper" and "figure", a blank line before each."""
        blocks = {
            "sensitivity": self._sensitivity_words,
            "power": lambda: self._power_words(differences, spread),
            "paper": lambda: iter([methods_paragraph(self.plan), "", latex_table(self.plan)]),
            "figure": lambda: iter([f"figure  {self._draw()}"]),
        }
        return [line for name in blocks if name in asked for line in ("", *blocks[name]())]

    def as_json(self, asked: Sequence[str], differences: Sequence[float], spread: float | None) -> dict[str, Any]:
        """Return the same blocks as plain JSON; unknown is null."""
        blocks = {
            "sensitivity": lambda: {
                "sensitivity": _records(sensitivity(self.study, self.prices)),
                "all_in": _records(all_in(self.study, self.prices)),
                "cached_teacher": _records(cached_teacher(self.study, self.prices)),
            },
            "power": lambda: {"power": _records(self._power(differences, spread)[0])},
            "paper": lambda: {"methods_paragraph": methods_paragraph(self.plan), "latex_table": latex_table(self.plan)},
            "figure": lambda: {"figure": self._draw()},
        }
        return {key: value for name in asked for key, value in blocks[name]().items()}

    def _sensitivity_words(self) -> Iterator[str]:
        found = sensitivity(self.study, self.prices)
        wide = found.pivot_table(index=["match", "charge"], columns="arm", values="ratio", sort=False, dropna=False)
        wide = wide[list(self.study.arms)].dropna(how="all").rename_axis(columns=None)
        yield "Tokens in this plan's largest budget relative to the first feasible arm, under every meaning of compute:"
        yield from ["", wide.to_string(float_format="{:.3f}".format, na_rep="n/a"), ""]
        yield from definition_notes(found)
        yield from self._all_in_words()
        yield from self._cache_words()

    def _all_in_words(self) -> Iterator[str]:
        table = all_in(self.study, self.prices)
        for row in table[table["rung"] == table["rung"].max()].to_dict("records") if len(table) else ():
            if row["all_in_flops"] is None or math.isnan(row["all_in_flops"]):
                yield f"{row['arm']}, all in: n/a, the cost of its teacher is unknown"
                continue
            cost, teacher = (format_amount(row[name], "required_flops") for name in ("all_in_flops", "teacher_flops"))
            tokens = f"{row['reference']} would read {format_quantity(row['reference_tokens'], 'tokens')} for that"
            yield f"{row['arm']}, all in: {cost}, of which {teacher} for its teacher; {tokens}"

    def _cache_words(self) -> Iterator[str]:
        kept = {top: cached_teacher(self.study, self.prices, top_k=top) for top in (None, 64)}
        for number, first in enumerate(kept[None].to_dict("records")):
            if not first["possible"]:
                yield f"{first['arm']}, teacher cached: not possible, {first['why_not']}"
                continue
            pays = "it would pay from the second pass on, and there is one at most"
            if first["saves"]:
                live, cached = (format_quantity(first[f"tokens_{how}"], "tokens") for how in ("live", "cached"))
                pays = f"{cached} instead of {live} in {first['passes']:.1f} passes"
            sizes = []
            for top, table in kept.items():
                row = table.iloc[number]
                each, total = (format_quantity(row[what], "B") for what in ("bytes_per_token", "total_bytes"))
                name = "all" if top is None else f"the top {top}"
                sizes.append(f"{name} logits {each} a token, {total} in all{' (absurd)' if row['absurd'] else ''}")
            yield f"{first['arm']}, teacher cached: {pays}; {'; '.join(sizes)}"

    def _power(self, differences: Sequence[float], spread: float | None) -> tuple[pd.DataFrame, str]:
        """The table, and what it rests on."""
        if spread is not None:
            return power(self.plan, run_sd=spread, differences=differences), f"{spread:.4g} (as stated)"
        verdicts = [verdict for verdict in self.store.read_fits()[1] if verdict.primary and verdict.run_sd]
        if not verdicts:
            raise CallerError("--power", "no results say how much runs differ", "state it with --spread")
        top = max(verdicts, key=lambda verdict: verdict.at.amount)
        assert top.run_sd is not None
        basis = f"{top.run_sd:.4g} {top.unit} (measured here on {top.y})"
        return power(self.plan, run_sd=top.run_sd, differences=differences), basis

    def _power_words(self, differences: Sequence[float], spread: float | None) -> Iterator[str]:
        found, basis = self._power(differences, spread)
        yield f"Standard deviation of one run: {basis}. To resolve a difference four times in five:"
        for row in found.to_dict("records"):
            if pd.isna(row["seeds"]):
                yield f"  {row['difference']:g}: more than 100,000 seeds"
                continue
            flops, seconds = row["required_flops"], row["device_seconds"]
            cost = "n/a" if flops is None else format_amount(flops, "required_flops")
            now = "; this plan does" if row["resolved_now"] else ""
            spent = f"{cost} in the arms, {format_seconds(seconds)} of device time"
            yield f"  {row['difference']:g}: {row['seeds']} seeds, {spent}{now}"

    def _draw(self) -> str:
        from budgetlab.reporting.figures import draw_plan, plan_table, render

        caption = f"tokens that the largest budget of {self.study.name} buys each arm, under every meaning of compute"
        table = plan_table(sensitivity(self.study, self.prices))
        return str(render("plan", draw_plan, table, self.store.folder / "figures", caption).png)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def scored_with(plan: Plan, spec: EvaluateSpec) -> list[object]:
    """Return what trials depend on beside the plan: yardsticks, and the files of given weights, whatever their path."""
    scored: list[object] = [spec.readout_tokens, spec.adapted_tokens]
    used = {name for arm in plan.arms.values() for name in (arm.student, arm.teacher) if name is not None}
    given = [plan.models[name] for name in sorted(used) if plan.models[name].weights is not None]
    if given:
        from budgetlab.models import given_key

        scored += [given_key(spec) for spec in given]
    return scored
