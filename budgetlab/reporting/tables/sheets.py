"""A sheet is a table of printed cells: drawn by rich on a terminal, as plain lines elsewhere, as HTML on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


_GAP = "  "
_PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


@dataclass(frozen=True)
class Column:
    """One column: its heading (a line break before the unit), and the group it may be split off with."""

    heading: str
    group: str = ""
    """Empty for a key column, which every part of a stacked table repeats."""
    left: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table whose cells are already text."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    rules: tuple[int, ...] = ()
    """Indices of rows that start a new block."""

    def widths(self) -> list[int]:
        """Return the width of each column in characters."""
        return [
            max(len(line) for cell in (column.heading, *(row[i] for row in self.rows)) for line in cell.split("\n"))
            for i, column in enumerate(self.columns)
        ]

    def width(self) -> int:
        """Return the width of the whole table in characters."""
        return sum(self.widths()) + len(_GAP) * (len(self.columns) - 1)

    def keep(self, indices: Sequence[int], title: str | None = None) -> Sheet:
        """Return the same rows with some of the columns."""
        return replace(
            self,
            title=self.title if title is None else title,
            columns=tuple(self.columns[i] for i in indices),
            rows=tuple(tuple(row[i] for i in indices) for row in self.rows),
        )


def stack(sheet: Sheet, width: int) -> list[Sheet]:
    """Split a sheet that is too wide: by its groups first, then wherever a part is still too wide."""
    if sheet.width() <= width:
        return [sheet]
    keys = [i for i, column in enumerate(sheet.columns) if not column.group]
    parts: list[list[int]] = []
    for group in dict.fromkeys(column.group for column in sheet.columns if column.group):
        members = [i for i, column in enumerate(sheet.columns) if column.group == group]
        part: list[int] = []
        for i in members:
            if part and sheet.keep([*keys, *part, i]).width() > width:
                parts.append(part)
                part = []
            part.append(i)
        parts.append(part)
    if not parts:
        return [sheet]
    groups = [sheet.columns[part[0]].group for part in parts]
    titles = [f"{sheet.title}\n{groups[0]}", *groups[1:]]
    sheets = [replace(sheet.keep([*keys, *part], t), notes=()) for part, t in zip(parts, titles, strict=True)]
    return [*sheets[:-1], replace(sheets[-1], notes=sheet.notes)]


def plain_lines(sheet: Sheet) -> list[str]:
    """Return a sheet as aligned lines without colour or frame, one row a line."""
    widths = sheet.widths()
    heads = [column.heading.split("\n") for column in sheet.columns]
    depth = max(len(head) for head in heads)
    body = [[""] * (depth - len(head)) + head for head in heads]
    lines = [sheet.title, *(_line(sheet, widths, [head[k] for head in body]) for k in range(depth))]
    rule = _GAP.join("-" * width for width in widths)
    lines.append(rule)
    for i, row in enumerate(sheet.rows):
        if i in sheet.rules and i:
            lines.append(rule)
        lines.append(_line(sheet, widths, row))
    return [line.rstrip() for line in [*lines, *sheet.notes]]


def markdown(sheet: Sheet) -> str:
    """Return a sheet as a Markdown table, with its notes under it."""
    heads = [column.heading.replace("\n", ", ") for column in sheet.columns]
    marks = ["---" if column.left else "---:" for column in sheet.columns]
    rows = [heads, marks, *([cell.replace("|", "\\|") for cell in row] for row in sheet.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, *("" if not note else f"\n{note.rstrip('.')}." for note in sheet.notes)]) + "\n"


def print_sheets(sheets: Iterable[Sheet], console: Console | None = None) -> None:
    """Print sheets: with rich, stacked to fit, on a terminal; as plain lines where stdout is none."""
    if console is None:
        from rich.console import Console

        console = Console()
    for number, sheet in enumerate(sheets):
        if number:
            console.print()
        if console.is_terminal:
            for place, part in enumerate(stack(sheet, console.width)):
                if place:
                    console.print()
                _print_rich(part, console)
        else:
            for line in plain_lines(sheet):
                console.out(line, highlight=False)


def _print_rich(sheet: Sheet, console: Console) -> None:
    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    # Only rules under the head and between blocks, and the same two blanks between columns as plain lines have.
    frame = Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
    table = Table(box=frame, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in sheet.columns:
        table.add_column(
            Text(column.heading), justify="left" if column.left else "right", no_wrap=True, vertical="bottom"
        )
    for i, row in enumerate(sheet.rows):
        if i in sheet.rules and i:
            table.add_section()
        table.add_row(*(Text(cell, style="dim" if cell == "n/a" else "") for cell in row))
    console.print(Text(sheet.title, style="bold"))
    console.print(table)
    for note in sheet.notes:
        console.print(Text(note, style="dim"))


def _line(sheet: Sheet, widths: Sequence[int], cells: Sequence[str]) -> str:
    return _GAP.join(
        cell.ljust(width) if column.left else cell.rjust(width)
        for cell, width, column in zip(cells, widths, sheet.columns, strict=True)
    )


def scaled(values: Sequence[float | None], unit: str) -> tuple[str, list[str]]:
    """Print one column of a quantity at one SI prefix."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    prefix, scale = next(((p, s) for p, s in _PREFIXES if known and max(known) >= s), ("", 1.0))
    whole = math.floor(math.log10(min(known) / scale)) + 1 if known else 1
    decimals = min(3, max(0, 4 - max(whole, 1)))
    return prefix + unit, [fixed(None if v is None else v / scale, decimals) for v in values]


def fixed(value: float | None, decimals: int, half_width: float | None = None) -> str:
    """Print a number, with its ± where there is one; unknown is n/a, never 0."""
    if value is None or not math.isfinite(value):
        return "n/a"
    spread = "" if half_width is None or not math.isfinite(half_width) else f"±{half_width:.{decimals}f}"
    return f"{value:.{decimals}f}{spread}"


def percent(fraction: float | None, decimals: int = 2) -> str:
    """Print a fraction as a number of percent, without the sign."""
    return fixed(None if fraction is None else 100 * fraction, decimals)
