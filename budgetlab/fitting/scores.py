"""From the tidy table of scores to one row per run: fine-tuning seeds averaged first, tasks fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.frames import baseline_levels
from budgetlab.values.scoring import (
    AGGREGATE,
    COMPUTE_COLUMNS,
    CORRELATIONS,
    LOSSES,
    higher_is_better,
    subset_words,
)

OUTCOMES = {
    "readout_loss": "the read-out loss", "adapted_loss": "the adapted loss", "mlm_loss": "the own MLM loss",
    "lm_loss": "the held-out loss", "bits_per_byte": "bits a byte",
    AGGREGATE: "the mean score",
}  # fmt: skip
"""How outcomes that are no tasks are called in sentences."""
_CORRELATIONS = {*CORRELATIONS, "matthews"}
_NEEDED = ("arm", "budget_amount", "budget_unit", "run_seed", "task", "value")
_RUN = ["arm", "budget_unit", "budget_amount", "run_seed"]


def outcome_names(scores: pd.DataFrame) -> tuple[str, ...]:
    """Outcomes that the runs of a table have: losses, tasks, and the aggregate where there is more than one task."""
    return _outcomes(_runs(scores))


def _outcomes(rows: pd.DataFrame) -> tuple[str, ...]:
    found = dict.fromkeys(rows["task"])
    losses = [loss for loss in LOSSES if loss in found]
    return (*losses, *([AGGREGATE] if len(_averaged(rows)) > 1 else []), *(t for t in found if t not in LOSSES))


def averaged_tasks(scores: pd.DataFrame) -> list[str]:
    """Tasks that the mean score runs over: those scored at every budget, so that its curve is of one thing."""
    return _averaged(_runs(scores))


def _averaged(rows: pd.DataFrame) -> list[str]:
    rows = rows[~rows["task"].isin(LOSSES)]
    if "averaged" in rows:  # what the study counts; of tables that do not say, all tasks
        rows = rows[rows["averaged"].astype(bool)]
    if "informative" in rows:  # a task on which the teacher is no better than random weights would only add noise
        # Arms of all sizes average the same tasks, so one size is enough to leave a task out.
        rows = rows[~rows["task"].isin(rows.loc[rows["informative"].eq(False), "task"])]
    budgets = rows.groupby("task", sort=False)["budget_amount"].nunique()
    return [str(task) for task, count in budgets.items() if count == rows["budget_amount"].nunique()]


def subset_of(scores: pd.DataFrame, task: str) -> str:
    """Say what of a task was used where that is not all: "10,475 of 104,743 train"; empty where it is, or unknown."""
    if not {"train_examples", "num_examples"} <= set(scores.columns):
        return ""
    rows = scores[scores["task"] == task]
    names = [name for name in ("train_examples", "num_examples", "train_available") if name in rows]
    return subset_words(task, *(int(rows[name].fillna(0).max()) for name in names)) if len(rows) else ""


def average_words(scores: pd.DataFrame, tasks: Sequence[str] | None = None, *, subsets: bool = False) -> str:
    """Say what the mean score is the mean of: each task's metric, and with `subsets` what of it was used."""
    parts, metrics = [], []
    names = averaged_tasks(scores) if tasks is None else list(tasks)
    for task in names:
        metric = scores.loc[scores["task"] == task, "metric"].iloc[:1].tolist() if "metric" in scores else []
        subset = subset_of(scores, task) if subsets else ""
        parts.append(" ".join([task, *map(str, metric), *([f"({subset})"] if subset else [])]))
        metrics += metric
    kinds = {metric in _CORRELATIONS for metric in metrics}
    mixed = "; correlations and shares of right answers are mixed in it" if len(kinds) > 1 else ""
    dull, unknown = uninformative_words(scores), []
    if "informative" in scores and scores["subject"].isin(["teacher", "random"]).any():
        silent = scores.loc[(scores["subject"] == "run") & scores["informative"].isna(), "task"]
        unknown = [task for task in names if task in set(silent)]
    said = f"; {dull}" if dull else ""
    if unknown:
        said += f"; whether {', '.join(unknown)} tell{'s' * (len(unknown) == 1)} anything is not known"
    return f"mean score: {', '.join(parts)}, with equal weights{mixed}{said}"


