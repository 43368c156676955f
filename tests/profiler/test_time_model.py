"""The time model recovers what it is made of, and a prediction says that it is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import write_small_study

from budgetlab.cli import run_command
from budgetlab.errors import CallerError
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.profiler.time_model import fit_phase, positions, reshaped, shapes_for
from budgetlab.studies import load_study, profile_key
from budgetlab.values import CostProfile, ModelSpec


@given(
    st.floats(0, 0.1), st.floats(1e-7, 1e-4), st.floats(0, 1e-7), st.sampled_from([32, 64, 128]), st.integers(8, 512)
)
@settings(max_examples=50, deadline=None)
def test_a_phase_is_recovered_from_its_shapes(
    constant: float, per_token: float, per_pair: float, seq_len: int, sequences: int
) -> None:
    fitted, held = shapes_for(sequences, seq_len)
    assert len(fitted) <= 8
    assert all(count * length <= max(length, sequences * seq_len / 2) for count, length in fitted)

    def seconds(shape: tuple[int, int]) -> float:
        count, length = shape
        return constant + count * length * (per_token + per_pair * length)

    found = fit_phase(fitted, [seconds(shape) for shape in fitted])
    for shape in (*fitted, *held):
        assert found.seconds(shape[0] * shape[1], shape[1]) == pytest.approx(seconds(shape), rel=1e-4)


def test_a_launch_bound_phase_has_a_floor() -> None:
    fitted, held = shapes_for(512, 128)
    truth = [max(0.001, 1e-7 * count * length) for count, length in fitted]
    found = fit_phase(fitted, truth, launch_bound=True)
    assert found.floor_seconds == pytest.approx(0.001)
    for count, length in held:
        assert found.seconds(count * length, length) == pytest.approx(1e-7 * count * length, rel=0.02)
    assert fit_phase(fitted, truth).floor_seconds == 0.0


def test_a_phase_that_takes_no_time_costs_none() -> None:
    found = fit_phase([(1, 8), (2, 8)], [0.0, 0.0])
    assert found.seconds(10_000, 512) == 0.0


ARMS = ("no_kd", "vanilla_kd")


def spec(layers: int, width: int) -> ModelSpec:
    return ModelSpec(num_layers=layers, hidden_size=width, num_heads=2, intermediate_size=2 * width, vocab_size=300)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory):
    study = load_study(write_small_study(tmp_path_factory.mktemp("study"), arms=ARMS))
    return study, profile(study, depth="full", steps=6)


def test_a_full_profile_predicts_other_shapes_and_says_so(full) -> None:
    study, found = full
    for cost in (*found.arms, *found.teachers):
        assert cost.time_model.clock == "cpu" and len(cost.time_model.shapes) <= 8
        assert cost.time_model.held_out and all(h.measured_seconds > 0 for h in cost.time_model.held_out)
    other = reshaped(study, found, 16, 32)
    assert other.predicted_for.startswith("16 sequences of 32 a step") and other.timing is None
    longer = {cost.arm: cost for cost in other.arms}["no_kd"]
    counted = {c.arm: c for c in profile(_longer(study), count_only=True).arms}["no_kd"]
    assert longer.train_required_flops_per_token == counted.train_required_flops_per_token
    assert longer.batch_tokens == 512
    assert any("predicted, not measured" in line for line in plan(study, reshaped(study, found, 8, 16)).warnings)
    with pytest.raises(CallerError, match="no time models"):
        reshaped(study, profile(study, count_only=True), 16, 32)
    some = found.arms[1].model_copy(update={"time_model": None})
    with pytest.raises(CallerError, match="vanilla_kd has no time model: its batch is too small"):
        reshaped(study, found.model_copy(update={"arms": (found.arms[0], some, *found.arms[2:])}), 16, 32)


def test_a_profile_of_an_earlier_version_is_read(full) -> None:
    _, found = full
    earlier = json.loads(found.model_dump_json()) | {"calibration": {"rates": [], "launch_seconds": 1e-6}}
    earlier["arms"][0]["predicted_seconds_per_step"] = 0.5
    assert CostProfile.model_validate(earlier) == found


def _longer(study):
    arms = {
        name: arm.model_copy(update={"recipe": arm.recipe.model_copy(update={"seq_len": 32, "batch_tokens": 512})})
        for name, arm in study.arms.items()
    }
    recipe = study.recipe.model_copy(update={"seq_len": 32, "batch_tokens": 512})
    return study.model_copy(update={"arms": arms, "recipe": recipe})


def test_the_command_predicts_and_refuses(full, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = full
    path = write_small_study(tmp_path, arms=ARMS)
    key = profile_key(load_study(path))
    (tmp_path / "small").mkdir(exist_ok=True)
    (tmp_path / "small" / "profile.json").write_text(found.model_copy(update={"study_key": key}).model_dump_json())
    shape = ["profile", str(path), "--results", str(tmp_path), "--predict", "batch=4,seq=8"]
    assert run_command(shape) == 0
    assert "seconds are predicted, not measured: 4 sequences of 8" in capsys.readouterr().out
    assert run_command([*shape, "--count-only"]) == 2
    assert "profile --predict with --count-only" in capsys.readouterr().err
    for wrong, said in (
        ("batch=none", "not a whole number"), ("seq=9000", "from 8 to 8192"), ("width=3", "--predict width=3"),
    ):  # fmt: skip
        assert run_command([*shape[:-1], wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_poorer_profile_does_not_replace_a_fuller_one(
    full, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = full
    path, kept = write_small_study(tmp_path, arms=ARMS), tmp_path / "small" / "profile.json"
    count = ["profile", str(path), "--results", str(tmp_path), "--count-only", "--json"]
    assert run_command(count) == 0
    key = json.loads(capsys.readouterr().out)["study_key"]
    kept.write_text(found.model_copy(update={"study_key": key}).model_dump_json())
    assert run_command(count) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["timing"] is None and "fuller profile in the results folder is kept" in err
    assert json.loads(kept.read_text())["arms"][0]["time_model"] is not None
    (tmp_path / "t.csv").write_text("arm,tokens_per_second\nno_kd,1\nvanilla_kd,1\n")
    assert run_command([*count[:4], "--throughput", str(tmp_path / "t.csv"), "--json"]) == 0
    assert json.loads(kept.read_text())["arms"][0]["time_model"] is not None
    kept.write_text("{}")  # of another version, say: what was just made is not lost for it
    assert run_command(count) == 0
    assert json.loads(kept.read_text())["study_key"] == key


def test_networks_with_few_positions_are_not_asked_for_more() -> None:
    assert max(length for shapes in shapes_for(64, 32, longest=32) for _, length in shapes) == 32
    few = spec(2, 16).model_copy(update={"config": {"max_position_embeddings": 40}})
    assert positions(few, spec(4, 32), 32) == 40 and positions(spec(2, 16), None, 32) == 512


def test_a_throughput_in_json_stands_in_for_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_small_study(tmp_path)
    rows = [{"arm": arm, "tokens_per_second": 1000.0} for arm in ("no_kd", "vanilla_kd", "minilm", "tinybert")]
    (tmp_path / "there.json").write_text(json.dumps(rows))
    asked = ["profile", str(path), "--results", str(tmp_path), "--throughput", str(tmp_path / "there.json"), "--json"]
    assert run_command(asked) == 0
    assert json.loads(capsys.readouterr().out)["arms"][0]["tokens_per_second"] == 1000.0
    assert run_command(asked[:-1]) == 0
    shown = capsys.readouterr().out
    assert "measured elsewhere: there.json" in shown and "measured on this device" not in shown
    for wrong in ("1e999", '"fast"', "0"):
        (tmp_path / "there.json").write_text(json.dumps(rows).replace("1000.0", wrong))
        assert run_command(asked) == 2
        assert "no number above zero for no_kd" in capsys.readouterr().err
    (tmp_path / "there.json").write_text('{"arm"')
    assert run_command(asked) == 2
    assert "no list of objects" in capsys.readouterr().err


WITHOUT_MEMORY = """
import contextlib, io, resource, sys
from budgetlab.cli import run_command
study, further, out = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):  # what it loads is not what is limited
    run_command(["profile", study, "--count-only", "--json", "--results", out])
