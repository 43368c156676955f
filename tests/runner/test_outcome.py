"""What a run leaves: a ledger, plain transformers folders, points for trackers; and what it refuses beforehand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import write_small_study

from budgetlab.batches import Batches, MaskedBatch
from budgetlab.checkpoint import load_checkpoint
from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.hardware import EnergyCounter
from budgetlab.modelcard import model_card
from budgetlab.models import build_network, export_model, load_parameters
from budgetlab.runner import run
from budgetlab.store import Store
from budgetlab.studies import Study, load_study
from budgetlab.values import Plan, Score, content_hash


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    found = load_study(write_small_study(folder))
    return found.model_copy(update={"seeds": (0,)})


def only(made: Plan, *arms: str, **execution: object) -> Plan:
    """Return the plan of some of its arms at the smallest budget, separately."""
    return made.model_copy(
        update={
            "arms": {name: made.arms[name] for name in arms},
            "teachers": made.teachers if any(made.arms[name].teacher for name in arms) else (),
            "schedules": tuple(s for s in made.schedules if s.arm in arms and s.rung == 0),
            "ladder": "separate",
            "execution": made.execution.model_copy(update=execution),
        }
    )


def test_the_ledger_adds_up(made: Plan, finished, corpus: Corpus) -> None:
    _, records = finished
    for record in records:
        assert list(record.phases) == ["teacher_forward", "student_forward", "loss", "backward", "update"]
        for name in ("required_flops", "executed_flops", "device_seconds"):
            assert sum(getattr(p, name) for p in record.phases.values()) == pytest.approx(getattr(record, name))
        assert record.executed_flops >= record.required_flops > 0
        taught = made.arms[record.arm].teacher is not None if record.arm in made.arms else False
        assert (record.phases["teacher_forward"].required_flops > 0) == taught
        assert all(phase.device_seconds > 0 for phase in record.phases.values())
        assert set(record.overhead_seconds) == {"start", "compile", "data_wait", "evaluation", "checkpoint"}
        assert record.overhead_seconds["start"] > 0 and record.overhead_seconds["data_wait"] > 0
        assert record.overhead_seconds["checkpoint"] > 0 and record.overhead_seconds["compile"] == 0
        one_pass = len(corpus.train) // 14 * 16
        assert record.unique_tokens == min(record.tokens, one_pass)
        assert record.joules is None  # nobody asked this machine's counter, or it has none


def test_tokens_that_are_read_again_are_not_unique(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    spec = made.corpus.model_copy(update={"unique_tokens": 1000})
    limited = only(made, "no_kd").model_copy(update={"corpus": spec})
    (record,) = run(limited, corpus, Store(tmp_path, "small"))
    assert record.unique_tokens == 992 < record.tokens  # 62 samples of 16


def test_joules_are_shared_out_by_time(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter(range(10**6))
    counter = EnergyCounter(lambda: 2.0 * next(reads), "made up", 1.0)
    monkeypatch.setattr("budgetlab.runner.state.find_energy_counter", lambda device: counter)
    (record,) = run(only(made, "no_kd"), corpus, Store(tmp_path, "small"))
    assert record.joules is not None and record.joules > 0 and (record.overhead_joules or 0) > 0
    for phase in record.phases.values():
        assert phase.joules is not None
    assert sum(phase.joules or 0 for phase in record.phases.values()) == pytest.approx(record.joules)
    (shared,) = run(only(made, "no_kd", workers=2), corpus, Store(tmp_path / "shared", "small"))
    assert shared.joules is None  # two units on one device cannot tell whose they are


@pytest.mark.parametrize("steps", [1, 7, 36])
def test_all_arms_see_the_same_masked_samples_in_the_same_order(
    steps: int, made: Plan, corpus: Corpus, tmp_path: Path
) -> None:
    few = only(made, "no_kd", "minilm", "tinybert", "vanilla_kd")
    lengths = {"steps": steps, "warmup_steps": 0, "cooldown_steps": steps // 5}
    schedules = tuple(schedule.model_copy(update=lengths) for schedule in few.schedules)
    records = run(few.model_copy(update={"schedules": schedules}), corpus, Store(tmp_path, "small"))
    found = {record.arm: record.samples_digest for record in records if record.kind == "rung"}
    batches = Batches(corpus.train, corpus.special, corpus.vocab_size, seq_len=16, masked_per_sequence=2, run_seed=0)
    seen = [batches.step(step, 8) for step in range(steps)]
    assert set(found.values()) == {f"{sum(b.digest(i) for i, b in enumerate(seen)) % 2**64:016x}"}
    assert len(found) == 4 and all(isinstance(batch, MaskedBatch) for batch in seen)


LOAD = """
import json, sys
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
model, info = AutoModelForMaskedLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("the red [MASK] stands near the tree.", return_tensors="pt")
label = pipeline("text-classification", model=sys.argv[1])("the red house stands")[0]["label"]
words = pipeline("fill-mask", model=sys.argv[1])("the red [MASK] stands near the tree.")
print(json.dumps({"logits": model(**ids).logits[0, 3, :8].tolist(), "ids": ids["input_ids"][0].tolist(),
                  "longest": tokenizer.model_max_length,
                  "wrong": [str(v) for v in info.values() if v], "label": label, "words": len(words)}))
