"""Threads are set before torch is imported: one a worker, or two workers on two cores are slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forks
from hurried import hurry


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real text, tasks and published tables, where it is."""
    root = os.environ.get("BUDGETLAB_DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("BUDGETLAB_DATA_ROOT is not set to a folder with the data")
    return Path(root)


@pytest.fixture(scope="session", autouse=True)
def _one_count_of_each_arm() -> Iterator[None]:
    """Count the FLOPs of an arm once: most tests price the same small networks; a user's own strategy, each time."""
    if "budgetlab.profiler" not in sys.modules:  # tests that load no torch do not wait for it
        yield
        return
    from budgetlab.profiler import arms

    count, known = arms.count_arm, {}

    def counted(job: arms.Job, device: Any) -> Any:
        if job.strategy.name.endswith(".py"):
            return count(job, device)
        key = repr((job, device))
        if key not in known:
            known[key] = count(job, device)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("budgetlab.profiler.count_arm", counted)
        patch.setattr("budgetlab.profiler.time_model.count_arm", counted)
        yield


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Begins commands without loading torch for each; workers of a command are processes of their own as ever."""
    found = Forks(tmp_path_factory.mktemp("forks"))
    yield found
    found.end()


@pytest.fixture(scope="module")
def hurried() -> Iterator[None]:
    """Measurements of this module end early."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch.setattr)
        yield
