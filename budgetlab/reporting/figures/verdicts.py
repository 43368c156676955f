"""Each arm's difference from its reference over the budget, and where that difference comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.scores import OUTCOMES
from budgetlab.frames import verdicts_frame
from budgetlab.reporting.averages import told_range
from budgetlab.reporting.figures import style
from budgetlab.reporting.figures.figure import Figure, Known, styled
from budgetlab.values import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Verdicts = Sequence[Verdict]

_MULTIPLIERS = {"tokens": "token", "target_tokens": "target token", "device_seconds": "time", "budget_amount": "budget"}
"""Of curves that are not over compute."""
_MARGIN = "#EFEFEF"
_PARTS = {
    "difference": ("difference at equal budget", style.INK),
    "gain_per_token": ("gain per token (at equal tokens)", "#332288"),
    "effect_of_tokens": ("effect of reading fewer tokens", "#B3A63C"),
}
"""Part of a difference -> what it is called, and its colour."""
_ON_BUDGET = 1.1
"""Curves whose ends are within this factor of the smallest and the largest budget are over the budget."""
_SHIFT = 0.025
"""By which contrasts at one budget are drawn aside of one another, in logarithms."""
_MULTIPLIER, _CROSSOVER = (
    [f"{name}{end}" for end in ("", "_low", "_high")] for name in ("compute_multiplier", "crossover_amount")
)
_NUMBERS = ["budget_amount", "difference", "low", "high", "margin", *_MULTIPLIER, *_CROSSOVER]
_VERDICT_COLUMNS = ["study", "arm", "reference", "y", "unit", "budget_unit", "verdict", "num_pairs", "curves_over",
                    *_NUMBERS]  # fmt: skip
_PART_COLUMNS = ["arm", "reference", "y", "unit", "budget_amount", "budget_unit", "part", "value", "low", "high",
                 "tokens_a", "tokens_b", "method"]  # fmt: skip


def verdict_figure(
    verdicts: Verdict | Verdicts | Mapping[str, Verdicts], y: str | None = None, *, arms: Sequence[str] = ()
) -> Drawing:
    """Draw differences from the reference arm over the budget, and compute multipliers below them.

    Parameters
    ----------
    verdicts
        From `compare` or `compare_arms`; or name -> verdicts of several studies, side by side, such as unlimited and
        limited data.
    y
        The outcome; default: that of the primary contrasts.
    arms
        The study's, in order, so that an arm looks as in its other figures.

    Raises
    ------
    CallerError
        When no verdict has a difference in it.
    """
    found = [verdicts] if isinstance(verdicts, Verdict) else verdicts
    studies = found if isinstance(found, Mapping) else {"": found}
    outcomes = {verdict.y for of_study in studies.values() for verdict in of_study}
    if y is not None and outcomes and y not in outcomes:
        raise unknown_name("outcome", y, outcomes, "figure of verdicts, y")
    table = verdict_table(studies, y)
    if table.empty:
        raise CallerError(f"figure of verdicts on {y or 'the primary outcome'}", "there are none", "score two arms")
    order = [arms] if isinstance(arms, str) else arms
    return styled(lambda drawn: draw_verdicts(drawn, order), table)


def decomposition_figure(verdicts: Sequence[Verdict]) -> Drawing:
    """Draw what makes up each primary difference: gain per token, and the effect of reading fewer tokens.

    Raises
    ------
    CallerError
        When no primary verdict could be decomposed.
    """
    table = decomposition_table(verdicts)
    if table.empty:
        reasons = {str((v.decomposition or {}).get("reason")) for v in verdicts if v.primary and v.decomposition}
        raise CallerError(
            "figure of a decomposition",
            "; ".join(sorted(reasons)) or "no primary verdict has one",
            "run the reference at the other arm's tokens (match equal_tokens), or at three budgets",
        )
    return styled(draw_decomposition, table)


def verdict_table(verdicts: Verdicts | Mapping[str, Verdicts], y: str | None = None) -> pd.DataFrame:
    """Return the drawn numbers: one outcome's differences from the reference, and multipliers, at every budget.

    A row a study, contrast and budget, of the contrasts whose second arm is the reference of a primary one (all, where
    none is primary). `verdicts` may be those of several studies by name; the default of `y` is that of the primary
    contrasts. A crossover is missing where it is no amount of the budget.
    """
    rows: list[dict[Any, Any]] = []
    for study, found in (verdicts if isinstance(verdicts, Mapping) else {"": verdicts}).items():
        if not found:
            continue
        frame = verdicts_frame(found).rename(columns={"a": "arm", "b": "reference"}).assign(study=study)
        frame.loc[[not _on_axis(verdict, found) for verdict in found], _CROSSOVER] = None
        first = frame[frame["primary"]] if frame["primary"].any() else frame
        chosen = frame["y"].eq(y or first["y"].iloc[0]) & frame["reference"].isin(first["reference"])
        frame = frame[chosen & frame["difference"].notna()]
        rows += frame.sort_values(["arm", "reference", "budget_amount"], kind="stable").to_dict("records")
    return pd.DataFrame(rows, columns=_VERDICT_COLUMNS).astype(dict.fromkeys(_NUMBERS, float))


def _on_axis(verdict: Verdict, others: Sequence[Verdict]) -> bool:
    """Whether a crossover is an amount of the budget: not where curves are over another, or leave out the teacher."""
    found = verdict.crossover or {}
    if found.get("value") is None or found.get("unit") not in (verdict.at.unit, "budget_amount"):
        return False
    budgets = [v.at.amount for v in others if (v.contrast, v.y) == (verdict.contrast, verdict.y)]
    ends = zip(found.get("range", ()), (min(budgets), max(budgets)), strict=False)
    return all(1 / _ON_BUDGET < end / budget < _ON_BUDGET for end, budget in ends)


def draw_verdicts(table: pd.DataFrame, order: Sequence[str] = ()) -> Drawing:
    """Draw `verdict_table`: differences above, compute multipliers below, a column a study.

    `order` is that of the study's arms, which their looks follow.
    """
    table = table.assign(contrast=_contrasts(table))
    (outcome, reference, unit), looks = _words(table), _looks(table, order)
    studies, margin = list(pd.unique(table["study"])), float(table["margin"].max())
    quantities = [(["difference", "low", "high"], 0.0)]
    if table["compute_multiplier"].notna().any():
        quantities.append((_MULTIPLIER, 1.0))
    handles = [*style.arm_handles(looks), *([style.patch("equivalence margin", color=_MARGIN)] if margin > 0 else [])]
    width = style.COLUMN_INCHES if len(studies) == 1 else style.TWO_COLUMNS_INCHES
    height, shape = 1.75 * len(quantities) + 0.35, (len(quantities), len(studies))
    figure, panels = style.canvas(height, handles, shape, width=width, sharex="col", sharey="row")
    for study, column in zip(studies, panels.T, strict=True):
        rows = table[table["study"] == study]
        of = str(rows["budget_unit"].iloc[0])
        shared = _limits(table[table["budget_unit"] == of])  # studies in one unit share them
        low, high = _limits(rows)
        names = list(dict.fromkeys(rows["contrast"]))
        step = _SHIFT * math.log(high / low) * min(1.0, 6 / len(looks))
        aside = [math.exp(step * (names.index(name) - (len(names) - 1) / 2)) for name in rows["contrast"]]
        rows = rows.assign(at=rows["budget_amount"] * aside)
        for axes, (columns, level) in zip(column, quantities, strict=True):
            axes.grid(axis="y")
            axes.axhline(level, color=style.INK, linewidth=0.6, zorder=1)
            for name, look in looks.items():
                own = rows[(rows["contrast"] == name) & rows[columns[0]].notna()]
                if len(own):
                    style.intervals(axes, own["at"], own[columns], look.colour)
                    axes.plot(own["at"], own[columns[0]], linestyle=look.dash, linewidth=0.8, zorder=3, **look.mark)
        if study:
            column[0].set_title(study, loc="left", fontweight="bold")
        if margin > 0:
            column[0].axhspan(-margin, margin, color=_MARGIN, linewidth=0, zorder=0)
        # On zero, where each contrast's curves cross.
        for row in rows.dropna(subset="crossover_amount").drop_duplicates("contrast").to_dict("records"):
            colour, (at, *ends) = looks[row["contrast"]].colour, (row[name] for name in _CROSSOVER)
            column[0].plot(at, 0.0, marker="|", markersize=8, markeredgewidth=1.2, color=colour, zorder=4)
            if math.isfinite(ends[0]):
                column[0].hlines(0.0, *ends, color=colour, linewidth=2.2, alpha=0.5, zorder=3.5)
        shown, scale = style.budget_axis(of, shared[1])
        style.log_axis(column[-1], "x", shared, written=style.prefixes(of), scale=scale)
        column[-1].set_xlabel(f"budget ({shown}, log scale)")
    panels[0, 0].set_ylabel(f"{outcome}\nbetter than {reference} by\n({unit})")
    if len(quantities) > 1:
        values = table[_MULTIPLIER].to_numpy(dtype=float).ravel()
        limits = style.room([*values[np.isfinite(values)].tolist(), 1.0], log=True)
        style.log_axis(panels[1, 0], "y", limits, written="{x:.4g}×")
        panels[1, 0].set_ylabel(f"{multiplier_name(table)}\n(above 1: needs less)")
    return figure


def multiplier_name(table: pd.DataFrame) -> str:
    """Return what the multipliers of `verdict_table` are of: the amount that the curves are over."""
    over = list(table["curves_over"].dropna().unique())
    return f"{_MULTIPLIERS.get(over[0], 'compute') if len(over) == 1 else 'compute'} multiplier"


def _words(table: pd.DataFrame) -> tuple[str, str, str]:
    """Return outcome, reference and unit; where references are several, each contrast is named whole."""
    y, references = str(table["y"].iloc[0]), table["reference"].unique()
    unit = str(table["unit"].iloc[0]).replace("nats", "nats per target token")
    reference = str(references[0]) if len(references) == 1 else "its reference"
    return OUTCOMES.get(y, y).removeprefix("the "), reference, unit


def _contrasts(table: pd.DataFrame) -> pd.Series:
    """Name each row's contrast: its arm, and the reference where there are several."""
    return table["arm"] if table["reference"].nunique() < 2 else table["arm"] + " - " + table["reference"]