"""


def test_a_checkpoint_is_a_plain_transformers_folder(made: Plan, finished, corpus: Corpus) -> None:
    store, records = finished
    record = next(r for r in records if r.arm == "no_kd" and r.kind == "rung")
    folder = store.model_folder(record.run_id)
    names = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    network = build_network(made.models["student"], seq_len=16)
    load_parameters(network, load_checkpoint(store.checkpoints(record.run_id) / f"step_{record.steps:08d}")[0])
    logits = network.eval().model(torch.tensor([found["ids"]])).logits[0, 3, :8]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits.detach(), rtol=1e-5, atol=1e-5)
    assert found["longest"] == made.arms["no_kd"].recipe.seq_len == 16
    assert found["wrong"] == [] and found["label"].startswith("LABEL_") and found["words"] == 5
    kinds = {r.kind for r in records if store.model_folder(r.run_id).is_dir()}
    assert kinds == {"rung", "teacher"}


def test_the_model_card_says_what_it_is(made: Plan, finished) -> None:
    store, records = finished
    record = next(r for r in records if r.arm == "minilm" and r.kind == "rung")
    card = (store.model_folder(record.run_id) / "README.md").read_text()
    assert card == model_card(made, record)
    for part in ("head was not trained", "| strategy | minilm |", f"{record.tokens:,} positions", "learning_rate",
                 f"{record.required_flops:.6g}", "device time", "Not measured", str(record.weights_hash)):  # fmt: skip
        assert part in card
    score = Score(
        run_id=record.run_id, arm="minilm", task="colour", metric="accuracy", value=0.75, higher_is_better=True,
        num_examples=32, recipe_hash="x", finetune_seed=1,
    )  # fmt: skip
    other = score.model_copy(update={"run_id": "another", "value": 0.123})
    scored = model_card(made, record, [score, other])
    assert "| colour | accuracy | 1 | 0.7500 | 32 |" in scored and "0.123" not in scored
    own = next(r for r in records if r.arm == "no_kd" and r.kind == "rung")
    assert "was not trained" not in model_card(made, own)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert", "megatron-bert"])
def test_every_family_is_its_own_teacher_again(family: str, corpus: Corpus, tmp_path: Path, study: Study) -> None:
    spec = study.models["student"].model_copy(update={"family": family})
    network = build_network(spec, seed=3).eval()
    export_model(network, corpus.tokenizer(), "# card\n", tmp_path / "model", seq_len=16)
    again = build_network(spec.model_copy(update={"weights": str(tmp_path / "model")})).eval()
    ids = torch.arange(5, 29).reshape(2, 12)
    torch.testing.assert_close(again.model(input_ids=ids).logits, network.model(input_ids=ids).logits, rtol=0, atol=0)


def with_weights(made: Plan, weights: str) -> Plan:
    spec = made.models["teacher"].model_copy(update={"weights": weights, "pretrain": None})
    teachers = tuple(t.model_copy(update={"weights": weights, "steps": 0, "tokens": 0}) for t in made.teachers)
    return made.model_copy(update={"models": {**made.models, "teacher": spec}, "teachers": teachers})


@pytest.mark.parametrize(
    "change", ["whole", "missing", "unexpected", "other shape", "other head", "no pickle", "auto_map"]
)
def test_a_given_teacher_must_fit_before_anything_is_trained(
    change: str, made: Plan, finished, corpus: Corpus, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    store, records = finished
    teacher = next(r for r in records if r.kind == "teacher")
    folder = shutil.copytree(store.model_folder(teacher.run_id), tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["bert.encoder.layer.1.adapter.weight"] = torch.ones(3)
    elif change == "other shape":
        weights[name] = torch.ones(3, 3)
    elif change == "other head":  # as in published BERT checkpoints
        weights["cls.seq_relationship.weight"] = torch.ones(2, 64)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if change == "no pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle either")
    elif change == "auto_map":  # a stranger's code is neither run nor asked about
        config = json.loads((folder / "config.json").read_text())
        mapped = {"AutoConfig": "theirs.C", "AutoModelForMaskedLM": "theirs.M"}
        (folder / "config.json").write_text(json.dumps(config | {"auto_map": mapped}))
        (folder / "theirs.py").write_text("raise SystemExit('run')")
    asked = only(with_weights(made, str(folder)), "no_kd", "minilm")
    own = Store(tmp_path / "results", "small")
    if change in ("whole", "other head", "auto_map"):
        assert {record.status for record in run(asked, corpus, own)} == {"complete"}
        return
    says = {
        "missing": "weights are missing",
        "unexpected": "masked language model lacks",
        "other shape": "loaded|shape",
        "no pickle": "cannot be loaded",
    }
    with pytest.raises(CallerError, match=says[change]):
        run(asked, corpus, own)
    assert not own.records()


def given_folder(finished, folder: Path, shift: float = 0.0) -> Path:
    """The trained teacher as given weights, every one of them moved."""
    from safetensors.torch import load_file, save_file

    store, records = finished
    teacher = next(r for r in records if r.kind == "teacher")
    shutil.copytree(store.model_folder(teacher.run_id), folder, dirs_exist_ok=True)
    weights = {name: value + shift for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_other_weights_in_the_same_folder_are_another_teacher(
    made: Plan, finished, corpus: Corpus, tmp_path: Path
) -> None:
    folder = given_folder(finished, tmp_path / "teacher")
    asked, own = only(with_weights(made, str(folder)), "no_kd", "minilm"), Store(tmp_path / "results", "small")
    before = run(asked, corpus, own)
    given_folder(finished, folder, 0.01)
    after = run(asked, corpus, own)
    of_arm = {arm: [{r.run_id for r in found if r.arm == arm} for found in (before, after)] for arm in asked.arms}
    assert of_arm["no_kd"][0] == of_arm["no_kd"][1]
    assert of_arm["minilm"][0].isdisjoint(of_arm["minilm"][1])
    hashes = [{r.teacher_hash for r in found if r.arm == "minilm"} for found in (before, after)]
    assert [len(found) for found in hashes] == [1, 1] and hashes[0] != hashes[1]


def test_runs_keyed_by_the_path_of_their_teacher_count_while_it_is_the_same(
    made: Plan, finished, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budgetlab.runner import units

    folder = given_folder(finished, tmp_path / "teacher")
    asked, own = only(with_weights(made, str(folder)), "minilm"), Store(tmp_path / "results", "small")
    with monkeypatch.context() as earlier:
        earlier.setattr(units, "given_key", lambda spec: content_hash("weights", spec.identity()))
        before = run(asked, corpus, own)
    assert run(asked, corpus, own) == before
    given_folder(finished, folder, 0.01)
    assert {r.run_id for r in run(asked, corpus, own)}.isdisjoint(r.run_id for r in before)


def test_a_student_with_given_weights_starts_from_them(made: Plan, finished, corpus: Corpus, tmp_path: Path) -> None:
    folder = given_folder(finished, tmp_path / "teacher")
    spec = made.models["teacher"].model_copy(update={"weights": str(folder), "pretrain": None})
    asked = only(made, "no_kd").model_copy(update={"models": {**made.models, "student": spec}, "seeds": (0,)})
    start = only(made, "no_kd").model_copy(
        update={"models": {**made.models, "student": spec.untrained()}, "seeds": (0,)}
    )
    losses = {}
    for name, plan in (("given", asked), ("random", start)):
        first = run(plan, corpus, Store(tmp_path / name, "small"))[0]
        losses[name] = first.points[0].losses["loss"]
    assert losses["given"] < losses["random"] - 0.5
    again = {r.key for r in run(asked, corpus, Store(tmp_path / "given", "small")) if r.kind == "rung"}
    given_folder(finished, folder, 0.01)
    assert again.isdisjoint(r.key for r in run(asked, corpus, Store(tmp_path / "given", "small")))


TRACKER = """
class Tracker:
    def __init__(self, folder):
        self.file = folder / "tracked.txt"
    def start(self, config):
        self.file.write_text(f"start {config['arm']} {config['learning_rate']}\\n")
    def log(self, step, values):
        with self.file.open("a") as file:
            file.write(f"log {step} {values['loss']} {values['tokens']}\\n")
    def finish(self, status):
        with self.file.open("a") as file:
            file.write(f"finish {status}\\n")
