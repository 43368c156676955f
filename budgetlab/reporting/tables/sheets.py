"""A table is rows and a column spec; it is printed once and then shown on a terminal, as Markdown, or by the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

if TYPE_CHECKING:
    from rich.console import Console

_PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_CELLS = DataRow("", "  ", "")
_PLAIN = TableFormat(None, Line("", "-", "  ", ""), None, None, _CELLS, _CELLS, 0, None)
"""Two blanks between columns, and rules only under the head and between blocks of rows."""


def fixed(value: float | None, decimals: int, half_width: float | None = None) -> str:
    """Print a number, with its ± where there is one; unknown is n/a, never 0."""
    if value is None or not math.isfinite(value):
        return "n/a"
    spread = "" if half_width is None or not math.isfinite(half_width) else f"±{half_width:.{decimals}f}"
    return f"{value:.{decimals}f}{spread}"


def number(decimals: int, *, times: float = 1.0, per: float = 1.0) -> Callable[[float | None], str]:
    """Return what prints a number in another unit: `times` so much, or so much `per` unit."""
    return lambda value: fixed(None if value is None else times * value / per, decimals)


percent = number(2, times=100.0)
"""Print a fraction as a number of percent, without the sign."""


def bracketed(ends: Sequence[float] | None, decimals: int, sign: str = "+") -> str:
    """Print an interval; `sign` "" leaves out the plus."""
    return "n/a" if ends is None else f"[{', '.join(f'{end:{sign}.{decimals}f}' for end in ends)}]"


def scaled(values: Sequence[float | None], unit: str) -> tuple[str, list[str]]:
    """Print one column of a quantity at one SI prefix."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    prefix, scale = next(((p, s) for p, s in _PREFIXES if known and max(known) >= s), ("", 1.0))
    whole = math.floor(math.log10(min(known) / scale)) + 1 if known else 1
    decimals = min(3, max(0, 4 - max(whole, 1)))
    return prefix + unit, [fixed(None if v is None else v / scale, decimals) for v in values]


def text(value: Any) -> str:
    """Print a word or a whole number; unknown is n/a."""
    return "n/a" if value is None else str(value)


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as plain Python; what is missing is None."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


@dataclass(frozen=True)
class Column:
    """One column: what stands over it, what of a row it shows, and how that is printed."""

    heading: str
    """A line break before the unit; "{unit}" is replaced by the unit of `show` with its prefix."""
    of: str | Callable[[Any], Any] = ""
    """Name of a field, or a function of the row."""
    show: Callable[[Any], str] | int | str = text
    """A function, a number of decimals, or a unit: columns of one unit are printed at one SI prefix."""
    group: str = ""
    """The part it may be split off with; empty for a key column, which every part of a stacked table repeats."""
    left: bool = False

    def cells(self, rows: Sequence[Any]) -> list[Any]:
        """Return its values, printed unless it shares a prefix with others."""
        of, show = self.of, self.show
        if callable(of):
            values = [of(row) for row in rows]
        else:
            values = [row.get(of) if isinstance(row, Mapping) else getattr(row, of) for row in rows]
        if isinstance(show, int):
            return [fixed(value, show) for value in values]
        return values if isinstance(show, str) else [show(value) for value in values]


