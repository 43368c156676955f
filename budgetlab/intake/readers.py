"""Readers of others' files: transformers' trainer state, CSV of trackers, lm-evaluation-harness -> tidy tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from budgetlab.errors import CallerError, unknown_name

TRAINER_COLUMNS: Mapping[str, str] = {
    "step": "step",
    "epoch": "epoch",
    "tokens": "num_input_tokens_seen",
    "train_loss": "loss",
    "loss": "eval_loss",
    "learning_rate": "learning_rate",
    "estimated_flops": "total_flos",
    "train_seconds": "train_runtime",
}
"""Our column <- the key in `log_history` of transformers' Trainer; every other ``eval_...`` keeps its name."""
_TRAINER_DEFINITIONS = {
    "tokens": "num_input_tokens_seen: input tokens as the Trainer counts them, padding included by default",
    "loss": "eval_loss: mean over evaluation batches, in nats a token where the model returns cross-entropy",
    "estimated_flops": "total_flos: transformers' own estimate, six per input token and parameter without embeddings; "
    "no count of what was needed or run",
}
_NOT_SCORES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
_COUNTED_BY_STATE = ("num_input_tokens_seen", "total_flos")

_STEPS = ("Step", "_step", "trainer/global_step", "train/global_step")
_BETWEEN = " - "  # run and metric, in a chart of Weights & Biases

_HARNESS_RISES = {
    "acc": True, "acc_norm": True, "acc_bytes": True, "acc_mutual_info": True, "exact_match": True, "em": True,
    "f1": True, "mcc": True, "bleu": True, "chrf": True, "mc1": True, "mc2": True, "perplexity": False,
    "word_perplexity": False, "byte_perplexity": False, "bits_per_byte": False, "brier_score": False, "ter": False,
}  # fmt: skip
_HARNESS_NOTES = ("alias", "name", "sample_len", "sample_count")


