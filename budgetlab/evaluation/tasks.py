"""Tasks in the format of GLUE: where their files are, what their columns mean, what is wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from budgetlab.errors import CallerError, unknown_name
from budgetlab.evaluation.metrics import measure
from budgetlab.values import EvaluateSpec, TaskSpec
from budgetlab.values.scoring import CORRELATIONS, GLUE, GLUE_ROWS

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Split:
    """Examples: texts (one or two columns) and labels, whole numbers or, for regression, floats."""

    texts: tuple[tuple[str, ...], ...]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Task:
    """One task; `validation` has its validation split under its own name first, then further ones under theirs."""

    name: str
    metric: str
    num_labels: int
    """Classes; 1 for regression."""
    train: Split
    validation: dict[str, Split]

    def content_hash(self, split: str | None = None) -> str:
        """Hash of the texts and labels of the training set and of one validation split (SHA-256, 16 hex digits)."""
        digest = hashlib.sha256(str(self.num_labels).encode())
        for part in (self.train, self.validation[split or self.name]):
            digest.update(json.dumps([part.texts, part.labels.tolist()]).encode())
        return digest.hexdigest()[:16]

    @property
    def regression(self) -> bool:
        """Whether labels are scores rather than classes."""
        return self.metric in CORRELATIONS


def load_task(
    name: str,
    spec: EvaluateSpec,
    *,
    folder: Path | None = None,
    probes: Mapping[str, TaskSpec] = {},
    roots: Sequence[Path] = (),
) -> Task:
    """Read one task.

    Parameters
    ----------
    name
        Of GLUE, of the probes, or of `spec.own`.
    spec
        The study's `[evaluate]`.
    folder
        Of TASK/SPLIT files (.jsonl, .jsonl.gz, or .parquet as on the hub); None reads GLUE from the hub.
    probes
        The probe tasks, by name.
    roots
        Where the files of the user's own tasks are looked for.

    Raises
    ------
    CallerError
        When the task is unknown; a file is missing, empty, no UTF-8 or lacks a column; a label is out of range; the
        primary metric does not fit the labels; or a split has more rows than GLUE's.
    """
    known = {**(probes if spec.source == "probes" else GLUE), **spec.own}
    if name not in known:
        raise unknown_name("task", name, known, "evaluate.tasks")
    task = known[name]
    splits = {"train": task.train, name: task.validation, **task.further}
    rows: dict[str, Rows] = {}
    for score, split in splits.items():
        if name in spec.own:
            rows[score] = _read_file(_find(split, roots, name), task, f"task {name}")
        elif folder is None:
            rows[score] = _read_hub(name, split, task)
        else:
            rows[score] = _read_split(folder / name, split, task, f"task {name}, split {split}")
    official = GLUE_ROWS if spec.source == "glue" else {}
    for score, found in rows.items():
        most = official.get(name if score == "train" else score, (len(found),) * 2)[score != "train"]
        if len(found) > most:
            asked = f"task {name}, split {splits[score]}"
            raise CallerError(asked, f"{len(found):,} rows, GLUE's has {most:,}", "give it as a task of your own")
    metric = spec.primary.get(name, task.metric)
    if (metric in CORRELATIONS) != (task.metric in CORRELATIONS):
        raise CallerError(f"evaluate.primary.{name} = {metric!r}", "no metric of its labels", "choose another")
    if task.metric in CORRELATIONS:
        labels = {score: _scores(found, task, f"task {name}, {splits[score]}") for score, found in rows.items()}
        num_labels = 1
    else:
        labels = {score: _classes(found, f"task {name}, {splits[score]}") for score, found in rows.items()}
        num_labels = _count_classes(labels, task, name)
    made = {score: Split(tuple(text for text, _ in found), labels[score]) for score, found in rows.items()}
    return Task(name, metric, num_labels, made.pop("train"), made)


Rows = list[tuple[tuple[str, ...], Any]]


def _scores(rows: Rows, task: TaskSpec, asked: str) -> NDArray[np.float64]:
    low, high = task.label_range or (-np.inf, np.inf)
    for number, (_, label) in enumerate(rows, start=1):
        if isinstance(label, bool) or not isinstance(label, int | float) or not np.isfinite(label):
            raise CallerError(asked, f"the label of row {number}, {label!r}, is no number", "correct the file")
        if not low <= label <= high:
            raise CallerError(asked, f"the label of row {number}, {label:g}, is not {low:g} to {high:g}", "correct it")
    return np.asarray([label for _, label in rows], dtype=np.float64)


def _classes(rows: Rows, asked: str) -> NDArray[np.int64]:
    for number, (_, label) in enumerate(rows, start=1):
        if not isinstance(label, int | float) or label != label // 1 or label < 0:
            wrong = f"the label of row {number}, {label!r}, is no class (0, 1, 2, ...)"
            raise CallerError(asked, wrong, "correct the file; scores need a correlation as metric")
    return np.asarray([label for _, label in rows], dtype=np.int64)


def _count_classes(labels: Mapping[str, NDArray[np.int64]], task: TaskSpec, name: str) -> int:
    seen = set(labels["train"].tolist())
    count = task.num_labels or len(seen)
    beyond = sorted({int(label) for found in labels.values() for label in found if label >= count})
    if beyond:
        given = "num_labels" if task.num_labels else "the training set's number of classes"
        wrong = f"label {beyond[0]} is out of range, {given} being {count}"
        raise CallerError(f"task {name}", wrong, "number classes from 0 without gaps, or correct num_labels")
    if len(seen) < 2:
        raise CallerError(f"task {name}", "all training examples have one label", "give at least two classes")
    if task.metric == "f1" and count > 2:
        raise CallerError(f"task {name}", f"f1 is of two classes, and it has {count}", "use macro_f1 or accuracy")
    return count


def _find(path: str, roots: Sequence[Path], name: str) -> Path:
    found = next((root / path for root in roots if (root / path).is_file()), None)
    if found is None:
        raise CallerError(f"evaluate.own.{name}: {path!r}", "no such file under the data roots", "set --data-root")
    return found


def _read_split(folder: Path, split: str, task: TaskSpec, asked: str) -> Rows:
    """Read one split, as JSON lines or in the hub's own layout."""
    given = [path for path in (folder / f"{split}.jsonl.gz", folder / f"{split}.jsonl") if path.is_file()]
    if given:
        return _read_file(given[0], task, asked)
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    if not shards:
        wrong = f"no {split}.jsonl.gz, .jsonl or -*.parquet in {folder}"
        raise CallerError(asked, wrong, "set evaluate.folder or --data-root to where the tasks are")
    try:
        table = pd.concat([pd.read_parquet(shard) for shard in shards])
    except (OSError, ValueError) as error:
        raise CallerError(asked, f"{shards[0].name} is no parquet file ({error})", "correct the file") from None
    # Through Python's own numbers: a label is to be judged as it stands in the file.
    return _rows(json.loads(table.to_json(orient="records")), task, asked)


