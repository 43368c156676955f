"""Precision: what the device has instructions for is probed; what is slow or emulated is dropped, or said."""

from pathlib import Path

import pytest
import torch
from small import write_small_study
from torch.utils.flop_counter import FlopCounterMode

from budgetlab.cli import run_command
from budgetlab.hardware import emulated_bfloat16, has_bfloat16
from budgetlab.hardware.meters import StepTime
from budgetlab.profiler import profile
from budgetlab.profiler.arms import choices_of, jobs_of
from budgetlab.profiler.clock import Effort, Rounds, time_steps
from budgetlab.profiler.count import FURTHER
from budgetlab.studies import Study, load_study

CPU = torch.device("cpu")


def open_study(folder: Path) -> Study:
    """The small study with its precision and attention left open."""
    path = write_small_study(folder)
    path.write_text(path.read_text().replace('dtype = "float32"\nattention = "sdpa"\n', ""))
    return load_study(path)


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.usefixtures("without_bfloat16")
def test_bfloat16_is_not_probed_where_it_is_emulated(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert has_bfloat16(CPU) is False
    assert choices_of(study, CPU) == [("float32", "sdpa"), ("float32", "eager")]


@pytest.mark.usefixtures("with_bfloat16")
def test_bfloat16_is_probed_where_the_processor_has_it(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert has_bfloat16(CPU) is True
    assert {dtype for dtype, _ in choices_of(study, CPU)} == {"float32", "bfloat16"}
    assert emulated_bfloat16({"bfloat16"}, CPU) is None


@pytest.mark.parametrize(
    ("cap", "has_it"),
    [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("AVX512_CORE_AMX", True), ("DEFAULT", True)],
)
@pytest.mark.usefixtures("with_bfloat16")
def test_what_onednn_may_use_counts(monkeypatch: pytest.MonkeyPatch, cap: str, has_it: bool) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert has_bfloat16(CPU) is has_it


@pytest.mark.usefixtures("without_bfloat16")
def test_a_study_that_asks_for_emulated_bfloat16_is_warned_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_small_study(tmp_path, arms=("no_kd",))
    path.write_text(path.read_text().replace('dtype = "float32"', 'dtype = "bfloat16"'))
    assert run_command(["profile", str(path), "--quick", "--results", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().err
    assert said.index("warning   bfloat16 is emulated") < said.index("profile ")
    found = profile(load_study(path), depth="quick")
    assert found.timing is not None and any("bfloat16 is emulated" in line for line in found.timing.warnings)


def test_what_is_twice_as_slow_after_one_step_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = open_study(tmp_path)
    counted: dict[str, int] = {}

    def timed(jobs: list, device: object, effort: Effort, say: object, micro: object) -> Rounds:
        dtype, attention = jobs[0].recipe.dtype, jobs[0].recipe.attention
        seconds = {"float32": 1.0, "bfloat16": 9.0}[dtype]
        rounds = 1 if seconds * len(jobs) > effort.give_up_seconds else effort.rounds
        counted[f"{dtype} {attention}"] = rounds
        step = StepTime({"backward": seconds}, {"backward": seconds})
        return Rounds({job.name: [step] * rounds for job in jobs}, {job.name: step for job in jobs})

    monkeypatch.setattr("budgetlab.profiler.time_steps", timed)
    monkeypatch.setattr("budgetlab.profiler.arms.has_bfloat16", lambda device: None)  # it cannot be told
    found = profile(study, depth="quick")
    assert {cost.dtype for cost in found.arms} == {"float32"}
    assert counted["bfloat16 sdpa"] == counted["bfloat16 eager"] == 1 < counted["float32 eager"]


def test_giving_up_leaves_one_counted_step_of_each_arm(tmp_path: Path) -> None:
    study = load_study(write_small_study(tmp_path))
    jobs = [job.settled("float32", "sdpa") for job in jobs_of(study)[:2]]
    for limit, rounds in ((0.0, 1), (1e9, 3)):
        found = time_steps(jobs, CPU, Effort(3, 0.0, give_up_seconds=limit), lambda text: None, None)
        assert {len(steps) for steps in found.steps.values()} == {rounds}


def test_products_with_a_type_of_their_own_are_counted() -> None:
    one, other = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((2, 3, 4), (2, 4, 5)))
    with FlopCounterMode(display=False, custom_mapping=FURTHER) as counter:
        assert torch.bmm(one, other, out_dtype=torch.float32).dtype == torch.float32
    assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 5
