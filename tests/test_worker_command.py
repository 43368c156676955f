"""`budgetlab work`, `retry`, `status` and `--dry-run` on a small study, one process playing the others."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from forked import Forks
from small import write_small_study

from budgetlab.checkpoint import step_name
from budgetlab.cli import run_command
from budgetlab.engines.leases import Leases
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.store import Store
from budgetlab.studies import dump_study, load_study

pytestmark = pytest.mark.usefixtures("hurried")


def test_a_worker_ends_as_what_is_left_says(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = write_small_study(tmp_path, arms=("no_kd",))
    where = [str(study), "--results", str(tmp_path / "results"), "--data-root", str(tmp_path)]
    assert run_command(["work", *where]) == 0
    store = Store(tmp_path / "results", "small")
    rung = next(record for record in store.records() if record.kind == "rung")

    store.write_record(rung.model_copy(update={"status": "failed", "message": "a lost card"}))
    assert run_command(["work", *where]) == 42
    assert run_command(["retry", *where, "--unit", "none"]) == 2
    assert run_command(["retry", *where, "--unit", rung.run_id.rpartition("-")[0]]) == 0
    assert "a lost card" in capsys.readouterr().out
    assert store.record_status(rung.run_id) is None

    # While another worker has it, there is nothing to do here; then it is trained as it was.
    with Leases(store.folder / "leases", {}) as other:
        other.take(rung.run_id)
        assert run_command(["status", *where]) == 0
        assert re.search(rf"{os.getpid()} +{rung.run_id}", capsys.readouterr().out)
        assert run_command(["run", *where, "--dry-run", "--workers", "2", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["units"], told["workers"]) == (1, 2)
        assert told["device_hours"] == pytest.approx(told["longest_chain_hours"])
    score = next(path for path in store.run_folder(rung.run_id).glob("scores/*.json"))
    score.unlink()
    with Leases(store.folder / "leases", {}) as other:
        other.take(f"score-{score.stem}")
        assert run_command(["work", *where]) == 75
    assert run_command(["work", *where]) == 0 and score.exists()
    again = store.read_record(rung.run_id)
    assert again is not None and again.state_hash == rung.state_hash
    assert run_command(["work", *where, "--manifest", "kubernetes"]) == 0
    assert "kind: Job" in capsys.readouterr().out


def test_a_worker_that_is_asked_to_stop_saves_and_gives_its_unit_back(tmp_path: Path, forks: Forks) -> None:
    study = load_study(write_small_study(tmp_path, arms=("no_kd",)))
    store, made = Store(tmp_path / "results", "small"), plan(study, profile(study, count_only=True), budgets=(2e11,))
    store.write_plan(made)
    store.write_study(dump_study(study))
    reached = 0
    for number in (signal.SIGINT, signal.SIGUSR1):
        process = forks.begin("work", str(store.folder / "plan.json"), BUDGETLAB_DATA_ROOT=str(tmp_path))
        deadline, trunk = time.monotonic() + 120, "no_kd-trunk-s0"
        while not list(store.folder.glob(f"leases/{trunk}*")) or points(store, trunk) <= reached:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == 75
        assert process.errors.strip().splitlines()[-1].startswith(f"budgetlab: {signal.Signals(number).name}: stopped")
        assert not (store.folder / "leases").exists()
        record = next(record for record in store.records() if record.kind == "trunk")
        assert (
            record.status == "running" and store.checkpoints(record.run_id).joinpath(step_name(record.steps)).is_dir()
        )
        reached = points(store, trunk)


def points(store: Store, unit: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in store.folder.glob(f"runs/{unit}*/points.jsonl"))
