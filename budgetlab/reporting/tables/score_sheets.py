"""Tables of what came out: every task with its spread, the average with each task left out, and the closing table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.fitting import compare
from budgetlab.fitting.scores import OUTCOMES, average_words, subset_of
from budgetlab.reporting.averages import BASELINES, MEAN, Outcomes, outcomes, per_cell, per_run, told_range
from budgetlab.reporting.tables.plan_sheets import answers
from budgetlab.reporting.tables.sheets import Column, Sheet, bracketed, fixed, number, percent
from budgetlab.units import format_amount, format_quantity
from budgetlab.values import Plan, RunRecord, Schedule, Score, TeacherPlan
from budgetlab.values.scoring import LOSSES
from budgetlab.values.specs import reference_arm

Scores = Sequence[Score] | pd.DataFrame | Outcomes

_SPREAD, _POINTS, _DIFFERENCES = "over run seeds", "points", "difference of averages, paired by run seed"
_SPENT, _OUTCOME = "planned and spent", "what came out"
_COMPARED = ["arm", "budget_amount", "budget_unit", "run_seed", "task", "higher_is_better", "value"]
_READOUT_BEHIND_NATS = 0.02
"""A read-out that is more than this above the own head misses something that the own head tells."""


def _at_largest_budget(rows: pd.DataFrame, rung: float | None) -> pd.DataFrame:
    return rows[(rows["rung"] == rung) | (rows["subject"] != "run")]


def subset_note(named: Mapping[str, str]) -> tuple[str, ...]:
    """Return the note that names every subset."""
    parts = [f"{task} {words}" for task, words in named.items()]
    return (f"subsets: {'; '.join(parts)}",) if parts else ()


def score_sheet(scores: Scores, *, arms: Sequence[str] = (), level: float = 0.95) -> Sheet:
    """Return every task at the largest budget: mean, median, spread of runs and of fine-tunings, yardsticks.

    `arms` gives their order; the last column is the mean without fine-tunings that gave one answer to all examples.
    """
    found = outcomes(scores, level)
    cells, shown = found.cells, _at_largest_budget(found.cells, found.largest_rung)
    varied = found.table[~found.table["degenerate"].eq(True)]
    keys = ["subject", "arm", "rung", "task"]
    without = per_cell(per_run(varied, found.averaged)) if len(varied) < len(found.table) else cells
    shown = shown.merge(without[[*keys, "mean"]], "left", keys, suffixes=("", "_without"))
    tasks = [*LOSSES, *(task for task in pd.unique(cells["task"]) if task not in (*LOSSES, MEAN)), MEAN]
    places = {arm: (0, i) for i, arm in enumerate(arms)} | {(s,): (i, 0) for i, s in enumerate(BASELINES, start=1)}
    rows = sorted(
        shown.to_dict("records"),
        key=lambda row: (
            tasks.index(row["task"]),
            places.get(row["arm"] if row["subject"] == "run" else (row["subject"],), (0, 0)),
        ),
    )
    for row in rows:
        row["trained"] = row["subject"] not in ("majority", "unigram")
        row["tuned"] = row["trained"] and row["task"] not in LOSSES

    def name(row: Mapping[str, Any]) -> str:
        task = row["task"]
        known = str(row["metric"]) if task == MEAN else OUTCOMES.get(task, "").removeprefix("the ")
        return known or f"{task} {row['metric']}{' subset' if task in found.subsets else ''}"

    def number_of(field: str, half_width: str = "") -> Callable[[Mapping[str, Any]], str]:
        return lambda row: fixed(row[field], 2 if row["task"] in LOSSES else 1, row.get(half_width))

    def counts(row: Mapping[str, Any]) -> str:
        runs = f"{row['num_runs']:.0f}" if row["trained"] else "n/a"
        return f"{runs}x{row['finetune_seeds']:.0f}" if row["tuned"] else runs

    def mean_without(row: Mapping[str, Any]) -> str:
        return fixed(row["mean_without"], 1) if row["tuned"] and row["degenerate"] else ""

    columns = (
        Column("of", name, left=True),
        Column("arm", _subject_name, left=True),
        Column("mean", number_of("mean", "half_width"), group=_SPREAD),
        Column("median", number_of("median"), group=_SPREAD),
        Column("SD of\nruns", number_of("sd"), group=_SPREAD),
        Column("SD of\nfine-tunings", number_of("finetune_sd"), group=_SPREAD),
        Column("error of the\nevaluation set", number_of("evaluation_error"), group=_SPREAD),
        Column("runs x\nseeds", counts, group=_SPREAD),
        Column("one answer\nonly", lambda row: int(row["degenerate"]) if row["tuned"] else None, group=_SPREAD),
        Column("mean\nwithout", mean_without, group=_SPREAD),
    )
    amounts = shown.loc[shown["subject"] == "run", ["budget_amount", "budget_unit"]].dropna().to_numpy().tolist()
    return Sheet.of(
        f"Scores at {format_amount(*amounts[0])}" if amounts else "Scores",
        rows,
        columns,
        [
            f"losses in nats, scores in points; {found.interval_note()}; one answer only: fine-tunings that gave it to "
            "all examples, and the mean without them",
            _recipe_note(found.table),
            *subset_note(found.subsets),
            average_words(found.table) if (cells["task"] == MEAN).any() else "",
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
        words = sorted({recipe.split("; ")[-1] for recipe in recipes.unique()})
        how.setdefault(" or ".join(words), []).append(str(task))
    parts = [words if len(how) == 1 else f"{', '.join(names)} {words}" for words, names in how.items()]
    return f"fine-tuning (learning rate x batch): {'; '.join(parts)}" if parts else ""


def average_sheet(scores: Scores, *, arms: Sequence[str] = (), level: float = 0.95) -> Sheet:
    """Return the average at the largest budget, with each task left out and without fine-tunings of one answer.

    With the paired differences of the arms: what leans on one task changes when it is left out.
    """
    found = outcomes(scores, level)
    table, tasks, top = found.table, found.averaged, found.largest_rung
    if len(tasks) < 2:
        return Sheet("Averages", (Column("average", left=True),), ())
    label = f"all {len(tasks)}"
    variants = [(label, found.runs)]
    variants += [(f"without {task}", per_run(table, [other for other in tasks if other != task])) for task in tasks]
    flagged = table["degenerate"].eq(True) & table["task"].isin(tasks)
    if count := int((flagged & (table["rung"] == top)).sum()):
        variants.append((f"{label}, without {count} fine-tunings of one answer", per_run(table[~flagged], tasks)))
    arms = list(arms) or list(pd.unique(table.loc[table["subject"] == "run", "arm"]))
    pairs = [(arm, str(base)) for arm in arms if (base := reference_arm(arm, sorted(arms))) not in (None, arm)]
    subjects = [("run", arm) for arm in arms]
    for subject in ("teacher", "random", "majority"):
        subjects += [(subject, str(name)) for name in pd.unique(table.loc[table["subject"] == subject, "arm"])]

    def row(label: str, runs: pd.DataFrame, outcome: str, scale: float, decimals: int) -> tuple[str, ...]:
        runs = runs[runs["task"] == outcome]
        own = _at_largest_budget(per_cell(runs, found.level), top).drop_duplicates(["subject", "arm"])
        known = own.set_index(["subject", "arm"])[["mean", "half_width"]].T.to_dict("list")
        means = [fixed(known[key][0], decimals, known[key][1]) if key in known else "n/a" for key in subjects]
        runs = runs.loc[runs["subject"] == "run", _COMPARED].assign(value=lambda rows: rows["value"] / scale)
        return (label, *means, *(_difference(runs, a, b, outcome, found.level, decimals) for a, b in pairs))

    rows = [row(label, runs, MEAN, 100.0, 1) for label, runs in variants]
    if (table["task"] == "readout_loss").any():
        rows.append(row("read-out loss, nats", found.runs, "readout_loss", 1.0, 2))
    heads = [_subject_name({"subject": subject, "arm": arm}).replace(" ", "\n") for subject, arm in subjects]
    columns = [Column("average", left=True), *(Column(head, group=_POINTS) for head in heads)]
    columns += [Column(f"{a}\n- {b}", group=_DIFFERENCES) for a, b in pairs]
    notes = (
        average_words(table),
        *subset_note({task: words for task in tasks if (words := subset_of(table, task))}),
        f"differences, + where the first is better, with {100 * found.level:g} % t intervals, each by itself: no "
        "correction for their number",
    )
    return Sheet("Averages, in points", tuple(columns), tuple(rows), notes, (len(variants),))


def _difference(runs: pd.DataFrame, a: str, b: str, outcome: str, level: float, decimals: int) -> str:
    try:
        found = compare(runs, a=a, b=b, task=outcome, interval_level=level, curves=False)
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
        what of each task was used where that is not all ("subsets"), what the mean is of ("average"), and of how many
        runs a row is the mean and what ± is ("note").
    """
    found = outcomes(scores, level)
    cells, complete = found.cells, [record for record in records if record.status == "complete"]
    rows: list[dict[str, Any]] = []
    for schedule in plan.schedules:
        runs = [r for r in complete if r.kind == "rung" and r.arm == schedule.arm and answers(r, schedule)]
        own = cells[(cells["subject"] == "run") & (cells["arm"] == schedule.arm) & (cells["rung"] == schedule.rung)]
        rows.append({
            "subject": "run", "arm": schedule.arm, "rung": schedule.rung, "budget_amount": schedule.budget.amount,
            "budget_unit": schedule.budget.unit, "feasible": schedule.feasible,
            **_sides(schedule if schedule.feasible else None, runs, own),
        })  # fmt: skip
    teachers = {teacher.model: teacher for teacher in plan.teachers}
    for subject in BASELINES:
        of_subject = cells[cells["subject"] == subject]
        for name in dict.fromkeys([*(teachers if subject == "teacher" else ()), *of_subject["arm"]]):
            planned = teachers.get(name) if subject == "teacher" else None
            runs = [r for r in complete if r.kind == "teacher" and r.student == name] if subject == "teacher" else None
            made_here = planned if planned is not None and planned.weights is None else None
            own = of_subject[of_subject["arm"] == name]
            rows.append({"subject": subject, "arm": name, **_sides(made_here, runs, own)})
    columns = ["subject", "arm", "rung", "budget_amount", "budget_unit", "feasible", "runs", "tokens", "steps",
               "planned_required_flops", "spent_required_flops", "planned_device_seconds", "spent_device_seconds",
               "unspent_fraction"]  # fmt: skip
    tasks = [task for task in pd.unique(found.table["task"]) if task not in LOSSES]
    for task in (*LOSSES, *tasks, *([MEAN] if len(tasks) > 1 else [])):
        columns += [_column(task), _column(task, "half_width_")]
    frame = pd.DataFrame(rows, columns=columns)
    counts = frame.loc[frame["subject"] == "run", "runs"]
    several = "no run" if counts.empty else told_range(counts)
    note = f"each arm: mean of {several} complete run{'s' * (set(counts) != {1})}; {found.interval_note()}"
    average = average_words(found.table) if len(tasks) > 1 else ""
    frame.attrs |= {"subsets": found.subsets, "average": average, "note": note}
    return frame


