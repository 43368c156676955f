"""Peaks by name, energy from a counter that wraps, memory of a piece of work, the largest that fits."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.errors import CallerError
from budgetlab.hardware import environment, find_energy_counter, find_peak, is_out_of_memory, pick_device, prepare
from budgetlab.hardware.meters import PhaseMeter, largest_that_fits, peak_memory, waited_seconds
from budgetlab.hardware.peaks import PEAKS
from budgetlab.values import ExecutionSpec

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("torch_says", "tflops"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA B200", 2250),
    ],
)
def test_a_known_device_has_its_own_peak(torch_says: str, tflops: float) -> None:
    peak = find_peak(torch_says)
    assert peak is not None and peak.source
    assert peak.flops_per_second("bfloat16") == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H20",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L400",
        "AMD EPYC",
        "NVIDIA A10G",
        "GB300",
    ],
)
def test_an_unknown_device_has_none(name: str) -> None:
    assert find_peak(name) is None


def test_every_peak_has_a_source_and_volta_has_no_bfloat16() -> None:
    assert all(peak.source and peak.float32_flops_per_second < 2e14 for peak in PEAKS)
    assert len({peak.name for peak in PEAKS}) == len(PEAKS)
    volta = find_peak("Tesla V100-SXM2-16GB")
    assert volta is not None and volta.flops_per_second("bfloat16") is None
    assert volta.flops_per_second("float32", tf32=True) is None
    ampere = find_peak("NVIDIA A100-SXM4-80GB")
    assert ampere is not None and ampere.flops_per_second("float32", tf32=True) == 156e12


def test_how_a_gpu_multiplies_is_set_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    asked = ExecutionSpec(device="cuda", threads=torch.get_num_threads(), tf32=True, deterministic=True)
    try:
        prepare(asked)
        assert torch.get_float32_matmul_precision() == "high" and torch.are_deterministic_algorithms_enabled()
        found = environment(asked)
        assert (found.tf32, found.deterministic, found.bfloat16_sums) == (True, True, True)
    finally:
        prepare(asked.model_copy(update={"tf32": False, "deterministic": False}))
    assert torch.get_float32_matmul_precision() == "highest" and not torch.are_deterministic_algorithms_enabled()
    assert "tf32" not in environment(ExecutionSpec(device="cpu")).model_dump()


def package(folder: Path, number: int, microjoules: int, name: str = "package", most: int = 10_000_000) -> Path:
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}-{number}\n")
    (path / "energy_uj").write_text(str(microjoules))
    (path / "max_energy_range_uj").write_text(str(most))
    return path


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    one, other = package(tmp_path, 0, 9_000_000), package(tmp_path, 1, 1_000_000)
    package(tmp_path / "intel-rapl:0", 0, 5)  # a domain within a package is not counted twice
    package(tmp_path, 2, 7_000_000, name="psys")  # the platform, which holds the packages
    counter = find_energy_counter(CPU, tmp_path)
    assert counter is not None and "RAPL" in counter.source
    before = counter.joules()
    (one / "energy_uj").write_text("999999")  # past the range of 10 J: 2 J more
    (other / "energy_uj").write_text("1500000")
    assert counter.joules() - before == pytest.approx(2.5)


def test_without_a_readable_counter_there_is_none(tmp_path: Path) -> None:
    assert find_energy_counter(CPU, tmp_path) is None
    (package(tmp_path, 0, 1) / "energy_uj").write_text("not a number")
    assert find_energy_counter(CPU, tmp_path) is None


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    size = 50_000_000

    def work() -> None:
        torch.ones(size, dtype=torch.uint8)

    found = peak_memory(work, CPU)
    assert found is not None and 0.95 * size < found.peak_memory_bytes < 1.5 * size
    again = peak_memory(lambda: None, CPU)
    assert again is not None and again.peak_memory_bytes < size / 10


@given(st.integers(0, 5000), st.integers(1, 5000))
def test_the_largest_that_fits_fits_and_is_near_the_limit(limit: int, most: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    found = largest_that_fits(fits, most)
    assert found <= min(limit, most) and (found == 0 or found in tried)
    if limit >= most:
        assert found == most and len(tried) == 1
    elif limit >= 1:
        assert found >= 1 and limit - found <= max(1, found // 4)


def test_what_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_phases_of_a_step_add_up_and_come_again() -> None:
    def step(on_phase) -> None:
        for _ in range(2):
            torch.ones(1000).sum()
            on_phase("forward")
        on_phase("update")

    timed = PhaseMeter(CPU).time(step)
    assert list(timed.device) == ["forward", "update"] == list(timed.cpu)
    assert timed.seconds == sum(timed.device.values()) > 0 and timed.cpu_seconds >= 0


def test_waiting_for_a_core_is_a_running_sum() -> None:
    before, after = waited_seconds(), waited_seconds()
    if before is None or after is None:
        pytest.skip("this system does not say how long threads wait")
    assert after[0] >= before[0] and after[1] >= before[1]


def test_a_gpu_without_a_number_is_left_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.device(device)))
    threads = torch.get_num_threads()
    for asked in ("auto", "cuda", "cuda:1"):
        prepare(ExecutionSpec(device=asked, threads=threads))
    assert chosen == [torch.device("cuda:1")]  # torch refuses a device without a number there
    with pytest.raises(CallerError, match="there are 2 GPUs here"):
        pick_device(ExecutionSpec(device="cuda:9"))


def test_a_device_that_is_not_here() -> None:
    with pytest.raises(CallerError, match="no such device"):
        pick_device(ExecutionSpec(device="gpu7"))
    if not torch.cuda.is_available():
        with pytest.raises(CallerError, match="torch sees no GPU"):
            pick_device(ExecutionSpec(device="cuda"))
