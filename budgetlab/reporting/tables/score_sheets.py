"""Tables of what came out: every task with its spread, the average with each task left out, and the closing table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting import compare
from budgetlab.fitting.scores import OUTCOMES, average_words, averaged_tasks, subset_of
from budgetlab.reporting.averages import (
    BASELINES,
    MEAN,
    Outcomes,
    interval_note,
    largest_rung,
    outcomes,
    per_run,
    subsets,
    summarise,
)
from budgetlab.reporting.tables.plan_sheets import answers
from budgetlab.reporting.tables.sheets import Column, Sheet, bracketed, fixed, number, percent
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import Plan, RunRecord, Schedule, Score, TeacherPlan
from budgetlab.values.scoring import LOSSES
from budgetlab.values.specs import reference_arm

Scores = Sequence[Score] | pd.DataFrame | Outcomes

_SPREAD, _POINTS, _DIFFERENCES = "over run seeds", "points", "difference of averages, paired by run seed"
_SPENT, _OUTCOME = "planned and spent", "what came out"
_READOUT_BEHIND_NATS = 0.02
"""A read-out that is more than this above the own head misses something that the own head tells."""


def _at_largest_budget(cells: pd.DataFrame, rung: int | None) -> pd.DataFrame:
    return cells[(cells["rung"] == rung) | (cells["subject"] != "run")]


def subset_note(named: Mapping[str, str]) -> tuple[str, ...]:
    """Return the note that names every subset."""
    parts = [f"{task} {words}" for task, words in named.items()]
    return (f"subsets: {'; '.join(parts)}",) if parts else ()


def score_sheet(scores: Scores, *, arms: Sequence[str] = (), level: float = 0.95) -> Sheet:
    """Return every task at the largest budget: mean, median, spread of runs and of fine-tunings, yardsticks.

    `arms` gives their order; the last column is the mean without fine-tunings that gave one answer to all examples.
    """
    found = outcomes(scores, level)
    table, cells = found.table, found.cells
    named, shown = subsets(cells), _at_largest_budget(cells, largest_rung(table))
    varied = table[~table["degenerate"].eq(True)]
    varied = summarise(per_run(varied, averaged_tasks(table)), found.level) if len(varied) < len(table) else cells
    keys = ["subject", "arm", "rung", "task"]
    without = {tuple(row[:4]): row[4] for row in varied[[*keys, "mean"]].fillna(-1).itertuples(index=False)}
    tasks = [*LOSSES, *(task for task in pd.unique(cells["task"]) if task not in (*LOSSES, MEAN)), MEAN]
    places = {arm: (0, i) for i, arm in enumerate(arms)} | {(s,): (i, 0) for i, s in enumerate(BASELINES, start=1)}
    rows = sorted(
        shown.to_dict("records"),
        key=lambda row: (
            tasks.index(row["task"]),
            places.get(row["arm"] if row["subject"] == "run" else (row["subject"],), (0, 0)),
        ),
    )

    def name(row: Mapping[str, Any]) -> str:
        task = row["task"]
        known = str(row["metric"]) if task == MEAN else OUTCOMES.get(task, "").removeprefix("the ")
        return known or f"{task} {row['metric']}{' subset' if task in named else ''}"

    def number_of(field: str, half_width: str = "") -> Any:
        return lambda row: fixed(row[field], 2 if row["task"] in LOSSES else 1, row.get(half_width))

    def trained(row: Mapping[str, Any]) -> bool:
        return row["subject"] not in ("majority", "unigram")

    def tuned(row: Mapping[str, Any]) -> bool:
        return trained(row) and row["task"] not in LOSSES

    def counts(row: Mapping[str, Any]) -> str:
        return f"{int(row['num_runs'])}x{int(row['finetune_seeds'])}" if tuned(row) else str(int(row["num_runs"]))

    def mean_without(row: Mapping[str, Any]) -> str:
        key = tuple(-1 if pd.isna(row[part]) else row[part] for part in keys)
        return fixed(without.get(key), 1) if tuned(row) and row["degenerate"] else ""

    columns = (
        Column("of", name, left=True),
        Column("arm", _subject_name, left=True),
        Column("mean", number_of("mean", "half_width"), group=_SPREAD),
        Column("median", number_of("median"), group=_SPREAD),
        Column("SD of\nruns", number_of("sd"), group=_SPREAD),
        Column("SD of\nfine-tunings", number_of("finetune_sd"), group=_SPREAD),
        Column("error of the\nevaluation set", number_of("evaluation_error"), group=_SPREAD),
        Column("runs x\nseeds", lambda row: counts(row) if trained(row) else "n/a", group=_SPREAD),
        Column("one answer\nonly", lambda row: int(row["degenerate"]) if tuned(row) else None, group=_SPREAD),
        Column("mean\nwithout", mean_without, group=_SPREAD),
    )
    amounts = shown.loc[shown["subject"] == "run", ["budget_amount", "budget_unit"]].dropna().to_numpy().tolist()
    return Sheet.of(
        f"Scores at {format_amount(*amounts[0])}" if amounts else "Scores",
        rows,
        columns,
        [
            f"losses in nats, scores in points; {interval_note(cells[cells['subject'] == 'run'], found.level)}; one "
            "answer only: fine-tunings that gave it to all examples, and the mean without them",
            _recipe_note(table),
            *subset_note(named),
            average_words(table) if (cells["task"] == MEAN).any() else "",
        ],
        [i for i in range(1, len(rows)) if rows[i]["task"] != rows[i - 1]["task"]],
    )


def _subject_name(row: Mapping[str, Any]) -> str:
    return str(row["arm"]) if row["subject"] in ("run", "teacher") else BASELINES[row["subject"]]


def _recipe_note(table: pd.DataFrame) -> str:
    """Say how tasks were fine-tuned, or how a point of a grid was chosen."""
    rows = table[table["recipe"].fillna("") != ""] if "recipe" in table else table[:0]
    how: dict[str, list[str]] = {}
    for task, recipes in rows.groupby("task", sort=False)["recipe"] if len(rows) else ():
        words = sorted({recipe.split("; ")[-1] for recipe in recipes})
        how.setdefault(" or ".join(words), []).append(str(task))
    parts = [words if len(how) == 1 else f"{', '.join(names)} {words}" for words, names in how.items()]
    return f"fine-tuning (learning rate x batch): {'; '.join(parts)}" if parts else ""


def average_sheet(scores: Scores, *, arms: Sequence[str] = (), level: float = 0.95) -> Sheet:
    """Return the average at the largest budget, with each task left out and without fine-tunings of one answer.

    With the paired differences of the arms: what leans on one task changes when it is left out.
    """
    found = outcomes(scores, level)
    table, level = found.table, found.level
    tasks = averaged_tasks(table) if len(table) else []
    if len(tasks) < 2:
        return Sheet("Averages", (Column("average", left=True),), ())
    top, label = largest_rung(table), f"all {len(tasks)}"
    variants = [(label, table, tasks)]
    variants += [(f"without {task}", table, [other for other in tasks if other != task]) for task in tasks]
    flagged = table["degenerate"].eq(True) & table["task"].isin(tasks)
    if count := int((flagged & (table["rung"] == top)).sum()):
        variants.append((f"{label}, without {count} fine-tunings of one answer", table[~flagged], tasks))
    arms = list(arms) or list(pd.unique(table.loc[table["subject"] == "run", "arm"]))
    pairs = [(arm, str(base)) for arm in arms if (base := reference_arm(arm, sorted(arms))) not in (None, arm)]
    subjects = [("run", arm) for arm in arms]
    for subject in ("teacher", "random", "majority"):
        subjects += [(subject, str(name)) for name in pd.unique(table.loc[table["subject"] == subject, "arm"])]

    def row(label: str, cells: pd.DataFrame, of: pd.DataFrame, outcome: str, decimals: int) -> tuple[str, ...]:
        own = _at_largest_budget(cells[cells["task"] == outcome], top).drop_duplicates(["subject", "arm"])
        known = own.set_index(["subject", "arm"])[["mean", "half_width"]].T.to_dict("list")
        means = [fixed(known[key][0], decimals, known[key][1]) if key in known else "n/a" for key in subjects]
        return (label, *means, *(_difference(of, a, b, outcome, level, decimals) for a, b in pairs))

    rows = [
        row(label, summarise(per_run(given, names), level), given[given["task"].isin(names)], MEAN, 1)
        for label, given, names in variants
    ]
    if (table["task"] == "readout_loss").any():
        rows.append(row("read-out loss, nats", found.cells, table, "readout_loss", 2))
    heads = [_subject_name({"subject": subject, "arm": arm}).replace(" ", "\n") for subject, arm in subjects]
    columns = [Column("average", left=True), *(Column(head, group=_POINTS) for head in heads)]
    columns += [Column(f"{a}\n- {b}", group=_DIFFERENCES) for a, b in pairs]
    notes = (
        average_words(table),
        *subset_note({task: words for task in tasks if (words := subset_of(table, task))}),
        f"differences, + where the first is better, with {100 * level:g} % t intervals, each by itself: no "
        "correction for their number",
    )
    return Sheet("Averages, in points", tuple(columns), tuple(rows), notes, (len(variants),))


def _difference(scores: pd.DataFrame, a: str, b: str, outcome: str, level: float, decimals: int) -> str:
    try:
        found = compare(scores, a=a, b=b, task=outcome, interval_level=level, curves=False)
    except CallerError:  # an arm that has not all tasks
        return "n/a"
    if found.difference is None:
        return "n/a"
    around = "" if found.interval is None else f" {bracketed(found.interval, decimals)}"
    return f"{found.difference:+.{decimals}f}{around}"


def closing_frame(plan: Plan, records: Iterable[RunRecord], scores: Scores, *, level: float = 0.95) -> pd.DataFrame:
    """Put plan, records and scores side by side: one row an arm and budget, then the yardsticks.

    Planned comes from the schedule, spent from the records, quality from the scores; no cell is computed from another.

    Parameters
    ----------
    plan
        What was planned.
    records
        What was run; only complete runs count, averaged over run seeds.
    scores
        What was measured.
    level
        Confidence of the half-widths.

    Returns
    -------
    frame
        Amounts in canonical units, losses in nats per target token, scores in points. Unknown is missing. `attrs` has
        what of each task was used where that is not all ("subsets"), and what the mean is of ("average").
    """
    found = outcomes(scores, level)
    cells, complete = found.cells, [record for record in records if record.status == "complete"]
    rows: list[dict[str, Any]] = []
    for schedule in plan.schedules:
        runs = [r for r in complete if r.kind == "rung" and r.arm == schedule.arm and answers(r, schedule)]
        own = cells[(cells["subject"] == "run") & (cells["arm"] == schedule.arm) & (cells["rung"] == schedule.rung)]
        rows.append({
            "subject": "run", "arm": schedule.arm, "rung": schedule.rung, "budget_amount": schedule.budget.amount,
            "budget_unit": schedule.budget.unit, "feasible": schedule.feasible, "runs": len(runs),
            **_planned(schedule if schedule.feasible else None), **_spent(runs), **_quality(own),
        })  # fmt: skip
    teachers = {teacher.model: teacher for teacher in plan.teachers}
    for subject in BASELINES:
        of_subject = cells[cells["subject"] == subject]
        for name in dict.fromkeys([*(teachers if subject == "teacher" else ()), *of_subject["arm"]]):
            row: dict[str, Any] = {"subject": subject, "arm": name, **_quality(of_subject[of_subject["arm"] == name])}
            if subject == "teacher":
                runs = [record for record in complete if record.kind == "teacher" and record.student == name]
                planned = teachers.get(name)
                row |= {"runs": len(runs), **_spent(runs)}
                row |= _planned(planned if planned is not None and planned.weights is None else None)
            rows.append(row)
    columns = ["subject", "arm", "rung", "budget_amount", "budget_unit", "feasible", "runs", "tokens", "steps",
               "planned_required_flops", "spent_required_flops", "planned_device_seconds", "spent_device_seconds",
               "unspent_fraction"]  # fmt: skip
    tasks = [task for task in pd.unique(found.table["task"]) if task not in LOSSES]
    for task in (*LOSSES, *tasks, *([MEAN] if len(tasks) > 1 else [])):
        columns += [_column(task), _column(task, "half_width_")]
    frame = pd.DataFrame(rows, columns=columns)
    average = average_words(found.table) if _column(MEAN) in frame else ""
    frame.attrs |= {"subsets": subsets(cells), "average": average}
    return frame


def _column(task: str, what: str = "") -> str:
    return f"{task}_{what}{'nats' if task in LOSSES else 'points'}"


def _planned(planned: Schedule | TeacherPlan | None) -> dict[str, float | None]:
    if planned is None:
        return {}
    return {
        "planned_required_flops": planned.required_flops, "planned_device_seconds": planned.device_seconds,
        "unspent_fraction": getattr(planned, "unspent_fraction", None),
    }  # fmt: skip


def _spent(runs: Sequence[RunRecord]) -> dict[str, float]:
    spent = {"tokens": "tokens", "steps": "steps", "required_flops": "spent_required_flops",
             "device_seconds": "spent_device_seconds"}  # fmt: skip
    return {spent[name]: sum(getattr(run, name) for run in runs) / len(runs) for name in spent if runs}


def _quality(cells: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {}
    for task, mean, half in zip(cells["task"], cells["mean"], cells["half_width"], strict=True):
        row |= {_column(task): mean, _column(task, "half_width_"): half}
    return row


def closing_sheet(frame: pd.DataFrame, *, note: str = "") -> Sheet:
    """Return the table a study ends with: every arm at the largest budget, and the yardsticks."""
    rungs = frame["rung"].dropna()
    top = _at_largest_budget(frame, rungs.max()) if len(rungs) else frame
    top = top[top["subject"] != "unigram"]
    at = top.loc[top["budget_amount"].notna(), ["budget_amount", "budget_unit"]].to_numpy().tolist()
    title = f"At {format_amount(*at[0])}" if at else "Closing table"
    tasks = _points(frame)
    # The mean of two tasks says nothing that the two do not; of nine it is what one reads first.
    shown = tasks if len(tasks) > 4 else [task for task in tasks if task != MEAN]
    return _closing(top, title, [], [], shown, note)


def full_sheet(frame: pd.DataFrame, *, note: str = "") -> Sheet:
    """Return the same over all budgets, with the runs counted and the arms' own masked-language-model loss.

    A note names the arms and budgets where the read-out is more than 0.02 nats above the own head.
    """
    behind = frame[_column("readout_loss")].astype(float) - frame[_column("mlm_loss")].astype(float)
    keys = [
        Column("budget", lambda row: "" if row["budget_amount"] is None else _budget(row), left=True),
        Column("runs", "runs", 0, _SPENT),
    ]
    causal = _column("lm_loss") in frame and frame[_column("lm_loss")].notna().any()
    own = [_loss_column("held out\nnats", "lm_loss")] if causal else [_loss_column("own MLM\nnats", "mlm_loss")]
    own += [_loss_column("bits\na byte", "bits_per_byte")] if causal else []
    if behind.notna().any():
        own.append(Column("read-out\nminus own\nnats", "behind", lambda gap: "n/a" if gap is None else f"{gap:+.3f}",
                          _OUTCOME))  # fmt: skip
    places: dict[str, list[str]] = {}
    for row in frame[(frame["subject"] == "run") & (behind > _READOUT_BEHIND_NATS)].to_dict("records"):
        places.setdefault(row["arm"], []).append(_budget(row))
    named = "; ".join(f"{arm} at {', '.join(budgets)}" for arm, budgets in places.items())
    told = (
        f"the read-out is more than {_READOUT_BEHIND_NATS:g} nats above the own head: {named}; no exponent or "
        "multiplier of an arm that trains a head should rest on the read-out alone"
    )
    notes = (note, told if places else "")
    return _closing(frame.assign(behind=behind), "All budgets", keys, own, _points(frame), *notes)


def _budget(row: Mapping[Any, Any]) -> str:
    return format_amount(float(row["budget_amount"]), str(row["budget_unit"]))


def _points(frame: pd.DataFrame) -> list[str]:
    """Tasks that a closing frame has in points, their mean included."""
    names = [str(name) for name in frame.columns if str(name).endswith("_points") and "_half_width" not in str(name)]
    return [name.removesuffix("_points") for name in names]


def _loss_column(heading: str, task: str, decimals: int = 2) -> Column:
    value, half = _column(task), _column(task, "half_width_")
    return Column(heading, lambda row: fixed(row[value], decimals, row[half]), group=_OUTCOME)


def _closing(
    frame: pd.DataFrame, title: str, keys: Sequence[Column], own: Sequence[Column], tasks: Sequence[str], *notes: str
) -> Sheet:
    """Return a closing table: `keys` after the arm, `own` after the losses that all arms have, then tasks."""
    seconds = pd.concat([frame["planned_device_seconds"], frame["spent_device_seconds"]]).astype(float)
    unit, time = ("h", number(2, per=3600)) if seconds.max() >= 7200 else ("s", number(1))
    named = {task: words for task, words in frame.attrs.get("subsets", {}).items() if task in tasks}
    losses = [_loss_column("read-out\nnats", "readout_loss")]
    if frame[_column("adapted_loss")].notna().any():
        losses.append(_loss_column("adapted\nnats", "adapted_loss"))
    heads = {task: "mean" if task == MEAN else f"{task}\nsubset" if task in named else task for task in tasks}
    columns = [
        Column("arm", _subject_name, left=True),
        *keys,
        Column("tokens", "tokens", format_quantity, _SPENT),
        Column("steps", "steps", 0, _SPENT),
        Column("plan\n{unit}", "planned_required_flops", "FLOP", _SPENT),
        Column("spent\n{unit}", "spent_required_flops", "FLOP", _SPENT),
        Column(f"plan\n{unit}", "planned_device_seconds", time, _SPENT),
        Column(f"spent\n{unit}", "spent_device_seconds", time, _SPENT),
        Column("unspent\n%", "unspent_fraction", percent, _SPENT),
        *losses,
        *own,
        *(_loss_column(f"{head}\npoints", task, 1) for task, head in heads.items()),
    ]
    blocks = list(frame["rung"].where(frame["subject"] == "run", -1))
    return Sheet.of(
        title,
        frame,
        columns,
        [*notes, *subset_note({task: named[task] for task in tasks if task in named}),
         frame.attrs.get("average", "") if MEAN in tasks else ""],
        [i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1]],
    )  # fmt: skip


def closing_note(frame: pd.DataFrame, cells: pd.DataFrame, level: float = 0.95) -> str:
    """Say how many runs a row is the mean of, and what ± is."""
    counts = sorted({int(runs) for runs in frame.loc[frame["subject"] == "run", "runs"]})
    runs = "no run" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    spread = interval_note(cells[cells["subject"] == "run"], level)
    return f"each arm: mean of {runs} complete run{'s' * (counts != [1])}; {spread}"
