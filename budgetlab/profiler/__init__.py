"""What a token costs: FLOPs counted exactly; time, memory and energy measured here; by arm and phase of its step.

Required FLOPs (model FLOPs, as in MFU) are counted on the meta device from the lean step: each matmul once, two per
multiply-add, trained parts forward and backward, the frozen teacher forward only, the loss's own matmuls included;
element-wise work, norms, softmax and the optimizer are not FLOPs by this convention. Executed FLOPs (hardware FLOPs,
as in HFU) are those of the kernels that really run, their recomputation of attention scores included.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from budgetlab.errors import CallerError
from budgetlab.hardware import emulated_bfloat16, environment, find_energy_counter, find_peak, prepare
from budgetlab.hardware.meters import StepTime, release_memory
from budgetlab.profiler.arms import CONVENTIONS, Job, arms_and_teachers, choices_of, count_arm, jobs_of
from budgetlab.profiler.clock import (
    QUICK,
    Effort,
    OutOfMemory,
    Rounds,
    describe_rounds,
    largest_micro_batch,
    measure_energy,
    measure_memory,
    measure_packing,
    paired_ratio,
    time_compiled,
    time_steps,
)
from budgetlab.profiler.time_model import machine_changed, measure_time_model
from budgetlab.resampling import median_interval
from budgetlab.studies import Study
from budgetlab.values import ArmCost, CostProfile

__all__ = ["profile"]

_HOPELESS = 2.0
"""So many times the fastest choice so far: a precision or attention is dropped after one step of each arm."""


def profile(
    study: Study,
    *,
    count_only: bool = False,
    depth: Literal["quick", "timed", "full"] = "timed",
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
        with memory and energy; "full" also fits a time model of every arm.
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
    execution = study.execution
    if count_only and execution.device.startswith("cuda") and not torch.cuda.is_available():
        execution = execution.model_copy(update={"device": "cpu"})  # where the study's device is not, FLOPs can be
    device = prepare(execution)
    timing = packing = micro = None
    if count_only:
        say("counting FLOPs")
        jobs = [job.settled(*choices_of(study, device)[0]) for job in jobs_of(study)]
        costs = {job.name: count_arm(job, device) for job in jobs}
        if execution.micro_batch_sequences != "auto":
            micro = execution.micro_batch_sequences
    else:
        effort = Effort(steps, 0.0) if steps else QUICK if depth == "quick" else Effort()
        jobs, rounds, micro, largest = _time(study, device, effort, say)
        say("counting FLOPs")
        counted = {job.name: count_arm(job, device) for job in jobs}
        first, costs = counted[next(iter(study.arms))], {}
        for job in jobs:
            # Where the whole batch ran, it fits; a smaller micro-batch that was asked for says nothing.
            fits = largest.get(job.name, job.recipe.batch_sequences if micro is None else None)
            more = _measure_more(job, device, micro, execution.compile, depth, say)
            timed = with_times(counted[job.name], rounds, first)
            costs[job.name] = timed.model_copy(update={"largest_micro_batch_sequences": fits, **more})
        if execution.workers == "auto" and execution.devices == 1:
            dearest = max(jobs, key=lambda job: costs[job.name].seconds_per_step or 0.0)
            packing = measure_packing(dearest, execution, micro, say)
        further = [emulated_bfloat16({job.recipe.dtype for job in jobs}, device), *map(machine_changed, costs.values())]
        timing = describe_rounds(rounds, [line for line in further if line is not None])
    where = environment(execution)
    peak = find_peak(where.device_name) if where.device == "cuda" else None
    of_maker = None if peak is None else peak.flops_per_second(jobs[0].recipe.dtype, execution.tf32)
    arms, teachers = arms_and_teachers(study, list(costs.values()))
    return CostProfile(
        study=study.name,
        arms=arms,
        teachers=teachers,
        conventions=CONVENTIONS,
        environment=where,
        timing=timing,
        peak_flops_per_second=peak_flops_per_second or of_maker,
        micro_batch_sequences=micro,
        packing=packing,
        peak_source="as given" if peak_flops_per_second else peak.source if peak and of_maker else None,
    )


def _time(
    study: Study, device: torch.device, effort: Effort, say: Callable[[str], None]
) -> tuple[list[Job], Rounds, int | None, dict[str, int]]:
    """Settle precision and attention, and time; where memory does not hold a step, in the largest micro-batch.

    Returns the jobs as settled, their steps, the sequences of a micro-batch, and the most of each arm where searched.
    """
    jobs, asked, largest = jobs_of(study), study.execution.micro_batch_sequences, {}
    micro = None if asked == "auto" else asked
    while True:
        release_memory(device)
        try:
            chosen, first = _choose(study, jobs, device, micro, say)
            settled = [job.settled(*chosen) for job in jobs]
            rounds = time_steps(settled, device, effort, say, micro)
            rounds.first = first or rounds.first  # the probe's steps were the first of their kind
            return settled, rounds, micro, largest
        except OutOfMemory:
            if asked != "auto" or micro == 1:
                raise
        if micro is None:
            say("searching the largest micro-batch that fits")
            # In what takes the most memory of the precisions that may be chosen.
            hungriest = choices_of(study, device)[0][0], choices_of(study, device)[-1][1]
            largest = {job.name: largest_micro_batch(job.settled(*hungriest), device) for job in jobs}
            micro = min(largest.values())
            if micro == 0:
                none = ", ".join(name for name, fits in largest.items() if fits == 0)
                remedy = "take a smaller model or recipe.seq_len, or another device"
                what = f"a step of {none} with one sequence of {study.recipe.seq_len}"
                raise CallerError(what, "the device is out of memory", remedy)
        else:
            # All arms are built side by side to be timed in turn, which takes more than each by itself.
            micro = micro // 2


def _choose(
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
        rounds = time_steps([job.settled(*choice) for job in jobs], device, effort, lambda text: None, micro)
        seconds[choice] = sum(min(step.seconds for step in steps) for steps in rounds.steps.values())
        first[choice] = rounds.first
    best = min(seconds, key=lambda choice: seconds[choice])
    return best, first[best]


def with_times(cost: ArmCost, rounds: Rounds, first: ArmCost) -> ArmCost:
    """Add what the rounds say of an arm; its ratios to the first are of seconds a token."""
    steps, reference = rounds.steps[cost.arm], rounds.steps[first.arm]
    share, on_cpu = first.batch_tokens / cost.batch_tokens, bool(steps[0].cpu)

    def summary(prefix: str, own: Sequence[float], others: Sequence[float]) -> dict[str, object]:
        return {
            f"{prefix}seconds_per_step": statistics.median(own),
            f"{prefix}seconds_ratio": paired_ratio(own, others, share),
        }

    update = summary("", [step.seconds for step in steps], [step.seconds for step in reference])
    update["seconds_per_step_interval"] = median_interval([step.seconds for step in steps])
    if on_cpu:
        update |= summary("cpu_", [step.cpu_seconds for step in steps], [step.cpu_seconds for step in reference])
    phases = {}
    for phase, price in cost.phases.items():
        found = {"seconds_per_step": statistics.median(step.device.get(phase, 0.0) for step in steps)}
        if on_cpu:
            found["cpu_seconds_per_step"] = statistics.median(step.cpu.get(phase, 0.0) for step in steps)
        phases[phase] = price.model_copy(update=found)
    seconds = statistics.median(step.seconds for step in steps)
    update |= {
        "phases": phases,
        "first_step_seconds": max(0.0, rounds.first[cost.arm].seconds - seconds),
        "tokens_per_second": cost.batch_tokens / seconds,
        "steps_timed": len(steps),
    }
    return cost.model_copy(update=update)


def _measure_more(
    job: Job, device: torch.device, micro: int | None, compile_it: str, depth: str, say: Callable[[str], None]
) -> dict[str, object]:
    """Measure what else a profile of this depth has of an arm: fields of its `ArmCost`."""
    found: dict[str, object] = {}
    if compile_it == "always" or (compile_it == "auto" and device.type == "cuda"):
        say(f"compiling {job.name}")
        try:
            found["compiled"] = time_compiled(job, device, QUICK, micro)
        except CallerError as error:
            if compile_it == "always":
                raise
            say(str(error))
    if depth == "quick":
        return found
    say(f"measuring memory and energy of {job.name}")
    found |= measure_memory(job, device, micro)
    counter = find_energy_counter(device)
    if counter is not None:
        found |= measure_energy(job, device, micro, counter)
    if depth == "full":
        say(f"fitting the time model of {job.name}")
        found["time_model"] = measure_time_model(job, device, micro)
    return found
