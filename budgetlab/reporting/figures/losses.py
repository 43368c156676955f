"""Figure: read-out loss against required FLOPs, with a curve only where a fit may be used."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from budgetlab.reporting.figures.style import (
    COLUMN_INCHES,
    YARDSTICK_COLOUR,
    YARDSTICK_LINES,
    arm_styles,
    grid,
    legend_columns,
    log_ticks,
    prefix_for,
    room,
    yardstick_handles,
)
from budgetlab.reporting.frames import YARDSTICKS
from budgetlab.values import CurveFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves_table", "draw_losses", "fit_note", "losses_table"]

TASK = "readout_loss"
_SHIFT = 0.02
"""Of the drawn range of x in logarithms: about the width of a marker."""
_COLUMNS = ["layer", "arm", "rung", "run_seed", "required_flops", "drawn_at_required_flops", "readout_loss_nats",
            "low_nats", "high_nats", "num_runs"]  # fmt: skip


def losses_table(
    runs: pd.DataFrame, cells: pd.DataFrame, arms: Sequence[str], curves: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the drawn numbers: runs, means over runs, yardsticks, and the points of any fitted curve.

    Arms are matched in FLOPs, so their points share an x and would hide one another: each arm is drawn a little
    aside, and the table has both the true x and the drawn one.

    Parameters
    ----------
    runs, cells
        What `frames.per_run` and `frames.summarise` return.
    arms
        Arms in the order of the study.
    curves
        Points of the fits that may be used: `arm`, `required_flops`, `readout_loss_nats`, `low_nats`, `high_nats`.
    """
    rows: list[dict[Any, Any]] = []
    spent = runs.loc[(runs["task"] == TASK) & (runs["subject"] == "run"), "required_flops"].astype(float)
    step = _SHIFT * max(0.5, math.log(spent.max() / spent.min())) if len(spent) and spent.min() > 0 else 0.0
    aside = {arm: math.exp(step * (i - (len(arms) - 1) / 2)) for i, arm in enumerate(arms)}
    for layer, frame in (("run", runs), ("mean", cells)):
        own = frame[(frame["task"] == TASK) & (frame["subject"] == "run") & frame["arm"].isin(arms)]
        own = own.assign(order=own["arm"].map({arm: i for i, arm in enumerate(arms)}))
        for row in own.sort_values(["order", "rung"], kind="stable").to_dict("records"):
            rows.append({
                "layer": layer, "arm": row["arm"], "rung": row["rung"], "run_seed": row.get("run_seed"),
                "required_flops": row["required_flops"],
                "drawn_at_required_flops": row["required_flops"] * aside[row["arm"]],
                "readout_loss_nats": row["value"] if layer == "run" else row["mean"],
                "low_nats": row.get("low"), "high_nats": row.get("high"), "num_runs": row.get("num_runs", 1),
            })  # fmt: skip
    for subject in YARDSTICKS:
        own = cells[(cells["task"] == TASK) & (cells["subject"] == subject)]
        rows += [
            {"layer": subject, "arm": row["arm"], "readout_loss_nats": row["mean"], "num_runs": row["num_runs"]}
            for row in own.to_dict("records")
        ]
    for row in [] if curves is None else curves.to_dict("records"):
        # A curve goes aside with its points.
        rows.append({"layer": "curve", "drawn_at_required_flops": row["required_flops"] * aside[row["arm"]], **row})
    return pd.DataFrame(rows, columns=_COLUMNS)


def curves_table(fits: Sequence[CurveFit]) -> pd.DataFrame:
    """Return the points of the fitted curves and bands, inside the fitted range, of the fits that may be used."""
    columns = ["arm", "required_flops", "readout_loss_nats", "low_nats", "high_nats"]
    frames = []
    for fit in fits:
        if fit.arm is None or fit.x_range is None or not _may_be_drawn(fit):
            continue
        # A fit's band reaches beyond its data; the figure does not.
        low, high = fit.x_range
        x = np.array([low, *(value for value in fit.band["x"] if low < value < high), high])
        frame = {"arm": fit.arm, "required_flops": x}
        for name, key in zip(columns[2:], ("prediction", "low", "high"), strict=True):
            if key in fit.band:
                frame[name] = np.interp(np.log(x), np.log(fit.band["x"]), fit.band[key])
        frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True).reindex(columns=columns) if frames else pd.DataFrame(columns=columns)


