"""Which law extrapolates best: each is fitted to the smaller runs and judged on the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.fitting.objectives import Objective
from budgetlab.fitting.prepare import prepare
from budgetlab.fitting.solve import solve
from budgetlab.fitting.table import Points, read_points
from budgetlab.laws import AnyLaw, get_law


@dataclass(frozen=True)
class LawChoice:
    """Laws by their error on the largest runs.

    Attributes
    ----------
    law
        The best, or None where no law could be judged.
    table
        One row a law, best first: `law`, `pinned`, `num_params` (free), `num_train`, `num_test`, `error` (mean
        absolute relative error on the held-out runs), `bias` (mean relative error, signed), `train_error`, `status`
        and `reason` of a law that could not take part.
    held_out_from
        Size from which on runs were held out, in the units of `by`.
    by
        The column, or product of columns, that orders the runs.
    """

    law: str | None
    table: pd.DataFrame
    held_out_from: float
    by: str

    def __str__(self) -> str:
        shown = self.table[["law", "num_params", "error", "bias", "train_error", "status"]]
        text = shown.to_string(index=False, float_format=lambda value: f"{value:.4f}")
        return f"held out: the runs with {self.by} from {self.held_out_from:.4g} on\n{text}"


def choose_law(
    table: pd.DataFrame,
    laws: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    by: str | None = None,
    held_out_fraction: float = 0.1,
    objective: str = "huber_log",
    delta: float = 1e-3,
    pinned: Mapping[str, Mapping[str, float]] | None = None,
) -> LawChoice:
    """Choose among laws by their error on the largest runs, fitted to the others.

    A good fit inside the range says little of what comes beyond it: the law with more parameters always wins there.

    Parameters
    ----------
    table
        One row a run; every law sees the same rows.
    laws
        Names of laws that predict the same outcome.
    columns
        Where inputs and outcome are, as in `fit`; names that a law does not have are passed over.
    by
        Column that orders the runs, such as ``flops``. By default what all laws call the size, which must then agree.
    held_out_fraction
        Share of the runs to hold out, at least: whole levels of size, at least one.
    objective, delta
        As in `fit`.
    pinned
        Parameters held at a value, by law.

    Returns
    -------
    LawChoice

    Raises
    ------
    CallerError
        For an unknown law or column, laws of several outcomes, fewer than three sizes, or laws without a common size.
    """
    if not laws:
        raise CallerError("choice of a law", "none is named", "name two or more")
    forms = [get_law(name) for name in laws]
    columns, pinned = dict(columns or {}), pinned or {}
    goal = Objective(objective, delta)
    points = [read_points(table, law, _own(law, columns)) for law in forms]
    outcomes = sorted({part.columns[law.outcome] for part, law in zip(points, forms, strict=True)})
    if len(outcomes) > 1:
        raise CallerError(
            f"choice among {', '.join(laws)}", f"they predict {' and '.join(outcomes)}", "map one outcome"
        )
    size, named = _sizes(table, points, by)
    cut = _cut(size, held_out_fraction, f"choice among {', '.join(laws)}, {len(table)} rows")
    train, test = np.flatnonzero(size < cut), np.flatnonzero(size >= cut)
    rows = [_judged(part, train, test, goal, pinned.get(law.name, {})) for law, part in zip(forms, points, strict=True)]
    ranked = pd.DataFrame(rows).sort_values("error", kind="stable", ignore_index=True)
    known = ranked["error"].notna()
    return LawChoice(str(ranked["law"].iloc[0]) if known.any() else None, ranked, float(cut), named)


def _own(law: AnyLaw, columns: Mapping[str, str]) -> dict[str, str]:
    return {name: column for name, column in columns.items() if name in (*law.inputs, law.outcome)}


def _sizes(table: pd.DataFrame, points: Sequence[Points], by: str | None) -> tuple[np.ndarray, str]:
    if by is not None:
        if by not in table.columns:
            raise unknown_name("column", by, map(str, table.columns), f"choice of a law by {by}")
        return table[by].to_numpy(dtype=float), by
    named = [{p.columns[name]: power for name, power in p.law.size.items()} for p in points]
    if any(size != named[0] for size in named):
        raise CallerError(
            f"choice among {', '.join(p.law.name for p in points)}", "they do not agree on what the largest runs are",
            "name a column that orders the runs with by=",
        )  # fmt: skip
    logs = [power * np.log(table[column].to_numpy(dtype=float)) for column, power in named[0].items()]
    words = [column if power > 0 else f"1/{column}" for column, power in named[0].items()]
    return np.exp(np.sum(logs, axis=0)), " x ".join(words)


def _cut(size: np.ndarray, fraction: float, asked: str) -> float:
    if not 0 < fraction < 1:
        raise CallerError(
            f"{asked}, held_out_fraction = {fraction!r}", "not between 0 and 1", "give a share such as 0.1"
        )
    levels = np.unique(size)
    if len(levels) < 3:
        raise CallerError(asked, f"only {len(levels)} sizes", "give three, the largest to be held out")
    index = len(levels) - 1
    while (size >= levels[index]).sum() < fraction * len(size) and index > 1:
        index -= 1
    return float(levels[index])


def _judged(
    points: Points, train: np.ndarray, test: np.ndarray, objective: Objective, pinned: Mapping[str, float]
) -> dict[str, object]:
    row: dict[str, object] = {
        "law": points.law.name, "pinned": dict(pinned), "num_params": len(points.law.params) - len(pinned),
        "num_train": len(train), "num_test": len(test), "error": np.nan, "bias": np.nan, "train_error": np.nan,
        "status": "refused", "reason": "",
    }  # fmt: skip
    try:
        prepared = prepare(points.take(train), pinned)
    except CallerError as error:
        return row | {"reason": error.wrong}
    if prepared.refusal or prepared.reason:
        # A smaller law than the one asked for is another candidate, not this one.
        return row | {"reason": prepared.refusal or prepared.reason}
    solution = solve(prepared.points, prepared.law, objective, pinned=prepared.pinned, certify=False)
    params = solution.design.to_params(solution.theta)
    inside, beyond = (
        prepared.law.predict(params, part.inputs) / part.outcome - 1 for part in (prepared.points, points.take(test))
    )
    return row | {
        "error": float(np.abs(beyond).mean()), "bias": float(beyond.mean()),
        "train_error": float(np.abs(inside).mean()), "status": str(solution.status),
    }  # fmt: skip
