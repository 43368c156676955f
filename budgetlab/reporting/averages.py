"""Scores as tidy frames: fine-tuning seeds averaged first, then means over run seeds with their interval.

The pretraining run is the unit of replication. Each arm at each budget has the t interval of its own runs: noise
changes with compute and with the arm, so nothing is pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting.scores import AGGREGATE, averaged_tasks
from budgetlab.frames import scores_frame as tidy_scores
from budgetlab.resampling import t_quantile
from budgetlab.values import Score
from budgetlab.values.scoring import unit_of

MEAN = AGGREGATE

BASELINES = {"teacher": "teacher", "random": "random weights", "majority": "majority class", "unigram": "unigram"}
"""Subjects of scores that are no runs, and what they are called in tables and figures."""

_RUN = ["subject", "arm", "rung", "run_seed", "task"]
_CELL = ["subject", "arm", "rung", "task"]
_CARRIED = ("steps", "tokens", "target_tokens", "required_flops", "executed_flops", "device_seconds")


@dataclass(frozen=True)
class Outcomes:
    """The scores of a study at three grains, computed once for every table and figure."""

    table: pd.DataFrame
    """One row a score."""
    runs: pd.DataFrame
    """One row a run and task, in the unit shown."""
    cells: pd.DataFrame
    """One row an arm, budget and task: the mean over run seeds."""
    level: float
    """Confidence of the intervals."""


def outcomes(scores: Sequence[Score] | pd.DataFrame | Outcomes, level: float = 0.95) -> Outcomes:
    """Average scores over fine-tuning seeds and over run seeds; what is averaged already is returned as it is."""
    if isinstance(scores, Outcomes):
        return scores
    table = scores_frame(scores)
    runs = per_run(table)
    return Outcomes(table, runs, summarise(runs, level), level)


def scores_frame(scores: Sequence[Score] | pd.DataFrame) -> pd.DataFrame:
    """Return scores as one tidy frame: the fields of `Score`, `budget` as `budget_amount` and `budget_unit`.

    Of a table from elsewhere, what is unknown is missing, and `rung` is the place of a budget among its budgets.

    Raises
    ------
    CallerError
        When a table lacks a column.
    """
    table = scores if isinstance(scores, pd.DataFrame) else tidy_scores(scores)
    needed = ("subject", "arm", "run_seed", "task", "metric", "value", "higher_is_better", "budget_amount")
    missing = [name for name in needed if name not in table]
    if missing and len(table):
        wrong, remedy = f"no column {', '.join(missing)}", "give the table of the store, or of as_scores"
        raise CallerError(f"a table of {len(table)} scores", wrong, remedy)
    if missing:
        table = tidy_scores([])
    optional = {"standard_error": math.nan, "degenerate": False, "averaged": True, "subset": "", "mid_decay": False,
                **dict.fromkeys(_CARRIED, math.nan)}  # fmt: skip
    if "rung" not in table:
        optional["rung"] = table["budget_amount"].rank(method="dense") - 1
    return table.assign(**{name: value for name, value in optional.items() if name not in table})


def shown_unit(task: str, rises: bool | None = None) -> str:
    """Return the unit in which a task is shown."""
    return unit_of(task, rises).replace("nats", "nats per target token")


def largest_rung(scores: pd.DataFrame) -> int | None:
    """Return the index of the largest budget at which a run was scored; None without any."""
    rungs = scores.loc[scores["subject"] == "run", "rung"].dropna()
    return None if rungs.empty else int(rungs.max())


def per_run(scores: pd.DataFrame, tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Average over fine-tuning seeds, in the unit shown: one row a run and task, and the mean over tasks."""
    columns = [*_RUN, "metric", "higher_is_better", "budget_amount", "budget_unit", *_CARRIED, "subset"]
    measured = ["value", "standard_error", "finetune_sd", "finetune_seeds", "degenerate", "unit"]
    if scores.empty:
        return pd.DataFrame(columns=[*columns, *measured])
    known = scores_frame(scores)
    known = known[~known["mid_decay"].eq(True)]
    known = known.assign(
        finetune_sd=known["value"], finetune_seeds=known["value"], degenerate=known["degenerate"].eq(True).astype(int)
    )
    how: dict[str, str] = dict.fromkeys(columns[len(_RUN) :], "first") | {"value": "mean", "standard_error": "mean"}
    counted = {"finetune_sd": "std", "finetune_seeds": "count", "degenerate": "sum"}
    runs = known.groupby(_RUN, dropna=False, sort=False).agg(how | counted).reset_index()
    runs["unit"] = list(map(shown_unit, runs["task"], runs["higher_is_better"].astype(bool)))
    scale = runs["unit"].map({"points": 100.0}).fillna(1.0)
    for name in ("value", "standard_error", "finetune_sd"):
        runs[name] = runs[name].astype(float) * scale
    names = averaged_tasks(known) if tasks is None else list(tasks)
    if len(names) > 1 or tasks:
        scored = runs[runs["task"].isin(names)].assign(variance=lambda rows: rows["standard_error"] ** 2)
        keys = [key for key in _RUN if key != "task"]
        of_mean = how | {"task": "nunique", "variance": "mean", "finetune_seeds": "min", "degenerate": "sum"}
        whole = scored.groupby(keys, dropna=False, sort=False).agg(of_mean).reset_index()
        whole = whole[whole["task"] == len(names)]
        mean = whole.assign(
            task=MEAN, metric=f"mean of {len(names)} task{'s' * (len(names) != 1)}", unit="points",
            subset=", ".join(names), finetune_sd=math.nan, standard_error=(whole["variance"] / len(names)) ** 0.5,
        )  # fmt: skip
        runs = pd.concat([runs, mean[runs.columns]], ignore_index=True) if len(mean) else runs
    return runs[[*columns, *measured]]