def fit_note(fits: Sequence[CurveFit]) -> str:
    """Say on the figure what its lines are, and why an arm has none; empty where nothing was fitted."""
    own = [fit for fit in fits if fit.arm is not None and _is_this_figure(fit)]
    reasons: dict[tuple[bool, str, str], list[str]] = {}
    for fit in own:
        # The first clause tells what happened, of a refusal the last before its full stop; the page has the whole text.
        clauses = re.split(r"; ", re.split(r"\. |\.$", fit.status_text)[0])
        refused = clauses[0].startswith("No curve: ") and len(clauses) > 1
        clause = f"No curve: {clauses[-1]}" if refused else clauses[0]
        reasons.setdefault((_may_be_drawn(fit), fit.law, clause), []).append(str(fit.arm))
    parts = []
    for (drawn, law, clause), arms in reasons.items():
        whose = "" if len(arms) == len(own) else f" ({', '.join(arms)})"
        parts.append(
            f"Lines{whose}: {law}, inside the fitted range. {clause}." if drawn else f"Points{whose}: {clause}."
        )
    return " ".join(parts)


def _is_this_figure(fit: CurveFit) -> bool:
    columns = set(fit.columns.values())
    return {"required_flops", TASK} <= columns and fit.outcome_transform == "y"


def _may_be_drawn(fit: CurveFit) -> bool:
    return fit.usable_for != "nothing" and bool(fit.band.get("x")) and _is_this_figure(fit)


def draw_losses(table: pd.DataFrame, note: str = "") -> Figure:
    """Draw `losses_table`: faint markers are runs, full ones their means, lines only fitted curves."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    arms = list(dict.fromkeys(table.loc[table["layer"] == "run", "arm"]))
    styles = arm_styles(arms)
    lines = textwrap.wrap(note, 72)
    figure = Figure(figsize=(COLUMN_INCHES, 2.5 + 0.11 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    flops = table["drawn_at_required_flops"].dropna().astype(float)
    limits = room(flops.tolist(), log=True)
    prefix, scale = prefix_for(flops.max())
    axes.set_xlim(*limits)
    log_ticks(axes.xaxis, *limits, scale=scale, most=6)
    grid(axes)
    handles = []
    for row in table[table["layer"].isin(list(YARDSTICKS))].to_dict("records"):
        dash = YARDSTICK_LINES[row["layer"]]
        axes.axhline(row["readout_loss_nats"], color=YARDSTICK_COLOUR, linewidth=0.8, linestyle=dash, zorder=1)
    for arm in arms:
        style, own = styles[arm], table[table["arm"] == arm]
        curve, seeds, means = (own[own["layer"] == layer] for layer in ("curve", "run", "mean"))
        if len(curve):
            at = curve["drawn_at_required_flops"]
            axes.plot(at, curve["readout_loss_nats"], color=style.colour, linestyle=style.dash, zorder=2)
            if curve[["low_nats", "high_nats"]].notna().all(axis=None):
                axes.fill_between(at, curve["low_nats"], curve["high_nats"], color=style.colour, alpha=0.15,
                                  linewidth=0, zorder=1)  # fmt: skip
        axes.plot(seeds["drawn_at_required_flops"], seeds["readout_loss_nats"], linestyle="none", marker=style.marker,
                  markersize=2.2, markeredgewidth=0.5, markerfacecolor="white", color=style.colour, alpha=0.7,
                  zorder=2.5)  # fmt: skip
        y = means["readout_loss_nats"]
        bars = means[["low_nats", "high_nats"]].notna().all(axis=None)
        axes.errorbar(means["drawn_at_required_flops"], y,
                      yerr=[y - means["low_nats"], means["high_nats"] - y] if bars else None, linestyle="none",
                      color=style.colour, marker=style.marker, markersize=4.2, markeredgecolor="white",
                      markeredgewidth=0.4, elinewidth=0.8, capsize=1.6, capthick=0.8, zorder=3)  # fmt: skip
        handles.append(Line2D([], [], color=style.colour, linestyle=style.dash if len(curve) else "none",
                              marker=style.marker, markersize=4.2, markeredgecolor="white", markeredgewidth=0.4,
                              label=arm))  # fmt: skip
    handles += yardstick_handles(table["layer"])
    axes.set_ylabel("read-out loss (nats per target token)")
    axes.set_xlabel(f"required training compute ({prefix}FLOP, log scale)")
    across = legend_columns([str(handle.get_label()) for handle in handles], COLUMN_INCHES)
    figure.legend(handles=handles, loc="outside upper center", ncols=across, columnspacing=1.2, handletextpad=0.5)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=6, color="#444444", x=0.02, ha="left", style="italic")
    return figure
