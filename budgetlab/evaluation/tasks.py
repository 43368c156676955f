"""Tasks in the format of GLUE: where their files are, what their columns mean, how they are scored."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics

from budgetlab.errors import CallerError, unknown_name
from budgetlab.values import EvaluateSpec, TaskSpec

__all__ = ["GLUE", "Task", "load_task", "majority_score", "score_predictions"]

GLUE = {
    "cola": TaskSpec(train="train", validation="validation", text=("sentence",), metric="matthews"),
    "sst2": TaskSpec(train="train", validation="validation", text=("sentence",)),
    "mrpc": TaskSpec(train="train", validation="validation", text=("sentence1", "sentence2"), metric="f1"),
    "stsb": TaskSpec(
        train="train", validation="validation", text=("sentence1", "sentence2"), metric="pearson_spearman"
    ),
    "qqp": TaskSpec(train="train", validation="validation", text=("question1", "question2"), metric="f1"),
    "mnli": TaskSpec(train="train", validation="validation_matched", text=("premise", "hypothesis")),
    "qnli": TaskSpec(train="train", validation="validation", text=("question", "sentence")),
    "rte": TaskSpec(train="train", validation="validation", text=("sentence1", "sentence2")),
    "wnli": TaskSpec(train="train", validation="validation", text=("sentence1", "sentence2")),
}
"""The tasks of GLUE (Wang et al. 2019, arXiv 1804.07461), with the column names of the hub's nyu-mll/glue."""


@dataclass(frozen=True)
class Task:
    """Examples of one task: texts (one or two columns) and labels, whole numbers or, for regression, floats."""

    name: str
    metric: str
    train_texts: tuple[tuple[str, ...], ...]
    train_labels: NDArray[Any]
    validation_texts: tuple[tuple[str, ...], ...]
    validation_labels: NDArray[Any]

    def content_hash(self) -> str:
        """Hash of texts, labels and metric (SHA-256, 16 hex digits)."""
        digest = hashlib.sha256(self.metric.encode())
        for texts, labels in ((self.train_texts, self.train_labels), (self.validation_texts, self.validation_labels)):
            digest.update(json.dumps([texts, labels.tolist()]).encode())
        return digest.hexdigest()[:16]

    @property
    def regression(self) -> bool:
        """Whether labels are scores rather than classes."""
        return self.metric == "pearson_spearman"

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier."""
        return 1 if self.regression else int(max(self.train_labels.max(), self.validation_labels.max())) + 1


def load_task(
    name: str, spec: EvaluateSpec, *, folder: Path | None, probes: Mapping[str, TaskSpec], roots: Sequence[Path] = ()
) -> Task:
    """Read one task.

    Parameters
    ----------
    name
        Of GLUE, of the probes, or of `spec.own`.
    spec
        The study's `[evaluate]`.
    folder
        Of TASK/SPLIT.jsonl.gz files; None reads GLUE from the hub.
    probes
        The probe tasks, by name.
    roots
        Where the files of the user's own tasks are looked for.

    Raises
    ------
    CallerError
        When the task is unknown, or a file is missing, empty, or lacks a column.
    """
    known = {**(probes if spec.source == "probes" else GLUE), **spec.own}
    if name not in known:
        raise unknown_name("task", name, known, "evaluate.tasks")
    task = known[name]
    if name in spec.own:
        train, validation = (_read_file(_find(path, roots, name), task, name) for path in (task.train, task.validation))
    elif folder is None:
        train, validation = (_read_hub(name, split, task) for split in (task.train, task.validation))
    else:
        splits = (task.train, task.validation)
        train, validation = (_read_file(folder / name / f"{split}.jsonl.gz", task, name) for split in splits)
    kind = np.float64 if task.metric == "pearson_spearman" else np.int64
    try:
        labels = [np.asarray([label for _, label in rows], dtype=kind) for rows in (train, validation)]
    except (TypeError, ValueError):
        raise CallerError(f"task {name}", f"a label is no {kind.__name__}", "correct the file") from None
    return Task(name, task.metric, tuple(t for t, _ in train), labels[0], tuple(t for t, _ in validation), labels[1])


Rows = list[tuple[tuple[str, ...], Any]]


def _find(path: str, roots: Sequence[Path], name: str) -> Path:
    found = next((root / path for root in roots if (root / path).is_file()), None)
    if found is None:
        raise CallerError(f"evaluate.own.{name}: {path!r}", "no such file under the data roots", "set --data-root")
    return found


def _read_file(path: Path, task: TaskSpec, name: str) -> Rows:
    asked = f"task {name} from {path}"
    if not path.is_file():
        raise CallerError(asked, "no such file", "set evaluate.folder or --data-root to where the tasks are")
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [json.loads(line) for line in text.decode("utf-8").split("\n") if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise CallerError(asked, f"not JSON lines ({error})", "correct the file") from None
    return _rows(rows, task, asked)


def _read_hub(name: str, split: str, task: TaskSpec) -> Rows:
    from datasets import load_dataset

    asked = f"task {name}, split {split}, from the hub"
    try:
        rows = list(load_dataset("nyu-mll/glue", name, split=split))
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


def score_predictions(metric: str, labels: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Score predictions, 0 to 1 (Matthews and correlations -1 to 1); a constant prediction correlates as 0."""
    if metric == "accuracy":
        return float(metrics.accuracy_score(labels, predictions))
    if metric == "matthews":
        return float(metrics.matthews_corrcoef(labels, predictions))
    if metric == "f1":
        return float(metrics.f1_score(labels, predictions, zero_division=0))  # type: ignore[arg-type]
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float((stats.pearsonr(labels, predictions)[0] + stats.spearmanr(labels, predictions)[0]) / 2)


def majority_score(task: Task) -> float:
    """Score of always answering the training set's most frequent class, or its mean."""
    if task.regression:
        answer: float = float(task.train_labels.mean())
    else:
        answer = int(np.bincount(task.train_labels).argmax())
    return score_predictions(task.metric, task.validation_labels, np.full(len(task.validation_labels), answer))