status = open("/proc/self/status").read()
now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + int(further), now + int(further)))
sys.exit(run_command(["profile", study, "--quick", "--json", "--results", out]))
"""


def with_so_much_memory(path: Path, further_bytes: int, out: Path) -> subprocess.CompletedProcess[str]:
    # The limit is on addresses: freed blocks must give theirs back too.
    settings = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_MEMORY, str(path), str(further_bytes), str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=settings)


def test_a_sequence_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_small_study(tmp_path, arms=ARMS)
    path.write_text(path.read_text().replace("seq_len = 16", "seq_len = 2048").replace("= 128\n", "= 8192\n", 1))
    done = with_so_much_memory(path, 10_000_000, tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "with one sequence of 2048: the device is out of memory" in last and "Traceback" not in done.stderr


@pytest.mark.stress
def test_a_batch_that_does_not_fit_is_split_until_it_does(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    # 1,024 sequences, which together take more than is allowed.
    text = path.read_text().replace("batch_tokens = 128", "batch_tokens = 65536")
    path.write_text(text.replace("seq_len = 16", "seq_len = 64").replace('"1.5e9", "3e9"', '"1e13", "2e13"'))
    done = with_so_much_memory(path, 400_000_000, tmp_path)
    assert done.returncode == 0, done.stderr
    found = CostProfile.model_validate_json(done.stdout)
    assert found.micro_batch_sequences is not None and found.micro_batch_sequences < 1024
    assert all(1 <= cost.largest_micro_batch_sequences <= 1024 for cost in found.arms)
    assert plan(load_study(path), found).execution.micro_batch_sequences == found.micro_batch_sequences