def _looks(table: pd.DataFrame, order: Sequence[str]) -> dict[str, style.ArmStyle]:
    """Return the look of each contrast: that of its arm in the study's other figures, where one arm is one contrast."""
    arms = dict(zip(table["contrast"], table["arm"], strict=True))
    known = list(dict.fromkeys([*order, *sorted({*table["reference"], *table["arm"]})]))
    if len(set(arms.values())) < len(arms):
        arms, known = {name: name for name in arms}, list(arms)
    largest = table.loc[table["difference"].abs().sort_values(ascending=False).index]
    looks = style.arm_styles(known, [arms[name] for name in dict.fromkeys(largest["contrast"])])
    places = {arm: place for place, arm in enumerate(looks)}  # grey ones first, behind
    return {name: looks[arms[name]] for name in sorted(arms, key=lambda name: places[arms[name]])}


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    budgets = rows["budget_amount"].unique().tolist()
    return style.room(budgets, 0.12, log=True) if len(budgets) > 1 else (budgets[0] / 1.5, budgets[0] * 1.5)


def decomposition_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the drawn numbers: the parts of each primary difference, of the verdicts that were decomposed."""
    rows = []
    for verdict in verdicts:
        parts = verdict.decomposition or {}
        if not verdict.primary or parts.get("method") is None:
            continue
        shared = (*verdict.contrast, verdict.y, verdict.unit, verdict.at.amount, verdict.at.unit)
        how = [parts.get(name) for name in ("tokens_a", "tokens_b", "method")]
        for part in _PARTS:
            # The difference of the curves, which is what the parts add up to.
            rows.append([*shared, part, parts[part]["value"], *(parts[part]["interval"] or (math.nan, math.nan)), *how])
    return pd.DataFrame(rows, columns=_PART_COLUMNS)


def draw_decomposition(table: pd.DataFrame) -> Drawing:
    """Draw `decomposition_table`: for each contrast the difference, and the two parts that make it up."""
    table = table.assign(contrast=_contrasts(table))
    names = list(dict.fromkeys(table["contrast"]))
    handles = [style.patch(label, color=colour) for label, colour in _PARTS.values()]
    figure, [[axes]] = style.canvas(0.6 + 0.42 * len(names), handles, legend={"ncols": 1, "handlelength": 1.2})
    axes.grid(axis="x")
    digits = 2 if table["value"].abs().max() >= 0.2 else 3
    for row in table.to_dict("records"):
        at = names.index(row["contrast"]) + 0.27 * (list(_PARTS).index(row["part"]) - 1)
        axes.barh(at, row["value"], height=0.23, color=_PARTS[row["part"]][1], zorder=2)
        ends = [row["value"], *(end for end in (row["low"], row["high"]) if math.isfinite(end))]
        axes.plot(ends[1:], [at] * len(ends[1:]), color="black", linewidth=0.9, zorder=3)
        far = max(ends) if row["value"] >= 0 else min(ends)
        style.end_label(axes, f"{row['value'] + 0.0:+.{digits}f}", (far, at), left=row["value"] < 0, fontsize=5.5)
    axes.axvline(0.0, color=style.INK, linewidth=0.6, zorder=4)
    style.name_rows(axes, names)
    axes.margins(x=0.22)
    axes.locator_params(axis="x", nbins=5)
    outcome, reference, unit = _words(table)
    figure.supxlabel(f"{outcome}: better than\n{reference} by ({unit})")
    return figure


def _by_text(known: Known) -> pd.DataFrame:
    own = verdict_table(known.verdicts)
    several = verdict_table(known.decisions.by_text, str(own["y"].iloc[0])) if len(own) else own
    return several if several["study"].nunique() > 1 else several[:0]


FIGURES = (
    Figure(
        "verdict_vs_budget",
        "Verdicts",
        table=lambda known: verdict_table(known.verdicts),
        draw=lambda table, known: draw_verdicts(table, known.arms),
        caption=lambda table, known: (
            f"Above: difference from {', '.join(dict.fromkeys(table['reference']))} at each budget, positive where the "
            f"arm is better. Below: {multiplier_name(table)}, what the reference needs over what the arm needs for an "
            f"equal outcome, where both curves reach it. Bars: {known.level} intervals; "
            f"{told_range(table['num_pairs'])} run seeds. A stroke on zero is a crossover with its interval. Intervals "
            "of multipliers and crossovers are approximate (nominal 95 % covered 90 to 99 % in simulation); "
            f"{known.where}."
        ),
    ),
    Figure(
        "verdict_by_text",
        "Verdicts",
        table=_by_text,
        draw=lambda table, known: draw_verdicts(table, known.arms),
        caption=lambda table, known: (
            f"The same contrasts by how much text there is to read; bars: {known.level} intervals; {known.where}."
        ),
    ),
    Figure(
        "decomposition",
        "Verdicts",
        table=lambda known: decomposition_table(known.verdicts),
        draw=lambda table, known: draw_decomposition(table),
        caption=lambda table, known: (
            "Where each primary difference comes from: what a token is worth at equal tokens, and what the tokens that "
            f"the budget does not pay for cost; {'; '.join(dict.fromkeys(table['method']))}; bars: {known.level} "
            f"intervals; {known.where}."
        ),
    ),
)
