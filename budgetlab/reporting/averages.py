"""Scores as tidy frames: fine-tuning seeds averaged first, then means over run seeds with their interval.

The pretraining run is the unit of replication. Each arm at each budget has the t interval of its own runs: noise
changes with compute and with the arm, so nothing is pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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

_RUN = ["subject", "arm", "rung", "run_seed"]
_CELL = ["subject", "arm", "rung", "task"]
_SPENT = ("steps", "tokens", "target_tokens", "required_flops", "executed_flops", "device_seconds")
_CARRIED = ["metric", "higher_is_better", "budget_amount", "budget_unit", *_SPENT, "subset"]
_OF_RUN = ["value", "standard_error", "finetune_sd", "finetune_seeds", "degenerate", "unit"]
_OF_CELL = ["unit", "mean", "half_width", "low", "high", "num_runs", "degrees_of_freedom", "median", "sd",
            "finetune_sd", "evaluation_error", "finetune_seeds", "degenerate"]  # fmt: skip


@dataclass(frozen=True)
class Outcomes:
    """The scores of a study at three grains, computed once for every table and figure."""

    table: pd.DataFrame
    """One row a score."""
    runs: pd.DataFrame
    """One row a run and task, in the unit shown."""
    cells: pd.DataFrame
    """One row an arm, budget and task: the mean over run seeds."""
    level: float = 0.95
    """Confidence of the intervals."""

    @cached_property
    def early(self) -> pd.DataFrame:
        """The checkpoints whose learning rate had not come down, in the unit shown: drawn, and never averaged."""
        return _in_unit_shown(self.table[self.table["mid_decay"].eq(True)], "value")

    @cached_property
    def largest_rung(self) -> int | None:
        """Index of the largest budget at which a run was scored; None without any."""
        rungs = self.table.loc[self.table["subject"] == "run", "rung"].dropna()
        return None if rungs.empty else int(rungs.max())

    @cached_property
    def averaged(self) -> list[str]:
        """The tasks that the mean runs over."""
        return averaged_tasks(self.table) if len(self.table) else []

    @cached_property
    def subsets(self) -> dict[str, str]:
        """What of each task was used, of the tasks of which that is not all."""
        known = self.cells[(self.cells["task"] != MEAN) & self.cells["subset"].fillna("").ne("")]
        # Yardsticks that were not trained name the validation set alone: the longest names all.
        return {str(task): max(rows["subset"], key=len) for task, rows in known.groupby("task", sort=False)}

    def interval_note(self, fewest: int = 2, tasks: Sequence[str] | None = None) -> str:
        """Say in one phrase what ± and the error bars are, of arms with so many runs, if there are any."""
        known = self.cells[(self.cells["subject"] == "run") & self.cells["half_width"].notna()]
        known = known[(known["num_runs"] >= fewest) & (tasks is None or known["task"].isin(tasks or ()))]
        if known.empty:
            return "no interval, since no arm has two runs at one budget"
        runs = told_range(known["num_runs"])
        return f"± is the {100 * self.level:g} % t interval of each arm's {runs} run seeds by themselves"


def told_range(values: Sequence[float] | pd.Series) -> str:
    """Say "3", or "2 to 3" of numbers that differ."""
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low} to {high}"


def outcomes(scores: Sequence[Score] | pd.DataFrame | Outcomes, level: float = 0.95) -> Outcomes:
    """Average scores over fine-tuning seeds and over run seeds; what is averaged already is returned as it is.

    Of a table from elsewhere, what is unknown is missing, and `rung` is the place of a budget among its budgets.

    Raises
    ------
    CallerError
        When a table lacks a column.
    """
    if isinstance(scores, Outcomes):
        return scores
    table = scores if isinstance(scores, pd.DataFrame) else tidy_scores(scores)
    needed = ("subject", "arm", "run_seed", "task", "metric", "value", "higher_is_better", "budget_amount")
    missing = [name for name in needed if name not in table]
    if missing and len(table):
        wrong, remedy = f"no column {', '.join(missing)}", "give the table of the store, or of as_scores"
        raise CallerError(f"a table of {len(table)} scores", wrong, remedy)
    if missing:
        table = tidy_scores([])
    optional = {"standard_error": math.nan, "degenerate": False, "averaged": True, "subset": "", "mid_decay": False,
                **dict.fromkeys(_SPENT, math.nan)}  # fmt: skip
    if "rung" not in table:
        optional["rung"] = table["budget_amount"].rank(method="dense") - 1
    table = table.assign(**{name: value for name, value in optional.items() if name not in table})
    runs = per_run(table)
    return Outcomes(table, runs, per_cell(runs, level), level)


def shown_unit(task: str, rises: bool | None = None) -> str:
    """Return the unit in which a task is shown."""
    return unit_of(task, rises).replace("nats", "nats per target token")


def _in_unit_shown(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return scores with their `unit`, and some columns in it."""
    ways = zip(rows["task"], rows["higher_is_better"].astype(bool), strict=True)
    rows = rows.assign(unit=[shown_unit(*way) for way in ways])
    scale = rows["unit"].map({"points": 100.0}).fillna(1.0)
    return rows.assign(**{name: rows[name].astype(float) * scale for name in columns})