@dataclass(frozen=True)
class Sheet:
    """A table whose cells are text."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    rules: tuple[int, ...] = ()
    """Indices of rows that start a new block."""

    @classmethod
    def of(
        cls,
        title: str,
        rows: Iterable[Any],
        columns: Sequence[Column],
        notes: Iterable[str] = (),
        rules: Iterable[int] = (),
    ) -> Sheet:
        """Print rows, which are a frame, mappings or values, by a column spec; empty notes are left out."""
        rows = plain_rows(rows) if isinstance(rows, pd.DataFrame) else list(rows)
        cells = [column.cells(rows) for column in columns]
        heads = list(columns)
        for unit in {column.show for column in columns if isinstance(column.show, str)}:
            places = [i for i, column in enumerate(columns) if column.show == unit]
            prefixed, printed = scaled([value for i in places for value in cells[i]], unit)
            for n, i in enumerate(places):
                cells[i] = printed[n * len(rows) : (n + 1) * len(rows)]
                heads[i] = replace(columns[i], heading=columns[i].heading.replace("{unit}", prefixed))
        return cls(title, tuple(heads), tuple(zip(*cells, strict=True)), tuple(filter(None, notes)), tuple(rules))

    def lines(self) -> list[str]:
        """Return head and rows as aligned lines, one row a line."""
        heads = [column.heading.split("\n") for column in self.columns]
        depth = max(map(len, heads))
        body: list[Any] = [*zip(*([""] * (depth - len(head)) + head for head in heads), strict=True), SEPARATING_LINE]
        for i, row in enumerate(self.rows):
            body += [SEPARATING_LINE, row] if i and i in self.rules else [row]
        return tabulate(body, tablefmt=_PLAIN, preserve_whitespace=True, **self._alignment()).split("\n")

    def width(self) -> int:
        """Return the width of the whole table in characters."""
        return max(map(len, self.lines()))

    def _alignment(self) -> dict[str, Any]:
        return {"disable_numparse": True, "colalign": ["left" if c.left else "right" for c in self.columns]}

    def keep(self, indices: Sequence[int], title: str) -> Sheet:
        """Return the same rows with some of the columns, and without notes."""
        rows = tuple(tuple(row[i] for i in indices) for row in self.rows)
        return Sheet(title, tuple(self.columns[i] for i in indices), rows, (), self.rules)


def stack(sheet: Sheet, width: int) -> list[Sheet]:
    """Split a sheet that is too wide: by its groups first, then wherever a part is still too wide."""
    groups = dict.fromkeys(column.group for column in sheet.columns if column.group)
    if not groups or sheet.width() <= width:
        return [sheet]
    keys = [i for i, column in enumerate(sheet.columns) if not column.group]
    parts: list[Sheet] = []
    for number_, group in enumerate(groups):
        title, part = group if number_ else f"{sheet.title}\n{group}", list(keys)
        for i in (i for i, column in enumerate(sheet.columns) if column.group == group):
            if len(part) > len(keys) and sheet.keep([*part, i], title).width() > width:
                parts.append(sheet.keep(part, title))
                title, part = group, list(keys)
            part.append(i)
        parts.append(sheet.keep(part, title))
    return [*parts[:-1], replace(parts[-1], notes=sheet.notes)]


def plain_lines(sheet: Sheet) -> list[str]:
    """Return a sheet as lines without colour or frame: title, head, rows, notes."""
    return [line.rstrip() for line in (sheet.title, *sheet.lines(), *sheet.notes)]


def markdown(sheet: Sheet) -> str:
    """Return a sheet as a Markdown table, with its notes under it."""
    heads = [column.heading.replace("\n", ", ") for column in sheet.columns]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in sheet.rows]
    table = tabulate(rows, heads, tablefmt="pipe", **sheet._alignment())
    return "\n".join([table, *(f"\n{note.rstrip('.')}." for note in sheet.notes)]) + "\n"


def print_sheets(sheets: Iterable[Sheet], console: Console | None = None) -> None:
    """Print sheets: stacked to fit on a terminal; one row a line where stdout is none."""
    if console is None:
        from rich.console import Console

        console = Console()
    from rich.text import Text

    for place, sheet in enumerate(sheets):
        if place:
            console.print()
        if not console.is_terminal:
            for line in plain_lines(sheet):
                console.out(line, highlight=False)
            continue
        for part_place, part in enumerate(stack(sheet, console.width)):
            if part_place:
                console.print()
            console.print(Text(part.title, style="bold"))
            body = Text("\n".join(part.lines()))
            body.highlight_regex(r"\bn/a\b", "dim")
            console.print(body)
            for note in part.notes:
                console.print(Text(note, style="dim"))
