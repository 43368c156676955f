"""Plans are run exactly, once, and to the bit whatever interrupts them."""

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import Command, Forks
from small import write_small_study

from budgetlab.batches import Batches
from budgetlab.checkpoint import load_checkpoint, save_checkpoint, tensors_hash
from budgetlab.corpus import Corpus
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.runner import run
from budgetlab.step import TrainingStep, build_step
from budgetlab.store import Store
from budgetlab.strategies import build_strategy, strategy_names
from budgetlab.studies import Study, dump_study, load_study
from budgetlab.values import Plan, RunRecord, Schedule


def hashes(records: list[RunRecord]) -> dict[str, str | None]:
    return {record.run_id: record.weights_hash for record in records}


def without_time(record: RunRecord) -> RunRecord:
    points = tuple(point.model_copy(update={"device_seconds": 0.0}) for point in record.points)
    phases = {name: phase.model_copy(update={"device_seconds": 0.0}) for name, phase in record.phases.items()}
    timeless = {"device_seconds": 0.0, "overhead_seconds": {}, "points": points, "phases": phases}
    return record.model_copy(update=timeless)


def save_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_SHARE", float("inf"))


def test_every_run_spends_what_was_planned(made: Plan, finished) -> None:
    _, records = finished
    rungs = [record for record in records if record.kind == "rung"]
    assert len(rungs) == len(made.schedules) * len(made.seeds)
    for record in rungs:
        schedule = record.schedule
        assert record.status == "complete"
        assert (record.steps, record.tokens) == (schedule.steps, schedule.tokens)
        assert record.target_tokens == schedule.target_tokens
        assert record.required_flops == pytest.approx(schedule.required_flops)
        assert record.required_flops <= schedule.budget.amount
        assert record.required_flops == pytest.approx(sum(phase.required_flops for phase in record.phases.values()))
        assert record.points[-1].step == record.steps and record.points[-1].tokens == record.tokens
        assert record.points[0].step > schedule.steps - schedule.cooldown_steps


def test_a_rung_is_the_run_it_would_be_alone(made: Plan, corpus: Corpus, tmp_path: Path, finished) -> None:
    _, branched = finished
    separate = made.model_copy(update={"ladder": "separate", "seeds": (1,)})
    alone = run(separate, corpus, Store(tmp_path, "small"))
    expected = hashes([record for record in branched if record.kind == "rung" and record.run_seed == 1])
    assert expected.items() <= hashes(alone).items()


def test_arms_start_alike_and_seeds_differ(made: Plan) -> None:
    def start(arm: str, seed: int) -> str:
        chosen = made.arms[arm]
        teacher = None if chosen.teacher is None else made.models[chosen.teacher]
        strategy = build_strategy(chosen.strategy)
        step = build_step(arm, strategy, made.models[chosen.student], teacher, chosen.recipe, seed=seed, device="cpu")
        return tensors_hash(dict(step.student.named_parameters()))

    assert len({start(arm, 0) for arm in made.arms}) == 1
    assert start("no_kd", 0) != start("no_kd", 1)


def test_a_finished_plan_runs_nothing(made: Plan, corpus: Corpus, finished, monkeypatch: pytest.MonkeyPatch) -> None:
    store, records = finished

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished unit was run again")

    monkeypatch.setattr(TrainingStep, "run", never)
    assert run(made, corpus, store) == records
    with pytest.raises(CallerError, match="plan for 2 devices: there is 1 process; start it with torchrun"):
        two = made.execution.model_copy(update={"devices": 2})
        run(made.model_copy(update={"execution": two}), corpus, store)


def test_checkpoints_may_be_deleted_once_all_is_done(made: Plan, corpus: Corpus, tmp_path: Path, finished) -> None:
    store, records = finished
    copy = Store(tmp_path, "small")
    shutil.copytree(store.folder, copy.folder, ignore=shutil.ignore_patterns("checkpoints"))
    assert run(made, corpus, copy) == records


