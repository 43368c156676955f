"""What a token costs: FLOPs counted exactly; time, memory and energy measured here; by arm and phase of its step.

Required FLOPs are counted on the meta device from the lean step: each matmul once, two per multiply-add, trained
parts forward and backward, the frozen teacher forward only, the loss's own matmuls included; element-wise work,
norms, softmax and the optimizer are not FLOPs by this convention. Executed FLOPs are those of the kernels that
really run, their recomputation of attention scores in the backward pass included.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from budgetlab.errors import CallerError
from budgetlab.hardware import StepTime, emulated_bfloat16, environment, find_peak, prepare, release_memory
from budgetlab.profiler.arms import CONVENTIONS, arms_and_teachers, choices_of, count_arm, jobs_of, settled
from budgetlab.profiler.clock import (
    QUICK,
    Effort,
    Job,
    OutOfMemory,
    Rounds,
    describe_rounds,
    largest_micro_batch,
    measure_energy,
    measure_memory,
    time_compiled,
    time_steps,
)
from budgetlab.profiler.count import agree, count_flops, second_opinion
from budgetlab.profiler.elsewhere import predict_for, reshaped, with_prediction
from budgetlab.profiler.packing import measure_packing
from budgetlab.profiler.roofline import calibrate
from budgetlab.profiler.timemodel import measure_time_model
from budgetlab.resampling import median_interval
from budgetlab.studies import Study
from budgetlab.values import ArmCost, CompiledCost, CostProfile, Ratio

__all__ = ["agree", "count_flops", "predict_for", "profile", "reshaped", "second_opinion", "with_times"]

_CHANGE = 0.1
_HOPELESS = 2.0
"""So many times the fastest choice so far: a precision or attention is dropped after one step of each arm."""

Depth = Literal["quick", "timed", "full"]


def profile(
    study: Study,
    *,
    count_only: bool = False,
    depth: Depth = "timed",
    steps: int | None = None,
    peak_flops_per_second: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> CostProfile:
    """Price every arm of a study, and the pretraining of its teachers.

    Parameters
    ----------
    study
        With vocabulary sizes in its models.
    count_only
        Count FLOPs; time nothing.
    depth
        "quick" times six rounds; "timed" at least ten rounds and a second of every arm (but no more than 200 rounds),
        with memory and energy; "full" also fits a time model of every arm and calibrates the device.
    steps
        Least timed steps of each arm, instead.
    peak_flops_per_second
        Of the device, where the table of peaks lacks it.
    progress
        Told what is being done.

    Returns
    -------
    profile
        What was not measured, or cannot be on this device, is None.

    Raises
    ------
    BudgetlabError
        When two independent counts disagree, or an operator that may be heavy was counted by nobody.
    CallerError
        When the device is not there, or a step does not fit into its memory.
    """
    say = progress or (lambda text: None)
    # FLOPs can be counted where the study's device is not.
    execution = study.execution
    if count_only and execution.device.startswith("cuda") and not torch.cuda.is_available():
        execution = execution.model_copy(update={"device": "cpu"})
    device = prepare(execution)
    jobs = jobs_of(study)
    asked = study.execution.micro_batch_sequences
    micro = None if asked == "auto" else asked
    effort = Effort(steps, 0.0) if steps else QUICK if depth == "quick" else Effort()
    rounds, timing, calibration, largest = None, None, None, {}
    if count_only:
        jobs = [settled(job, *choices_of(study, device)[0]) for job in jobs]
    else:
        jobs, rounds = _choose_and_time(study, jobs, device, effort, micro, say, may_fail=asked == "auto")
        if rounds is None:
            say("searching the largest micro-batch that fits")
            largest = _search_micro_batches(study, jobs, device)
            micro = min(largest.values())
        while rounds is None and micro:
            # All arms are built side by side to be timed in turn, which takes more than each by itself.
            jobs, rounds = _choose_and_time(study, jobs, device, effort, micro, say, may_fail=micro > 1)
            micro = micro if rounds is not None else micro // 2
    say("counting FLOPs")
    costs = {job[0]: count_arm(job, device) for job in jobs}
    if rounds is not None:
        timing = describe_rounds(rounds)
        first = next(iter(study.arms))
        costs = {name: with_times(cost, rounds, costs[first]) for name, cost in costs.items()}
        for job in jobs:
            # Where the whole batch ran, it fits; a smaller micro-batch that was asked for says nothing.
            whole = job[4].batch_sequences if micro is None else None
            fits = {"largest_micro_batch_sequences": largest.get(job[0], whole)}
            costs[job[0]] = costs[job[0]].model_copy(update=fits)
    asked_to_compile = study.execution.compile
    if rounds is not None and (asked_to_compile == "always" or (asked_to_compile == "auto" and device.type == "cuda")):
        for job in jobs:
            say(f"compiling {job[0]}")
            compiled = _compiled(job, device, micro, say, must=asked_to_compile == "always")
            costs[job[0]] = costs[job[0]].model_copy(update={"compiled": compiled})
    if not count_only and depth != "quick":
        say("measuring memory and energy")
        costs = {job[0]: _with_memory(costs[job[0]], job, device, micro) for job in jobs}
        joules, source = measure_energy(jobs, device, micro)
        costs = {n: c.model_copy(update={"joules_per_token": joules.get(n), "joules_source": source if n in joules
                                         else None}) for n, c in costs.items()}  # fmt: skip
    emulated = emulated_bfloat16({job[4].dtype for job in jobs}, device)
    if timing is not None and emulated is not None:
        timing = timing.model_copy(update={"warnings": (*timing.warnings, emulated)})
    if not count_only and depth == "full":
        for job in jobs:
            say(f"fitting the time model of {job[0]}")
            costs[job[0]] = costs[job[0]].model_copy(update={"time_model": measure_time_model(job, device, micro)})
        if timing is not None:
            changed = tuple(filter(None, (_changed(cost) for cost in costs.values())))
            timing = timing.model_copy(update={"warnings": (*timing.warnings, *changed)})
        say("calibrating the device")
        calibration = calibrate(device, jobs[0][4].dtype, study.execution)
        costs = {job[0]: with_prediction(costs[job[0]], job, calibration, micro) for job in jobs}
    packing = None
    if study.execution.workers == "auto" and study.execution.devices == 1 and not count_only:
        dearest = max(jobs, key=lambda job: costs[job[0]].seconds_per_step or 0.0)
        packing = measure_packing(dearest, study.execution, micro, say)
    where = environment(execution)
    peak = find_peak(where.device_name) if where.device == "cuda" else None
    of_maker = None if peak is None else peak.flops_per_second(jobs[0][4].dtype)
    arms, teachers = arms_and_teachers(study, list(costs.values()))
    return CostProfile(
        study=study.name,
        arms=arms,
        teachers=teachers,
        conventions=CONVENTIONS,
        environment=where,
        timing=timing,
        calibration=calibration,
        peak_flops_per_second=peak_flops_per_second or of_maker,
        micro_batch_sequences=micro,
        packing=packing,
        peak_source="as given" if peak_flops_per_second else peak.source if peak and of_maker else None,
    )


def _choose_and_time(
    study: Study,
    jobs: list[Job],
    device: torch.device,
    effort: Effort,
    micro: int | None,
    say: Callable[[str], None],
    *,
    may_fail: bool,
) -> tuple[list[Job], Rounds | None]:
    """Settle precision and attention, then time; no rounds where memory does not hold a step and that may be."""
    release_memory(device)
    try:
        chosen, first = _resolve(study, jobs, device, micro, say)
        set_jobs = [settled(job, *chosen) for job in jobs]
        rounds = time_steps(set_jobs, device, effort, say, micro)
        rounds.first = first or rounds.first  # the probe's steps were the first of their kind
        return set_jobs, rounds
    except OutOfMemory:
        if not may_fail:
            raise
        return jobs, None


def _search_micro_batches(study: Study, jobs: list[Job], device: torch.device) -> dict[str, int]:
    """The most sequences at once of each arm, in what takes the most memory of the precisions that may be chosen."""
    dtype, attention = choices_of(study, device)[0][0], choices_of(study, device)[-1][1]
    largest = {job[0]: largest_micro_batch(settled(job, dtype, attention), device) for job in jobs}
    none = [name for name, fits in largest.items() if fits == 0]
    if none:
        raise CallerError(
            f"a step of {', '.join(none)} with one sequence of {study.recipe.seq_len}",
            "the device is out of memory",
            "take a smaller model or recipe.seq_len, or another device",
        )
    return largest


def _resolve(
    study: Study, jobs: list[Job], device: torch.device, micro: int | None, say: Callable[[str], None]
) -> tuple[tuple[str, str], dict[str, StepTime] | None]:
    """Choose precision and attention, the same for all arms: the fastest over one step of each arm.

    Returns the first steps of the choice too, where there was one to make.
    """
    choices = choices_of(study, device)
    if len(choices) == 1:
        return choices[0], None
    say("probing precision and attention")
    seconds, first = {}, {}
    for choice in choices:
        effort = Effort(3, 0.0, give_up_seconds=_HOPELESS * min(seconds.values(), default=math.inf))
        rounds = time_steps([settled(job, *choice) for job in jobs], device, effort, lambda text: None, micro)
        seconds[choice] = sum(min(step.seconds for step in steps) for steps in rounds.steps.values())
        first[choice] = rounds.first
    best = min(seconds, key=lambda choice: seconds[choice])
    return best, first[best]


def with_times(cost: ArmCost, rounds: Rounds, first: ArmCost) -> ArmCost:
    """Add what the rounds say of an arm; its ratios to the first are of seconds a token."""
    steps, reference = rounds.steps[cost.arm], rounds.steps[first.arm]
    share = first.batch_tokens / cost.batch_tokens
    on_cpu = bool(steps[0].cpu)
    phases = {
        phase: price.model_copy(
            update={
                "seconds_per_step": statistics.median(step.device.get(phase, 0.0) for step in steps),
                "cpu_seconds_per_step": statistics.median(step.cpu.get(phase, 0.0) for step in steps)
                if on_cpu
                else None,
            }
        )
        for phase, price in cost.phases.items()
    }
    wall = [step.seconds for step in steps]
    cpu = [step.cpu_seconds for step in steps]
    seconds = statistics.median(wall)
    update = {
        "phases": phases,
        "seconds_per_step": seconds,
        "seconds_per_step_interval": median_interval(wall),
        "seconds_ratio": _ratio(wall, [step.seconds for step in reference], share),
        "first_step_seconds": max(0.0, rounds.first[cost.arm].seconds - seconds),
        "tokens_per_second": cost.batch_tokens / seconds,
        "steps_timed": len(wall),
    }
    if on_cpu:
        update |= {
            "cpu_seconds_per_step": statistics.median(cpu),
            "cpu_seconds_per_step_interval": median_interval(cpu),
            "cpu_seconds_ratio": _ratio(cpu, [step.cpu_seconds for step in reference], share),
        }
    return cost.model_copy(update=update)


def _changed(cost: ArmCost) -> str | None:
    """Say that a step took another time when the time model was measured: what no clock of this process sees."""
    model = cost.time_model
    before = cost.cpu_seconds_per_step if model is not None and model.clock == "cpu" else cost.seconds_per_step
    whole = (cost.batch_tokens // (cost.seq_len or 1), cost.seq_len)
    again = [h.measured_seconds for h in model.held_out if (h.sequences, h.seq_len) == whole] if model else []
    if not before or not again or abs(again[0] / before - 1.0) <= _CHANGE:
        return None
    return (
        f"{cost.arm}'s step took {100 * (again[0] / before - 1.0):+.0f} % when it was timed again: the machine changed"
    )


def _compiled(
    job: Job, device: torch.device, micro: int | None, say: Callable[[str], None], *, must: bool
) -> CompiledCost | None:
    try:
        return time_compiled(job, device, QUICK, micro)
    except CallerError as error:
        if must:
            raise
        say(str(error))
        return None


def _ratio(own: Sequence[float], reference: Sequence[float], share: float) -> Ratio:
    ratios = [share * a / b for a, b in zip(own, reference, strict=True)]
    return Ratio(value=statistics.median(ratios), interval=median_interval(ratios))


def _with_memory(cost: ArmCost, job: Job, device: torch.device, micro: int | None) -> ArmCost:
    memory = measure_memory(job, device, micro)
    if memory is None:
        return cost
    return cost.model_copy(
        update={
            "peak_memory_bytes": memory.allocated_bytes,
            "reserved_memory_bytes": memory.reserved_bytes,
            "memory_source": memory.source,
        }
    )
