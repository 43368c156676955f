"""From the tidy table of scores to one row per run: fine-tuning seeds averaged first, tasks fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.frames import yardstick_levels
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
    AGGREGATE: "the mean score",
}  # fmt: skip
"""How outcomes that are no tasks are called in sentences."""
_CORRELATIONS = {*CORRELATIONS, "matthews"}
_NEEDED = ("arm", "budget_amount", "budget_unit", "run_seed", "task", "value")
_RUN = ["arm", "budget_unit", "budget_amount", "run_seed"]


def outcome_names(scores: pd.DataFrame) -> tuple[str, ...]:
    """Outcomes that the runs of a table have: losses, tasks, and the aggregate where there is more than one task."""
    rows = _runs(scores)
    tasks = [task for task in dict.fromkeys(rows["task"]) if task not in LOSSES]
    losses = [task for task in LOSSES if task in set(rows["task"])]
    return (*losses, *([AGGREGATE] if len(averaged_tasks(scores)) > 1 else []), *tasks)


def averaged_tasks(scores: pd.DataFrame) -> list[str]:
    """Tasks that the mean score runs over: those scored at every budget, so that its curve is of one thing."""
    rows = _runs(scores)
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
        rows, subset = scores[scores["task"] == task], subset_of(scores, task) if subsets else ""
        metrics += rows["metric"].iloc[:1].tolist() if "metric" in rows else []
        metric = f" {rows['metric'].iloc[0]}" if "metric" in rows and len(rows) else ""
        parts.append(f"{task}{metric}{f' ({subset})' if subset else ''}")
    kinds = {metric in _CORRELATIONS for metric in metrics}
    mixed = "; correlations and shares of right answers are mixed in it" if len(kinds) > 1 else ""
    said = "".join(f"; {words}" for words in (uninformative_words(scores), _unknown_words(scores, names)) if words)
    return f"mean score: {', '.join(parts)}, with equal weights{mixed}{said}"


def uninformative_words(scores: pd.DataFrame) -> str:
    """Name the tasks that tell nothing at a size, with the numbers that say so; empty where there are none."""
    dull = scores[scores["informative"].eq(False)] if "informative" in scores else scores[:0]
    if dull.empty:
        return ""
    lowest, random = yardstick_levels(scores)
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


def _unknown_words(scores: pd.DataFrame, tasks: Sequence[str]) -> str:
    if "informative" not in scores or not scores["subject"].isin(["teacher", "random"]).any():
        return ""
    runs = scores[(scores["subject"] == "run") & scores["informative"].isna()]
    unknown = [task for task in tasks if task in set(runs["task"])]
    return f"whether {', '.join(unknown)} tell{'s' * (len(unknown) == 1)} anything is not known" if unknown else ""


def run_values(scores: pd.DataFrame, y: str) -> pd.DataFrame:
    """Reduce scores to one value per run."""
    rows = _runs(scores)
    known = outcome_names(scores)
    tasks = [task for task in dict.fromkeys(rows["task"]) if task not in LOSSES]
    if y == AGGREGATE and tasks:
        wanted = averaged_tasks(scores)
        if not wanted and (said := uninformative_words(scores)):
            raise CallerError(f"y = {y!r}", said, "ask for a loss, or for tasks that a teacher is better at")
    elif y in known:
        wanted = [y]
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
    carried = [c for c in COMPUTE_COLUMNS if c in rows.columns and c not in _RUN]
    of_task = {c: (c, "mean") for c in carried} | {
        "value": ("value", "mean"),
        "higher_is_better": ("higher_is_better", "first"),
        "finetune_seeds": ("value", "size"),
    }
    if "student" in rows.columns:
        of_task["student"] = ("student", "first")
    if "teacher_seed" in rows.columns:
        of_task["teachers"] = ("teacher_seed", "nunique")
    of_run = {c: (c, "first") for c in of_task} | {
        "value": ("value", "mean"),
        "finetune_seeds": ("finetune_seeds", "min"),
        "num_tasks": ("value", "size"),
    }
    for name in ("half_value", "informative"):
        if name in rows.columns and y != AGGREGATE:
            of_task[name] = (name, "mean" if name == "half_value" else "first")
    of_run = {c: (c, "first") for c in of_task} | of_run
    per_task = rows.groupby([*_RUN, "task"], dropna=False, sort=False).agg(**of_task).reset_index()
    runs = per_task.groupby(_RUN, dropna=False, sort=False).agg(**of_run).reset_index()
    complete = runs["num_tasks"] == len(wanted)
    result = runs[complete].sort_values(["arm", "budget_amount", "run_seed"], kind="stable", ignore_index=True)
    result.attrs["missing"] = int((~complete).sum())
    subset = subset_of(scores, y)
    of_task = f"{y}: a subset, {subset}" if subset else ""
    result.attrs["definition"] = average_words(scores, wanted, subsets=True) if y == AGGREGATE else of_task
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