def test_a_damaged_checkpoint_is_made_anew_by_its_remedy(made: Plan, corpus: Corpus, tmp_path: Path, finished) -> None:
    store, records = finished
    copy = Store(tmp_path, "small")
    shutil.copytree(store.folder, copy.folder)
    rung = next(record for record in records if record.arm == "no_kd" and record.kind == "rung")
    path = copy.checkpoints(rung.run_id) / f"step_{rung.steps:08d}"
    damaged = bytearray((path / "tensors.safetensors").read_bytes())
    damaged[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(damaged)
    with pytest.raises(BudgetlabError, match=r"torn or altered; delete .* and run again") as caught:
        load_checkpoint(path)
    shutil.rmtree(caught.value.remedy.split()[1])
    assert hashes(run(made, corpus, copy)) == hashes(records)
    load_checkpoint(path)


def test_a_clock_that_goes_back_changes_no_run(
    made: Plan, corpus: Corpus, tmp_path: Path, finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, records = finished
    two = {name: made.arms[name] for name in ("no_kd", "tinybert")}
    made = made.model_copy(update={"arms": two, "seeds": (0,)})
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    save_after_every_step(monkeypatch)
    again = run(made, corpus, Store(tmp_path, "small"))
    assert len(again) == 7 and hashes(again).items() <= hashes(records).items()
    assert all(record.device_seconds > 0 for record in again)


class Stop(Exception):
    pass


def test_dropout_too_is_resumed_to_the_bit(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = made.arms["no_kd"]
    dropped = arm.model_copy(update={"recipe": arm.recipe.model_copy(update={"dropout": 0.1})})
    one = made.model_copy(update={"arms": {"no_kd": dropped}, "teachers": (), "seeds": (0,)})
    whole = hashes(run(one, corpus, Store(tmp_path / "whole", "small")))
    save_after_every_step(monkeypatch)
    step, calls = Batches.step, 0

    def failing(self: Batches, *args: int):
        nonlocal calls
        calls += 1
        if calls % 23 == 0:  # in the thread that feeds
            raise Stop
        return step(self, *args)

    monkeypatch.setattr(Batches, "step", failing)
    for _ in range(50):
        try:
            resumed = run(one, corpus, Store(tmp_path / "stopped", "small"))
            break
        except Stop:
            torch.rand(3)  # whatever happens between two starts
    assert calls > 46 and hashes(resumed) == whole


@pytest.fixture(scope="module")
def all_strategies(study: Study, folder: Path) -> Plan:
    """One arm for each strategy that there is, with dropout, at one small budget on a ladder."""
    arms = "".join(
        f'[arms.{name}]\nstrategy = {{ name = "{name}"{", cosine_weight = 0" if name == "distilbert" else ""} }}\n'
        f'student = "student"\nteacher = "teacher"\nrecipe = {{ dropout = 0.1 }}\n'
        for name in strategy_names()
        if name not in ("no_kd", "vanilla_kd", "minilm", "tinybert")
    )
    path = folder / "all.toml"
    path.write_text((folder / "small.toml").read_text() + arms)
    whole = load_study(path).model_copy(update={"seeds": (0,)})
    return plan(whole, profile(whole, count_only=True))


def only(made: Plan, arm: str) -> Plan:
    return made.model_copy(
        update={
            "seeds": (0,),
            "arms": {arm: made.arms[arm]},
            "schedules": tuple(s for s in made.schedules if s.arm == arm),
            "teachers": made.teachers if made.arms[arm].teacher else (),
        }
    )


@pytest.mark.parametrize("arm", strategy_names())
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(
    arm: str, all_strategies: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_arm = only(all_strategies, arm)
    records = run(one_arm, corpus, Store(tmp_path / "whole", "small"))
    save_after_every_step(monkeypatch)
    store = Store(tmp_path / "stopped", "small")
    step = Batches.step
    calls = 0

    def failing(self: Batches, *args: int):
        nonlocal calls
        calls += 1
        if calls % 23 == 0:
            raise Stop
        return step(self, *args)

    monkeypatch.setattr(Batches, "step", failing)
    for _ in range(50):
        try:
            resumed = run(one_arm, corpus, store)
            break
        except Stop:
            continue
    expected = {record.run_id: without_time(record) for record in records}
    assert calls > 46
    for record in resumed:  # weights, optimizer and every logged loss among it
        assert record.state_hash is not None and without_time(record) == expected[record.run_id]


def test_one_bit_of_the_optimizer_that_is_wrong_is_seen_in_the_end(
    made: Plan, corpus: Corpus, tmp_path: Path, finished
) -> None:
    """The test above would see it, were one bit of the state not what was saved."""
    _, records = finished
    one_arm = only(made, "tinybert")
    whole = {record.run_id: record.state_hash for record in records if record.arm == "tinybert"}
    for bit in (0, 1):
        store = Store(tmp_path / str(bit), "small")
        run(one_arm, corpus, store)
        trunk = next(record for record in store.records() if record.kind == "trunk")
        rung = next(record for record in store.records() if record.kind == "rung")
        shutil.rmtree(store.run_folder(rung.run_id))
        start = rung.schedule.steps - rung.schedule.cooldown_steps
        tensors, state = load_checkpoint(store.checkpoints(trunk.run_id) / f"step_{start:08d}")
        name = next(name for name in tensors if name.startswith("optimizer.exp_avg_sq."))
        bits = tensors[name].view(torch.int32).flatten()
        bits[0] ^= bit
        save_checkpoint(store.checkpoints(trunk.run_id), f"step_{start:08d}", tensors, state)
        again = next(r for r in run(one_arm, corpus, store) if r.run_id == rung.run_id)
        assert (again.state_hash == whole[rung.run_id]) == (bit == 0)


def test_a_loss_that_is_not_finite_ends_its_unit_alone(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step = TrainingStep.run

    def poisoned(self: TrainingStep, *args: object, **kwargs: object):
        terms = run_step(self, *args, **kwargs)  # type: ignore[arg-type]
        if self.arm == "minilm":
            terms["queries"] = terms["queries"] * float("nan")
        return terms

    monkeypatch.setattr(TrainingStep, "run", poisoned)
    small = made.model_copy(update={"ladder": "separate", "seeds": (0,), "schedules": made.schedules[:4]})
    status = {record.arm: record.status for record in run(small, corpus, Store(tmp_path, "small"))}
    assert status.pop("minilm") == "failed"
    assert status == dict.fromkeys(("teacher", "no_kd", "vanilla_kd", "tinybert"), "complete")
    record = next(r for r in Store(tmp_path, "small").records() if r.arm == "minilm")
    assert "arm minilm: not finite (" in record.message


def test_a_full_disk_is_one_line_and_loses_nothing(
    made: Plan, corpus: Corpus, tmp_path: Path, finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, records = finished
    small = made.model_copy(update={"seeds": (0,), "schedules": tuple(s for s in made.schedules if s.arm == "no_kd")})
    small = small.model_copy(update={"arms": {"no_kd": made.arms["no_kd"]}, "teachers": ()})
    store = Store(tmp_path, "small")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("budgetlab.runner.state.save_checkpoint", full)
        with pytest.raises(BudgetlabError, match=r"No space left on device.*nothing is lost") as caught:
            run(small, corpus, store)
        assert caught.value.exit_status == 1
    assert hashes(run(small, corpus, store)).items() <= hashes(records).items()


@pytest.fixture(scope="module")
def longer(study: Study) -> Plan:
    """Two arms with enough steps to be killed in the middle of one."""
    arms = {name: study.arms[name] for name in ("no_kd", "minilm")}
    return plan(
        study.model_copy(update={"arms": arms, "seeds": (0,)}), profile(study, count_only=True), budgets=(2e9, 6e9)
    )


def begin_run(forks: Forks, made: Plan, study: Study, store: Store, folder: Path) -> Command:
    """Begin `budgetlab run` of a plan: commands are compared with commands, not with this process of many tests."""
    store.write_plan(made)
    store.write_study(dump_study(study))
    return forks.begin("run", str(store.folder / "plan.json"), BUDGETLAB_DATA_ROOT=str(folder))


@pytest.fixture(scope="module")
def uninterrupted(longer: Plan, study: Study, corpus: Corpus, folder: Path, forks: Forks) -> dict[str, str | None]:
    store = Store(folder / "uninterrupted", "small")
    command = begin_run(forks, longer, study, store, folder)
    assert command.wait() == 0, command.errors
    return hashes(store.records())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_command_goes_on_from_its_checkpoint(
    number: int,
    workers: int,
    longer: Plan,
    study: Study,
    corpus: Corpus,
    folder: Path,
    uninterrupted: dict[str, str | None],
    forks: Forks,
) -> None:
    results = folder / f"killed-{number}-{workers}"
    store = Store(results, "small")
    execution = longer.execution.model_copy(update={"workers": workers})
    side_by_side = longer.model_copy(update={"execution": execution})
    process = begin_run(forks, side_by_side, study, store, folder)
    deadline = time.monotonic() + 120
    # Once a trunk has its first branch point, the process is in the middle of a unit.
    while not list(store.folder.glob("runs/no_kd-trunk-*/checkpoints/step_*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    statuses = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 75}
    assert process.wait() == statuses[number]
    said = {
        signal.SIGINT: "budgetlab: stopped; what was finished is kept",
        signal.SIGTERM: "budgetlab: SIGTERM: stopped",
    }
    if number in said:
        assert process.errors.strip().splitlines()[-1].startswith(said[number])
    assert sum(record.status == "complete" for record in store.records()) < len(uninterrupted)
    if number in said:  # what was reached is saved, not only what branches off
        trunks = [record for record in store.records() if record.kind == "trunk"]
        # On a slow machine the first trunk may have ended meanwhile, and the next one not have begun.
        under_way = [record for record in trunks if record.status == "running" and record.steps]
        assert under_way or any(record.status == "complete" for record in trunks)
        for trunk in under_way:
            there = {int(path.name[5:]) for path in store.checkpoints(trunk.run_id).glob("step_*")}
            assert trunk.steps in there and trunk.tokens == trunk.steps * 128
    # What workers left behind is gone on from by one process as well, which is faster.
    again = begin_run(forks, side_by_side if number == signal.SIGTERM else longer, study, store, folder)
    assert again.wait() == 0, again.errors
    assert hashes(store.records()) == uninterrupted


CONTROLS = """
[models.untrained]
num_layers = 4
hidden_size = 64
num_heads = 2
intermediate_size = 128
pretrain = { tokens = 0, seed = 3 }

[models.twin]
num_layers = 2
hidden_size = 32
num_heads = 2
intermediate_size = 64
pretrain = { tokens = 2048, seed = 0 }

[arms.untrained_teacher]
strategy = "minilm"
student = "student"
teacher = "untrained"

[arms.self_distillation]
strategy = "vanilla_kd"
student = "student"
teacher = "twin"

[arms.from_teacher]
strategy = "no_kd"
student = "student"
teacher = "twin"
recipe = { initialisation = { teacher_layers = [0, 1] } }
"""


def test_controls_of_what_the_teacher_knows(tmp_path: Path, corpus: Corpus) -> None:
    path = write_small_study(tmp_path, CONTROLS)
    study = load_study(path)
    names = ("no_kd", "untrained_teacher", "self_distillation", "from_teacher")
    study = study.model_copy(update={"arms": {name: study.arms[name] for name in names}, "seeds": (0,)})
    prices = profile(study, count_only=True)
    controls = plan(study, prices, budgets=(2e9,))
    store = Store(tmp_path, "controls")
    records = run(controls, corpus, store)
    assert {record.status for record in records} == {"complete"}
    untrained = next(record for record in records if record.arm == "untrained")
    assert (untrained.steps, untrained.tokens, untrained.required_flops) == (0, 0, 0)
    assert any("from_teacher: recipe.initialisation" in line for line in controls.audit)

    def first_loss(arm: str) -> float:
        trunk = next(record for record in records if record.arm == arm and record.kind == "trunk")
        return trunk.points[0].losses["mlm"]

    # It starts from what its teacher has learned, and owes the teacher's pretraining too.
    assert first_loss("from_teacher") < first_loss("no_kd") - 0.5
    charged = plan(study, prices, budgets=(2e9,), teacher_charge="pretraining")
    bills = {schedule.arm: schedule.teacher_charge for schedule in charged.schedules}
    assert bills["no_kd"] == bills["untrained_teacher"] == 0.0
    assert bills["from_teacher"] == bills["self_distillation"] > 0.0


def test_the_points_say_how_the_optimiser_fares(finished) -> None:
    _, records = finished
    for record in records:
        last = record.points[-1].signs
        assert 0.0 <= last["clipped_fraction"] <= 1.0 and last["gradient_norm"] > 0.0
        assert 0.0 <= last["below_eps_fraction"] <= 1.0
        shares = {name: value for name, value in last.items() if name.startswith("gradient_share.")}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert {f"gradient_share.{name}" for name in record.points[-1].losses if name != "loss"} == set(shares)


def test_a_budget_in_between_branches_off_where_the_trunk_went_past(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    alone = {"arms": {"no_kd": made.arms["no_kd"]}, "teachers": (), "seeds": (0,)}

    def of(*budgets: float) -> Plan:
        schedules = [plan_for(budget) for budget in budgets]
        found = tuple(s.model_copy(update={"rung": i}) for i, s in enumerate(schedules))
        return made.model_copy(update={**alone, "schedules": found})

    own = sorted((s for s in made.schedules if s.arm == "no_kd"), key=lambda schedule: schedule.rung)

    def plan_for(factor: float) -> Schedule:
        steps = round(own[0].steps * factor)
        cooldown = round(0.2 * steps)
        tokens = steps * own[0].tokens // own[0].steps
        return own[0].model_copy(update={"steps": steps, "cooldown_steps": cooldown, "tokens": tokens})

    store = Store(tmp_path / "grown", "small")
    before = {record.run_id: record for record in run(of(1.0, 3.0), corpus, store) if record.kind == "rung"}
    grown = run(of(1.0, 2.0, 3.0), corpus, store)
    # What was finished is the same run, under the number that its budget has now.
    after = {record.run_id: record for record in grown if record.run_id in before}
    assert [record.schedule.rung for record in after.values()] == [0, 2]
    for run_id, record in after.items():
        assert record.model_copy(update={"schedule": before[run_id].schedule}) == before[run_id]
    whole = run(of(1.0, 2.0, 3.0), corpus, Store(tmp_path / "whole", "small"))
    assert {record.status for record in grown} == {"complete"}
    assert {r.weights_hash for r in grown if r.kind == "rung"} == {r.weights_hash for r in whole if r.kind == "rung"}


def test_a_gradient_that_is_not_finite_fails_its_unit_alone(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step = TrainingStep.run

    def overflowing(self: TrainingStep, *args: object, **kwargs: object):
        terms = run_step(self, *args, **kwargs)  # type: ignore[arg-type]
        return {**terms, "gradient_norm": terms["gradient_norm"] * float("inf")}

    monkeypatch.setattr(TrainingStep, "run", overflowing)
    one = made.model_copy(update={"arms": {"no_kd": made.arms["no_kd"]}, "teachers": (), "seeds": (0,)})
    store = Store(tmp_path, "small")
    (trunk,) = run(one, corpus, store)
    assert trunk.status == "failed" and "gradient_norm" in trunk.message and "learning_rate" in trunk.message
    monkeypatch.undo()
    # A failed unit is left alone, with all that needs it.
    assert run(one, corpus, store) == [trunk]
