"""What a token costs each arm, what every arm may read under each meaning of "the same compute", and what was spent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.frames import records_frame
from budgetlab.reporting.averages import told_range
from budgetlab.reporting.figures import style
from budgetlab.reporting.figures.figure import Figure, need_columns, styled
from budgetlab.values import PHASES, ArmCost, CostProfile, Plan, RunRecord
from budgetlab.values.specs import base_arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

WHOLE = "whole step"
_LOOKS: dict[str, dict[str, Any]] = {
    # Dark to light in the order of the step, so that neighbours differ in greyscale too; hatched where they are alike.
    "teacher_forward": {"facecolor": "#332288"},
    "student_forward": {"facecolor": "#88CCEE"},
    "loss": {"facecolor": "#882255"},
    "backward": {"facecolor": "#B3A63C"},
    "update": {"facecolor": "#117733"},
    WHOLE: {"facecolor": "#BBBBBB", "hatch": "////"},
}
_EDGE: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4}
_FLOPS, _SECONDS = "required_flops_per_token", "device_seconds_per_token"
_PANELS = {_FLOPS: ("required compute", "FLOP per token"), _SECONDS: ("time", "device s per token")}
_COST_NUMBERS = ["value", "start", "low", "high", "ratio"]
_SPENT_COLUMNS = ["quantity", "arm", "rung", "run_seed", "planned", "spent", "ratio"]
_SPENT = {"required_flops": "required compute", "device_seconds": "device time"}
_CHARGES = {"inference": "with inference", "none": "teacher free", "pretraining": "with pretraining"}


def cost_figure(profile: CostProfile) -> Drawing:
    """Draw what a token costs each arm, by phase, in FLOPs and in seconds, and by how much the two ratios disagree.

    Raises
    ------
    CallerError
        Without a profile, as the store returns none of a study that was never profiled.
    """
    if not isinstance(profile, CostProfile):
        raise CallerError("figure of costs", f"{type(profile).__name__} is no profile", "profile the study first")
    return styled(draw_costs, costs_table(profile))


def plan_figure(sensitivity: pd.DataFrame) -> Drawing:
    """Draw tokens per arm under every meaning of compute, from `planner.sensitivity`."""
    need_columns(sensitivity, ["match", "charge", "arm", "tokens"], "a plan", "`sensitivity`")
    table = plan_table(sensitivity)
    if table.empty:
        raise CallerError("figure of a plan", "no arm has tokens under any definition", "give a larger budget")
    return styled(draw_plan, table)


def spent_figure(plan: Plan, records: Iterable[RunRecord]) -> Drawing:
    """Draw what each complete run spent over what was planned, in required FLOPs and in device time.

    Raises
    ------
    CallerError
        When no run is complete.
    """
    table = spent_table(plan, records)
    if table.empty:
        raise CallerError(f"figure of what {plan.study} spent", "no run is complete", "run it")
    return styled(lambda drawn: draw_spent(drawn, list(plan.arms)), table)


def costs_table(profile: CostProfile) -> pd.DataFrame:
    """Return the drawn numbers: a row an arm and phase with its length and start, and a row for the whole step.

    `value` and `start` are FLOPs or seconds per token. The whole step is not the sum of its phases where it was
    timed as one piece; its row has the interval and the ratio to the reference arm. Unknown is missing.
    """
    reference = base_arm(cost.arm for cost in profile.arms)
    base = next((cost for cost in profile.arms if cost.arm == reference), None)
    rows: list[tuple[Any, ...]] = []
    for quantity in _PANELS:
        of_base = None if base is None else _per_token(base, WHOLE, quantity)
        for cost in profile.arms:
            start = 0.0
            for phase in [p for p in PHASES if p in cost.phases]:
                value = _per_token(cost, phase, quantity)
                rows.append((quantity, cost.arm, phase, value, start, None, None, None))
                start += value or 0.0
            whole, low, high = _per_token(cost, WHOLE, quantity), None, None
            ratio = whole / of_base if whole and of_base else None
            if quantity == _SECONDS:
                if cost.seconds_per_step_interval:
                    low, high = (seconds / cost.batch_tokens for seconds in cost.seconds_per_step_interval)
                if cost.seconds_ratio and base is profile.arms[0]:
                    ratio = cost.seconds_ratio.value  # of paired rounds, as the tables have it
            rows.append((quantity, cost.arm, WHOLE, whole, 0.0, low, high, ratio))
    table = pd.DataFrame(rows, columns=["quantity", "arm", "phase", *_COST_NUMBERS])
    return table.astype(dict.fromkeys(_COST_NUMBERS, float))


def _per_token(cost: ArmCost, phase: str, quantity: str) -> float | None:
    if quantity == _FLOPS:
        return cost.train_required_flops_per_token if phase == WHOLE else cost.phases[phase].required_flops_per_token
    seconds = cost.seconds_per_step if phase == WHOLE else cost.phases[phase].seconds_per_step
    return None if seconds is None else seconds / cost.batch_tokens


def draw_costs(table: pd.DataFrame) -> Drawing:
    """Draw `costs_table`: one bar an arm, stacked by phase; the number is the ratio to the reference arm.

    At the right stands by how much the ratio in FLOPs is off the ratio in time.
    """
    arms, wholes = list(pd.unique(table["arm"])), table[table["phase"] == WHOLE]
    known = table[table["value"] > 0].set_index(["quantity", "arm"], drop=False)
    # The phases of a step, or the whole of it where it was not split.
    split = known.index[known["phase"] != WHOLE]
    bars = known[(known["phase"] != WHOLE) | ~known.index.isin(split)]
    shown = [phase for phase in _LOOKS if phase in set(bars["phase"])]
    handles = [style.patch(phase.replace("_", " "), **_LOOKS[phase], **_EDGE) for phase in shown]
    ratios = wholes.pivot(index="arm", columns="quantity", values="ratio")
    off = (ratios[_FLOPS] / ratios[_SECONDS] - 1).dropna()
    shares = (1.0, 1.0, 0.26) if len(off) else (1.0, 1.0)
    legend, height = {"ncols": 3, "handlelength": 1.2}, 0.65 + 0.24 * len(arms)
    shape = {"shape": (1, len(shares)), "sharey": True, "width_ratios": shares}
    figure, [panels] = style.canvas(height, handles, legend=legend, **shape)
    for axes, (quantity, (title, unit)) in zip(panels, _PANELS.items(), strict=False):
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel(unit)
        own, whole = bars[bars["quantity"] == quantity], wholes[wholes["quantity"] == quantity]
        if own.empty:
            style.not_timed(axes)
            continue
        axes.grid(axis="x")
        for phase, rows in own.groupby("phase", sort=False):
            at = [arms.index(arm) for arm in rows["arm"]]
            axes.barh(at, rows["value"], left=rows["start"], height=0.66, **_LOOKS[str(phase)], **_EDGE)
        ends = (own["start"] + own["value"]).groupby(own["arm"].array).max()
        for y, row in enumerate(whole.to_dict("records")):
            end = ends.get(arms[y], 0.0)
            if math.isfinite(row["low"]):
                axes.plot([row["low"], row["high"]], [y, y], color="black", linewidth=0.9, zorder=4)
                end = max(end, row["high"])
            style.end_label(axes, f"{row['ratio']:.2f}×" if math.isfinite(row["ratio"]) else "n/a", (end, y))
        axes.set_xlim(0, 1.32 * max(ends.max(), *whole["high"].dropna(), *whole["value"].dropna()))
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(style.prefixes())
    for axes in panels[2:]:
        axes.set_axis_off()
        axes.set_title("FLOPs\noff by", loc="right", fontsize=6.5)
        for y, arm in enumerate(arms):
            told = f"{100 * off[arm]:+.0f} %" if arm in off else "n/a"
            axes.text(1.0, y, told, ha="right", va="center", fontsize=6.5)
    style.name_rows(panels[0], arms)
    return figure


def plan_table(sensitivity: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: `match`, `charge`, `arm`, `tokens` (missing where infeasible), a line a definition.

    A definition under which no arm has any is left out.
    """
    known = sensitivity[sensitivity.groupby(["match", "charge"])["tokens"].transform("count") > 0]
    words = known["match"].str.replace("_", " ").str.replace("flops", "FLOPs")
    charged = words + ", " + known["charge"].replace(_CHARGES)
    known = known.assign(line=words.where(known["match"] == "equal_tokens", charged))
    return known[["line", "match", "charge", "arm", "tokens"]].astype({"tokens": float})


