"""Several processes train one run: the same samples, the same losses, and the same bits again after one was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small import write_small_study

from budgetlab.batches import Batches
from budgetlab.checkpoint import latest_checkpoint
from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.ranks import Ranks
from budgetlab.runner import run
from budgetlab.store import Store
from budgetlab.studies import Study, dump_study, load_study
from budgetlab.values import Plan, RunRecord, StrategySpec


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    found = load_study(write_small_study(folder))
    arms = {name: found.arms[name] for name in ("no_kd", "vanilla_kd", "tinybert")}
    cached = StrategySpec(name="vanilla_kd", top_k=8, cached=True)
    arms["vanilla_kd"] = arms["vanilla_kd"].model_copy(update={"strategy": cached})
    corpus = found.corpus.model_copy(update={"masking": "static", "unique_tokens": 5000})
    execution = found.execution.model_copy(update={"devices": 2, "micro_batch_sequences": 2})
    return found.model_copy(update={"seeds": (0,), "arms": arms, "execution": execution, "corpus": corpus})


SAVE = """
import sys
from budgetlab.__main__ import main
from budgetlab.runner import training
training.CHECKPOINT_EVERY_SECONDS, training.CHECKPOINT_SHARE = float(sys.argv.pop(1)), float("inf")
main()
"""


def worker(process: subprocess.Popen, rank: int) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranked = f"RANK={rank}\0".encode()
    return next(int(pid) for pid in children if b"\0" + ranked in Path(f"/proc/{pid}/environ").read_bytes())


def start(
    folder: Path,
    results: str,
    made: Plan,
    study: Study,
    save_every_seconds: float = 30.0,
) -> subprocess.Popen:
    """Run a plan on two processes, as a user would."""
    script = folder / "save.py"
    script.write_text(SAVE)
    store = Store(folder / results, "small")
    store.write_plan(made)
    store.write_study(dump_study(study))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    plan_file = str(store.folder / "plan.json")
    environment = {**os.environ, "BUDGETLAB_DATA_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(script), str(save_every_seconds), "run", plan_file, "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rungs(store: Store) -> dict[str, RunRecord]:
    return {record.run_id: record for record in store.records() if record.kind == "rung"}


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, made: Plan, study: Study) -> dict[str, RunRecord]:
    process = start(folder, "whole", made, study)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = json.loads(out)  # one process speaks
    assert {record["status"] for record in found} == {"complete"}
    return rungs(Store(folder / "whole", "small"))


def test_two_processes_do_what_one_does(
    folder: Path, made: Plan, corpus: Corpus, uninterrupted: dict[str, RunRecord]
) -> None:
    alone = made.execution.model_copy(update={"devices": 1})
    store = Store(folder / "alone", "small")
    run(made.model_copy(update={"execution": alone}), corpus, store)
    one = rungs(store)
    assert one.keys() == uninterrupted.keys() and len(one) == 6
    for run_id, record in uninterrupted.items():
        assert record.samples_digest == one[run_id].samples_digest
        assert (record.tokens, record.target_tokens) == (one[run_id].tokens, one[run_id].target_tokens)
        assert record.required_flops == one[run_id].required_flops
        assert record.weights_hash != one[run_id].weights_hash  # sums in another order: near, not equal
        for mine, other in zip(record.points, one[run_id].points, strict=True):
            assert mine.losses == pytest.approx(other.losses, rel=2e-3)
    sizes = ({path.name: path.stat().st_size for path in (folder / results / "cache").glob("teacher-*/*.shard")}
             for results in ("whole", "alone"))  # fmt: skip
    assert next(sizes) == next(sizes) != {}


def test_gradients_may_be_averaged_in_half_the_bytes(
    folder: Path, made: Plan, study: Study, uninterrupted: dict[str, RunRecord]
) -> None:
    execution = made.execution.model_copy(update={"bfloat16_gradients": True})
    schedules = tuple(schedule for schedule in made.schedules if schedule.arm == "no_kd")
    alone = {"arms": {"no_kd": made.arms["no_kd"]}, "schedules": schedules, "execution": execution}
    process = start(folder, "bfloat16", made.model_copy(update=alone), study)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    for run_id, record in rungs(Store(folder / "bfloat16", "small")).items():
        assert record.weights_hash != uninterrupted[run_id].weights_hash
        assert record.points[-1].losses == pytest.approx(uninterrupted[run_id].points[-1].losses, rel=1e-2)


def checkpoints(store: Store, arm: str) -> set[Path]:
    """Those of an arm's trunk after its first step."""
    return set(store.folder.glob(f"runs/{arm}-trunk-*/checkpoints/step_*[1-9]"))


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)


def trunk_of(store: Store, arm: str) -> RunRecord:
    return next(record for record in store.records() if record.arm == arm and record.kind == "trunk")


