"""A small study that is trained once, and real GLUE cut to a few rows, so that fine-tuning takes milliseconds."""

import gzip
import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
from small import write_small_study

from budgetlab.corpus import Corpus, build_corpus
from budgetlab.evaluation import evaluate, load_task
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner import run
from budgetlab.store import Store
from budgetlab.studies import load_study
from budgetlab.values import EvaluateSpec, Plan, RunRecord, Score

ROWS = {"train": 64, "validation": 40, "validation_matched": 40, "validation_mismatched": 30}


@pytest.fixture(scope="session")
def glue(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the real tasks."""
    folder = tmp_path_factory.mktemp("glue")
    for path in (data_root / "glue").glob("*/*.jsonl.gz"):
        split = path.name.removesuffix(".jsonl.gz")
        if split in ROWS:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                text = "".join(itertools.islice(file, ROWS[split]))
            (folder / path.parent.name).mkdir(exist_ok=True)
            (folder / path.parent.name / path.name).write_bytes(gzip.compress(text.encode()))
    return folder


@dataclass
class Trained:
    """One arm with two run seeds at one budget, its teacher, and what evaluates them."""

    plan: Plan
    records: list[RunRecord]
    corpus: Corpus
    store: Store
    glue: Path

    def evaluate(self, spec: EvaluateSpec, **options) -> list[Score]:
        tasks = [load_task(name, spec, folder=self.glue) for name in spec.tasks]
        return evaluate(self.plan, self.records, spec, self.corpus, self.store, tasks, **options)


@pytest.fixture(scope="session")
def trained(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    path = write_small_study(folder)
    text = path.read_text()
    for name in ("minilm", "tinybert"):
        start = text.index(f"[arms.{name}]")
        text = text[:start] + text[text.index("[", start + 1) :]
    path.write_text(text.replace('budgets = ["1.5e9", "3e9"]', 'budgets = ["1.5e9"]'))
    study = load_study(path)
    corpus = build_corpus(study.corpus, roots=study.data_roots, cache=folder / "cache")
    made = plan(study, profile(study, count_only=True))
    store = Store(folder / "results", "small")
    return Trained(made, run(made, corpus, store), corpus, store, glue)