def draw_plan(table: pd.DataFrame) -> Drawing:
    """Draw `plan_table`: a line a definition, a marker an arm; at the right how many arms are infeasible."""
    lines, styles = list(pd.unique(table["line"])), style.arm_styles(list(pd.unique(table["arm"])))
    height = 0.6 + (0.1 + 0.035 * len(styles)) * len(lines)
    figure, [[axes]] = style.canvas(height, style.arm_handles(styles, lines=()), legend={"handletextpad": 0.2})
    style.log_axis(axes, "x", style.room(table["tokens"].tolist(), log=True), written=style.prefixes("tokens"), most=6)
    axes.set_xlabel("tokens")
    style.name_rows(axes, lines)
    axes.grid(axis="x")
    unknown = table["tokens"].isna().groupby(table["line"]).sum()
    for y, line in enumerate(lines):
        if y % 2 == 0:
            axes.axhspan(y - 0.5, y + 0.5, color="#F5F5F5", linewidth=0, zorder=0)
        if unknown[line]:
            style.end_label(axes, f"{unknown[line]} n/a", (1, y), xycoords=("axes fraction", "data"), color=style.QUIET)
    for i, (arm, look) in enumerate(styles.items()):
        own = table[(table["arm"] == arm) & table["tokens"].notna()]
        # Side by side, since arms often get the same.
        at = own["line"].map(lines.index) + 0.7 * ((i + 0.5) / len(styles) - 0.5)
        axes.plot(own["tokens"], at, linestyle="none", zorder=3, **look.mark | {"markersize": 3.4})
    return figure


