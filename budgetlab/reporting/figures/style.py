"""What all figures share: palette, markers, axes with units, and the three files that each leaves."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from budgetlab.reporting.frames import YARDSTICKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

from budgetlab.store import write_csv, write_whole

COLUMN_INCHES = 3.3
"""The width of one column of a two-column paper; figures are drawn at this size and never scaled down."""

# Okabe and Ito's palette, without its yellow, which is lost on paper. The order alternates dark and light,
# and every arm has its own marker and dash as well, so that greyscale loses nothing.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, ()),
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.5, 1.2, 1.5)),
    (0, (8, 2)),
)
YARDSTICK_LINES = {"teacher": (0, ()), "random": (0, (4, 2)), "majority": (0, (1, 1.5)), "unigram": (0, (6, 2, 1, 2))}
"""How the horizontal yardsticks are dashed."""
YARDSTICK_COLOUR = "#777777"
BEYOND_COLOUR = "#F0F0F0"
"""Behind what lies outside a fitted range."""

_MOST_ARMS = 12
"""More arms than these cannot be told apart in one panel: the leading ones keep their looks, the others are grey."""
_OTHERS = "#BBBBBB"

_RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 7.0,
    "axes.labelsize": 7.0,
    "axes.titlesize": 7.0,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Outlines, not text: a figure looks the same where the font is missing. The salt makes files repeatable.
    "svg.fonttype": "path",
    "svg.hashsalt": "budgetlab",
}
_PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3))


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is drawn in every figure of a study."""

    colour: str
    marker: str
    dash: tuple[int, tuple[float, ...]]
    named: bool = True
    """Whether it has a place in the legend; the others share one."""


@dataclass(frozen=True)
class FigureFiles:
    """One figure on disk."""

    name: str
    svg: Path
    png: Path
    csv: Path
    caption: str


def arm_styles(arms: Sequence[str], named: Sequence[str] | None = None) -> dict[str, ArmStyle]:
    """Give every arm its colour, marker and dash by its place among the `named` (default all); the others are grey."""
    found = dict.fromkeys(arms, ArmStyle(_OTHERS, ".", (0, ()), named=False))
    for i, arm in enumerate(arms if named is None else named):
        found[arm] = ArmStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
    # Grey lines lie behind.
    return dict(sorted(found.items(), key=lambda item: item[1].named)) if named is not None else found


def prominent(arms: Sequence[str], ranked: Sequence[str]) -> list[str] | None:
    """Return which of very many arms stand out, the first and those ranked first; None where all can."""
    if len(arms) <= _MOST_ARMS:
        return None
    chosen = dict.fromkeys([arms[0], *ranked])
    return [arm for arm in arms if arm in list(chosen)[: _MOST_ARMS - 4]]


def arm_handles(styles: Mapping[str, ArmStyle], lines: Container[str] | None = None) -> list[Line2D]:
    """Return legend entries of arms, with a line for those in `lines` (default all); one for all that are grey."""
    from matplotlib.lines import Line2D

    named = {arm: style for arm, style in styles.items() if style.named}
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.dash if lines is None or arm in lines else "none",
               marker=style.marker, markersize=4.0, markeredgecolor="white", markeredgewidth=0.4, label=arm)
        for arm, style in named.items()
    ]  # fmt: skip
    if others := len(styles) - len(named):
        line = "-" if lines is None else "none"
        handles.append(Line2D([], [], color=_OTHERS, linestyle=line, marker=".", label=f"{others} other arms"))
    return handles