def mid_decay(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the checkpoints whose learning rate had not come down, in the unit shown: drawn, and never averaged."""
    known = scores_frame(scores)
    rows = known[known["mid_decay"].eq(True)]
    rises = rows["higher_is_better"].astype(bool)
    scale = [100.0 if unit_of(*row) == "points" else 1.0 for row in zip(rows["task"], rises, strict=True)]
    return rows.assign(value=rows["value"].astype(float) * scale)


def summarise(runs: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Average runs over their seeds, with the t interval of each arm by itself."""
    columns = [*_CELL, "metric", "higher_is_better", "budget_amount", "budget_unit", *_CARRIED, "subset", "unit"]
    extra = ["mean", "half_width", "low", "high", "num_runs", "degrees_of_freedom", "median", "sd", "finetune_sd",
             "evaluation_error", "finetune_seeds", "degenerate"]  # fmt: skip
    if runs.empty:
        return pd.DataFrame(columns=[*columns, *extra])
    how = {column: "mean" if column in _CARRIED else "first" for column in columns[len(_CELL) :]}
    how |= {"finetune_sd": "mean", "standard_error": "mean", "finetune_seeds": "min", "degenerate": "sum"}
    grouped = runs.groupby(_CELL, dropna=False, sort=False)
    cells = grouped.agg(how).reset_index().rename(columns={"standard_error": "evaluation_error"})
    spread = grouped["value"].agg(["mean", "std", "median", "count"]).reset_index()
    cells["mean"], cells["num_runs"] = spread["mean"], spread["count"]
    cells["median"], cells["sd"] = spread["median"], spread["std"]
    freedom = (spread["count"] - 1.0).where((spread["subject"] == "run") & (spread["count"] > 1))
    cells["degrees_of_freedom"] = freedom.fillna(0.0)
    quantile = freedom.map(lambda count: t_quantile(0.5 + level / 2, count), na_action="ignore")
    cells["half_width"] = quantile * spread["std"] / spread["count"] ** 0.5
    cells["low"] = cells["mean"] - cells["half_width"]
    cells["high"] = cells["mean"] + cells["half_width"]
    return cells[[*columns, *extra]]


def subsets(cells: pd.DataFrame) -> dict[str, str]:
    """Return what of each task was used, of the tasks of which that is not all."""
    known = cells[(cells["task"] != MEAN) & (cells["subset"].fillna("") != "")] if len(cells) else cells
    # Yardsticks that were not trained name the validation set alone: the longest names all.
    return {str(task): max(rows["subset"], key=len) for task, rows in known.groupby("task", sort=False)}


def interval_note(cells: pd.DataFrame, level: float = 0.95) -> str:
    """Say in one phrase what ± and the error bars are, if there are any."""
    known = cells[cells["half_width"].notna()] if len(cells) else cells
    if known.empty:
        return "no interval, since no arm has two runs at one budget"
    low, high = (f"{end:g}" for end in (known["num_runs"].min(), known["num_runs"].max()))
    runs = low if low == high else f"{low} to {high}"
    return f"± is the {100 * level:g} % t interval of each arm's {runs} run seeds by themselves"
