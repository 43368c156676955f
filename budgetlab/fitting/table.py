"""From any tidy table to checked points. What is wrong with a table is refused or flagged, with counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.laws import Law
from budgetlab.laws.law import Array

_UNIT_GAP = 1e5
"""Two neighbouring values this far apart look like one column in two units (tokens and billions of tokens)."""


@dataclass(frozen=True)
class Points:
    """The points of a fit: positive inputs and outcome, weights, clusters, and what was left out."""

    law: Law
    inputs: Mapping[str, Array]
    outcome: Array
    weights: Array
    clusters: np.ndarray | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.outcome)

    @cached_property
    def cells(self) -> np.ndarray:
        """Number of each row's distinct input point, in order of the inputs: rows of one cell are replicates."""
        columns = [self.inputs[name] for name in self.law.inputs]
        order = np.lexsort(columns[::-1])
        new = np.any([np.diff(values[order]) != 0 for values in columns], axis=0)
        codes = np.empty(len(self), dtype=int)
        codes[order] = np.concatenate([[0], np.cumsum(new)])
        return codes

    @property
    def num_cells(self) -> int:
        """How many distinct input points there are."""
        return int(self.cells.max()) + 1

    def run_labels(self) -> np.ndarray:
        """Label the run of every row; without clusters every row is its own."""
        return np.arange(len(self)) if self.clusters is None else self.clusters

    def take(self, rows: np.ndarray) -> Points:
        """Keep some rows."""
        return replace(
            self,
            inputs={name: values[rows] for name, values in self.inputs.items()},
            outcome=self.outcome[rows],
            weights=self.weights[rows],
            clusters=None if self.clusters is None else self.clusters[rows],
        )


