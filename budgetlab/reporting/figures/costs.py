"""Figure: what a token costs each arm, by phase: counted FLOPs, measured time, and how their ratios disagree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.fitting.reference import base_arm
from budgetlab.reporting.figures.style import COLUMN_INCHES, grid, prefix_for
from budgetlab.values import PHASES, ArmCost, CostProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WHOLE = "whole step"
# Dark to light in the order of the step, so that neighbours differ in greyscale too; hatched where they are alike.
_FILLS = {
    "teacher_forward": ("#332288", ""),
    "student_forward": ("#88CCEE", ""),
    "loss": ("#882255", ""),
    "backward": ("#B3A63C", ""),
    "update": ("#117733", ""),
    WHOLE: ("#BBBBBB", "////"),
}
_COLUMNS = ["quantity", "arm", "phase", "value", "start", "low", "high", "ratio"]
_PANELS = {
    "required_flops_per_token": ("required compute", "{}FLOP per token"),
    "device_seconds_per_token": ("time", "device {}s per token"),
}


def costs_table(profile: CostProfile) -> pd.DataFrame:
    """Return the drawn numbers: a row an arm and phase with its length and start, and a row for the whole step.

    `value` and `start` are FLOPs or seconds per token. The whole step is not the sum of its phases where it was
    timed as one piece; its row has the interval and the ratio to the reference arm. Unknown is missing.
    """
    reference = base_arm(cost.arm for cost in profile.arms)
    base = next((cost for cost in profile.arms if cost.arm == reference), None)
    rows: list[dict[str, object]] = []
    for quantity in _PANELS:
        for cost in profile.arms:
            start = 0.0
            for phase in [p for p in PHASES if p in cost.phases]:
                value = _phase(cost, phase, quantity)
                rows.append({"quantity": quantity, "arm": cost.arm, "phase": phase, "value": value, "start": start})
                start += value or 0.0
            whole, of_base = _whole(cost, quantity), _whole(base, quantity) if base else None
            interval = cost.seconds_per_step_interval if quantity.startswith("device") else None
            low, high = (s / cost.batch_tokens for s in interval) if interval else (None, None)
            ratio = whole / of_base if whole and of_base else None
            if quantity.startswith("device") and cost.seconds_ratio and base is profile.arms[0]:
                ratio = cost.seconds_ratio.value  # of paired rounds, as the tables have it
            rows.append({"quantity": quantity, "arm": cost.arm, "phase": WHOLE, "value": whole, "start": 0.0,
                         "low": low, "high": high, "ratio": ratio})  # fmt: skip
    return pd.DataFrame(rows, columns=_COLUMNS).astype({c: float for c in ("value", "start", "low", "high", "ratio")})


def draw_costs(table: pd.DataFrame) -> Figure:
    """Draw `costs_table`: one bar an arm, stacked by phase; the number is the ratio to the reference arm.

    At the right stands by how much the ratio in FLOPs is off the ratio in time.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    arms = list(pd.unique(table["arm"]))
    figure = Figure(figsize=(COLUMN_INCHES, 0.95 + 0.24 * len(arms)), layout="constrained")
    apart = _disagreement(table)
    shares = (1.0, 1.0, 0.26) if apart else (1.0, 1.0)
    panels = figure.subplots(1, len(shares), sharey=True, width_ratios=shares)
    for axes, quantity in zip(panels, _PANELS, strict=False):
        _panel(axes, table[table["quantity"] == quantity], arms, *_PANELS[quantity])
    if apart:
        panels[2].set_axis_off()
        panels[2].set_title("FLOPs\noff by", loc="right", pad=3, fontsize=6.5)
        for y, arm in enumerate(arms):
            panels[2].text(1.0, y, apart.get(arm, "n/a"), ha="right", va="center", fontsize=6.5)
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    shown = [p for p in (*PHASES, WHOLE) if p in set(table.loc[table["value"] > 0, "phase"])]
    split = any(phase in PHASES for phase in shown)
    handles = [
        Patch(facecolor=_FILLS[p][0], hatch=_FILLS[p][1], edgecolor="white", linewidth=0.4, label=p.replace("_", " "))
        for p in shown
        if p != WHOLE or not split or _unsplit(table)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, handlelength=1.2, columnspacing=1.2,
                  handletextpad=0.5)  # fmt: skip
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, arms: list[str], title: str, unit: str) -> None:
    wholes = {row["arm"]: row for row in rows[rows["phase"] == WHOLE].to_dict("records")}
    longest = max([*(rows["start"] + rows["value"].fillna(0.0)), *rows["high"].dropna()])
    prefix, scale = prefix_for(longest) if longest > 0 else ("", 1.0)
    if "device" in unit:
        prefix, scale = ("µ", 1e-6) if longest < 1e-3 else ("m", 1e-3)
    axes.set_title(title, loc="left", pad=3, fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit.format(prefix))
    if longest <= 0:
        axes.set_xticks([])
        axes.text(0.03, 0.5, "n/a (not timed)", transform=axes.transAxes, va="center", fontsize=6.5)
        return
    grid(axes, "x")
    for y, arm in enumerate(arms):
        own = rows[(rows["arm"] == arm) & (rows["phase"] != WHOLE) & (rows["value"] > 0)]
        whole = wholes[arm]
        if own.empty and math.isfinite(whole["value"]):
            own = rows[(rows["arm"] == arm) & (rows["phase"] == WHOLE)]
        for row in own.to_dict("records"):
            colour, hatch = _FILLS[row["phase"]]
            axes.barh(y, row["value"] / scale, left=row["start"] / scale, height=0.66, color=colour, hatch=hatch,
                      edgecolor="white", linewidth=0.4)  # fmt: skip
        end = max([*(own["start"] + own["value"]), 0.0])
        if math.isfinite(whole["low"]):
            axes.plot([whole["low"] / scale, whole["high"] / scale], [y, y], color="black", linewidth=0.9, zorder=4)
            end = max(end, whole["high"])
        label = f"{whole['ratio']:.2f}×" if math.isfinite(whole["ratio"]) else "n/a"
        axes.annotate(label, (end / scale, y), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_xlim(0, longest / scale * 1.32)
    axes.locator_params(axis="x", nbins=4)


def _disagreement(table: pd.DataFrame) -> dict[str, str]:
    """Say by how much each arm's ratio in FLOPs is off the one in time; empty where nothing was timed."""
    whole = table[table["phase"] == WHOLE].pivot_table(index="arm", columns="quantity", values="ratio", sort=False)
    if set(whole.columns) != set(_PANELS):
        return {}
    flops, seconds = (whole[quantity] for quantity in _PANELS)
    return {str(arm): f"{100 * off:+.0f} %" for arm, off in (flops / seconds - 1).dropna().items()}


def _unsplit(table: pd.DataFrame) -> bool:
    """Whether some bar had to be drawn as one piece."""
    for _, rows in table.groupby(["quantity", "arm"]):
        phases = rows[rows["phase"] != WHOLE]
        if not (phases["value"] > 0).any() and (rows["value"] > 0).any():
            return True
    return False


def _phase(cost: ArmCost, phase: str, quantity: str) -> float | None:
    if quantity == "required_flops_per_token":
        return cost.phases[phase].required_flops_per_token
    seconds = cost.phases[phase].seconds_per_step
    return None if seconds is None else seconds / cost.batch_tokens


def _whole(cost: ArmCost, quantity: str) -> float | None:
    if quantity == "required_flops_per_token":
        return cost.train_required_flops_per_token
    return None if cost.seconds_per_step is None else cost.seconds_per_step / cost.batch_tokens
