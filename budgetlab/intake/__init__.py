"""Others' results as input: what their programs wrote becomes the table that `fit` or `compare` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError, unknown_name
from budgetlab.intake.readers import (
    TRAINER_COLUMNS,
    read_csv,
    read_harness,
    read_json,
    read_runs,
    read_tracker_csv,
    read_trainer_state,
)
from budgetlab.values.scoring import higher_is_better as direction

__all__ = [
    "FORMS",
    "TRAINER_COLUMNS",
    "as_scores",
    "read_harness",
    "read_table",
    "read_tracker_csv",
    "read_trainer_state",
]

FORMS = {
    "auto": "by name and content",
    "csv": "any CSV table with a header, as it is",
    "trainer_state": "trainer_state.json of transformers, or a folder of runs: the last evaluation of each",
    "tracker": "a CSV export of TensorBoard or Weights & Biases",
    "harness": "results_*.json of lm-evaluation-harness",
}
"""What `read_table` reads, by name."""

_COMPUTE = ("tokens", "required_flops", "executed_flops", "device_seconds", "target_tokens")


def read_table(path: str | Path, form: str = "auto", columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a table of others' results.

    Parameters
    ----------
    path
        A file; or, of trainer states, a folder of runs: then a row a run, its last evaluation, with `run`, since what
        was measured in the middle of a decay is not comparable.
    form
        One of `FORMS`.
    columns
        Our name to the file's, as each reader documents.

    Raises
    ------
    CallerError
        For an unknown form, or a file that cannot be read as it.
    """
    file = Path(path)
    if form not in FORMS:
        raise unknown_name("form", form, FORMS, f"table {file}, form")
    if form == "auto":
        form = _form_of(file)
    if form == "trainer_state":
        if file.is_dir() and not (file / "trainer_state.json").is_file():
            return read_runs(file, columns)
        return read_trainer_state(file, columns).assign(run=str(file if file.is_dir() else file.parent))
    if form == "tracker":
        return read_tracker_csv(file, columns)
    return read_harness(file) if form == "harness" else read_csv(file, "table")


def _form_of(file: Path) -> str:
    if file.is_dir() or file.name == "trainer_state.json":
        return "trainer_state"
    if file.suffix != ".json":
        return "tracker"  # which is any other table, as it is
    found = read_json(file, "table")
    for key, form in (("log_history", "trainer_state"), ("results", "harness")):
        if key in found:
            return form
    raise CallerError(f"table {file}", "JSON with neither log_history nor results", "name its form, or give a CSV file")


def as_scores(
    table: pd.DataFrame,
    *,
    arm: str | None = None,
    run_seed: int | None = None,
    budget_amount: float,
    runs: Mapping[str, tuple[str, int]] | None = None,
    budget_unit: str = "required_flops",
    outcome: str = "loss",
    task: str = "mlm_loss",
    compute: Mapping[str, float] | None = None,
    every: bool = False,
    higher_is_better: bool | None = None,
) -> pd.DataFrame:
    """Turn a table of one run, or of several, into rows that `compare` and `compare_arms` read.

    Parameters
    ----------
    table
        From `read_harness`: the primary metric of every task. From `read_trainer_state` or a tracker: the last row.
    arm, run_seed, budget_amount, budget_unit
        What the file does not say: which arm this is, its seed, and the budget at which it is compared.
    runs
        In the place of arm and seed, of a table with `run`, such as a chart: ``{"kd-s0": ("kd", 0)}``. Runs that are
        not named are left out.
    outcome, task
        Column of the outcome, in tables without tasks, and what it is: a loss in nats per target token is ``mlm_loss``.
    higher_is_better
        Which way it goes, where the names of task and outcome do not say.
    compute
        What the run spent, such as ``{"required_flops": 1e15}``; a column of that name is taken where it is not given.
    every
        Also the rows before the last, marked `mid_decay`: of a run whose learning rate was still to come down they
        are drawn, and neither fitted nor compared.

    Returns
    -------
    DataFrame
        A row a task, with the columns that `compare` needs; `finetune_seed` missing.

    Raises
    ------
    CallerError
        For a table without the outcome, or without a value of it, or one of unknown direction; for a run that the
        table lacks; without `runs` and without arm and seed.
    """
    if runs is not None:
        _check_runs(table, runs, alone=arm is None and run_seed is None)
        shared: dict[str, Any] = {"budget_amount": budget_amount, "budget_unit": budget_unit, "outcome": outcome,
                                  "task": task, "compute": compute, "every": every,
                                  "higher_is_better": higher_is_better}  # fmt: skip
        known = table["run"].astype(str)
        parts = (as_scores(table[known == run], arm=a, run_seed=s, **shared) for run, (a, s) in runs.items())
        return pd.concat(parts, ignore_index=True)
    if arm is None or run_seed is None:
        raise CallerError("as_scores", "no arm and run_seed", 'give both, or runs = {"RUN": ("ARM", 0), ...}')
    run = {"run_id": f"{arm}-s{run_seed}-{budget_amount:g}", "subject": "run", "arm": arm, "run_seed": run_seed,
           "budget_amount": float(budget_amount), "budget_unit": budget_unit, "finetune_seed": None}  # fmt: skip
    spent = dict(compute or {})
    if {"task", "metric", "value", "higher_is_better"} <= set(table.columns):
        rows = table[table["primary"]] if "primary" in table else table
        kept = ["task", "metric", "value", "higher_is_better", "num_examples", "standard_error"]
        return rows[[name for name in kept if name in rows]].assign(**run, **spent).reset_index(drop=True)
    asked = f"scores of {arm}, {len(table)} rows"
    if outcome not in table.columns:
        raise unknown_name("column", outcome, map(str, table.columns), f"{asked}, outcome")
    rows = table[table[outcome].notna()]
    if rows.empty:
        raise CallerError(asked, f"no value of {outcome}", "evaluate the run")
    rows = (rows if every else rows.tail(1)).reset_index(drop=True)
    rises = higher_is_better if higher_is_better is not None else direction(task)
    if rises is None:
        rises = direction(outcome, f"{asked}, task {task}")
    last = rows.index == len(rows) - 1
    carried = rows[[name for name in _COMPUTE if name in rows and name not in spent]].astype(float)
    # What is said of the run was spent at its end.
    of_run = {name: pd.Series(amount, rows.index, dtype=float).where(last) for name, amount in spent.items()}
    value = rows[outcome].astype(float)
    return carried.assign(
        **run, **of_run, task=task, metric=outcome, value=value, mid_decay=~last, higher_is_better=rises
    )


def _check_runs(table: pd.DataFrame, runs: Mapping[str, tuple[str, int]], *, alone: bool) -> None:
    asked = f"as_scores, {len(runs)} runs"
    if not alone:
        raise CallerError(asked, "arm or run_seed is given as well", "give runs alone")
    if not runs or "run" not in table.columns:
        wrong = "none is named" if not runs else "the table has no column run"
        raise CallerError(asked, wrong, 'give runs = {"RUN": ("ARM", 0), ...} and a table with run')
    known = set(table["run"].astype(str))
    for name in runs:
        if name not in known:
            raise unknown_name("run", name, known, asked)