def stack_points(parts: Sequence[Points], law: Law) -> Points:
    """Put the points of several arms under one another, each arm's runs its own."""
    # The same seed in two arms is two runs: their noise is drawn apart.
    runs = [f"{i}:{label}" for i, part in enumerate(parts) for label in part.run_labels()]
    return Points(
        law=law,
        inputs={name: np.concatenate([part.inputs[name] for part in parts]) for name in law.inputs},
        outcome=np.concatenate([part.outcome for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        clusters=np.array(runs),
    )


def read_points(
    table: pd.DataFrame,
    law: Law,
    columns: Mapping[str, str] | None = None,
    *,
    weights: str | None = None,
    clusters: str | None = None,
    exclude_invalid: bool = False,
) -> Points:
    """Check a table and take the law's columns from it."""
    asked = f"law {law.name}, {len(table)} rows"
    names = (*law.inputs, law.outcome)
    columns = dict(columns or {})
    for name in columns:
        if name not in names:
            raise unknown_name("name in the law", name, names, f"{asked}, map {name}={columns[name]}")
    place = {name: columns.get(name, name) for name in names}
    for name, column in place.items():
        if column not in table.columns:
            error = unknown_name("column", column, map(str, table.columns), f"{asked}, {name}")
            raise CallerError(error.asked, error.wrong, f"{error.remedy}; map it with {name}=COLUMN")
    if len(table) < 2:
        raise CallerError(asked, f"{len(table)} row", "a curve needs at least two points")
    for column in (weights, clusters):
        if column is not None and column not in table.columns:
            raise unknown_name("column", column, map(str, table.columns), asked)
    for column in {f"{c}_unit" for c in place.values()} | {"unit", "units", "budget_unit"}:
        if column in table.columns and table[column].nunique(dropna=True) > 1:
            found = ", ".join(sorted(map(str, table[column].dropna().unique())))
            raise CallerError(asked, f"mixed units in column {column}: {found}", "fit one unit at a time, or convert")
    numeric = [*place.values()] + ([weights] if weights else [])
    values = {column: _numbers(table[column], column, asked) for column in numeric}
    bad = {
        f"{column} {problem}": rows
        for column, numbers in values.items()
        for problem, rows in (
            ("missing", np.isnan(numbers)),
            ("infinite", np.isinf(numbers)),
            ("zero", numbers == 0),
            ("negative", numbers < 0),
            ("beyond 1e+-150", (numbers > 0) & (numbers < 1e-150) | (numbers > 1e150) & np.isfinite(numbers)),
        )
        if rows.any()
    }
    if clusters is not None and table[clusters].isna().any():
        bad[f"{clusters} missing"] = table[clusters].isna().to_numpy()
    keep = ~np.any(list(bad.values()), axis=0) if bad else np.ones(len(table), dtype=bool)
    excluded = {what: int(rows.sum()) for what, rows in bad.items()}
    if bad and not exclude_invalid:
        counted, where = ", ".join(f"{what} in {rows}" for what, rows in excluded.items()), np.flatnonzero(~keep)
        shown = ", ".join(map(str, where[:5])) + (", …" if len(where) > 5 else "")
        needs = "a power law needs" if law.terms else f"law {law.name} needs"
        raise CallerError(
            asked,
            f"{counted} of {len(table)} rows (first: {shown}); {needs} finite values above zero",
            "correct them, or leave them out, counted in the record: --exclude-invalid (exclude_invalid=True)",
        )
    points = Points(
        law=law,
        inputs={name: values[place[name]][keep] for name in law.inputs},
        outcome=values[place[law.outcome]][keep],
        weights=values[weights][keep] if weights else np.ones(int(keep.sum())),
        clusters=table[clusters].to_numpy()[keep] if clusters else None,
        columns=place,
        excluded=excluded,
    )
    return replace(points, flags=_flags(points, asked))


def _numbers(column: pd.Series, name: str, asked: str) -> Array:
    if column.ndim != 1:
        raise CallerError(f"{asked}, column {name}", "there are several of that name", "rename them")
    numbers = pd.to_numeric(column, errors="coerce")
    text = numbers.isna() & column.notna()
    if text.any():
        shown = ", ".join(repr(value) for value in column[text].unique()[:3])
        raise CallerError(
            f"{asked}, column {name}", f"{int(text.sum())} values are no numbers: {shown}", "write plain numbers"
        )
    return numbers.to_numpy(dtype=float, na_value=np.nan)


def one_ratio(points: Points) -> float | None:
    """Tokens per parameter, where all points have the same, so that no budget can be split; else None."""
    if not {"num_params", "tokens"} <= set(points.inputs):
        return None
    ratio = points.inputs["tokens"] / points.inputs["num_params"]
    return float(ratio[0]) if np.ptp(ratio) <= 1e-6 * ratio.max() else None


def _flags(points: Points, asked: str) -> tuple[str, ...]:
    flags, law, columns = [], points.law, points.columns
    if len(points) == 0:
        raise CallerError(asked, "no usable row", "give a table with points")
    if np.ptp(points.outcome) == 0:
        raise CallerError(asked, f"column {columns[law.outcome]} is constant", "there is nothing to fit")
    if all(np.ptp(values) == 0 for values in points.inputs.values()):
        constant = ", ".join(columns[name] for name in law.inputs)
        raise CallerError(asked, f"column {constant} is constant", "vary at least one input")
    if len(points) > 2 and (ratio := one_ratio(points)):
        flags.append(
            f"every model saw the same number of tokens per parameter ({ratio:.4g}): only their exponents tell "
            "the terms of parameters and tokens apart, and no budget can be split by them"
        )
    values = {**points.inputs, law.outcome: points.outcome}
    if repeated := int(pd.DataFrame(values).duplicated().sum()):
        flags.append(
            f"{repeated} of {len(points)} rows repeat another row's inputs and outcome: duplicated runs count twice"
        )
    for name, numbers in values.items():
        ordered = np.unique(numbers)
        if len(ordered) > 1 and (ordered[1:] / ordered[:-1]).max() > _UNIT_GAP:
            flags.append(f"{columns[name]} jumps by more than 10^5 between neighbours: mixed units?")
    return tuple(flags)
