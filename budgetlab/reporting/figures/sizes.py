"""What varies with size: the frontier in compute, isoFLOP curves, the verdict map, and any law fitted to a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from budgetlab.decisions.evidence import runs_by_size
from budgetlab.decisions.teacher_budget import on_frontier
from budgetlab.errors import CallerError
from budgetlab.fitting import IsoFlop, isoflop, optimum, predict
from budgetlab.fitting.scores import OUTCOMES, run_values
from budgetlab.laws import get_law
from budgetlab.reporting.averages import shown_unit
from budgetlab.reporting.figures import style
from budgetlab.reporting.figures.figure import Figure, Known, need_columns, styled
from budgetlab.values import CurveFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_ANSWERS: dict[str, dict[str, Any]] = {
    "arm": {"label": "distilled arm better", "facecolor": "#0072B2"},
    "reference": {"label": "reference better", "facecolor": "#E69F00"},
    "not resolved": {"label": "not resolved", "facecolor": "#C9CDD1"},
    # Dots would make the vector file ten times larger.
    "infeasible": {"label": "teacher's share costs more", "facecolor": "#FFFFFF", "hatch": "xxxx"},
    "n/a": {"label": "n/a: not run, no extrapolation", "facecolor": "#FFFFFF"},
}
"""How a cell of the map is drawn, by its answer."""
_MAP_COLUMNS = ["student", "num_params_non_embedding", "arm", "reference", "teacher", "students_per_teacher",
                "total_flops", "difference", "low", "high", "unit", "answer", "basis", "reason"]  # fmt: skip
_FRONTIER_COLUMNS = ["students_per_teacher", "student", "arm", "all_in_flops", "outcome", "y", "num_runs",
                     "on_frontier"]  # fmt: skip
_OPTIMUM = ["flops", "num_params", "num_params_low", "num_params_high", "loss", "used"]
_BY_SIZE = {"flops": "budget_amount", "num_params": "num_params_non_embedding", "loss": "loss"}
_FEWEST_SIZES = 3
_REACH = 10.0
"""How far beyond the data an optimum is drawn."""


def frontier_figure(frontier: pd.DataFrame, *, arms: Sequence[str] = ()) -> Drawing:
    """Draw `all_in_frontier`: every arm and size in compute, filled where nothing cheaper is better.

    `arms` are the study's, in order, so that an arm looks as in its other figures.
    """
    needed = ["student", "arm", "students_per_teacher", "all_in_flops", "outcome", "y"]
    need_columns(frontier, needed, "a frontier", "`all_in_frontier`")
    table = frontier_table(frontier)
    if table.empty:
        raise CallerError("figure of a frontier", "the all-in compute is unknown", "count the teacher's pretraining")
    return styled(lambda drawn: draw_frontier(drawn, [arms] if isinstance(arms, str) else arms), table)


def isoflop_figure(found: IsoFlop, table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> Drawing:
    """Draw the parabolas that `isoflop` fitted to a table, and the optimal size against compute."""
    needed = [(columns or {}).get(name, place) for name, place in found.columns.items()]
    need_columns(table, needed, "isoFLOP curves", "`isoflop`, with its columns")
    return styled(draw_isoflop, isoflop_table(found, table, columns))


def map_figure(verdict_map: pd.DataFrame) -> Drawing:
    """Draw `verdict_map`: who is ahead at which all-in compute, by how many students share the teacher."""
    needed = ["student", "arm", "reference", "students_per_teacher", "total_flops", "answer", "basis"]
    need_columns(verdict_map, needed, "a verdict map", "`verdict_map`")
    return styled(draw_map, map_table(verdict_map))


def frontier_table(frontier: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: `all_in_frontier`'s rows whose compute is known, with the frontier over all sizes.

    An `outcome` is in points or nats; `on_frontier`: of all arms and students nothing that costs no more is better.
    """
    known = frontier[frontier["all_in_flops"].notna()].assign(on_frontier=False)
    sign = 1.0 if known["higher_is_better"].all() else -1.0
    for _, rows in known.groupby("students_per_teacher"):
        known.loc[rows.index, "on_frontier"] = on_frontier(rows["all_in_flops"], sign * rows["outcome"])
    known["outcome"] *= known["y"].map(shown_unit).map({"points": 100.0}).fillna(1.0)
    return known[_FRONTIER_COLUMNS].sort_values(["students_per_teacher", "all_in_flops"], ignore_index=True)