def spent_table(plan: Plan, records: Iterable[RunRecord]) -> pd.DataFrame:
    """Return the drawn numbers: a row a complete run and quantity, `planned`, `spent` and their `ratio`.

    `quantity` is "required_flops" or "device_seconds"; the ratio is missing where nothing was planned, such as
    seconds without a measured profile.
    """
    order = list(plan.arms)
    runs = [r for r in records if r.kind == "rung" and r.status == "complete" and r.schedule and r.arm in order]
    if not runs:
        return pd.DataFrame(columns=_SPENT_COLUMNS)
    known = records_frame(runs)
    known = known.sort_values(["arm", "rung", "run_seed"], key=lambda c: c.map(order.index) if c.name == "arm" else c)
    parts = [
        known.assign(quantity=name, planned=known[f"planned_{name}"].astype(float), spent=known[name].astype(float))
        for name in _SPENT
    ]
    table = pd.concat(parts, ignore_index=True)
    planned = table["planned"].where(table["planned"] > 0)
    return table.assign(planned=planned, ratio=table["spent"] / planned)[_SPENT_COLUMNS]


def draw_spent(table: pd.DataFrame, order: Sequence[str] = ()) -> Drawing:
    """Draw `spent_table`: a row an arm, a marker a run, smallest budget uppermost; the line is what was planned.

    `order` is that of the study's arms, which their looks follow.
    """
    arms, rungs = list(dict.fromkeys(table["arm"])), sorted(table["rung"].unique())
    styles = style.arm_styles(list(dict.fromkeys([*order, *arms])))
    figure, [panels] = style.canvas(0.65 + 0.28 * len(arms), shape=(1, 2), sharey=True)
    for axes, (quantity, words) in zip(panels, _SPENT.items(), strict=True):
        rows = table[(table["quantity"] == quantity) & table["ratio"].notna()]
        axes.axvline(1.0, color=style.INK, linewidth=0.6, zorder=1)
        for arm, own in rows.groupby("arm"):
            at = arms.index(str(arm)) + 0.6 * ((own["rung"].map(rungs.index) + 0.5) / len(rungs) - 0.5)
            mark = styles[str(arm)].mark | {"markersize": 3.4}
            axes.plot(own["ratio"], at, linestyle="none", zorder=3, **mark)
        if rows.empty:
            style.not_timed(axes)
        else:
            # What is spent to the FLOP must not look like noise: never less than a percent to either side.
            axes.set_xlim(*style.room([0.99, 1.01, *rows["ratio"]]))
            axes.locator_params(axis="x", nbins=4)
            axes.xaxis.set_major_formatter("{x:.4g}")
            axes.grid(axis="x")
        axes.set_title(words, loc="left", fontweight="bold")
        axes.set_xlabel("spent / planned")
    style.name_rows(panels[0], arms)
    return figure


FIGURES = (
    Figure(
        "cost_per_arm",
        "Cost of a training step",
        table=lambda known: costs_table(known.profile),
        draw=lambda table, known: draw_costs(table),
        caption=lambda table, known: (
            f"Cost of a training token by phase; ratios to {base_arm(known.arms)}; black: interval of the measured "
            f"step time ({told_range([cost.steps_timed for cost in known.profile.arms])} steps timed); at the right, "
            f"by how much the ratio in FLOPs is off the one in time; {known.where}."
        ),
    ),
    Figure(
        "plan_by_currency",
        "Plan",
        table=lambda known: plan_table(known.sensitivity) if len(known.sensitivity) else known.sensitivity,
        draw=lambda table, known: draw_plan(table),
        caption=lambda table, known: (
            "Tokens of each arm at the largest budget under each meaning of the same compute, and by what of the "
            "teacher is charged; predicted from the profile, n/a where it is infeasible or the price is unknown."
        ),
    ),
    Figure(
        "planned_vs_spent",
        "Plan",
        table=lambda known: spent_table(known.plan, known.records),
        draw=lambda table, known: draw_spent(table, known.arms),
        caption=lambda table, known: (
            "What each complete run spent over what was planned: a marker a run, smallest budget uppermost; device "
            f"time as the profile of this study predicted it; {known.where}."
        ),
    ),
)
