"""Tasks in the format of GLUE: where their files are, what their columns mean, what is wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from budgetlab.corpus.sources import valid_unicode
from budgetlab.errors import CallerError, unknown_name
from budgetlab.evaluation.metrics import measure
from budgetlab.values import EvaluateSpec, TaskSpec
from budgetlab.values.scoring import CORRELATIONS, GLUE, GLUE_ROWS

HUB = "nyu-mll/glue"
_LARGEST = 2.0**53
"""Labels are below it: beyond, neighbouring whole numbers are one float."""


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
    task, official = known[name], GLUE_ROWS if spec.source == "glue" else {}
    metric = spec.primary.get(name, task.metric)
    if (metric in CORRELATIONS) != (task.metric in CORRELATIONS):
        raise CallerError(f"evaluate.primary.{name} = {metric!r}", "no metric of its labels", "choose another")
    made: dict[str, Split] = {}
    for score, split in {"train": task.train, name: task.validation, **task.further}.items():
        if name in spec.own:
            path = next((root / split for root in roots if (root / split).is_file()), None)
            if path is None:
                asked = f"evaluate.own.{name}: {split!r}"
                raise CallerError(asked, "no such file under the data roots", "set --data-root")
            asked, rows = f"task {name} from {path}", _read_json_lines(path, f"task {name} from {path}")
        elif folder is None:
            asked = f"task {name}, split {split}, from the hub ({HUB})"
            rows = _read_hub(name, split, asked)
        else:
            asked, rows = _read_split(folder / name, split, f"task {name}, split {split}")
        if not rows:
            raise CallerError(asked, "it is empty", "give at least one example")
        for column in (*task.text, task.label):
            missing = sum(not isinstance(row, dict) or row.get(column) is None for row in rows)
            if missing:
                wrong = f"{missing} of {len(rows)} rows have no {column!r}"
                raise CallerError(asked, wrong, "correct the file or the task")
        most = official.get(name if score == "train" else score, (len(rows),) * 2)[score != "train"]
        if len(rows) > most:
            wrong = f"{len(rows):,} rows, GLUE's has {most:,}"
            raise CallerError(f"task {name}, split {split}", wrong, "give it as a task of your own")
        labels = _labels([row[task.label] for row in rows], task, f"task {name}, {split}")
        made[score] = Split(
            tuple(tuple(valid_unicode(str(row[column])) for column in task.text) for row in rows), labels
        )
    num_labels = 1 if task.metric in CORRELATIONS else _count_classes(made, task, name)
    return Task(name, metric, num_labels, made.pop("train"), made)


def _labels(found: list[Any], task: TaskSpec, asked: str) -> NDArray[Any]:
    """Whole numbers for classes, floats for scores."""
    low, high = task.label_range or (-np.inf, np.inf)
    for number, label in enumerate(found, start=1):
        said, numeric = f"the label of row {number}", isinstance(label, int | float) and abs(label) < _LARGEST
        if task.metric in CORRELATIONS:
            if not numeric or isinstance(label, bool):
                raise CallerError(asked, f"{said}, {repr(label)[:40]}, is no number (below 2**53)", "correct the file")
            if not low <= label <= high:
                raise CallerError(asked, f"{said}, {label:g}, is not {low:g} to {high:g}", "correct it")
        elif not numeric or label != label // 1 or label < 0:
            wrong = f"{said}, {repr(label)[:40]}, is no class (0, 1, 2, ...)"
            raise CallerError(asked, wrong, "correct the file; scores need a correlation as metric")
    return np.asarray(found, dtype=np.float64 if task.metric in CORRELATIONS else np.int64)


def _count_classes(splits: Mapping[str, Split], task: TaskSpec, name: str) -> int:
    seen = set(splits["train"].labels.tolist())
    count = task.num_labels or len(seen)
    beyond = sorted({int(label) for split in splits.values() for label in split.labels if label >= count})
    if beyond:
        given = "num_labels" if task.num_labels else "the training set's number of classes"
        wrong = f"label {beyond[0]} is out of range, {given} being {count}"
        raise CallerError(f"task {name}", wrong, "number classes from 0 without gaps, or correct num_labels")
    if len(seen) < 2:
        raise CallerError(f"task {name}", "all training examples have one label", "give at least two classes")
    if task.metric == "f1" and count > 2:
        raise CallerError(f"task {name}", f"f1 is of two classes, and it has {count}", "use macro_f1 or accuracy")
    return count


def _read_split(folder: Path, split: str, asked: str) -> tuple[str, list[Any]]:
    """Read one split, as JSON lines or in the hub's own layout; return where it came from too."""
    for path in (folder / f"{split}.jsonl.gz", folder / f"{split}.jsonl"):
        if path.is_file():
            return f"{asked} from {path}", _read_json_lines(path, f"{asked} from {path}")
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    if not shards:
        wrong = f"no {split}.jsonl.gz, .jsonl or -*.parquet in {folder}"
        raise CallerError(asked, wrong, "set evaluate.folder or --data-root to where the tasks are")
    try:
        table = pd.concat([pd.read_parquet(shard) for shard in shards])
    except (OSError, ValueError) as error:
        raise CallerError(asked, f"{shards[0].name} is no parquet file ({error})", "correct the file") from None
    # Through Python's own numbers: a label is to be judged as it stands in the file.
    return asked, json.loads(table.to_json(orient="records"))


def _read_json_lines(path: Path, asked: str) -> list[Any]:
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CallerError(asked, f"no UTF-8 text ({error.reason} at byte {error.start:,})", "convert it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise CallerError(asked, f"not JSON lines ({error})", "correct the file") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            wrong = f"line {number} is not JSON ({error})"
            raise CallerError(asked, wrong, "give one object in each line") from None
    return rows


def _read_hub(name: str, split: str, asked: str) -> list[Any]:
    from datasets import load_dataset

    try:
        return list(load_dataset(HUB, name, split=split))
    except Exception as error:  # the hub's client raises its own, requests' and OSError
        reason = " ".join(str(error).split())[:120]
        raise CallerError(asked, f"not reached ({reason})", "set evaluate.folder to a local copy") from None


def majority_metrics(task: Task, split: str) -> dict[str, float]:
    """Return the metrics of always giving the training set's most frequent class, or its mean score."""
    labels = task.train.labels
    answer = float(labels.mean()) if task.regression else int(np.bincount(labels).argmax())
    return measure(task.validation[split].labels, np.full(len(task.validation[split].labels), answer))