def _read_file(path: Path, task: TaskSpec, asked: str) -> Rows:
    asked = f"{asked} from {path}"
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise CallerError(asked, f"no UTF-8 text ({error.reason} at byte {error.start:,})", "convert it") from None
    except (OSError, EOFError, ValueError) as error:
        raise CallerError(asked, f"not JSON lines ({error})", "correct the file") from None
    return _rows(rows, task, asked)


def _read_hub(name: str, split: str, task: TaskSpec) -> Rows:
    from datasets import load_dataset

    asked = f"task {name}, split {split}, from the hub ({HUB})"
    try:
        rows = list(load_dataset(HUB, name, split=split))
    except Exception as error:  # the hub's client raises its own, requests' and OSError
        reason = " ".join(str(error).split())[:120]
        raise CallerError(asked, f"not reached ({reason})", "set evaluate.folder to a local copy") from None
    return _rows(rows, task, asked)


def _rows(rows: Sequence[Any], task: TaskSpec, asked: str) -> Rows:
    if not rows:
        raise CallerError(asked, "it is empty", "give at least one example")
    for column in (*task.text, task.label):
        missing = sum(not isinstance(row, dict) or row.get(column) is None for row in rows)
        if missing:
            raise CallerError(
                asked, f"{missing} of {len(rows)} rows have no {column!r}", "correct the file or the task"
            )
    return [(tuple(str(row[column]) for column in task.text), row[task.label]) for row in rows]


def majority_answer(task: Task) -> float | int:
    """Return the training set's most frequent class, or its mean score."""
    labels = task.train.labels
    return float(labels.mean()) if task.regression else int(np.bincount(labels).argmax())


def majority_metrics(task: Task, split: str) -> dict[str, float]:
    """Return the metrics of always giving the majority's answer."""
    labels = task.validation[split].labels
    return measure(labels, np.full(len(labels), majority_answer(task)))
