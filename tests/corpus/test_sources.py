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
    assert not list((tmp_path / "hub").rglob("*.arrow"))  # streamed
    with pytest.raises(CallerError, match=r"set corpus\.column to one of body"):
        build_corpus(spec.model_copy(update={"column": "text"}), cache=tmp_path / "cache")
    with pytest.raises(CallerError, match="cannot be loaded"):
        build_corpus(spec.model_copy(update={"dataset": str(tmp_path / "none")}), cache=tmp_path / "cache")
    (folder / "train.jsonl").rename(folder / "train-00000-of-00002.jsonl")
    (folder / "train-00001-of-00002.jsonl").write_text('{"body": "new"}\n{"body"')
    with pytest.raises(CallerError, match=r"split 'train': reading stopped after 150 rows \(JSON parse error"):
        build_corpus(spec, cache=tmp_path / "cache")


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


def write_as(path: Path, lines: list[str]) -> Path:
    """Write documents in the format and packing that a file's name says."""
    import gzip
    import lzma

    import pandas as pd
    import pyarrow

    inner = Path(path.stem).suffix if path.suffix in (".gz", ".xz", ".zst") else path.suffix
    if inner == ".parquet":
        pd.DataFrame({"n": range(len(lines)), "body": lines}).to_parquet(path)
        return path
    text = "".join((json.dumps({"n": 1, "body": line}) if inner == ".jsonl" else line) + "\n" for line in lines)
    if path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(text.encode())
    else:
        with {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "wt", encoding="utf-8") as file:
            file.write(text)
    return path


FORMATS = ["txt", "txt.gz", "txt.xz", "txt.zst", "jsonl", "jsonl.gz", "jsonl.xz", "jsonl.zst", "parquet"]


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_text_in_any_format_is_the_same_corpus(ending: str, tmp_path: Path) -> None:
    lines = [*LINES[:150], "ein Übergang, 日本語 "]
    for name, part in (("a", lines), ("b", LINES[150:])):
        write_as(tmp_path / f"{name}.{ending}", part)
    spec = spec_of(train=[f"a.{ending}"], heldout=[f"b.{ending}"], column="body")
    corpus = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    plain = build_corpus(spec_of(), roots=[tmp_path], cache=tmp_path / "cache2")
    assert np.asarray(corpus.train).tobytes() == np.asarray(plain.train).tobytes()
    assert np.asarray(corpus.heldout).tobytes() == np.asarray(plain.heldout).tobytes()


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "encoding", "column"])
def test_a_damaged_file_is_one_line(ending: str, damage: str, tmp_path: Path) -> None:
    path = write_as(tmp_path / f"a.{ending}", LINES[:150])
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    whole, packed = path.read_bytes(), ending.endswith((".gz", ".xz", ".zst", "parquet"))
    if damage == "cut" and packed:
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "binary":
        path.write_bytes(bytes(range(256)) * 20)
    elif damage == "encoding" and not packed:
        path.write_bytes("Übergang\n".encode("latin-1"))
    elif damage != "column" or "txt" in ending:
        return  # a cut line of text is a line of text; plain text has no columns
    column = "nothing" if damage == "column" else "body"
    with pytest.raises(CallerError, match=r"corpus\.train = .*a\.") as caught:
        build_corpus(spec_of(train=[path.name], column=column), roots=[tmp_path], cache=tmp_path / "cache")
    assert len(str(caught.value).splitlines()) == 1
    assert damage != "column" or "set corpus.column" in str(caught.value)


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\n".join(LINES[150:]))
    for line, says in (
        ("{oh", "line 2 is not JSON"),
        ('{"body": 3}', "line 2 has no text in 'body'"),
        ("7", "has int"),
    ):
        (tmp_path / "a.jsonl").write_text(f'{{"body": "fine"}}\n{line}\n')
        with pytest.raises(CallerError, match=says):
            build_corpus(spec_of(train=["a.jsonl"], column="body"), roots=[tmp_path], cache=tmp_path / "cache")


def test_weights_give_each_part_its_share(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        amount = 4000 if name == "red" else 1000
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} thing number {i:05d} of many" for i in range(amount)))
    (tmp_path / "b.txt").write_text("\n".join(f"many red or blue thing number {i:05d}" for i in range(50)))

    def shares(*weights: float) -> dict[str, int]:
        spec = spec_of(train=["red.txt", "blue.txt"], weights=list(weights), tokenizer={"train": 300})
        corpus = build_corpus(spec, roots=[tmp_path], cache=tmp_path / "cache")
        words = corpus.tokenizer().decode(np.asarray(corpus.train)).split()
        return {name: words.count(name) for name in ("red", "blue")}

    assert shares() == {"red": 4000, "blue": 1000}
    half = shares(1, 1)
    assert half["blue"] == 1000 and 900 < half["red"] < 1100  # the poorer part whole, the richer drawn
    triple = shares(1, 3)
    assert triple["blue"] == 1000 and 270 < triple["red"] < 400
    mostly = shares(8, 1)
    assert mostly["red"] == 4000 and 430 < mostly["blue"] < 570
    assert shares(1, 1) == half
    with pytest.raises(ValueError, match="one for each of the 2 entries"):
        spec_of(train=["red.txt", "blue.txt"], weights=[1.0])
    (tmp_path / "blue.txt").write_text(" \n\t\n")
    with pytest.raises(CallerError, match=r"blue\.txt.*no text"):
        shares(1, 2)
