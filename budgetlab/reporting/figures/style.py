"""How all figures look: palette, markers, legends, axes with units."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter

COLUMN_INCHES = 3.3
"""The width of one column of a two-column paper; figures are drawn at this size and never scaled down."""
TWO_COLUMNS_INCHES = 2 * COLUMN_INCHES + 0.3
INK, QUIET = "#444444", "#777777"
OPEN: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "markersize": 2.4}
AREA: dict[str, Any] = {"linewidth": 0.0, "zorder": 1.4}

# Okabe and Ito's palette, without its yellow, which is lost on paper. The order alternates dark and light,
# and every arm has its own marker and dash as well, so that greyscale loses nothing.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ((0, ()), (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))
_MOST_ARMS, _LEADING_ARMS = 12, 8
"""More arms than these cannot be told apart in one panel: so many keep their looks, the others are grey."""
_UNITS = {"required_flops": "FLOP", "executed_flops": "FLOP executed", "joules": "J", "usd": "USD"}

RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.titlepad": 3.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "figure.labelsize": 7.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Outlines, not text: a figure looks the same where the font is missing. The salt makes files repeatable.
    "svg.fonttype": "path",
    "svg.hashsalt": "budgetlab",
}


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn in every figure of a study."""

    colour: str
    marker: str
    dash: Any
    named: bool = True
    """Whether it has a place in the legend; the others share one."""

    @property
    def mark(self) -> dict[str, Any]:
        """How matplotlib is told to draw a marker of it."""
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.4}
        return {"color": self.colour, "marker": self.marker, "markersize": 4.0, **edge}


def arm_styles(arms: Sequence[str], ranked: Sequence[str] | None = None) -> dict[str, ArmStyle]:
    """Give every arm its colour, marker and dash by its place.

    Of very many arms that are `ranked`, the first arm and those that lead have looks of their own; the rest is grey.
    """
    named = list(arms)
    if ranked is not None and len(arms) > _MOST_ARMS:
        leading = list(dict.fromkeys([arms[0], *ranked]))[:_LEADING_ARMS]
        named = [arm for arm in arms if arm in leading]
    looks = {
        arm: ArmStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
        for i, arm in enumerate(named)
    }
    grey = ArmStyle("#BBBBBB", ".", (0, ()), named=False)
    # Grey lines lie behind.
    return {arm: grey for arm in arms if arm not in looks} | looks


def arm_handles(styles: Mapping[str, ArmStyle], lines: Container[str] | None = None) -> list[Line2D]:
    """Return legend entries of arms, with a line for those in `lines` (default all); one for all that are grey."""
    shown = {arm: style for arm, style in styles.items() if style.named}
    grey = [style for style in styles.values() if not style.named]
    if grey:
        shown[f"{len(grey)} other arms"] = grey[0]
    return [
        handle(name, linestyle=style.dash if lines is None or name in lines else "none", **style.mark)
        for name, style in shown.items()
    ]


