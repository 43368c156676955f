"""Which figures a report has, from what is known so far, each with its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from budgetlab.decisions.evidence import runs_by_size
from budgetlab.fitting import isoflop
from budgetlab.fitting.reference import base_arm
from budgetlab.fitting.scores import run_values
from budgetlab.reporting.figures import (
    FigureFiles,
    costs_table,
    decomposition_table,
    draw_costs,
    draw_decomposition,
    draw_frontier,
    draw_isoflop,
    draw_losses,
    draw_plan,
    draw_scores,
    draw_spent,
    draw_verdicts,
    fit_note,
    fit_notes,
    frontier_table,
    isoflop_table,
    multiplier_name,
    plan_table,
    points_table,
    render,
    spent_table,
    spread_note,
    verdict_table,
)
from budgetlab.reporting.figures.points import AXES, Axis
from budgetlab.reporting.frames import mid_decay, per_run, summarise
from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Verdict

_LOSS_AXES: tuple[Axis, ...] = ("tokens", "required_flops")
_NAMES: dict[Axis, str] = {"tokens": "tokens", "required_flops": "flops", "device_hours": "hours"}


def score_figures(
    table: pd.DataFrame,
    arms: Sequence[str],
    fits: Sequence[CurveFit],
    folder: Path,
    *,
    level: float,
    definitions: Sequence[str],
    where: str,
) -> list[FigureFiles]:
    """Draw scores on three axes, CoLA by itself, and the read-out loss against tokens and FLOPs."""
    runs = per_run(table)
    cells = summarise(runs, level)
    drawn: list[FigureFiles] = []
    points = points_table(runs, cells, arms, fits=fits, mid_decay=mid_decay(table))
    spread = f"{spread_note(points, cells, level)}; {where}."
    for x in _known(points):
        # What the mean is of is said once.
        note = spread if drawn else "; ".join([*definitions, spread])
        told, lines = f"Score against {AXES[x]}; {note}", fit_notes(fits, points, x)
        drawn.append(
            render(f"score_vs_{_NAMES[x]}", lambda t, x=x, n=lines: draw_scores(t, x, arms, n), points, folder, told)
        )
    cola = points[points["task"] == "cola"]
    if "tokens" in _known(cola):
        told, lines = f"CoLA against {AXES['tokens']}; {spread}", fit_notes(fits, cola, "tokens")
        drawn.append(render("cola_vs_tokens", lambda t: draw_scores(t, "tokens", arms, lines), cola, folder, told))
    losses = points_table(runs, cells, arms, ["readout_loss"], fits=fits, mid_decay=mid_decay(table))
    note = f"{spread_note(losses, cells, level)}; {where}."
    for x in _LOSS_AXES:
        if x not in _known(losses):
            continue
        aside = "arms are drawn a little aside of one another; " if x == "required_flops" else ""
        told = f"Held-out read-out loss against {AXES[x]}; {aside}{note}"
        lines = fit_note(fits, "readout_loss", losses, x)
        name = f"readout_loss_vs_{_NAMES[x]}"
        drawn.append(render(name, lambda t, x=x, n=lines: draw_losses(t, n, x, arms), losses, folder, told))
    return drawn


def _known(points: pd.DataFrame) -> list[Axis]:
    """Return the axes on which there is anything to draw."""
    means = points[points["layer"] == "mean"]
    return [x for x in _NAMES if means[x].notna().any()]


def cost_figures(
    plan: Plan,
    profile: CostProfile,
    records: Sequence[RunRecord],
    folder: Path,
    *,
    sensitivity: pd.DataFrame | None,
    where: str,
) -> list[FigureFiles]:
    """Draw what a token costs, the plan under every meaning of compute, and planned against spent."""
    timed = sorted({cost.steps_timed for cost in profile.arms})
    steps = f"{timed[0]}" if len(timed) == 1 else f"{timed[0]} to {timed[-1]}"
    told = (
        f"Cost of a training token by phase; ratios to {base_arm(list(plan.arms))}; black: interval of the "
        f"measured step time ({steps} steps timed); at the right, by how much the ratio in FLOPs is off the one in "
        f"time; {where}."
    )
    drawn = [render("cost_per_arm", draw_costs, costs_table(profile), folder, told)]
    if sensitivity is not None and sensitivity["tokens"].notna().any():
        told = (
            "Tokens of each arm at the largest budget under each meaning of the same compute, and by what of the "
            "teacher is charged; predicted from the profile, n/a where it is infeasible or the price is unknown."
        )
        drawn.append(render("plan_by_currency", draw_plan, plan_table(sensitivity), folder, told))
    spent = spent_table(plan, records)
    if len(spent):
        told = (
            "What each complete run spent over what was planned: a marker a run, smallest budget uppermost; device "
            f"time as the profile of this study predicted it; {where}."
        )
        drawn.append(render("planned_vs_spent", lambda t: draw_spent(t, list(plan.arms)), spent, folder, told))
    return drawn


def answer_figures(
    verdicts: Sequence[Verdict],
    by_text: Mapping[str, Sequence[Verdict]],
    arms: Sequence[str],
    folder: Path,
    *,
    where: str,
) -> list[FigureFiles]:
    """Draw the verdicts over the budget, other amounts of text beside, and what makes the verdicts up."""
    drawn: list[FigureFiles] = []
    level = f"{100 * verdicts[0].interval_level:g} %" if verdicts else ""
    table = verdict_table(verdicts)
    pairs = sorted(set(table["num_pairs"].astype(int)))
    seeds = "" if not pairs else f"; {pairs[0]}" + (f" to {pairs[-1]}" if len(pairs) > 1 else "") + " run seeds"
    if len(table):
        told = (
            f"Above: difference from {', '.join(dict.fromkeys(table['reference']))} at each budget, positive where "
            f"the arm is better. Below: {multiplier_name(table)}, what the reference needs over what the arm needs for "
            f"an equal outcome, where both curves reach it. Bars: {level} intervals{seeds}. A stroke on zero is a "
            f"crossover with its interval; {where}."
        )
        drawn.append(render("verdict_vs_budget", lambda t: draw_verdicts(t, arms), table, folder, told))
    several = verdict_table(by_text, str(table["y"].iloc[0])) if len(table) else table
    if several["study"].nunique() > 1:
        told = f"The same contrasts by how much text there is to read; bars: {level} intervals; {where}."
        drawn.append(render("verdict_by_text", lambda t: draw_verdicts(t, arms), several, folder, told))
    parts = decomposition_table(verdicts)
    if len(parts):
        told = (
            "Where each primary difference comes from: what a token is worth at equal tokens, and what the tokens "
            f"that the budget does not pay for cost; {'; '.join(dict.fromkeys(parts['method']))}; bars: {level} "
            f"intervals; {where}."
        )
        drawn.append(render("decomposition", draw_decomposition, parts, folder, told))
    return drawn


def size_figures(
    plan: Plan, table: pd.DataFrame, frontier: pd.DataFrame, arms: Sequence[str], folder: Path, *, where: str
) -> list[FigureFiles]:
    """Draw what varies with the students' size: the frontier in all-in compute, and isoFLOP curves; else nothing."""
    drawn: list[FigureFiles] = []
    if len(frontier) and frontier["student"].nunique() > 1:
        told = (
            "Every arm and student at every budget in all-in compute (the student's, the teacher's forward passes, "
            "its pretraining shared by so many students); filled: nothing that costs no more is better. Means over "
            f"runs, measured; {where}."
        )
        drawn.append(render("frontier", lambda t: draw_frontier(t, arms), frontier_table(frontier), folder, told))
    known = table[(table["subject"] == "run") & (table["task"] == "readout_loss")]
    if plan.match != "required_flops" or known.empty:
        return drawn
    sizes = runs_by_size(plan, run_values(table, "readout_loss"))
    columns = {"flops": "budget_amount", "num_params": "num_params_non_embedding", "loss": "loss"}
    if sizes.empty or sizes.groupby("budget_amount")["num_params_non_embedding"].nunique().max() < 3:
        return drawn
    found = isoflop(sizes, columns=columns)
    told = (
        "Read-out loss by student size (parameters without embedding tables) at each budget, with a parabola in log N, "
        f"and the optimal size against compute (open: outside the sizes that were run); {where}."
    )
    drawn.append(render("isoflop", draw_isoflop, isoflop_table(found, sizes, columns), folder, told))
    return drawn