def draw_frontier(table: pd.DataFrame, order: Sequence[str] = ()) -> Drawing:
    """Draw `frontier_table`: a panel for each number of students that share a teacher; the line is the frontier.

    `order` is that of the study's arms, which their looks follow.
    """
    leading = list(table[table["on_frontier"]]["arm"].unique())
    styles = style.arm_styles(list(dict.fromkeys([*order, *table["arm"]])), leading)
    line = {"color": "black", "linewidth": 0.8, "drawstyle": "steps-post"}
    shares = sorted(table["students_per_teacher"].unique().tolist(), reverse=True)
    shape = math.ceil(len(shares) / 2), min(2, len(shares))
    figure, panels = style.canvas(
        1.45 * shape[0] + 0.25,
        [*style.arm_handles(styles, lines=()), style.handle("frontier", **line)],
        shape,
        sharey=True,
    )
    for axes in panels.ravel()[len(shares) :]:
        axes.set_axis_off()
    for axes, share in zip(panels.ravel(), shares, strict=False):
        rows = table[table["students_per_teacher"] == share]
        best, limits = rows[rows["on_frontier"]], style.room(rows["all_in_flops"].tolist(), log=True)
        axes.grid(axis="y")
        axes.plot([*best["all_in_flops"], limits[1]], [*best["outcome"], best["outcome"].iloc[-1]], zorder=2, **line)
        for arm, look in styles.items():
            for on, fill in ((True, look.colour), (False, "white")):
                own = rows[(rows["arm"] == arm) & (rows["on_frontier"] == on)]
                mark = {"markersize": 4.0, "markeredgewidth": 0.7, "markerfacecolor": fill, "color": look.colour}
                axes.plot(own["all_in_flops"], own["outcome"], look.marker, zorder=3, **mark)
        style.log_axis(axes, "x", limits, most=4)
        shared = "teacher free" if math.isinf(share) else f"teacher for {share:g} student{'s' * (share != 1)}"
        axes.set_title(shared, loc="left")
    y = str(table["y"].iloc[0])
    figure.supylabel(f"{OUTCOMES.get(y, y).removeprefix('the ')} ({shown_unit(y)})")
    figure.supxlabel("all-in required compute of one student (FLOP, log scale)")
    return figure


