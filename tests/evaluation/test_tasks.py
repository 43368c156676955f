"""Tasks: the real ones with their sizes, the hub's own layout, and every kind of broken file in one line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from budgetlab.errors import CallerError
from budgetlab.evaluation import GLUE, load_task
from budgetlab.evaluation.tasks import majority_metrics
from budgetlab.values import EvaluateSpec, TaskSpec
from budgetlab.values.scoring import GLUE_ROWS, subset_words


def write_task(folder: Path, name: str, rows: list[dict], split: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / name / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


ROWS = [{"sentence": "a b", "label": 1}, {"sentence": "c", "label": 0}, {"sentence": "d", "label": 1}]


def test_a_task_of_glue_from_a_folder(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_task(tmp_path, "cola", ROWS, split)
    task = load_task("cola", EvaluateSpec(), folder=tmp_path)
    assert (task.metric, task.num_labels, task.train.texts[0]) == ("matthews", 2, ("a b",))
    assert majority_metrics(task, "cola") == pytest.approx(
        {"accuracy": 2 / 3, "f1": 0.8, "macro_f1": 0.4, "matthews": 0.0}
    )
    assert load_task("cola", EvaluateSpec(primary={"cola": "accuracy"}), folder=tmp_path).metric == "accuracy"


def test_the_layout_of_the_hub_is_read_too(tmp_path: Path, glue: Path) -> None:
    (tmp_path / "rte").mkdir()
    lines = gzip.decompress((glue / "rte" / "train.jsonl.gz").read_bytes()).decode().splitlines()
    rows = [json.loads(line) for line in lines]
    pd.DataFrame(rows[:30]).to_parquet(tmp_path / "rte" / "train-00000-of-00002.parquet")
    pd.DataFrame(rows[30:]).to_parquet(tmp_path / "rte" / "train-00001-of-00002.parquet")
    pd.DataFrame(rows[:9]).to_parquet(tmp_path / "rte" / "validation-00000-of-00001.parquet")
    packed, parquet = (load_task("rte", EvaluateSpec(), folder=folder) for folder in (glue, tmp_path))
    assert parquet.train.texts == packed.train.texts and (parquet.train.labels == packed.train.labels).all()
    assert len(parquet.validation["rte"].labels) == 9


def test_mnli_is_scored_on_both_its_sets(glue: Path) -> None:
    task = load_task("mnli", EvaluateSpec(), folder=glue)
    assert {name: len(split.labels) for name, split in task.validation.items()} == {"mnli": 40, "mnli_mismatched": 30}
    assert task.content_hash("mnli") != task.content_hash("mnli_mismatched")


@pytest.mark.parametrize("name", sorted(GLUE))
def test_the_real_tasks_load(name: str, data_root: Path) -> None:
    task = load_task(name, EvaluateSpec(), folder=data_root / "glue")
    assert len(task.train.labels) == len(task.train.texts) > 500
    assert task.num_labels == {"mnli": 3, "stsb": 1}.get(name, 2)
    for split, examples in task.validation.items():
        assert all(len(text) == len(GLUE[name].text) for text in examples.texts)
        assert -0.1 <= majority_metrics(task, split)[task.metric] < 0.9
        whole = name not in ("mnli", "qqp", "qnli")
        assert (subset_words(split, len(task.train.labels), len(examples.labels)) == "") is whole
        assert len(examples.labels) <= GLUE_ROWS[split][1]


def test_a_subset_is_named_as_one() -> None:
    assert subset_words("qnli", 10_475, 5463) == "10,475 of 104,743 train"
    assert subset_words("mnli_mismatched", 12_906, 8839) == "12,906 of 392,702 train, 8,839 of 9,832 validation"
    assert subset_words("rte", 2490, 277) == subset_words("mine", 50, 20, 50) == ""
    assert subset_words("mine", 50, 20, 80) == "50 of 80 train"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it is empty"),
        ([{"sentence": "a"}], "1 of 1 rows have no 'label'"),
        ([{"text": "a", "label": 1}], "no 'sentence'"),
        ([*ROWS, {"sentence": "x", "label": "maybe"}], "label of row 4, 'maybe', is no class"),
        ([*ROWS, {"sentence": "x", "label": 0.5}], "label of row 4, 0.5, is no class"),
        ([*ROWS, {"sentence": "x", "label": -1}], "label of row 4, -1, is no class"),
        ([*ROWS, {"sentence": "x", "label": 2}], "label 2 is out of range, num_labels being 2"),
        ([ROWS[0]], "all training examples have one label"),
        (ROWS * 3000, r"9,000 rows, GLUE's has 8,551"),
    ],
)
def test_a_broken_task_is_one_line(tmp_path: Path, rows: list[dict], message: str) -> None:
    for split in ("train", "validation"):
        write_task(tmp_path, "cola", rows, split)
    with pytest.raises(CallerError, match=message) as caught:
        load_task("cola", EvaluateSpec(), folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (7.0, "row 1, 7, is not 0 to 5"),
        ("4", "is no number"),
        (float("nan"), "is no number"),
        (10**400, "is no number"),
    ],
)
def test_a_broken_score_is_one_line(tmp_path: Path, label: object, message: str) -> None:
    for split in ("train", "validation"):
        write_task(tmp_path, "stsb", [{"sentence1": "a", "sentence2": "b", "label": label}], split)
    with pytest.raises(CallerError, match=message):
        load_task("stsb", EvaluateSpec(), folder=tmp_path)


def test_missing_and_unknown_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CallerError, match=r"no train\.jsonl\.gz, \.jsonl or -\*\.parquet"):
        load_task("cola", EvaluateSpec(), folder=tmp_path)
    with pytest.raises(CallerError, match="no task of that name; did you mean cola"):
        load_task("coal", EvaluateSpec(), folder=tmp_path)
    own = EvaluateSpec(own={"mine": TaskSpec(train="a.jsonl", validation="b.jsonl", text=("sentence",))})
    with pytest.raises(CallerError, match=r"evaluate\.own\.mine"):
        load_task("mine", own, folder=tmp_path, roots=[tmp_path])
    (tmp_path / "cola").mkdir()
    row, broken = b'{"sentence": "a", "label": 0}\n', (b'{"sentence": "a\n', b"[" * 100_000, b'"\\ud83"')
    for line in broken:
        (tmp_path / "b.jsonl").write_bytes(row)
        (tmp_path / "a.jsonl").write_bytes(row + b"\n" + line)
        with pytest.raises(CallerError, match=r"a\.jsonl.*line 3 is not JSON") as caught:
            load_task("mine", own, roots=[tmp_path])
        assert "\n" not in str(caught.value)
    for content, message in ((b"not gzip", "not JSON lines"), (gzip.compress("é".encode("latin-1")), "no UTF-8 text")):
        (tmp_path / "cola" / "train.jsonl.gz").write_bytes(content)
        with pytest.raises(CallerError, match=message):
            load_task("cola", EvaluateSpec(), folder=tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CallerError, match=r"from the hub \(nyu-mll/glue\): not reached"):
        load_task("cola", EvaluateSpec(), folder=None)


def test_own_tasks_of_classes_and_of_scores(tmp_path: Path) -> None:
    def own(rows: list[dict], **fields: object) -> EvaluateSpec:
        for split in ("train", "validation"):
            text = "\n".join(json.dumps(row) for row in rows)
            (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
        task = {"train": "train.jsonl", "validation": "validation.jsonl", "text": ["said"], "label": "kind", **fields}
        return EvaluateSpec.model_validate({"tasks": ["mine"], "own": {"mine": task}})

    def load(rows: list[dict], **fields: object):
        return load_task("mine", own(rows, **fields), roots=[tmp_path])

    three = [{"said": word, "kind": k} for k, word in enumerate("abc")]
    assert load(three).num_labels == 3 and load(three, num_labels=5).num_labels == 5
    assert load(three, metric="macro_f1").metric == "macro_f1"
    scores = load([{"said": "a", "kind": 1.5}, {"said": "b", "kind": 2}], metric="pearson")
    assert scores.regression and scores.num_labels == 1 and scores.train.labels.dtype == np.float64
    odd = load([{"said": "half \ud83d of one", "kind": 0}, {"said": "w" * 1_000_000, "kind": 1}])
    assert [text for (text,) in odd.train.texts] == ["half \ufffd of one", "w" * 1_000_000]
    for rows, fields, message in (
        (three[1:], {}, "label 2 is out of range, the training set's number of classes being 2"),
        (three, {"metric": "f1"}, "f1 is of two classes, and it has 3"),
        (three, {"num_labels": 2}, "label 2 is out of range, num_labels being 2"),
    ):
        with pytest.raises(CallerError, match=message):
            load(rows, **fields)
    spec = own(three).model_copy(update={"primary": {"mine": "pearson"}})
    with pytest.raises(CallerError, match="no metric of its labels"):
        load_task("mine", spec, roots=[tmp_path])