"""


def test_trackers_are_told_in_three_calls(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TRACKER)
    (tmp_path / "bad.py").write_text(TRACKER.replace("with self.file", "1 / 0\n        with self.file", 1))
    trackers = ("tensorboard", str(tmp_path / "mine.py"), str(tmp_path / "bad.py"))
    said: list[str] = []
    store = Store(tmp_path, "small")
    (record,) = run(only(made, "no_kd", trackers=trackers), corpus, store, say=said.append)
    (whole,) = run(only(made, "no_kd"), corpus, Store(tmp_path / "without", "small"))
    assert record.state_hash == whole.state_hash
    warnings = [line for line in said if "tracker" in line]
    assert warnings == [
        f"tracker {trackers[2]} failed (ZeroDivisionError: division by zero); the run goes on without it"
    ]
    lines = (store.run_folder(record.run_id) / "tracked.txt").read_text().splitlines()
    assert lines[0] == "start no_kd 0.002" and lines[-1] == "finish complete"
    assert lines[1:-1] == [f"log {p.step} {p.losses['loss']} {p.tokens}" for p in record.points]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(store.run_folder(record.run_id) / "tensorboard"))
    events.Reload()
    assert {"loss", "mlm", "learning_rate", "tokens", "required_flops"} <= set(events.Tags()["scalars"])
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(p.step, pytest.approx(p.losses["loss"])) for p in record.points]


@pytest.mark.parametrize(
    ("name", "says"),
    [("wandbb", "no such tracker"), ("missing.py", "no such tracker"), ("broken.py", "cannot be loaded .*NameError")],
)
def test_a_tracker_that_is_not_there_is_refused(
    name: str, says: str, made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("oh no")
    with pytest.raises(CallerError, match=says.replace("NameError", "(NameError|SyntaxError)")):
        run(only(made, "no_kd", trackers=(name,)), corpus, Store(tmp_path, "small"))


def test_a_changed_corpus_is_refused(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    other = only(made, "no_kd").model_copy(update={"corpus_hash": "0123456789abcdef"})
    with pytest.raises(CallerError, match=r"plan for corpus 0123456789abcdef: the text is now corpus .*; plan again"):
        run(other, corpus, Store(tmp_path, "small"))
    same = other.model_copy(update={"corpus_hash": corpus.content_hash})
    assert run(same, corpus, Store(tmp_path, "small"))[0].status == "complete"


def test_a_checkpoint_of_another_run_is_refused(made: Plan, corpus: Corpus, tmp_path: Path, finished) -> None:
    done, records = finished
    trunk = next(r for r in records if r.arm == "minilm" and r.kind == "trunk")
    few = only(made, "no_kd")
    store = Store(tmp_path, "small")
    (record,) = run(few, corpus, store)
    shutil.rmtree(store.run_folder(record.run_id))
    shutil.copytree(done.checkpoints(trunk.run_id), store.checkpoints(record.run_id))
    with pytest.raises(CallerError, match=r"checkpoint .*: it is of another run; delete its folder"):
        run(few, corpus, store)


def test_a_disk_without_room_is_refused_before_anything_is_trained(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    store = Store(tmp_path, "small")
    few = only(made, "no_kd")
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(CallerError, match=r"checkpoints take about .* MB more, 200 kB are free; free some room"):
            run(few, corpus, store, say=said.append)
    assert not store.records() and not said
    run(few, corpus, store, say=said.append)
    assert said[0].startswith("checkpoints will take about ") and "at most" in said[0]


def test_the_room_that_is_stated_is_enough(made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch) -> None:
    from budgetlab.runner.preflight import bytes_needed
    from budgetlab.runner.units import plan_units

    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_SHARE", float("inf"))
    store, most = Store(tmp_path, "small"), 0
    step = Batches.step

    def measured(self: Batches, *args: int) -> MaskedBatch:
        nonlocal most
        sizes = (path.stat().st_size for path in store.folder.glob("runs/*/*/**/*") if path.is_file())
        most = max(most, sum(sizes))
        return step(self, *args)

    monkeypatch.setattr(Batches, "step", measured)
    few = made.model_copy(update={"arms": {"tinybert": made.arms["tinybert"]}})
    few = few.model_copy(update={"schedules": tuple(s for s in made.schedules if s.arm == "tinybert")})
    run(few, corpus, store)
    stated = bytes_needed(plan_units(few, corpus), few.execution.keep_checkpoints, 1)
    # Small files and the names in safetensors' headers count at this size, and TinyBERT's projections.
    assert 0.3 * stated < most < 1.5 * stated


def test_old_checkpoints_go_and_branch_points_stay(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr("budgetlab.runner.training.CHECKPOINT_SHARE", float("inf"))
    one = {"arms": {"no_kd": made.arms["no_kd"]}, "teachers": ()}
    one["schedules"] = tuple(s for s in made.schedules if s.arm == "no_kd")
    branches = {s.steps - s.cooldown_steps for s in one["schedules"]}
    for keep in (1, 3):
        store, counts = Store(tmp_path / str(keep), "small"), dict[int, int]()
        step = Batches.step

        def watched(self: Batches, at: int, *args: int, store=store, counts=counts, step=step) -> MaskedBatch:
            for folder in store.folder.glob("runs/no_kd-trunk-*/checkpoints"):
                there = {int(path.name.removeprefix("step_")) for path in folder.glob("step_*")}
                if max(branches) in there:
                    continue  # it has ended, and keeps what others need
                saved = len([step for step in range(1, max(there, default=0) + 1) if step not in branches])
                counts[saved] = max(counts.get(saved, 0), len(there - branches))
            return step(self, at, *args)

        with monkeypatch.context() as patch:
            patch.setattr(Batches, "step", watched)
            execution = made.execution.model_copy(update={"keep_checkpoints": keep})
            records = run(made.model_copy(update={**one, "execution": execution}), corpus, store)
        # Of so many saved, these are there while the next step is prepared (one more while one is being written).
        assert {saved: count for saved, count in counts.items() if count not in (min(saved, keep), keep + 1)} == {}
        assert max(counts) > 50
        trunk = next(record for record in records if record.kind == "trunk")
        kept = {int(path.name.removeprefix("step_")) for path in store.checkpoints(trunk.run_id).glob("step_*")}
        assert kept == branches


def test_a_pace_that_was_not_planned_is_said(made: Plan, corpus: Corpus, tmp_path: Path) -> None:
    cost = made.costs["no_kd"].model_copy(update={"seconds_per_step": 1e-6})
    said: list[str] = []
    few = only(made, "no_kd").model_copy(update={"costs": {**made.costs, "no_kd": cost}, "device_name": "a Cray-1"})
    run(few, corpus, Store(tmp_path, "small"), say=said.append)
    (line,) = [line for line in said if line.startswith("no_kd")]
    assert "0.001 ms were planned on a Cray-1" in line and "seen in 23 steps" in line


def test_a_run_that_diverges_ends_with_its_reason(
    made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budgetlab.step import TrainingStep

    step = TrainingStep.run

    def rising(self: TrainingStep, *args: object, **kwargs: object):
        terms = step(self, *args, **kwargs)  # type: ignore[arg-type]
        self.taken = getattr(self, "taken", 0) + 1
        return {name: term * 20 if name == "mlm" and self.taken > 50 else term for name, term in terms.items()}

    monkeypatch.setattr(TrainingStep, "run", rising)
    (record,) = run(only(made, "no_kd"), corpus, Store(tmp_path, "small"))
    assert record.status == "failed" and "diverged (loss" in record.message
    assert "which began at" in record.message and "lower recipe.learning_rate" in record.message


class _Told:
    """Notes every call, as a package of a tracker would get it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str):
        def call(*given, **more):
            self.calls.append((name, given, more))
            return None if name == "get_experiment_by_name" else self

        return call

    info = property(lambda self: self)
    run_id = "there"


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_trackers_of_others_get_every_point(
    name: str, made: Plan, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = _Told()
    monkeypatch.setitem(sys.modules, name, told)
    said: list[str] = []
    (record,) = run(only(made, "no_kd", trackers=(name,)), corpus, Store(tmp_path, "small"), say=said.append)
    assert [line for line in said if "tracker" in line] == []
    names = [call for call, _, _ in told.calls]
    if name == "mlflow":
        logged = [
            (more["step"], given[2]) for call, given, more in told.calls if call == "log_metric" and given[1] == "loss"
        ]
        assert told.calls[-1] == ("set_terminated", ("there", "FINISHED"), {})
    else:
        started = told.calls[0][2]
        assert (started["project"], started["name"]) == ("small", record.run_id) and names[-1] == "finish"
        logged = [(more["step"], given[0]["loss"]) for call, given, more in told.calls if call == "log"]
    assert logged == [(point.step, point.losses["loss"]) for point in record.points]
