"""Tables of scores: every task with its spread, and the average with each task left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting import compare
from budgetlab.fitting.reference import reference_arm
from budgetlab.fitting.scores import OUTCOMES, average_words, averaged_tasks, subset_of
from budgetlab.reporting.frames import (
    LOSSES,
    MEAN,
    YARDSTICKS,
    interval_note,
    largest_rung,
    per_run,
    scores_frame,
    subsets,
    summarise,
)
from budgetlab.reporting.tables.sheets import Column, Sheet, fixed
from budgetlab.units import format_amount
from budgetlab.values import Score

_SPREAD, _POINTS, _DIFFERENCES = "over run seeds", "points", "difference of averages, paired by run seed"


def score_sheet(scores: Sequence[Score] | pd.DataFrame, *, arms: Sequence[str] = (), level: float = 0.95) -> Sheet:
    """Return every task at the largest budget: mean, median, spread of runs and of fine-tunings, yardsticks.

    `arms` gives their order; the last column is the mean without fine-tunings that gave one answer to all examples.
    """
    table = scores_frame(scores)
    cells = summarise(per_run(table), level)
    varied = summarise(per_run(table[~table["degenerate"].eq(True)], averaged_tasks(table)), level)
    keys = ["subject", "arm", "rung", "task"]
    without = {tuple(row[:4]): row[4] for row in varied[[*keys, "mean"]].fillna(-1).itertuples(index=False)}
    cells["without"] = [without.get(tuple(key)) for key in cells[keys].fillna(-1).itertuples(index=False)]
    rows: list[tuple[str, ...]] = []
    rules = []
    top = largest_rung(table)
    shown = cells[(cells["rung"] == top) | (cells["subject"] != "run")]
    order = [*LOSSES, *(task for task in pd.unique(cells["task"]) if task not in (*LOSSES, MEAN)), MEAN]
    named = subsets(cells)
    for task in order:
        own = shown[shown["task"] == task]
        places = {"run": 0} | {subject: i for i, subject in enumerate(YARDSTICKS, start=len(arms) + 1)}
        ranks = own["subject"].map(places) + own["arm"].map({arm: i for i, arm in enumerate(arms)}).fillna(0)
        rules.append(len(rows))
        for row in own.assign(rank=ranks).sort_values("rank", kind="stable").to_dict("records"):
            rows.append(_score_row(row, task, named))
    amounts = shown.loc[shown["subject"] == "run", ["budget_amount", "budget_unit"]].dropna().to_numpy().tolist()
    return Sheet(
        title=f"Scores at {format_amount(*amounts[0])}" if amounts else "Scores",
        columns=(
            Column("of", left=True), Column("arm", left=True), Column("mean", _SPREAD), Column("median", _SPREAD),
            Column("SD of\nruns", _SPREAD), Column("SD of\nfine-tunings", _SPREAD),
            Column("error of the\nevaluation set", _SPREAD), Column("runs x\nseeds", _SPREAD),
            Column("one answer\nonly", _SPREAD), Column("mean\nwithout", _SPREAD),
        ),
        rows=tuple(rows),
        notes=(
            f"losses in nats, scores in points; {interval_note(cells[cells['subject'] == 'run'], level)}; one answer "
            "only: fine-tunings that gave it to all examples, and the mean without them",
            *_recipe_notes(table),
            *subset_note(named),
            *([average_words(table)] if (cells["task"] == MEAN).any() else []),
        ),
        rules=tuple(rules[1:]),
    )  # fmt: skip


def _score_row(row: dict[Any, Any], task: str, named: dict[str, str]) -> tuple[str, ...]:
    decimals = 2 if task in LOSSES else 1
    name = str(row["metric"]) if task == MEAN else OUTCOMES.get(task, "").removeprefix("the ")
    run = row["subject"] in ("run", "teacher")
    tuned = row["subject"] not in ("majority", "unigram") and task not in LOSSES
    return (
        name or f"{task} {row['metric']}{' subset' if task in named else ''}",
        str(row["arm"]) if run else YARDSTICKS[row["subject"]],
        fixed(row["mean"], decimals, row["half_width"]),
        fixed(row["median"], decimals),
        fixed(row["sd"], decimals),
        fixed(row["finetune_sd"], decimals),
        fixed(row["evaluation_error"], decimals),
        (f"{int(row['num_runs'])}x{int(row['finetune_seeds'])}" if tuned else str(int(row["num_runs"])))
        if row["subject"] not in ("majority", "unigram") else "n/a",
        str(int(row["degenerate"])) if tuned else "n/a",
        fixed(row["without"], decimals) if tuned and row["degenerate"] else "",
    )  # fmt: skip


def average_sheet(scores: Sequence[Score] | pd.DataFrame, *, arms: Sequence[str] = (), level: float = 0.95) -> Sheet:
    """Return the average at the largest budget, with each task left out and without fine-tunings of one answer.

    With the paired differences of the arms: what leans on one task changes when it is left out.
    """
    table = scores_frame(scores)
    tasks = averaged_tasks(table) if len(table) else []
    if len(tasks) < 2:
        return Sheet("Averages", (Column("average", left=True),), ())
    top = largest_rung(table)
    variants = [(f"all {len(tasks)}", table, tasks)]
    variants += [(f"without {task}", table, [other for other in tasks if other != task]) for task in tasks]
    flagged = table["degenerate"].eq(True) & table["task"].isin(tasks)
    count = int((flagged & (table["rung"] == top)).sum())
    if count:
        variants.append((f"all {len(tasks)}, without {count} fine-tunings of one answer", table[~flagged], tasks))
    arms = list(arms) or list(pd.unique(table.loc[table["subject"] == "run", "arm"]))
    pairs = [(arm, str(base)) for arm in arms if (base := reference_arm(arm, sorted(arms))) not in (None, arm)]
    rows = []
    subjects = [("run", arm) for arm in arms]
    subjects += [(s, n) for s in YARDSTICKS for n in pd.unique(table.loc[table["subject"] == s, "arm"])]
    subjects = [pair for pair in subjects if pair[0] != "unigram"]
    for label, given, names in variants:
        cells = summarise(per_run(given, names), level)
        cells = cells[(cells["task"] == MEAN) & ((cells["rung"] == top) | (cells["subject"] != "run"))]
        kept = given[given["task"].isin(names)]
        rows.append((label, *_means(cells, subjects, 1), *(_difference(kept, a, b, MEAN, level) for a, b in pairs)))
    if (table["task"] == "readout_loss").any():
        cells = summarise(per_run(table), level)
        cells = cells[(cells["task"] == "readout_loss") & ((cells["rung"] == top) | (cells["subject"] != "run"))]
        differences = [_difference(table, a, b, "readout_loss", level) for a, b in pairs]
        rows.append(("read-out loss, nats", *_means(cells, subjects, 2), *differences))
    heads = [arm if subject in ("run", "teacher") else YARDSTICKS[subject] for subject, arm in subjects]
    return Sheet(
        title="Averages, in points",
        rules=(len(variants),),
        columns=(
            Column("average", left=True), *(Column(name.replace(" ", "\n"), _POINTS) for name in heads),
            *(Column(f"{a}\n- {b}", _DIFFERENCES) for a, b in pairs),
        ),
        rows=tuple(rows),
        notes=(
            average_words(table),
            *subset_note({task: words for task in tasks if (words := subset_of(table, task))}),
            f"differences, + where the first is better, with {100 * level:g} % t intervals, each by itself: no "
            "correction for their number",
        ),
    )  # fmt: skip


def _means(cells: pd.DataFrame, subjects: Sequence[tuple[str, str]], decimals: int) -> list[str]:
    shown = []
    for subject, arm in subjects:
        own = cells[(cells["subject"] == subject) & (cells["arm"] == arm)]
        shown.append(fixed(own["mean"].iloc[0], decimals, own["half_width"].iloc[0]) if len(own) else "n/a")
    return shown


def _difference(scores: pd.DataFrame, a: str, b: str, outcome: str, level: float) -> str:
    try:
        found = compare(scores, a=a, b=b, task=outcome, interval_level=level, curves=False)
    except CallerError:  # an arm that has not all tasks
        return "n/a"
    if found.difference is None:
        return "n/a"
    ends = () if found.interval is None else found.interval
    value, *limits = (f"{number:+.{1 if outcome == MEAN else 2}f}" for number in (found.difference, *ends))
    return f"{value} [{', '.join(limits)}]" if limits else value


def subset_note(named: dict[str, str]) -> tuple[str, ...]:
    """Return the note that names every subset."""
    parts = [f"{task} {words}" for task, words in named.items()]
    return (f"subsets: {'; '.join(parts)}",) if parts else ()


def _recipe_notes(table: pd.DataFrame) -> tuple[str, ...]:
    """Say how tasks were fine-tuned, or how a point of a grid was chosen."""
    if "recipe" not in table:
        return ()
    rows = table[table["recipe"].fillna("") != ""]
    how: dict[str, list[str]] = {}
    for task, recipes in rows.groupby("task", sort=False)["recipe"]:
        words = sorted({recipe.split("; ")[-1] for recipe in recipes})
        how.setdefault(" or ".join(words), []).append(str(task))
    parts = [words if len(how) == 1 else f"{', '.join(names)} {words}" for words, names in how.items()]
    return (f"fine-tuning (learning rate x batch): {'; '.join(parts)}",) if parts else ()
