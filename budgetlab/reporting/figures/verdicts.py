"""Figures: each arm's difference from its reference over the budget, and where that difference comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from budgetlab.fitting.scores import OUTCOMES
from budgetlab.frames import verdicts_frame
from budgetlab.reporting.figures.style import (
    COLUMN_INCHES,
    ArmStyle,
    arm_handles,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prominent,
    room,
    unit_at,
)
from budgetlab.values import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MULTIPLIERS = {"tokens": "token", "target_tokens": "target token", "device_seconds": "time", "budget_amount": "budget"}
"""Of curves that are not over compute."""
_BAND = {"equivalence margin": "#EFEFEF"}
_PARTS = {"difference": "difference at equal budget", "gain_per_token": "gain per token (at equal tokens)",
          "effect_of_tokens": "effect of reading fewer tokens"}  # fmt: skip
_ALIKE = 1.1
"""Curves whose ends are within this factor of the smallest and the largest budget are over the budget."""
_SHIFT = 0.025
"""By which contrasts at one budget are drawn aside of one another, in logarithms."""


def verdict_table(verdicts: Sequence[Verdict] | Mapping[str, Sequence[Verdict]], y: str | None = None) -> pd.DataFrame:
    """Return the drawn numbers: one outcome's differences from the reference, and multipliers, at every budget.

    Parameters
    ----------
    verdicts
        From `compare_arms`; or name -> verdicts of several studies, such as of unlimited and of limited data.
    y
        The outcome; default: that of the primary contrasts.

    Returns
    -------
    DataFrame
        `study`, `arm`, `reference`, and the columns of `verdicts_frame`, a row a study, contrast and budget. Contrasts
        whose second arm is the reference of a primary one; all, where none is primary. A crossover is missing where
        it is no amount of the budget.
    """
    frames = [pd.DataFrame(columns=["study", *_COLUMNS])]
    for study, found in (verdicts if isinstance(verdicts, Mapping) else {"": verdicts}).items():
        if not found:
            continue
        rows = verdicts_frame(found)
        rows.loc[[not _on_axis(verdict, found) for verdict in found], _CROSSOVER] = None
        primary = rows[rows["primary"]]
        first = rows if primary.empty else primary
        chosen = rows["y"].eq(y or first["y"].iloc[0]) & rows["b"].isin(first["b"]) & rows["difference"].notna()
        named = rows[chosen].rename(columns={"a": "arm", "b": "reference"})
        frames.append(named.assign(study=study)[["study", *_COLUMNS]])
    table = pd.concat(frames if len(frames) == 1 else frames[1:], ignore_index=True).astype(
        dict.fromkeys(_NUMBERS, float)
    )
    places = {study: place for place, study in enumerate(pd.unique(table["study"]))}
    return table.sort_values(
        ["study", "arm", "reference", "budget_amount"], kind="stable", ignore_index=True,
        key=lambda column: column.map(places) if column.name == "study" else column,
    )  # fmt: skip


_ENDS = ("", "_low", "_high")
_MULTIPLIER, _CROSSOVER = ([f"{name}{end}" for end in _ENDS] for name in ("compute_multiplier", "crossover_amount"))
_NUMBERS = ["budget_amount", "difference", "low", "high", "margin", *_MULTIPLIER, *_CROSSOVER]
_COLUMNS = ["arm", "reference", "y", "unit", "budget_unit", "verdict", "num_pairs", "curves_over", *_NUMBERS]


def _on_axis(verdict: Verdict, others: Sequence[Verdict]) -> bool:
    """Whether a crossover is an amount of the budget: not where curves are over another, or leave out the teacher."""
    found = verdict.crossover or {}
    if found.get("value") is None or found.get("unit") not in (verdict.at.unit, "budget_amount"):
        return False
    budgets = [v.at.amount for v in others if (v.contrast, v.y) == (verdict.contrast, verdict.y)]
    ends = zip(found.get("range", ()), (min(budgets), max(budgets)), strict=False)
    return all(1 / _ALIKE < end / budget < _ALIKE for end, budget in ends)


def multiplier_name(table: pd.DataFrame) -> str:
    """Return what the multipliers of `verdict_table` are of: the amount that the curves are over."""
    over = list(table["curves_over"].dropna().unique())
    return f"{_MULTIPLIERS.get(over[0], 'compute') if len(over) == 1 else 'compute'} multiplier"


def draw_verdicts(table: pd.DataFrame, order: Sequence[str] = ()) -> Figure:
    """Draw `verdict_table`: differences above, compute multipliers below, a column a study.

    `order` is that of the study's arms, which their looks follow.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    studies = list(pd.unique(table["study"]))
    styles = _styles(table, order)
    several = table["compute_multiplier"].notna().any()
    lines = 2 if several else 1
    width = COLUMN_INCHES if len(studies) == 1 else 2 * COLUMN_INCHES + 0.3
    handles = arm_handles(styles)
    margin = bool((table["margin"] > 0).any())
    if margin:
        handles.append(Patch(color=_BAND["equivalence margin"], label="equivalence margin"))  # type: ignore[arg-type]
    across = legend_columns([str(handle.get_label()) for handle in handles], width)
    figure = Figure(figsize=(width, 1.75 * lines + 0.35 + 0.14 * math.ceil(len(handles) / across)),
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(lines, len(studies), squeeze=False, sharex="col", sharey="row")
    outcome = str(table["y"].iloc[0])
    for column, study in enumerate(studies):
        rows = table[table["study"] == study]
        above = panels[0, column]
        _differences(above, rows, styles)
        if several:
            _multipliers(panels[1, column], rows, styles)
        axes = panels[-1, column]
        limits = _limits(table[table["budget_unit"] == rows["budget_unit"].iloc[0]])  # studies in one unit share them
        unit, scale = unit_at(str(rows["budget_unit"].iloc[0]), limits[1])
        axes.set_xlim(*limits)  # first, since a lone point has no limits of its own
        axes.set_xscale("log")
        log_ticks(axes.xaxis, *limits, scale=scale, most=5)
        axes.set_xlabel(f"budget ({unit}, log scale)")
        if study:
            above.set_title(study, loc="left", pad=3, fontweight="bold")
    unit = {"nats": "nats per target token"}.get(str(table["unit"].iloc[0]), str(table["unit"].iloc[0]))
    panels[0, 0].set_ylabel(
        f"{OUTCOMES.get(outcome, outcome).removeprefix('the ')}\nbetter than {_reference(table)} by\n({unit})"
    )
    if several:
        _multiplier_axis(panels[1, 0], table)
        panels[1, 0].set_ylabel(f"{multiplier_name(table)}\n(above 1: needs less)")
    figure.legend(handles=handles, loc="outside upper center", ncols=across, columnspacing=1.2)
    return figure


def _reference(table: pd.DataFrame) -> str:
    """Name what arms are compared with on an axis; where there are several, each contrast is named whole."""
    references = table["reference"].unique()
    return str(references[0]) if len(references) == 1 else "its reference"


def _contrasts(table: pd.DataFrame) -> list[str]:
    """Name each row's contrast: its arm, and the reference where there are several."""
    if table["reference"].nunique() < 2:
        return [str(arm) for arm in table["arm"]]
    return [f"{arm} - {reference}" for arm, reference in zip(table["arm"], table["reference"], strict=True)]


def _styles(table: pd.DataFrame, order: Sequence[str]) -> dict[str, ArmStyle]:
    """Return the look of each contrast: that of its arm in the study's other figures, where one arm is one contrast."""
    names = dict(zip(_contrasts(table), table["arm"], strict=True))
    if len(set(names.values())) == len(names):
        known = list(dict.fromkeys([*order, *sorted({*table["reference"], *table["arm"]})]))
    else:
        names = {name: name for name in names}
        known = list(names)
    sizes = table["difference"].abs().sort_values(ascending=False)
    ranked = [names[name] for name in dict.fromkeys(_contrasts(table.loc[sizes.index]))]
    found = arm_styles(known, prominent(known, ranked))
    places = {arm: place for place, arm in enumerate(found)}  # grey ones first, behind
    return {name: found[names[name]] for name in sorted(names, key=lambda name: places[names[name]])}


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    budgets = rows["budget_amount"].unique().tolist()
    return room(budgets, 0.12, log=True) if len(budgets) > 1 else (budgets[0] / 1.5, budgets[0] * 1.5)


def _aside(rows: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> dict[str, float]:
    low, high = _limits(rows)
    step = _SHIFT * math.log(high / low) * min(1.0, 6 / len(styles))
    order = list(dict.fromkeys(_contrasts(rows)))
    return {name: math.exp(step * (i - (len(order) - 1) / 2)) for i, name in enumerate(order)}


def _differences(axes: Axes, rows: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> None:
    grid(axes)
    margin = float(rows["margin"].max())
    if margin > 0:
        axes.axhspan(-margin, margin, color=_BAND["equivalence margin"], linewidth=0, zorder=0)
    axes.axhline(0.0, color="#444444", linewidth=0.6, zorder=1)
    names, aside = np.array(_contrasts(rows)), _aside(rows, styles)
    for name, style in styles.items():
        own = rows[names == name]
        at = own["budget_amount"] * aside.get(name, 1.0)
        _series(axes, at, own, ("difference", "low", "high"), style)
        crossed = own.dropna(subset="crossover_amount").head(1)
        for row in crossed.to_dict("records"):
            axes.plot(
                row["crossover_amount"],
                0.0,
                marker="|",
                markersize=8,
                markeredgewidth=1.2,
                color=style.colour,
                zorder=4,
            )
            if math.isfinite(row["crossover_amount_low"]):
                ends = [row["crossover_amount_low"], row["crossover_amount_high"]]
                axes.plot(ends, [0.0, 0.0], color=style.colour, linewidth=2.2, alpha=0.5, solid_capstyle="butt",
                          zorder=3.5)  # fmt: skip


def _multipliers(axes: Axes, rows: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> None:
    grid(axes)
    axes.axhline(1.0, color="#444444", linewidth=0.6, zorder=1)
    axes.set_yscale("log")
    names, aside = np.array(_contrasts(rows)), _aside(rows, styles)
    for name, style in styles.items():
        own = rows[(names == name) & rows["compute_multiplier"].notna()]
        at = own["budget_amount"] * aside.get(name, 1.0)
        _series(axes, at, own, _MULTIPLIER, style)


def _multiplier_axis(axes: Axes, table: pd.DataFrame) -> None:
    """Give the axis that all studies share its limits and ticks."""
    from matplotlib.ticker import FuncFormatter

    values = table[_MULTIPLIER].to_numpy(dtype=float).ravel()
    limits = room([*values[np.isfinite(values)].tolist(), 1.0], log=True)
    axes.set_ylim(*limits)
    log_ticks(axes.yaxis, *limits, scale=1.0, most=5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}×"))


def _series(axes: Axes, at: pd.Series, rows: pd.DataFrame, columns: Sequence[str], style: ArmStyle) -> None:
    value, low, high = (rows[column] for column in columns)
    known = low.notna() & high.notna()
    spread = [(value - low)[known], (high - value)[known]]
    axes.errorbar(at[known], value[known], yerr=spread, linestyle="none", color=style.colour, elinewidth=0.9,
                  capsize=1.8, capthick=0.9, zorder=2.5)  # fmt: skip
    axes.plot(at, value, color=style.colour, linestyle=style.dash, linewidth=0.8, marker=style.marker, markersize=4.0,
              markeredgecolor="white", markeredgewidth=0.4, zorder=3)  # fmt: skip


def decomposition_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return the drawn numbers: the parts of each primary difference, of the verdicts that were decomposed.

    Returns
    -------
    DataFrame
        A row a contrast and part ("difference", "gain_per_token", "effect_of_tokens"): `arm`, `reference`, `y`,
        `unit`, `budget_amount`, `budget_unit`, `value`, `low`, `high`, `tokens_a`, `tokens_b`, `method`.
    """
    rows = []
    for verdict in verdicts:
        parts = verdict.decomposition or {}
        if not verdict.primary or parts.get("method") is None:
            continue
        for part in _PARTS:
            # The difference of the curves, which is what the parts add up to.
            low, high = parts[part]["interval"] or (math.nan, math.nan)
            rows.append({
                "arm": verdict.contrast[0], "reference": verdict.contrast[1], "y": verdict.y, "unit": verdict.unit,
                "budget_amount": verdict.at.amount, "budget_unit": verdict.at.unit, "part": part,
                "value": parts[part]["value"], "low": low, "high": high,
                **{name: parts[name] for name in ("tokens_a", "tokens_b", "method")},
            })  # fmt: skip
    columns = ["arm", "reference", "y", "unit", "budget_amount", "budget_unit", "part", "value", "low", "high",
               "tokens_a", "tokens_b", "method"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def draw_decomposition(table: pd.DataFrame) -> Figure:
    """Draw `decomposition_table`: for each contrast the difference, and the two parts that make it up."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    fills = {"difference": "#444444", "gain_per_token": "#332288", "effect_of_tokens": "#B3A63C"}
    names = list(dict.fromkeys(_contrasts(table)))
    figure = Figure(figsize=(COLUMN_INCHES, 0.95 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    grid(axes, "x")
    of_row = np.array(_contrasts(table))
    digits = 2 if table["value"].abs().max() >= 0.2 else 3
    for y, name in enumerate(names):
        for i, part in enumerate(_PARTS):
            row = table[(of_row == name) & (table["part"] == part)].iloc[0]
            at = y + 0.27 * (i - 1)
            axes.barh(at, row["value"], height=0.23, color=fills[part], zorder=2)
            if math.isfinite(row["low"]):
                axes.plot([row["low"], row["high"]], [at, at], color="black", linewidth=0.9, zorder=3)
            right = row["value"] >= 0
            end = max(row["value"], row["high"]) if right else min(row["value"], row["low"])
            axes.annotate(f"{row['value'] + 0.0:+.{digits}f}", (end if math.isfinite(end) else row["value"], at),
                          (3 if right else -3, 0), textcoords="offset points", va="center",
                          ha="left" if right else "right", fontsize=5.5)  # fmt: skip
    axes.axvline(0.0, color="#444444", linewidth=0.6, zorder=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.22)
    unit = {"nats": "nats per target token"}.get(str(table["unit"].iloc[0]), str(table["unit"].iloc[0]))
    outcome = str(table["y"].iloc[0])
    axes.locator_params(axis="x", nbins=5)
    what = OUTCOMES.get(outcome, outcome).removeprefix("the ")
    figure.supxlabel(f"{what}: better than\n{_reference(table)} by ({unit})", fontsize=7)
    handles = [Patch(color=fills[part], label=label) for part, label in _PARTS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=1, handlelength=1.2)
    return figure
