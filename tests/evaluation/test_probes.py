"""Probe tasks: balanced, disjoint, the same bytes every time, and nothing given away by shared words."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from budgetlab.corpus import Corpus, build_corpus
from budgetlab.errors import CallerError
from budgetlab.evaluation import PROBES, build_probes, load_task
from budgetlab.evaluation.probes import STEM_LETTERS
from budgetlab.values import CorpusSpec, EvaluateSpec


def corpus_of(folder: Path, documents: int) -> Corpus:
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), size=6)) for _ in range(60)]
    for name, count in (("train.txt", 300), ("heldout.txt", documents)):
        lines = []
        for _ in range(count):
            sentences = [" ".join(draw.choice(words, size=draw.integers(8, 16))) for _ in range(4)]
            lines.append(". ".join(sentences) + ".")
        (folder / name).write_text("\n".join(lines) + "\n")
    spec = CorpusSpec(source="text", train=("train.txt",), heldout=("heldout.txt",), tokenizer={"train": 500})  # type: ignore[arg-type]
    return build_corpus(spec, roots=[folder], cache=folder / "cache")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of(tmp_path_factory.mktemp("corpus"), 400)


def test_probes_are_balanced_tasks_in_the_format_of_glue(corpus: Corpus, tmp_path: Path) -> None:
    tasks = build_probes(corpus, tmp_path / "probes")
    assert tasks == PROBES
    for name in tasks:
        task = load_task(name, EvaluateSpec(source="probes"), folder=tmp_path / "probes", probes=tasks)
        for labels in (task.train.labels, task.validation[name].labels):
            assert len(labels) >= 100 and abs(labels.mean() - 0.5) < 0.01
        assert not set(task.train.texts) & set(task.validation[name].texts)


def test_probes_are_the_same_bytes_and_are_not_made_twice(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_probes(corpus, tmp_path / name)
    files = sorted((tmp_path / "one").rglob("*.gz"))
    assert len(files) == 4
    assert all(
        path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() for path in files
    )
    before = files[0].stat().st_mtime_ns
    build_probes(corpus, tmp_path / "one")
    assert files[0].stat().st_mtime_ns == before


def test_a_body_shares_no_stem_with_the_summary_shown(corpus: Corpus, tmp_path: Path) -> None:
    build_probes(corpus, tmp_path / "probes")
    packed = (tmp_path / "probes" / "belongs" / "train.jsonl.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    for row in map(json.loads, lines):
        stems = [{word[:STEM_LETTERS] for word in row[column].split()} for column in ("sentence1", "sentence2")]
        assert not stems[0] & stems[1]


def test_too_little_text_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="use more held-out text"):
        build_probes(corpus_of(tmp_path, 20), tmp_path / "probes")
    assert not list(tmp_path.glob("*probes*"))