def test_a_lost_process_ends_all_at_once_and_so_does_sigterm_and_the_same_command_ends_with_the_same_bits(
    folder: Path, made: Plan, study: Study, uninterrupted: dict[str, RunRecord]
) -> None:
    """One run that loses a process in two of its arms and is then told to stop, each time begun again."""
    store = Store(folder / "stopped", "small")
    for arm in ("no_kd", "tinybert"):
        process = start(folder, "stopped", made, study, save_every_seconds=0.0)
        wait_for(process, lambda arm=arm: bool(checkpoints(store, arm)))
        os.kill(worker(process, 1), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
        assert process.returncode not in (0, None)
        lines = [line for line in errors.splitlines() if line.startswith("budgetlab:")]
        assert len(lines) == 1 and "another rank was lost" in lines[0]
        record = trunk_of(store, arm)
        assert record.status == "running"
        newest = latest_checkpoint(store.checkpoints(record.run_id))
        assert newest is not None and int(newest.name[5:]) > 0  # it goes on from there, not from the start

    process, reached = start(folder, "stopped", made, study), len(store.read_points(record.run_id))
    wait_for(process, lambda: len(store.read_points(record.run_id)) > reached)
    # To all of them, as a queue does; torchrun passes its own on, so that the others get two.
    for pid in (process.pid, worker(process, 0), worker(process, 1)):
        os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=60)
    record = trunk_of(store, "tinybert")
    assert record.status == "complete" or (store.checkpoints(record.run_id) / f"step_{record.steps:08d}").is_dir()
    assert record.steps > 0

    again = start(folder, "stopped", made, study)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    ended = rungs(store)
    assert {i: r.state_hash for i, r in ended.items()} == {i: r.state_hash for i, r in uninterrupted.items()}


def test_causal_strategies_end_with_the_same_bits_on_two_processes_after_a_loss(tmp_path: Path) -> None:
    path = write_small_study(tmp_path, arms=("vanilla_kd", "minilm"))
    llama = 'family = "llama"\nnum_kv_heads = 1\ntie_embeddings = true\n'
    text = path.read_text().replace("num_layers", f"{llama}num_layers").replace('tasks = ["colour"]', "tasks = []")
    text = text.replace('strategy = "vanilla_kd"', 'strategy = { name = "kd", alpha = 0.5 }')
    path.write_text(text.replace('budgets = ["1.5e9", "3e9"]', 'budgets = ["4e9"]').replace("[0, 1]", "[0]", 1))
    found = load_study(path, data_root=tmp_path)
    execution = found.execution.model_copy(update={"devices": 2, "micro_batch_sequences": 2})
    found = found.model_copy(update={"execution": execution})
    made = plan(found, profile(found, count_only=True))
    whole = start(tmp_path, "whole", made, found)
    _, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    store = Store(tmp_path / "stopped", "small")
    process = start(tmp_path, "stopped", made, found, save_every_seconds=0.0)
    wait_for(process, lambda: bool(checkpoints(store, "minilm")))
    os.kill(worker(process, 1), signal.SIGKILL)
    process.communicate(timeout=60)
    again = start(tmp_path, "stopped", made, found)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    expected = rungs(Store(tmp_path / "whole", "small"))
    assert {i: r.state_hash for i, r in rungs(store).items()} == {i: r.state_hash for i, r in expected.items()}
    assert {record.arm for record in expected.values()} == {"vanilla_kd", "minilm"}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(world: int, corpus: Corpus) -> None:
    batches = Batches(corpus.train, corpus.special, corpus.vocab_size, seq_len=16, masked_per_sequence=3, run_seed=1)
    for step in (0, 7, 120):
        whole = batches.step(step, 8)
        parts = [batches.step(step, 8, rank, world) for rank in range(world)]
        assert sum(part.digest(step) for part in parts) % 2**64 == whole.digest(step)
        assert sorted(row.tobytes() for part in parts for row in part.input_ids) == sorted(
            row.tobytes() for row in whole.input_ids
        )
    assert whole.digest(1) != whole.digest(2)
    changed = whole.input_ids.copy()
    changed[0, 1] ^= 1
    assert type(whole)(changed, whole.target_positions, whole.target_ids).digest(1) != whole.digest(1)
    targets = whole.target_ids.copy()
    targets[0], targets[1] = targets[1] + 1, targets[0]
    assert type(whole)(whole.input_ids, whole.target_positions, targets).digest(1) != whole.digest(1)


def test_other_processes_than_planned_are_refused(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    store = Store(tmp_path, "small")
    with pytest.raises(CallerError, match="plan for 2 devices: there is 1 process; start it with torchrun"):
        run(made, corpus, store)
    with pytest.raises(CallerError, match="plan for 2 devices: there are 4 processes"):
        run(made, corpus, store, ranks=Ranks(0, 4))
    one = made.model_copy(update={"execution": made.execution.model_copy(update={"devices": 1})})
    with pytest.raises(CallerError, match="plan for 1 device: there are 2 processes; start it without torchrun"):
        run(one, corpus, store, ranks=Ranks(0, 2))
    three = made.model_copy(update={"execution": made.execution.model_copy(update={"devices": 3})})
    with pytest.raises(CallerError, match="8 sequences a step on 3 devices: they cannot be shared evenly"):
        run(three, corpus, store, ranks=Ranks(0, 3))
    assert not store.folder.exists()