def per_run(table: pd.DataFrame, tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Average over fine-tuning seeds, in the unit shown: one row a run and task, and the mean over tasks.

    Parameters
    ----------
    table
        `Outcomes.table`, or some of its rows.
    tasks
        What the mean is of; default: the tasks that were scored at every budget, where there are two.
    """
    columns = [*_RUN, "task", *_CARRIED, *_OF_RUN]
    if table.empty:
        return pd.DataFrame(columns=columns)
    known = table[~table["mid_decay"].eq(True)]
    known = known.assign(
        finetune_sd=known["value"], finetune_seeds=known["value"], degenerate=known["degenerate"].eq(True).astype(int)
    )
    how: dict[str, str] = dict.fromkeys(_CARRIED, "first") | {"value": "mean", "standard_error": "mean"}
    counted = {"finetune_sd": "std", "finetune_seeds": "count", "degenerate": "sum"}
    runs = known.groupby([*_RUN, "task"], dropna=False, sort=False).agg(how | counted).reset_index()
    runs = _in_unit_shown(runs, "value", "standard_error", "finetune_sd")[columns]
    names = averaged_tasks(known) if tasks is None else list(tasks)
    if len(names) < 2 and not tasks:
        return runs
    scored = runs[runs["task"].isin(names)].assign(variance=lambda rows: rows["standard_error"] ** 2)
    of_mean = how | {"task": "nunique", "variance": "mean", "finetune_seeds": "min", "degenerate": "sum"}
    whole = scored.groupby(_RUN, dropna=False, sort=False).agg(of_mean).reset_index()
    whole = whole[whole["task"] == len(names)]
    mean = whole.assign(
        task=MEAN, metric=f"mean of {len(names)} task{'s' * (len(names) != 1)}", unit="points",
        subset=", ".join(names), finetune_sd=math.nan, standard_error=(whole["variance"] / len(names)) ** 0.5,
    )  # fmt: skip
    return pd.concat([runs, mean[columns]], ignore_index=True) if len(mean) else runs


def per_cell(runs: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Average what `per_run` returns over run seeds, with the t interval of each arm by itself."""
    columns = [*_CELL, *_CARRIED, *_OF_CELL]
    if runs.empty:
        return pd.DataFrame(columns=columns)
    how = {column: "mean" if column in _SPENT else "first" for column in (*_CARRIED, "unit")}
    how |= {"finetune_sd": "mean", "standard_error": "mean", "finetune_seeds": "min", "degenerate": "sum"}
    grouped = runs.groupby(_CELL, dropna=False, sort=False)
    cells = grouped.agg(how).reset_index().rename(columns={"standard_error": "evaluation_error"})
    spread = grouped["value"].agg(["mean", "std", "median", "count"]).reset_index()
    count, sd = spread["count"], spread["std"]
    freedom = (count - 1.0).where((spread["subject"] == "run") & (count > 1))
    half = freedom.map(lambda df: t_quantile(0.5 + level / 2, df), na_action="ignore") * sd / count**0.5
    return cells.assign(
        mean=spread["mean"], median=spread["median"], sd=sd, num_runs=count, half_width=half,
        low=spread["mean"] - half, high=spread["mean"] + half, degrees_of_freedom=freedom.fillna(0.0),
    )[columns]  # fmt: skip