def render(
    name: str, draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, folder: Path, caption: str
) -> FigureFiles:
    """Draw a table and leave `name`.svg, .png and the .csv of exactly what was drawn.

    Parameters
    ----------
    name
        Stem of the files.
    draw
        Makes the figure from the table and from nothing else.
    table
        The drawn numbers.
    folder
        Where the files go.
    caption
        One line; kept in the files' metadata.
    """
    import matplotlib

    files = FigureFiles(name, folder / f"{name}.svg", folder / f"{name}.png", folder / f"{name}.csv", caption)
    with matplotlib.rc_context(_RC):
        figure = draw(table)
        svg, png = io.BytesIO(), io.BytesIO()
        about = {"Title": name, "Description": caption}
        figure.savefig(svg, format="svg", metadata={**about, "Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=300, metadata={**about, "Software": None})
    write_whole(files.svg, svg.getvalue())
    write_whole(files.png, png.getvalue())
    write_csv(files.csv, table)
    return files


def styled(draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame) -> Figure:
    """Draw a table in the house style; the caller's settings of matplotlib are left as they were."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        figure = draw(table)
        figure.draw_without_rendering()  # ticks and texts take their size when first laid out
    return figure


def prefix_for(largest: float) -> tuple[str, float]:
    """Return the SI prefix, and its size, in which an axis that ends at `largest` is written."""
    return next(((p, s) for p, s in _PREFIXES if largest >= s), ("", 1.0))


_UNITS = {"required_flops": "FLOP", "executed_flops": "FLOP executed", "joules": "J"}


def unit_at(unit: str, largest: float) -> tuple[str, float]:
    """Return in what an axis of a canonical unit that ends at `largest` is written, and the size of one of that."""
    if unit.endswith("seconds"):
        return next(((word, size) for word, size in (("h", 3600.0), ("min", 60.0)) if largest >= 2 * size), ("s", 1.0))
    if unit == "usd":
        return "USD", 1.0
    prefix, scale = prefix_for(largest)
    if unit == "tokens":
        return f"{'B' if prefix == 'G' else prefix} tokens".strip(), scale
    return f"{prefix}{_UNITS.get(unit, unit)}", scale


def log_ticks(axis: Axis, low: float, high: float, *, scale: float, most: int) -> None:
    """Put a few ticks on a logarithmic axis that spans little, round in units of `scale`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = low / scale, high / scale
    steps = (
        (1.0,),
        (1.0, 3.0),
        (1.0, 2.0, 5.0),
        (1.0, 2.0, 3.0, 5.0),
        (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
        tuple(1 + 0.1 * k for k in range(90)),
    )
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for mantissas in steps:
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(ticks) > most and chosen:
            break
        chosen = ticks or chosen
    if len(chosen) < 2:  # so short an axis is nearly linear
        chosen = [
            float(tick) for tick in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high
        ]
    every = math.ceil(len(chosen) / most) if chosen else 1
    apart = 0.75 * math.log(high / low) / most
    kept: list[float] = []
    for tick in chosen[::every]:
        if not kept or math.log(tick / kept[-1]) > apart:
            kept.append(tick)
    axis.set_major_locator(FixedLocator([tick * scale for tick in kept]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:.4g}"))


def room(values: Sequence[float], share: float = 0.08, *, log: bool = False) -> tuple[float, float]:
    """Return axis limits a little wider than the values."""
    known = [math.log(v) if log else v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = min(known), max(known)
    span = (high - low) * share or abs(high) * share * 0.5 or 1.0
    low, high = low - span, high + span
    return (math.exp(low), math.exp(high)) if log else (low, high)


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """Return in how many columns a legend fits a width, by the lengths of its labels at 6.5 pt."""
    for columns in range(min(len(labels), 6), 1, -1):
        large, rest = divmod(len(labels), columns)
        longest, start = [], 0
        # As matplotlib fills them: one column after the other, the first ones with the remainder.
        for column in range(columns):
            stop = start + large + (column < rest)
            longest.append(max(len(label) for label in labels[start:stop]))
            start = stop
        if sum(0.38 + 0.054 * length for length in longest) <= inches:
            return columns
    return 1


def yardstick_handles(layers: Iterable[str]) -> list[Line2D]:
    """Return legend entries for the yardsticks among the layers of a drawn table."""
    from matplotlib.lines import Line2D

    drawn = set(layers)
    return [
        Line2D([], [], color=YARDSTICK_COLOUR, linewidth=0.8, linestyle=YARDSTICK_LINES[subject], label=label)
        for subject, label in YARDSTICKS.items()
        if subject in drawn
    ]


def grid(axes: Axes, along: str = "y") -> None:
    """Draw a quiet grid behind the data."""
    axes.grid(axis="x" if along == "x" else "y", color="#E4E4E4", linewidth=0.5)
