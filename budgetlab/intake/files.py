"""Files of others, read with one line for whatever is wrong with them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError


def read_text(path: Path, what: str) -> str:
    """Read a file as UTF-8, with or without a byte-order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CallerError(f"{what} {path}", "no such file", "correct the path") from None
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8 (byte {error.start})"
        raise CallerError(f"{what} {path}", wrong, "give the file itself, not a compressed or binary one") from None
    except OSError as error:
        raise CallerError(f"{what} {path}", error.strerror or str(error), "give the path of a file") from None
    if not text.strip():
        raise CallerError(f"{what} {path}", "empty", "give the file that the program wrote")
    return text


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    CallerError
        When the file cannot be read, is cut, or holds something else.
    """
    try:
        found = json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        wrong = f"cut or no JSON (line {error.lineno}: {error.msg})"
        raise CallerError(f"{what} {path}", wrong, "give the whole file that the program wrote") from None
    if not isinstance(found, dict):
        raise CallerError(f"{what} {path}", f"a JSON {type(found).__name__}, no object", "give the file of one run")
    return found


def read_csv(path: Path, what: str) -> pd.DataFrame:
    """Read a CSV file with a header."""
    try:
        table = pd.read_csv(io.StringIO(read_text(path, what)))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        if isinstance(error, CallerError):
            raise
        reason = " ".join(str(error).split())
        raise CallerError(f"{what} {path}", f"not a CSV table ({reason})", "give a CSV file with a header") from None
    cells = csv.reader(io.StringIO(read_text(path, what)))
    if len(next(cells)) < len(next(cells, [])):  # pandas takes the first cells of longer rows for labels
        raise CallerError(f"{what} {path}", "rows have more cells than the header", "correct the header or the rows")
    only = str(table.columns[0])
    for mark, word in ((";", ";"), ("\t", "tabs")):
        if len(table.columns) == 1 and mark in only:
            raise CallerError(f"{what} {path}", f"it is separated by {word}", "write it with commas")
    if table.empty:
        raise CallerError(f"{what} {path}", "a header without a row", "export the runs as well")
    return table


def number(value: object) -> float | None:
    """Return a number; None for text (the harness writes N/A for no error), truth values and nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
