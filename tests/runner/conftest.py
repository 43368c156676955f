"""The small study, planned and run once in each module; a module may have a study of its own."""

from pathlib import Path

import pytest
from small import write_small_study

from budgetlab.corpus import Corpus, build_corpus
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner import run
from budgetlab.store import Store
from budgetlab.studies import Study, load_study
from budgetlab.values import Plan, RunRecord


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return load_study(write_small_study(folder))


@pytest.fixture(scope="module")
def corpus(study: Study, folder: Path) -> Corpus:
    return build_corpus(study.corpus, roots=study.data_roots, cache=folder / "cache")


@pytest.fixture(scope="module")
def made(study: Study) -> Plan:
    return plan(study, profile(study, count_only=True))


@pytest.fixture(scope="module")
def finished(made: Plan, corpus: Corpus, folder: Path) -> tuple[Store, list[RunRecord]]:
    store = Store(folder / "results", "small")
    return store, run(made, corpus, store)
