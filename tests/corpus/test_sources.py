"""Where text comes from and what becomes of it: the hub's format, copies, literal special tokens, other processes."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from budgetlab.corpus import build_corpus
from budgetlab.corpus.sources import find_files
from budgetlab.corpus.tokenizing import train_wordpiece
from budgetlab.errors import CallerError
from budgetlab.values import CorpusSpec

LINES = [f"document {i} tells of {'abc'[i % 3]} and of {i * i} things" for i in range(200)]


def spec_of(**changes: object) -> CorpusSpec:
    return CorpusSpec.model_validate(
        {"source": "text", "train": ["a.txt"], "heldout": ["b.txt"], "tokenizer": {"train": 200}} | changes
    )


def test_copies_and_held_out_text_are_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join([*LINES[:150], *LINES[:50], LINES[199]]))
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    corpus = build_corpus(spec_of(), roots=[tmp_path], cache=tmp_path / "cache")
    assert corpus.description["train"]["documents"] == 150 and corpus.description["train"]["copies_dropped"] == 51
    assert corpus.description["heldout"]["documents"] == 50


def test_special_tokens_in_the_text_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES[:150]) + "\nwrite [MASK] or [SEP] here")
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    corpus = build_corpus(spec_of(), roots=[tmp_path], cache=tmp_path / "cache")
    ids = np.asarray(corpus.train)
    assert (ids == corpus.special.sep).sum() == 151 and corpus.special.mask not in ids


def test_another_process_maps_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES[:150]))
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    corpus = build_corpus(spec_of(), roots=[tmp_path], cache=tmp_path / "cache")
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000 and (np.asarray(pickle.loads(sent).train) == np.asarray(corpus.train)).all()


def test_wordpiece_is_the_same_in_every_process() -> None:
    code = "import json, sys; from budgetlab.corpus.tokenizing import train_wordpiece as t"
    code += "; print(json.dumps(t(json.load(sys.stdin), 160)))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(LINES), capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    vocabularies = [json.loads(run.stdout) for run in runs] + [train_wordpiece(LINES, 160)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    assert vocabularies[0][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and len(set(vocabularies[0])) <= 160


def test_a_data_set_by_name_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub" / "datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    for split, lines in (("train", LINES[:150]), ("validation", LINES[150:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in lines))
    spec = spec_of(source="hub", train=[], dataset=str(folder), column="body", heldout=["validation"])
    corpus = build_corpus(spec, cache=tmp_path / "cache")
    assert [corpus.description[split]["documents"] for split in ("train", "heldout")] == [150, 50]
    with pytest.raises(CallerError, match=r"set corpus\.column to one of body"):
        build_corpus(spec.model_copy(update={"column": "text"}), cache=tmp_path / "cache")
    with pytest.raises(CallerError, match="cannot be loaded"):
        build_corpus(spec.model_copy(update={"dataset": str(tmp_path / "none")}), cache=tmp_path / "cache")


def test_the_first_root_with_a_match_wins(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("text")
    (tmp_path / "two" / "one.txt").write_text("text")
    roots = [tmp_path / "one", tmp_path / "two"]
    assert find_files(["*.txt"], roots, "x") == [tmp_path / "one" / "one.txt"]
    assert find_files(["two.txt", str(tmp_path / "two" / "o*.txt")], roots, "x") == [
        tmp_path / "two" / "two.txt",
        tmp_path / "two" / "one.txt",
    ]
    with pytest.raises(CallerError, match="is a folder"):
        find_files(["two"], [tmp_path], "x")


def test_a_folder_that_is_no_corpus_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES[:150]))
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    corpus = build_corpus(spec_of(), roots=[tmp_path], cache=tmp_path / "cache")
    (corpus.folder / "manifest.json").unlink()
    (corpus.folder / "notes").write_text("mine")
    with pytest.raises(CallerError, match="move or delete it"):
        build_corpus(spec_of(), roots=[tmp_path], cache=tmp_path / "cache")
    assert (corpus.folder / "notes").read_text() == "mine"
