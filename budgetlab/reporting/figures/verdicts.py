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
from budgetlab.reporting.figures import style
from budgetlab.reporting.figures.data import Figure, Known
from budgetlab.values import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
    return style.styled(lambda drawn: draw_verdicts(drawn, order), table)


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
    return style.styled(draw_decomposition, table)


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
    studies, styles = list(pd.unique(table["study"])), _styles(table, order)
    several, margin = bool(table["compute_multiplier"].notna().any()), float(table["margin"].max())
    handles = [*style.arm_handles(styles), *([style.patch("equivalence margin", _MARGIN)] if margin > 0 else [])]
    lines, width = 1 + several, style.COLUMN_INCHES if len(studies) == 1 else style.TWO_COLUMNS_INCHES
    shape = (lines, len(studies))
    figure, panels = style.canvas(1.75 * lines + 0.35, handles, shape, width=width, sharex="col", sharey="row")
    for column, study in enumerate(studies):
        rows = table[table["study"] == study]
        unit = str(rows["budget_unit"].iloc[0])
        limits = _limits(table[table["budget_unit"] == unit])  # studies in one unit share them
        if study:
            panels[0, column].set_title(study, loc="left", fontweight="bold")
        quantities = (["difference", "low", "high"], 0.0), (_MULTIPLIER, 1.0)
        for axes, (columns, level) in zip(panels[:, column], quantities, strict=False):
            axes.grid(axis="y")
            axes.axhline(level, color=style.INK, linewidth=0.6, zorder=1)
            _contrast_lines(axes, rows, styles, columns)
        if margin > 0:
            panels[0, column].axhspan(-margin, margin, color=_MARGIN, linewidth=0, zorder=0)
        _crossovers(panels[0, column], rows, styles)
        shown, scale = style.budget_axis(unit, limits[1])
        style.log_axis(panels[-1, column], "x", limits, written=style.prefixes(unit), scale=scale)
        panels[-1, column].set_xlabel(f"budget ({shown}, log scale)")
    panels[0, 0].set_ylabel(f"{_outcome(table)}\nbetter than {_reference(table)} by\n({_unit(table)})")
    if several:
        values = table[_MULTIPLIER].to_numpy(dtype=float).ravel()
        limits = style.room([*values[np.isfinite(values)].tolist(), 1.0], log=True)
        style.log_axis(panels[1, 0], "y", limits, written="{x:.4g}×")
        panels[1, 0].set_ylabel(f"{multiplier_name(table)}\n(above 1: needs less)")
    return figure


def multiplier_name(table: pd.DataFrame) -> str:
    """Return what the multipliers of `verdict_table` are of: the amount that the curves are over."""
    over = list(table["curves_over"].dropna().unique())
    return f"{_MULTIPLIERS.get(over[0], 'compute') if len(over) == 1 else 'compute'} multiplier"


def _outcome(table: pd.DataFrame) -> str:
    name = str(table["y"].iloc[0])
    return OUTCOMES.get(name, name).removeprefix("the ")


def _unit(table: pd.DataFrame) -> str:
    return str(table["unit"].iloc[0]).replace("nats", "nats per target token")


def _reference(table: pd.DataFrame) -> str:
    """Name what arms are compared with on an axis; where there are several, each contrast is named whole."""
    references = table["reference"].unique()
    return str(references[0]) if len(references) == 1 else "its reference"


def _contrasts(table: pd.DataFrame) -> pd.Series:
    """Name each row's contrast: its arm, and the reference where there are several."""
    return table["arm"] if table["reference"].nunique() < 2 else table["arm"] + " - " + table["reference"]


def _styles(table: pd.DataFrame, order: Sequence[str]) -> dict[str, style.ArmStyle]:
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


def _contrast_lines(axes: Axes, rows: pd.DataFrame, styles: Mapping[str, style.ArmStyle], columns: list[str]) -> None:
    """Draw a quantity of every contrast over the budget with its intervals, each contrast a little aside."""
    order = list(dict.fromkeys(rows["contrast"]))
    low, high = _limits(rows)
    step = _SHIFT * math.log(high / low) * min(1.0, 6 / len(styles))
    for name, look in styles.items():
        own = rows[(rows["contrast"] == name) & rows[columns[0]].notna()]
        if own.empty:
            continue
        at = own["budget_amount"] * math.exp(step * (order.index(name) - (len(order) - 1) / 2))
        style.intervals(axes, at, own[columns], look.colour)
        axes.plot(at, own[columns[0]], linestyle=look.dash, linewidth=0.8, zorder=3, **look.mark)


def _crossovers(axes: Axes, rows: pd.DataFrame, styles: Mapping[str, style.ArmStyle]) -> None:
    """Mark on zero where each contrast's curves cross, with the interval."""
    crossed = rows.dropna(subset="crossover_amount").drop_duplicates("contrast")
    for row in crossed.to_dict("records"):
        colour, at = styles[row["contrast"]].colour, row["crossover_amount"]
        axes.plot(at, 0.0, marker="|", markersize=8, markeredgewidth=1.2, color=colour, zorder=4)
        if math.isfinite(row["crossover_amount_low"]):
            ends = row["crossover_amount_low"], row["crossover_amount_high"]
            axes.hlines(0.0, *ends, color=colour, linewidth=2.2, alpha=0.5, zorder=3.5)


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
    handles = [style.patch(label, colour) for label, colour in _PARTS.values()]
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
    figure.supxlabel(f"{_outcome(table)}: better than\n{_reference(table)} by ({_unit(table)})")
    return figure


def _by_text(known: Known) -> pd.DataFrame:
    own = verdict_table(known.verdicts)
    several = verdict_table(known.decisions.by_text, str(own["y"].iloc[0])) if len(own) else own
    return several if several["study"].nunique() > 1 else several[:0]


def _told(table: pd.DataFrame, known: Known) -> dict[str, str]:
    pairs = sorted(set(table["num_pairs"].astype(int)))
    return {
        "references": ", ".join(dict.fromkeys(table["reference"])),
        "multiplier": multiplier_name(table),
        "seeds": f"{pairs[0]}" + (f" to {pairs[-1]}" if len(pairs) > 1 else ""),
    }


FIGURES = (
    Figure(
        "verdict_vs_budget",
        "Verdicts",
        table=lambda known: verdict_table(known.verdicts),
        draw=lambda table, known: draw_verdicts(table, known.arms),
        caption="Above: difference from {references} at each budget, positive where the arm is better. Below: "
        "{multiplier}, what the reference needs over what the arm needs for an equal outcome, where both curves reach "
        "it. Bars: {level} intervals; {seeds} run seeds. A stroke on zero is a crossover with its interval; {where}.",
        told=_told,
    ),
    Figure(
        "verdict_by_text",
        "Verdicts",
        table=_by_text,
        draw=lambda table, known: draw_verdicts(table, known.arms),
        caption="The same contrasts by how much text there is to read; bars: {level} intervals; {where}.",
    ),
    Figure(
        "decomposition",
        "Verdicts",
        table=lambda known: decomposition_table(known.verdicts),
        draw=lambda table, known: draw_decomposition(table),
        caption="Where each primary difference comes from: what a token is worth at equal tokens, and what the tokens "
        "that the budget does not pay for cost; {method}; bars: {level} intervals; {where}.",
        told=lambda table, known: {"method": "; ".join(dict.fromkeys(table["method"]))},
    ),
)