def read_trainer_state(path: str | Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read one run's ``trainer_state.json``, as transformers 5 writes it.

    Parameters
    ----------
    path
        The file, or the checkpoint folder that it lies in.
    columns
        Further or other columns, our name to the Trainer's key, over `TRAINER_COLUMNS`.

    Returns
    -------
    DataFrame
        A row a logged step, in order: the columns of the map that the file has, other ``eval_...`` by their own names,
        and `final` (the last step). The state's own tokens and FLOPs stand at the last step where the log has none; a
        count of 0 is one that was not made, and missing. ``attrs["definitions"]`` says what the columns mean.

    Raises
    ------
    CallerError
        When the file cannot be read, is no trainer state, has no logged step, or lacks a key that `columns` asks for.
    """
    file = Path(path)
    file = file / "trainer_state.json" if file.is_dir() else file
    asked = f"trainer state {file}"
    state = read_json(file, "trainer state")
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise CallerError(asked, "it has no log_history", "give the Trainer's trainer_state.json")
    by_step: dict[float, dict[str, Any]] = {}
    for entry in history:
        if (step := _number(entry.get("step"))) is not None:
            by_step.setdefault(step, {}).update({key: _number(value) for key, value in entry.items()})
    if not by_step:
        raise CallerError(asked, "its log_history has no step", "log or evaluate at least once")
    rows = [by_step[step] for step in sorted(by_step)]
    for key in _COUNTED_BY_STATE:
        if rows[-1].get(key) is None:
            rows[-1][key] = _number(state.get(key))
        for row in rows:
            row[key] = row.get(key) or None
    seen = {key for row in rows for key, value in row.items() if value is not None}
    if lacking := [key for key in (columns or {}).values() if key not in seen]:
        raise CallerError(asked, f"no key {', '.join(lacking)}", f"it has {', '.join(sorted(seen))}")
    used = {name: key for name, key in {**TRAINER_COLUMNS, **(columns or {})}.items() if key in seen}
    others = sorted(key for key in seen if key.startswith("eval_") and key not in {*used.values(), *_NOT_SCORES})
    used |= {key: key for key in others}
    table = pd.DataFrame([{name: row.get(key) for name, key in used.items()} for row in rows])
    table["final"] = table["step"] == table["step"].max()
    table.attrs["definitions"] = {name: text for name, text in _TRAINER_DEFINITIONS.items() if name in table}
    return table


def read_runs(folder: Path, columns: Mapping[str, str] | None) -> pd.DataFrame:
    """Last evaluation of every run under a folder, of each run's own state or its newest checkpoint's."""
    newest: dict[str, pd.Series] = {}
    definitions: dict[str, str] = {}
    for file in sorted(folder.rglob("trainer_state.json")):
        table = read_trainer_state(file, columns)
        definitions |= table.attrs["definitions"]
        inner = file.parent.relative_to(folder)
        run = str(inner.parent if inner.name.startswith("checkpoint-") else inner)
        scored = table[table["loss"].notna()] if "loss" in table else table
        if len(scored) and (run not in newest or scored["step"].iloc[-1] >= newest[run]["step"]):
            newest[run] = scored.iloc[-1]
    if not newest:
        raise CallerError(f"runs in {folder}", "no trainer_state.json with a step", "give the Trainer's output folder")
    joined = pd.DataFrame([{"run": run, **row.to_dict()} for run, row in newest.items()])
    joined.attrs["definitions"] = definitions
    return joined


def read_tracker_csv(
    path: str | Path, columns: Mapping[str, str] | None = None, *, value: str = "loss"
) -> pd.DataFrame:
    """Read a CSV export of a tracker.

    Three shapes are known by their header. TensorBoard's ``Wall time, Step, Value``: one scalar of one run. A chart of
    Weights & Biases, ``Step, RUN - METRIC, RUN - METRIC__MIN, ...``: the same metric of several runs, side by side. Any
    other: a table of its own columns, such as a table of runs.

    Parameters
    ----------
    path
        The file.
    columns
        Our name to the export's: in a chart the metric (``{"loss": "eval/loss"}``), in a table its columns.
    value
        What TensorBoard's `Value` is called.

    Returns
    -------
    DataFrame
        TensorBoard: `step`, `wall_time_at` (seconds since 1970), the value and `run`, the file's name. A chart:
        `run`, `step` and a column a metric, ranges of smoothed points left out. A table: its columns, renamed.

    Raises
    ------
    CallerError
        When the file cannot be read or is no table, or lacks a column that `columns` asks for.
    """
    file, ours = Path(path), {source: name for name, source in (columns or {}).items()}
    table = read_csv(file, "tracker export")
    if set(table.columns) == {"Wall time", "Step", "Value"}:
        return table.rename(columns={"Wall time": "wall_time_at", "Step": "step", "Value": value}).assign(run=file.stem)
    steps = next((name for name in _STEPS if name in table.columns), None)
    chart = steps is not None and any(_BETWEEN in name for name in table.columns)
    by_run: dict[str, dict[str, str]] = {}
    for column in table.columns if chart else ():
        if _BETWEEN in column and not column.endswith(("__MIN", "__MAX")):
            run, _, metric = column.rpartition(_BETWEEN)
            by_run.setdefault(run, {})[column] = metric
    known = {metric for metrics in by_run.values() for metric in metrics.values()} if chart else set(table.columns)
    for source, name in ours.items():
        if source not in known:
            kind = "metric" if chart else "column"
            raise unknown_name(kind, source, map(str, known), f"tracker export {file}, {name}")
    if not chart:
        return table.rename(columns=ours)
    rows = []
    for run, metrics in by_run.items():
        own = table[[steps, *metrics]].rename(columns={steps: "step", **metrics})
        rows.append(own.dropna(subset=list(metrics.values()), how="all").rename(columns=ours).assign(run=run))
    if not any(len(part) for part in rows):
        raise CallerError(f"tracker export {file}", "no run has a value", "export a chart that shows points")
    joined = pd.concat(rows, ignore_index=True)
    return joined[["run", "step", *(name for name in joined.columns if name not in ("run", "step"))]]


def read_harness(path: str | Path, *, groups: bool = False) -> pd.DataFrame:
    """Read lm-evaluation-harness' results of one model.

    Parameters
    ----------
    path
        ``results_*.json``; of version 0.4, or of an earlier one, which knows no filters.
    groups
        Whether averages over subtasks are rows too; by default only tasks are, so that nothing counts twice.

    Returns
    -------
    DataFrame
        `task`, `metric`, `filter`, `value`, `standard_error` (missing where the harness has none), `higher_is_better`,
        `num_examples` (missing in old files), `num_fewshot`, `model`, `primary` (the first metric of its task).
        ``attrs["left_out"]`` counts metrics of which nobody says whether more is better.

    Raises
    ------
    CallerError
        When the file cannot be read, is no results file, or has no number.
    """
    file = Path(path)
    found = read_json(file, "harness results")
    results = found.get("results")
    if not isinstance(results, dict) or not all(isinstance(entry, dict) for entry in results.values()):
        raise CallerError(f"harness results {file}", 'it has no "results" by task', "give the harness's results_*.json")
    subtasks, sizes, shots, ways = (
        _mapping(found.get(key)) for key in ("group_subtasks", "n-samples", "n-shot", "higher_is_better")
    )
    model = found.get("model_name") or _mapping(found.get("config")).get("model")
    rows, left_out = [], 0
    for task, entry in results.items():
        if subtasks.get(task) and not groups:
            continue
        primary = True
        rises = _HARNESS_RISES | {k: v for k, v in _mapping(ways.get(task)).items() if isinstance(v, bool)}
        for key, value in entry.items():
            metric, comma, rule = key.partition(",")
            if metric.endswith("_stderr") or metric in _HARNESS_NOTES or _number(value) is None:
                continue
            if metric not in rises:
                left_out += 1
                continue
            rows.append({
                "task": task, "metric": metric, "filter": rule or "none", "value": _number(value),
                "standard_error": _number(entry.get(f"{metric}_stderr{comma}{rule}")),
                "higher_is_better": rises[metric], "num_examples": _number(_mapping(sizes.get(task)).get("effective")),
                "num_fewshot": _number(shots.get(task)), "model": model, "primary": primary,
            })  # fmt: skip
            primary = False
    if not rows:
        raise CallerError(f"harness results {file}", "no task has a number", "evaluate at least one task")
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _read_text(path: Path, what: str) -> str:
    """A file as UTF-8, with or without a byte-order mark."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CallerError(f"{what} {path}", "no such file", "correct the path") from None
    except UnicodeDecodeError as error:
        wrong = f"not UTF-8 (byte {error.start})"
        raise CallerError(f"{what} {path}", wrong, "give the file itself, not a compressed or binary one") from None
    except OSError as error:
        raise CallerError(f"{what} {path}", error.strerror or str(error), "give the path of a file") from None
    if not text.strip():
        raise CallerError(f"{what} {path}", "empty", "give the file that the program wrote")
    return text


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` is what it should be, for the error."""
    try:
        found = json.loads(_read_text(path, what))
    except json.JSONDecodeError as error:
        wrong = f"cut or no JSON (line {error.lineno}: {error.msg})"
        raise CallerError(f"{what} {path}", wrong, "give the whole file that the program wrote") from None
    if not isinstance(found, dict):
        raise CallerError(f"{what} {path}", f"a JSON {type(found).__name__}, no object", "give the file of one run")
    return found


def read_csv(path: Path, what: str) -> pd.DataFrame:
    """Read a CSV file with a header, separated by commas."""
    text = _read_text(path, what)
    try:
        table = pd.read_csv(io.StringIO(text))
    except ValueError as error:  # pandas' own are such
        reason = " ".join(str(error).split())
        raise CallerError(f"{what} {path}", f"not a CSV table ({reason})", "give a CSV file with a header") from None
    cells = csv.reader(io.StringIO(text))
    if len(next(cells)) < len(next(cells, [])):  # pandas takes the first cells of longer rows for labels
        raise CallerError(f"{what} {path}", "rows have more cells than the header", "correct the header or the rows")
    for mark, word in ((";", ";"), ("\t", "tabs")):
        if len(table.columns) == 1 and mark in str(table.columns[0]):
            raise CallerError(f"{what} {path}", f"it is separated by {word}", "write it with commas")
    if table.empty:
        raise CallerError(f"{what} {path}", "a header without a row", "export the runs as well")
    return table


def _number(value: object) -> float | None:
    """Return a number; None for text (the harness writes N/A for no error), truth values and nothing."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
