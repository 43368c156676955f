"""CSV exports of experiment trackers: a chart of Weights & Biases, a scalar of TensorBoard, a table of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.intake.files import read_csv

_TENSORBOARD = {"Wall time", "Step", "Value"}
_STEPS = ("Step", "_step", "trainer/global_step", "train/global_step")
_BETWEEN = " - "
_SPREAD = ("__MIN", "__MAX")


def read_tracker_csv(
    path: str | Path, columns: Mapping[str, str] | None = None, *, value: str = "loss"
) -> pd.DataFrame:
    """Read a CSV export of a tracker.

    Three shapes are known by their header. TensorBoard's ``Wall time, Step, Value``: one scalar of one run. A chart of
    Weights & Biases, ``Step, RUN - METRIC, RUN - METRIC__MIN, ...``: the same metric of several runs, side by side. Any
    other: a table of its own columns, such as a table of runs.

    Parameters
    ----------
    path
        The file.
    columns
        Our name to the export's: in a chart the metric (``{"loss": "eval/loss"}``), in a table its columns.
    value
        What TensorBoard's `Value` is called.

    Returns
    -------
    DataFrame
        TensorBoard: `step`, `wall_time_at` (seconds since 1970), the value and `run`, the file's name. A chart:
        `run`, `step` and a column a metric, ranges of smoothed points left out. A table: its columns, renamed.

    Raises
    ------
    CallerError
        When the file cannot be read or is no table, or lacks a column that `columns` asks for.
    """
    file, names = Path(path), dict(columns or {})
    table = read_csv(file, "tracker export")
    if set(table.columns) == _TENSORBOARD:
        return table.rename(columns={"Wall time": "wall_time_at", "Step": "step", "Value": value}).assign(run=file.stem)
    steps = next((name for name in _STEPS if name in table.columns), None)
    if steps is not None and any(_BETWEEN in name for name in table.columns):
        return _chart(table, steps, names, file)
    for name, source in names.items():
        if source not in table.columns:
            raise unknown_name("column", source, map(str, table.columns), f"tracker export {file}, {name}")
    return table.rename(columns={source: name for name, source in names.items()})


def _chart(table: pd.DataFrame, steps: str, names: Mapping[str, str], file: Path) -> pd.DataFrame:
    """Put runs that stand side by side under one another."""
    parts: dict[str, dict[str, str]] = {}
    for column in table.columns:
        if _BETWEEN in column and not column.endswith(_SPREAD):
            run, _, metric = column.rpartition(_BETWEEN)
            parts.setdefault(run, {})[column] = metric
    metrics = {metric for found in parts.values() for metric in found.values()}
    for name, source in names.items():
        if source not in metrics:
            raise unknown_name("metric", source, metrics, f"tracker export {file}, {name}")
    ours = {source: name for name, source in names.items()}
    rows = []
    for run, found in parts.items():
        own = (
            table[[steps, *found]]
            .rename(columns={steps: "step", **found})
            .dropna(subset=list(found.values()), how="all")
        )
        rows.append(own.rename(columns=ours).assign(run=run))
    if not any(len(part) for part in rows):
        raise CallerError(f"tracker export {file}", "no run has a value", "export a chart that shows points")
    joined = pd.concat(rows, ignore_index=True)
    return joined[["run", "step", *(name for name in joined.columns if name not in ("run", "step"))]]