def uninformative_words(scores: pd.DataFrame) -> str:
    """Name the tasks that tell nothing at a size, with the numbers that say so; empty where there are none."""
    dull = scores[scores["informative"].eq(False)] if "informative" in scores else scores[:0]
    if dull.empty:
        return ""
    lowest, random = baseline_levels(scores)
    several = scores.loc[scores["subject"] == "run", "student"].nunique() > 1
    told = []
    for task, student in dull[["task", "student"]].drop_duplicates().to_numpy():
        numbers = ""
        if task in lowest and (task, student) in random:
            (teacher, one), (floor, other) = lowest[task], random[task, student]
            error = 100 * (one + other) ** 0.5
            numbers = f" (teacher {100 * teacher:.1f}, random weights {100 * floor:.1f}, standard error {error:.1f})"
        told.append(f"{task}{f' at {student}' if several else ''}{numbers}")
    return f"not informative at {'some' if several else 'this'} size, so in no mean: {', '.join(told)}"


def run_values(scores: pd.DataFrame, y: str) -> pd.DataFrame:
    """Reduce scores to one value per run, of a task, a loss or the mean score."""
    rows = _runs(scores)
    known = _outcomes(rows)
    if y in known and y != AGGREGATE:
        wanted = [y]
    elif y == AGGREGATE and not set(rows["task"]) <= set(LOSSES):
        wanted = _averaged(rows)
        if not wanted and (said := uninformative_words(scores)):
            raise CallerError(f"y = {y!r}", said, "ask for a loss, or for tasks that a teacher is better at")
    else:
        raise unknown_name("outcome", y, known, f"y = {y!r}")
    rows = rows[rows["task"].isin(wanted) & rows["value"].notna()]
    units = sorted(rows["budget_unit"].dropna().unique())
    if len(units) > 1:
        raise CallerError(f"y = {y!r}", f"budgets in several units: {', '.join(units)}", "compare one at a time")
    finetune = [c for c in ("finetune_seed", "teacher_seed") if c in rows.columns]
    repeated = rows.duplicated([*_RUN, "task", *finetune])
    if repeated.any():
        first = rows[repeated].iloc[0]
        raise CallerError(
            f"y = {y!r}, {len(rows)} scores",
            f"{int(repeated.sum())} duplicated, such as {first['arm']} at {first['budget_amount']:g} with seed "
            f"{first['run_seed']} on {first['task']}",
            "keep one score per run, task and fine-tuning seed",
        )
    of_task = {c: (c, "mean") for c in (*COMPUTE_COLUMNS, "value") if c in rows.columns and c not in _RUN}
    of_task |= {"higher_is_better": ("higher_is_better", "first"), "finetune_seeds": ("value", "size")}
    carried = [("student", "student", "first"), ("teachers", "teacher_seed", "nunique")]
    if y != AGGREGATE:
        carried += [("half_value", "half_value", "mean"), ("informative", "informative", "first")]
    of_task |= {name: (column, how) for name, column, how in carried if column in rows.columns}
    of_run = {c: (c, "first") for c in of_task} | {
        "value": ("value", "mean"), "finetune_seeds": ("finetune_seeds", "min"), "num_tasks": ("value", "size"),
    }  # fmt: skip
    per_task = rows.groupby([*_RUN, "task"], dropna=False, sort=False).agg(**of_task).reset_index()
    runs = per_task.groupby(_RUN, dropna=False, sort=False).agg(**of_run).reset_index()
    complete = runs["num_tasks"] == len(wanted)
    result = runs[complete].sort_values(["arm", "budget_amount", "run_seed"], kind="stable", ignore_index=True)
    result.attrs["missing"] = int((~complete).sum())
    subset = subset_of(scores, y)
    one_task = f"{y}: a subset, {subset}" if subset else ""
    result.attrs["definition"] = average_words(scores, wanted, subsets=True) if y == AGGREGATE else one_task
    return result


def _runs(scores: pd.DataFrame) -> pd.DataFrame:
    missing = [column for column in _NEEDED if column not in scores.columns]
    if missing:
        raise CallerError(
            f"a table of {len(scores)} scores", f"no column {', '.join(missing)}", "pass the scores of the store"
        )
    rows = scores
    if "subject" in rows.columns:
        rows = rows[rows["subject"] == "run"]
    rows = rows[rows["run_seed"].notna() & rows["budget_amount"].notna()].copy()
    if "mid_decay" in rows.columns:  # a learning rate that has not come down is no end of a run
        rows = rows[~rows["mid_decay"].eq(True)]
    if "higher_is_better" not in rows.columns:
        asked = f"a table of {len(scores)} scores without higher_is_better"
        ways = {task: higher_is_better(str(task), asked) for task in rows["task"].unique()}
        rows["higher_is_better"] = rows["task"].map(ways)
    rows["value"] = rows["value"].astype(float)
    if not np.isfinite(rows["value"].dropna()).all():
        raise CallerError(f"a table of {len(scores)} scores", "infinite values", "remove them")
    return rows