def handle(label: str, **look: Any) -> Line2D:
    """Return one legend entry."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


def patch(label: str, **look: Any) -> Patch:
    """Return one legend entry of an area."""
    from matplotlib.patches import Patch

    return Patch(label=label, **look)


def end_label(axes: Axes, text: str, at: tuple[float, float], *, left: bool = False, **look: Any) -> None:
    """Write beside the end of a bar, on the side to which it grows."""
    side = {"xytext": (-3 if left else 3, 0), "ha": "right" if left else "left"}
    axes.annotate(text, at, **{"textcoords": "offset points", "va": "center", "fontsize": 6.5, **side, **look})


def intervals(axes: Axes, at: pd.Series, ends: pd.DataFrame, colour: str) -> None:
    """Draw a bar for each row of value, low and high, whatever they are called; none where an end is unknown."""
    known = ends.dropna()
    value, low, high = known.to_numpy().T
    size: dict[str, Any] = {"elinewidth": 0.9, "capsize": 1.7, "capthick": 0.9, "zorder": 2.6}
    axes.errorbar(at[known.index], value, yerr=[value - low, high - value], linestyle="none", color=colour, **size)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name what is drawn in rows, the first one uppermost, in all panels that share the axis."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    for panel in axes.get_shared_y_axes().get_siblings(axes):
        panel.tick_params(axis="y", length=0)


def not_timed(axes: Axes) -> None:
    """Say that there is nothing to draw in a panel of times."""
    axes.set_xticks([])
    axes.text(0.03, 0.5, "n/a (not timed)", transform=axes.transAxes, va="center", fontsize=6.5)


def canvas(
    height: float,
    handles: Sequence[Any] = (),
    shape: tuple[int, int] = (1, 1),
    *,
    width: float = COLUMN_INCHES,
    legend: Mapping[str, Any] | None = None,
    **panels: Any,
) -> tuple[Figure, Any]:
    """Return a figure with a legend above, as much higher as that takes, and its array of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if handles:
        columns = legend_columns([str(one.get_label()) for one in handles], width)
        look = {"ncols": columns, **(legend or {})}
        figure.set_figheight(height + 0.14 * math.ceil(len(handles) / look["ncols"]))
        figure.legend(handles=handles, loc="outside upper center", **look)
    return figure, figure.subplots(*shape, squeeze=False, **panels)


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """Return in how many columns a legend fits a width, by the lengths of its labels at 6.5 pt."""
    for columns in range(min(len(labels), 6), 1, -1):
        # As matplotlib fills them: one column after the other, the first ones with the remainder.
        large, rest = divmod(len(labels), columns)
        starts = [large * column + min(column, rest) for column in range(columns + 1)]
        longest = [max(map(len, labels[start:stop])) for start, stop in pairwise(starts)]
        if sum(0.38 + 0.054 * length for length in longest) <= inches:
            return columns
    return 1


def room(values: Sequence[float], share: float = 0.08, *, log: bool = False) -> tuple[float, float]:
    """Return axis limits a little wider than the values."""
    known = [math.log(v) if log else v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = min(known), max(known)
    span = (high - low) * share or abs(high) * share * 0.5 or 1.0
    low, high = low - span, high + span
    return (math.exp(low), math.exp(high)) if log else (low, high)


def prefixes(unit: str = "") -> EngFormatter:
    """Return what writes an amount with an SI prefix, as a function or on an axis: 2T, 20M; a billion tokens is a B."""
    from matplotlib.ticker import EngFormatter

    formatter = EngFormatter(unit if unit == "FLOP" else "", sep=" " if unit == "FLOP" else "")
    if unit == "tokens":
        formatter.ENG_PREFIXES = EngFormatter.ENG_PREFIXES | {9: "B"}  # type: ignore[misc]
    return formatter


def si_scale(largest: float) -> tuple[str, float]:
    """Return the SI prefix, and its size, in which all amounts up to the largest are written."""
    power = 3 * math.floor(math.log10(largest) / 3)
    return prefixes().ENG_PREFIXES[power], 10.0**power


def budget_axis(unit: str, largest: float) -> tuple[str, float]:
    """Return the unit in which an axis of a budget is written, and its size: time is in hours or minutes."""
    if unit.endswith("seconds"):
        return next((time for time in (("h", 3600.0), ("min", 60.0)) if largest >= 2 * time[1]), ("s", 1.0))
    return _UNITS.get(unit, unit), 1.0


def log_axis(
    axes: Axes, along: str, limits: tuple[float, float], *, written: Any = None, most: int = 5, scale: float = 1.0
) -> None:
    """Make an axis logarithmic, with a few ticks that are round in units of `scale`; default: with SI prefixes."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    axes.set(**{f"{along}scale": "log", f"{along}lim": limits})
    axis = axes.xaxis if along == "x" else axes.yaxis
    low, high = limits[0] / scale, limits[1] / scale
    finest_first = ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3))
    locators = [LogLocator(subs=subs) for subs in finest_first]
    ticks: list[float] = []
    for locator in (*locators, LogLocator(numticks=most), MaxNLocator(most, steps=[1, 2, 5, 10])):
        ticks = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
        if 2 <= len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator([tick * scale for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter((lambda at, _: f"{at / scale:.4g}") if scale != 1 else written or prefixes())
