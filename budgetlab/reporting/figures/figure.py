"""What a figure is: a table, who draws it and a caption; and how it is written to files or shown in a notebook."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from budgetlab.decisions import Decisions
from budgetlab.errors import CallerError
from budgetlab.reporting.averages import Outcomes
from budgetlab.reporting.figures.points import points_table
from budgetlab.reporting.figures.style import RC
from budgetlab.store import write_csv, write_whole
from budgetlab.values import CostProfile, CurveFit, Plan, RunRecord, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_DOTS_PER_INCH_SHOWN = 140


@dataclass(frozen=True)
class Known:
    """What the figures of a study are drawn from."""

    plan: Plan
    profile: CostProfile
    records: Sequence[RunRecord]
    outcomes: Outcomes
    """The scores, and their averages."""
    fits: Sequence[CurveFit]
    verdicts: Sequence[Verdict]
    decisions: Decisions
    sensitivity: pd.DataFrame
    """The plan under every meaning of compute; empty where no arm can afford a step."""
    definitions: Sequence[str]
    """What tasks are subsets, and what the mean is of: said in the first caption."""
    where: str
    """Hardware and number format, which end a caption."""

    @property
    def arms(self) -> list[str]:
        """In the order of the study, which their looks follow."""
        return list(self.plan.arms)

    @property
    def level(self) -> str:
        """Confidence of the intervals, in words."""
        return f"{100 * self.outcomes.level:g} %"

    @cached_property
    def points(self) -> pd.DataFrame:
        """Every score as it is drawn."""
        return points_table(self.outcomes, self.arms, fits=self.fits)

    @cached_property
    def losses(self) -> pd.DataFrame:
        """The read-out loss as it is drawn."""
        return points_table(self.outcomes, self.arms, ["readout_loss"], fits=self.fits)

    @cached_property
    def next_token_losses(self) -> pd.DataFrame:
        """Causal models' own held-out loss as it is drawn."""
        return points_table(self.outcomes, self.arms, ["lm_loss"], fits=self.fits)


@dataclass(frozen=True)
class Figure:
    """One figure of a study: an entry of `FIGURES`, from which page, command line and notebooks draw it."""

    name: str
    section: str
    """Heading of the page that it stands under."""
    table: Callable[[Known], pd.DataFrame]
    """The drawn numbers; empty where there is nothing to draw."""
    draw: Callable[[pd.DataFrame, Known], Drawing]
    caption: Callable[[pd.DataFrame, Known], str]

    def write(self, known: Known, folder: Path) -> FigureFiles | None:
        """Leave the figure's three files in a folder; None where there is nothing to draw."""
        table = self.table(known)
        if table.empty:
            return None
        return render(self.name, lambda drawn: self.draw(drawn, known), table, folder, self.caption(table, known))


@dataclass(frozen=True)
class FigureFiles:
    """One figure on disk."""

    name: str
    svg: Path
    png: Path
    csv: Path
    caption: str


def render(
    name: str, draw: Callable[[pd.DataFrame], Drawing], table: pd.DataFrame, folder: Path, caption: str
) -> FigureFiles:
    """Draw a table, from which `draw` makes the whole figure, and leave `name`.svg, .png and .csv in a folder.

    The CSV has exactly what was drawn; the caption, one line, is kept in the files' metadata.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    files = FigureFiles(name, folder / f"{name}.svg", folder / f"{name}.png", folder / f"{name}.csv", caption)
    with matplotlib.rc_context(RC):
        figure = draw(table)
        FigureCanvasSVG(figure)
        layout = figure.get_layout_engine()
        if layout is not None:  # laid out once, as vectors, and not anew for each file
            layout.execute(figure)
        figure.set_layout_engine(None)
        svg, png = io.BytesIO(), io.BytesIO()
        about = {"Title": name, "Description": caption}
        figure.savefig(svg, format="svg", metadata={**about, "Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=300, metadata={**about, "Software": None})
    write_whole(files.svg, svg.getvalue())
    write_whole(files.png, png.getvalue())
    write_csv(files.csv, table)
    return files


def styled(draw: Callable[[pd.DataFrame], Drawing], table: pd.DataFrame) -> Drawing:
    """Draw a table in the house style, so that a notebook shows it; the caller's settings of matplotlib stay."""
    import matplotlib

    with matplotlib.rc_context(RC):
        figure = draw(table)
        figure.draw_without_rendering()  # ticks and texts take their size when first laid out

    def png() -> bytes:
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DOTS_PER_INCH_SHOWN)
        return content.getvalue()

    # A notebook shows what can draw itself, whether or not pyplot was ever loaded.
    figure._repr_png_ = png  # type: ignore[attr-defined]
    return figure


def need_columns(table: pd.DataFrame, columns: Iterable[str], what: str, source: str) -> None:
    """Refuse a table that is empty or another one."""
    missing = [name for name in columns if name not in table]
    if missing or table.empty:
        wrong = f"no column {', '.join(missing)}" if len(table) else "the table has no rows"
        raise CallerError(f"figure of {what}", wrong, f"give the table of {source}")
