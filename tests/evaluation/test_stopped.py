"""An evaluation that is stopped, however, keeps its finished scores and goes on from there; no process outlives it."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import Forks
from small import write_small_study

from budgetlab.corpus import build_corpus
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner import run
from budgetlab.store import Store
from budgetlab.studies import Study, dump_study, load_study

STATUSES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 75}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """A trained arm, and more fine-tuning than ends before it is stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    path = write_small_study(folder, arms=("no_kd",))
    path.write_text(path.read_text().replace("seeds = [0, 1]\nepochs = 1", f"seeds = {list(range(30))}\nepochs = 3"))
    study = load_study(path)
    study = study.model_copy(update={"seeds": (0,)})
    made = plan(study, profile(study, count_only=True), budgets=("1.5e9",))
    store = Store(folder / "results", "small")
    run(made, build_corpus(study.corpus, roots=study.data_roots, cache=store.cache), store)
    store.write_plan(made)
    store.write_study(dump_study(study))
    return folder, study


def scores(store: Store) -> dict[str, float]:
    found = [json.loads(path.read_text()) for path in store.folder.glob("runs/*/scores/*.json")]
    return {f"{score['run_id']}/{score['key']}": score["value"] for score in found}


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGKILL, 2)]
)
def test_a_stopped_evaluation_keeps_what_is_finished(
    number: signal.Signals, workers: int, ready: tuple[Path, Study], forks: Forks, tmp_path: Path
) -> None:
    folder, _ = ready
    results = shutil.copytree(folder / "results", tmp_path / "results")
    store = Store(results, "small")
    made = store.read_plan()
    assert made is not None
    execution = made.execution.model_copy(update={"workers": workers})
    store.write_plan(made.model_copy(update={"execution": execution}))
    process = forks.begin("evaluate", str(store.folder / "plan.json"), BUDGETLAB_DATA_ROOT=str(folder))
    deadline = time.monotonic() + 120
    while len(scores(store)) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    before = scores(store)
    process.send_signal(number)
    assert process.wait() == STATUSES[number], process.errors
    deadline = time.monotonic() + 20
    while alive(process.pid):  # workers of a killed process see that it is gone
        assert time.monotonic() < deadline
        time.sleep(0.05)
    after = scores(store)
    assert before.items() <= after.items() and len(after) < 60
    if number != signal.SIGKILL:
        assert "stopped; " in process.errors.strip().splitlines()[-1] and "Traceback" not in process.errors