def isoflop_table(found: IsoFlop, table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return what `draw_isoflop` draws of what `isoflop` found in a table, with the columns that it was given.

    `layer` is "run", "parabola", "optimum" or "line"; an optimum has `num_params_low` and `num_params_high`, and is
    `used` where the line goes through it. Where the sizes are of data the names say `tokens`.
    """
    place = {name: (columns or {}).get(name, place) for name, place in found.columns.items()}
    fitted = table[table[place["flops"]].isin(found.optima["flops"])]
    layers = [pd.DataFrame({name: fitted[column] for name, column in place.items()}).assign(layer="run")]
    law = get_law("isoflop")
    for flops, parabola in zip(found.optima["flops"], found.fits, strict=True):
        if parabola.usable_for != "nothing":
            sizes = np.geomspace(*parabola.input_ranges["num_params"], 61)
            loss = law.predict(parabola.params, {"num_params": sizes})
            layers.append(pd.DataFrame({"layer": "parabola", "flops": flops, "num_params": sizes, "loss": loss}))
    layers.append(found.optima.loc[found.optima["status"] != "not_converged", _OPTIMUM].assign(layer="optimum"))
    if found.num_params is not None:
        ends = np.geomspace(found.optima["flops"].min(), found.optima["flops"].max(), 41)
        line = found.num_params.coefficient * ends**found.num_params.exponent
        layers.append(pd.DataFrame({"layer": "line", "flops": ends, "num_params": line}))
    drawn = pd.concat(layers, ignore_index=True)
    drawn["used"] = drawn["used"].eq(True)
    return drawn[["layer", *_OPTIMUM]].rename(columns=lambda name: name.replace("num_params", found.size))


def draw_isoflop(table: pd.DataFrame) -> Drawing:
    """Draw `isoflop_table`: a parabola a budget, and below it the optima with the line through them."""
    import matplotlib

    size, words = ("tokens", "tokens") if "tokens" in table else ("num_params", "parameters")
    runs, parabolas, optima, lines = (table[table["layer"] == n] for n in ("run", "parabola", "optimum", "line"))
    budgets = sorted(runs["flops"].unique())
    shades = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.85, len(budgets)))
    figure, [[above], [below]] = style.canvas(4.4, shape=(2, 1), height_ratios=(1.3, 1.0))
    for flops, colour in zip(budgets, shades, strict=True):
        own, curve, best = (layer[layer["flops"] == flops] for layer in (runs, parabolas, optima))
        inside = best[best["used"]]
        look = {"color": colour, "markersize": 3.6}
        label = style.prefixes("FLOP")(float(f"{flops:.3g}"))
        above.plot(own[size], own["loss"], color=colour, markeredgewidth=0.7, label=label, **style.OPEN)
        above.plot(curve[size], curve["loss"], color=colour, linewidth=1.0)
        above.plot(inside[size], inside["loss"], "D", **look)
        below.vlines(best["flops"], best[f"{size}_low"], best[f"{size}_high"], color=colour, linewidth=0.9)
        below.plot(best["flops"], best[size], "D", **look, markerfacecolor=colour if len(inside) else "white")
    below.plot(lines["flops"], lines[size], color="#555555", linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    ends = optima[[size, f"{size}_low", f"{size}_high"]].to_numpy(dtype=float).ravel()
    style.log_axis(above, "x", style.room(runs[size].tolist(), log=True), written=style.prefixes(size), most=6)
    style.log_axis(below, "x", style.room(budgets, log=True), most=6)
    style.log_axis(below, "y", style.room(ends.tolist(), log=True), written=style.prefixes(size), most=6)
    above.set(xlabel=words, ylabel="loss (nats per token)")
    below.set(xlabel="compute (FLOP)", ylabel=f"optimal {words}")
    above.legend(ncols=3 if len(budgets) > 4 else 2, handletextpad=0.1, columnspacing=0.8, fontsize=5.5)
    for axes in (above, below):
        axes.grid(axis="y")
    return figure


def map_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return the drawn numbers: a verdict map's cells, in order of students, arms, students to share, compute."""
    if found.empty:
        return found
    order = ["student", "arm", "students_per_teacher", "total_flops"]
    return found[_MAP_COLUMNS].sort_values(order, ignore_index=True)


def draw_map(table: pd.DataFrame) -> Drawing:
    """Draw `map_table`: a panel a student and arm; amounts across, students to share upwards; a dot: predicted."""
    dot = {"linestyle": "", "marker": "o", "color": "black"}
    handles: list[Any] = [
        style.patch(**look, edgecolor=style.QUIET, linewidth=0.4)
        for answer, look in _ANSWERS.items()
        if (table["answer"] == answer).any()
    ]
    if (table["basis"] == "predicted").any():
        handles.append(style.handle("predicted", markersize=1.8, **dot))
    prefix, scale = style.si_scale(float(table["total_flops"].max()))
    groups = list(table.groupby(["student", "arm"], sort=False))
    height = 0.35 + (0.62 + 0.135 * table["students_per_teacher"].nunique()) * len(groups)
    legend = {"ncols": 2, "handlelength": 1.4, "columnspacing": 1.0}
    figure, panels = style.canvas(height, handles, (len(groups), 1), legend=legend)
    for axes, ((student, arm), cells) in zip(panels[:, 0], groups, strict=True):
        amounts, shares = sorted(cells["total_flops"].unique()), sorted(cells["students_per_teacher"].unique())
        x, y = cells["total_flops"].map(amounts.index), cells["students_per_teacher"].map(shares.index)
        for answer, rows in cells.groupby("answer"):
            edge = "#9AA0A6" if answer in ("infeasible", "n/a") else "white"
            look = {"edgecolor": edge, "linewidth": 0.4, **_ANSWERS[str(answer)]}
            axes.bar(x[rows.index], 1, 1, y[rows.index] - 0.5, **look)
        predicted = cells["basis"] == "predicted"
        axes.plot(x[predicted], y[predicted], markersize=1.2, **dot)
        whose = f"{arm} against {cells['reference'].iloc[0]}"
        axes.set_title(whose if table["student"].nunique() == 1 else f"{whose}, student {student}", loc="left")
        axes.set(xlim=(-0.5, len(amounts) - 0.5), ylim=(-0.5, len(shares) - 0.5), ylabel="students\nper teacher")
        axes.set_xticks(range(len(amounts)), [f"{amount / scale:.3g}" for amount in amounts])
        axes.set_yticks(range(len(shares)), ["free" if math.isinf(k) else f"{k:g}" for k in shares])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    panels[-1, 0].set_xlabel(f"all-in required compute of one student ({prefix}FLOP)")
    return figure


def fit_table(fit: CurveFit, table: pd.DataFrame) -> pd.DataFrame:
    """Return what `draw_fit` draws: points, and the curve inside and outside the fitted range (`extrapolated`).

    For a law of one input x is that input. For ``chinchilla`` x is 6 N D, and the curve is the lowest loss that the
    law allows at that compute; points lie on it or above. For any other law x is the prediction and the curve the
    line of perfect prediction. A fit that may not be used raises `CallerError`.
    """
    if fit.usable_for == "nothing":
        raise CallerError(f"figure of a fit of {fit.law}", f"its status is {fit.status}", "see its status text")
    law = get_law(fit.law.split()[0])
    columns = {name: table[fit.columns[name]].to_numpy(dtype=float) for name in (*law.inputs, law.outcome)}
    if len(law.inputs) == 1:
        x, x_name = columns[law.inputs[0]], fit.columns[law.inputs[0]]
    elif fit.law == "chinchilla":
        x, x_name = 6.0 * columns["num_params"] * columns["tokens"], "compute 6 N D (FLOP)"
    else:
        # Rows that the fit left out have no prediction either.
        usable = np.all([np.isfinite(values) & (values > 0) for values in columns.values()], axis=0)
        columns = {name: values[usable] for name, values in columns.items()}
        known = {name: columns[name] for name in law.inputs if name in fit.input_ranges}
        x, x_name = predict(fit, known)["prediction"].to_numpy(), f"predicted {fit.columns[law.outcome]}"
    y = columns[law.outcome]
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    x, y = x[good], y[good]
    if x_name.startswith("predicted "):
        ends = np.geomspace(min(x.min(), y.min()), max(x.max(), y.max()), 97)
        curve = pd.DataFrame({"x": ends, "y": ends, "low": np.nan, "high": np.nan})
    elif fit.band:
        curve = pd.DataFrame({"x": fit.band["x"], "y": fit.band["prediction"]})
        curve["low"], curve["high"] = (fit.band.get(end, np.nan) for end in ("low", "high"))
    else:
        found = optimum(fit, np.geomspace(x.min() / 2, x.max() * _REACH, 97))
        curve = found.rename(columns={"flops": "x", "loss": "y", "loss_low": "low", "loss_high": "high"})
    curve = curve[["x", "y", "low", "high"]].assign(layer="curve")
    curve["extrapolated"] = (curve["x"] < x.min()) | (curve["x"] > x.max())
    drawn = pd.concat([pd.DataFrame({"layer": "point", "x": x, "y": y}), curve], ignore_index=True)
    return drawn.assign(x_name=x_name, y_name=fit.columns[law.outcome])


def draw_fit(table: pd.DataFrame) -> Drawing:
    """Draw `fit_table`."""
    points, curve = table[table["layer"] == "point"], table[table["layer"] == "curve"]
    inside, limits = curve[~curve["extrapolated"].astype(bool)], (float(curve["x"].min()), float(curve["x"].max()))
    colour = style.arm_styles(["fit"])["fit"].colour
    figure, [[axes]] = style.canvas(2.4)
    axes.grid(axis="y")
    for start, stop in ((limits[0], points["x"].min()), (points["x"].max(), limits[1])):
        axes.axvspan(start, stop, color="#F0F0F0", linewidth=0, zorder=0)
    axes.plot(curve["x"], curve["y"], color=colour, linewidth=0.8, linestyle=(0, (4, 2)), zorder=2)
    axes.plot(inside["x"], inside["y"], color=colour, linewidth=1.3, zorder=2.1)
    axes.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.18, **style.AREA)
    axes.plot(points["x"], points["y"], color="#333333", markeredgewidth=0.4, zorder=3, **style.OPEN)
    style.log_axis(axes, "x", limits, most=6)
    name, above = str(table["x_name"].iloc[0]), {"ha": "right", "va": "top", "fontsize": 6, "color": "#555555"}
    axes.set_xlabel(f"{name.removesuffix(')')}, log scale)" if name.endswith(")") else f"{name} (log scale)")
    axes.set_ylabel(table["y_name"].iloc[0])
    axes.text(0.99, 0.97, "shaded: outside the fitted range", transform=axes.transAxes, **above)
    return figure