def _column(task: str, what: str = "") -> str:
    return f"{task}_{what}{'nats' if task in LOSSES else 'points'}"


def _sides(
    planned: Schedule | TeacherPlan | None, runs: Sequence[RunRecord] | None, cells: pd.DataFrame
) -> dict[str, Any]:
    """Return what was planned, what complete runs spent on average, and what came out."""
    row: dict[str, Any] = {} if runs is None else {"runs": len(runs)}
    if planned is not None:
        row |= {f"planned_{name}": getattr(planned, name) for name in ("required_flops", "device_seconds")}
        row["unspent_fraction"] = getattr(planned, "unspent_fraction", None)
    for name in ("tokens", "steps", "required_flops", "device_seconds") if runs else ():
        spent = name if name in ("tokens", "steps") else f"spent_{name}"
        row[spent] = sum(getattr(run, name) for run in runs or ()) / len(runs or ())
    for task, mean, half in zip(cells["task"], cells["mean"], cells["half_width"], strict=True):
        row |= {_column(task): mean, _column(task, "half_width_"): half}
    return row


def closing_sheet(frame: pd.DataFrame) -> Sheet:
    """Return the table a study ends with: every arm at the largest budget, and the yardsticks."""
    top = _at_largest_budget(frame, frame["rung"].max()) if frame["rung"].notna().any() else frame
    top = top[top["subject"] != "unigram"]
    at = top.loc[top["budget_amount"].notna(), ["budget_amount", "budget_unit"]].to_numpy().tolist()
    tasks = _points(frame)
    # The mean of two tasks says nothing that the two do not; of nine it is what one reads first.
    shown = tasks if len(tasks) > 4 else [task for task in tasks if task != MEAN]
    return _closing(top, f"At {format_amount(*at[0])}" if at else "Closing table", [], [], shown)


