"""Several workers of one study, which know of each other by files alone: a unit is trained once, with the same bits."""

import multiprocessing
from pathlib import Path

import pytest

from budgetlab.corpus import Corpus
from budgetlab.engines.leases import Leases
from budgetlab.errors import CallerError
from budgetlab.runner import run, training
from budgetlab.store import Store
from budgetlab.values import Plan, RunRecord


def hashes(records: list[RunRecord]) -> dict[str, str | None]:
    return {record.run_id: record.state_hash for record in records}


@pytest.mark.parametrize("wait", [True, False])
def test_workers_share_what_there_is_to_do(
    wait: bool, made: Plan, corpus: Corpus, tmp_path: Path, finished: tuple[Store, list[RunRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Forks, which have torch loaded; what each trains it notes."""
    store, begun, train = Store(tmp_path, "small"), tmp_path / "begun", training.Trainer.__call__

    def noting(self: training.Trainer, unit: training.Unit, *rest: object) -> None:
        with begun.open("a") as file:
            file.write(f"{unit.run_id}\n")
        train(self, unit, *rest)

    monkeypatch.setattr(training.Trainer, "__call__", noting)
    arguments = {} if wait else {"left": []}
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=run, args=(made, corpus, store), kwargs=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert hashes(store.records()) == hashes(finished[1])
    trained = begun.read_text().split()
    assert sorted(trained) == sorted(set(trained)) and len(trained) == len(finished[1])
    assert not (store.folder / "leases").exists()


def test_what_others_are_at_is_said_or_waited_for(
    made: Plan, corpus: Corpus, finished: tuple[Store, list[RunRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, records = finished
    rung = next(record for record in records if record.kind == "rung")
    store.write_record(rung.model_copy(update={"status": "running"}))
    with Leases(store.folder / "leases", {}) as other:
        other.take(rung.run_id)
        left: list[str] = []
        run(made, corpus, store, left=left)
        assert left == [rung.run_id]
        # Once it has ended elsewhere, nothing is left to do here.
        monkeypatch.setattr("budgetlab.engines.local.time.sleep", lambda seconds: store.write_record(rung))
        assert hashes(run(made, corpus, store)) == hashes(records)


def test_another_version_corpus_or_plan_is_refused(
    made: Plan, corpus: Corpus, finished: tuple[Store, list[RunRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, records = finished
    with Leases(store.folder / "leases", {"plan of index": "another"}) as other:
        other.take("a")
        with pytest.raises(CallerError, match=r"plan of index is \w{16} here, and another of process"):
            run(made, corpus, store)
    monkeypatch.setattr("budgetlab.runner.preflight.NUMERICS_VERSION", 2)
    said = f"run {records[0].run_id}: it was trained with version 1 of the numerics, which is 2 here"
    with pytest.raises(CallerError, match=said):
        run(made, corpus, store)


def test_a_unit_that_fails_of_itself_is_logged_and_the_others_go_on(
    made: Plan, corpus: Corpus, tmp_path: Path, finished: tuple[Store, list[RunRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made.model_copy(update={"seeds": (0,), "arms": {name: made.arms[name] for name in ("no_kd",)}})
    store, load = Store(tmp_path, "small"), training.TrainingState

    def fails(unit: training.Unit, *rest: object) -> training.TrainingState:
        if unit.kind == "branch" and unit.schedule is not None and unit.schedule.rung == 0:
            raise ValueError("no such kernel")
        return load(unit, *rest)

    monkeypatch.setattr(training, "TrainingState", fails)
    records = {record.run_id: record for record in run(made, corpus, store, left=[])}
    (failed,) = (run_id for run_id, record in records.items() if record.status == "failed")
    assert records[failed].message.startswith("no such kernel; ") and len(records) == 4
    assert "Traceback" in store.log_path(failed).read_text()

    monkeypatch.setattr(training, "TrainingState", load)
    run(made, corpus, store, left=[])
    assert store.record_status(failed) == "failed"  # until somebody asks
    kept = store.set_aside(failed)
    assert {path.name for path in kept.iterdir()} >= {"record.json", "failed.txt"}
    whole = hashes(finished[1])
    assert hashes(run(made, corpus, store)) == {run_id: whole[run_id] for run_id in records}