def _frontier(known: Known) -> pd.DataFrame:
    found = known.decisions.frontier
    return frontier_table(found) if len(found) and found["student"].nunique() > 1 else found[:0]


def _isoflop(known: Known) -> pd.DataFrame:
    scores = known.outcomes.table
    scored = scores[(scores["subject"] == "run") & (scores["task"] == "readout_loss")]
    if known.plan.match != "required_flops" or scored.empty:
        return scored[:0]
    sizes = runs_by_size(known.plan, run_values(scores, "readout_loss"))
    if sizes.empty or sizes.groupby("budget_amount")["num_params_non_embedding"].nunique().max() < _FEWEST_SIZES:
        return sizes[:0]
    return isoflop_table(isoflop(sizes, columns=_BY_SIZE), sizes, _BY_SIZE)


FIGURES = (
    Figure(
        "frontier",
        "Verdicts",
        table=_frontier,
        draw=lambda table, known: draw_frontier(table, known.arms),
        caption=lambda table, known: (
            "Every arm and student at every budget in all-in compute (the student's, the teacher's forward passes, "
            "its pretraining shared by so many students); filled: nothing that costs no more is better. Means over "
            f"runs, measured; {known.where}."
        ),
    ),
    Figure(
        "isoflop",
        "Verdicts",
        table=_isoflop,
        draw=lambda table, known: draw_isoflop(table),
        caption=lambda table, known: (
            "Read-out loss by student size (parameters without embedding tables) at each budget, with a parabola in "
            "log N, and the optimal size against compute (open: outside the sizes that were run); "
            f"{known.where}."
        ),
    ),
    Figure(
        "verdict_map",
        "The teacher's budget",
        table=lambda known: map_table(known.decisions.verdict_map),
        draw=lambda table, known: draw_map(table),
        caption=lambda table, known: (
            "Who is ahead at equal all-in required compute of one student, by how many students share the teacher's "
            "pretraining (free: it exists anyway); from the curves between the budgets that were run, a dot where a "
            "fit was extrapolated"
            + "".join(f"; {note}" for note in known.decisions.verdict_map.attrs.get("notes", ()))
            + "."
        ),
    ),
)