def full_sheet(frame: pd.DataFrame) -> Sheet:
    """Return the same over all budgets, with the runs counted and the arms' own masked-language-model loss.

    A note names the arms and budgets where the read-out is more than 0.02 nats above the own head.
    """
    behind = frame[_column("readout_loss")].astype(float) - frame[_column("mlm_loss")].astype(float)
    keys = [
        Column("budget", lambda row: "" if row["budget_amount"] is None else _budget(row), left=True),
        Column("runs", "runs", 0, _SPENT),
    ]
    causal = frame[_column("lm_loss")].notna().any()
    own = [] if causal else [_loss_column("own MLM\nnats", "mlm_loss")]
    if behind.notna().any():
        gap = Column(
            "read-out\nminus own\nnats", "behind", lambda gap: "n/a" if gap is None else f"{gap:+.3f}", _OUTCOME
        )
        own.append(gap)
    places: dict[str, list[str]] = {}
    for row in frame[(frame["subject"] == "run") & (behind > _READOUT_BEHIND_NATS)].to_dict("records"):
        places.setdefault(row["arm"], []).append(_budget(row))
    named = "; ".join(f"{arm} at {', '.join(budgets)}" for arm, budgets in places.items())
    told = (
        f"the read-out is more than {_READOUT_BEHIND_NATS:g} nats above the own head: {named}; no exponent or "
        "multiplier of an arm that trains a head should rest on the read-out alone"
    )
    return _closing(frame.assign(behind=behind), "All budgets", keys, own, _points(frame), told if places else "")


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
    frame: pd.DataFrame, title: str, keys: Sequence[Column], own: Sequence[Column], tasks: Sequence[str], note: str = ""
) -> Sheet:
    """Return a closing table: `keys` after the arm, `own` after the losses that all arms have, then tasks."""
    seconds = pd.concat([frame["planned_device_seconds"], frame["spent_device_seconds"]]).astype(float)
    unit, time = ("h", number(2, per=3600)) if seconds.max() >= 7200 else ("s", number(1))
    named = {task: frame.attrs["subsets"][task] for task in tasks if task in frame.attrs["subsets"]}
    names = {"lm_loss": "held out\nnats", "bits_per_byte": "bits\na byte"}
    shared = {"readout_loss": "read-out\nnats", "adapted_loss": "adapted\nnats"}
    found = {task: head for task, head in (shared | names).items() if frame[_column(task)].notna().any()}
    if "lm_loss" not in found:
        found = {"readout_loss": shared["readout_loss"], **found}
    losses = [_loss_column(head, task) for task, head in found.items()]
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
        [frame.attrs["note"], note, *subset_note(named), frame.attrs["average"] if MEAN in tasks else ""],
        [i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1]],
    )
