"""What a token costs: FLOPs counted exactly; time, memory and energy measured here; by arm and phase of its step.

Required FLOPs are counted on the meta device from the lean step: each matmul once, two per multiply-add, trained
parts forward and backward, the frozen teacher forward only, the loss's own matmuls included; element-wise work,
norms, softmax and the optimizer are not FLOPs by this convention. Executed FLOPs are those of the kernels that
really run, their recomputation of attention scores in the backward pass included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from budgetlab.errors import CallerError
from budgetlab.hardware import StepTime, environment, find_peak, prepare, release_memory
from budgetlab.models import count_parameters
from budgetlab.profiler.clock import (
    QUICK,
    Effort,
    Job,
    OutOfMemory,
    Rounds,
    build_job,
    describe_rounds,
    largest_micro_batch,
    measure_energy,
    measure_memory,
    time_steps,
)
from budgetlab.profiler.count import agree, count_flops, count_head, second_opinion
from budgetlab.profiler.roofline import calibrate, list_work, predict_seconds
from budgetlab.profiler.timemodel import measure_time_model, positions
from budgetlab.resampling import median_interval
from budgetlab.step import PHASES
from budgetlab.studies import Study, profile_key
from budgetlab.values import (
    ArmCost,
    Calibration,
    CostProfile,
    PhaseCost,
    Ratio,
    Recipe,
    StrategySpec,
)

__all__ = ["agree", "count_flops", "predict_for", "profile", "reshaped", "second_opinion"]

CONVENTIONS = {
    "flops": "two per multiply-add; matmuls only; no norms, softmax, activations, embeddings or optimizer",
    "required": "lean step on the meta device: trained parts forward and backward, frozen teacher forward only",
    "executed": "the kernels that run, with their recomputation of attention scores in the backward pass",
    "attention": "full, every position with every other; no causal half is taken off",
    "padding": "none: sequences are filled",
    "batch": "splitting it and moving it to the device is in the seconds of the teacher's forward pass",
    "logits": "at masked positions only (execute = everything: at all positions)",
    "frozen": "the teacher, forward only; tied input and output embeddings are multiplied once each way, as the head",
    "teacher_depth": "up to the deepest layer that the loss reads",
    "seconds": "median over paired rounds, arms in a random order in each, the first round not counted; interval by "
    "order statistics; wall time on a CPU, time between device events on a GPU",
    "cpu_seconds": "processor time of this process, summed over threads",
    "ratios": "median over rounds of an arm's seconds a token over the first arm's in the same round",
    "memory": "the arm alone: networks, optimizer state, two steps",
}

_CHANGE = 0.1

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
    device = prepare(study.execution)
    jobs = _jobs(study)
    asked = study.execution.micro_batch_sequences
    micro = None if asked == "auto" else asked
    effort = Effort(steps, 0.0) if steps else QUICK if depth == "quick" else Effort()
    rounds, timing, calibration, largest = None, None, None, {}
    if count_only:
        jobs = [_set(job, *_choices(study)[0]) for job in jobs]
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
    costs = {job[0]: _counted(job, device) for job in jobs}
    if rounds is not None:
        timing = describe_rounds(rounds)
        first = next(iter(study.arms))
        costs = {name: _timed(cost, rounds, costs[first]) for name, cost in costs.items()}
        for job in jobs:
            # Where the whole batch ran, it fits; a smaller micro-batch that was asked for says nothing.
            whole = job[4].batch_sequences if micro is None else None
            fits = {"largest_micro_batch_sequences": largest.get(job[0], whole)}
            costs[job[0]] = costs[job[0]].model_copy(update=fits)
    if not count_only and depth != "quick":
        say("measuring memory and energy")
        costs = {job[0]: _with_memory(costs[job[0]], job, device, micro) for job in jobs}
        joules, source = measure_energy(jobs, device, micro)
        costs = {n: c.model_copy(update={"joules_per_token": joules.get(n), "joules_source": source if n in joules
                                         else None}) for n, c in costs.items()}  # fmt: skip
    if not count_only and depth == "full":
        for job in jobs:
            say(f"fitting the time model of {job[0]}")
            costs[job[0]] = costs[job[0]].model_copy(update={"time_model": measure_time_model(job, device, micro)})
        if timing is not None:
            changed = tuple(filter(None, (_changed(cost) for cost in costs.values())))
            timing = timing.model_copy(update={"warnings": (*timing.warnings, *changed)})
        say("calibrating the device")
        calibration = calibrate(device, jobs[0][4].dtype, study.execution)
        costs = {job[0]: _predicted(costs[job[0]], job, calibration, micro) for job in jobs}
    where = environment(study.execution)
    peak = find_peak(where.device_name) if where.device == "cuda" else None
    of_maker = None if peak is None else peak.flops_per_second(jobs[0][4].dtype)
    return CostProfile(
        study=study.name,
        arms=tuple(cost for cost in costs.values() if cost.arm in study.arms),
        teachers=tuple(cost for cost in costs.values() if cost.arm not in study.arms),
        conventions=CONVENTIONS,
        environment=where,
        timing=timing,
        calibration=calibration,
        peak_flops_per_second=peak_flops_per_second or of_maker,
        micro_batch_sequences=micro,
        peak_source="as given" if peak_flops_per_second else peak.source if peak and of_maker else None,
    )


def predict_for(study: Study, calibration: Calibration, progress: Callable[[str], None] | None = None) -> CostProfile:
    """Price a study on a device that need not be here: FLOPs counted, seconds predicted from its calibration.

    Raises
    ------
    CallerError
        When the calibration has no matrix products in the study's precision.
    """
    say = progress or (lambda text: None)
    dtypes = list(dict.fromkeys(rate.dtype for rate in calibration.rates if rate.kind == "matmul"))
    if not dtypes:
        raise CallerError("a prediction", "the calibration has no matrix products", "calibrate the device again")
    wanted = study.recipe.dtype if study.recipe.dtype != "auto" else dtypes[0]
    if wanted not in dtypes:
        raise CallerError(
            f"a prediction in {wanted}", f"the device was calibrated in {', '.join(dtypes)}", "calibrate it in that"
        )
    attention = study.recipe.attention if study.recipe.attention != "auto" else "sdpa"
    asked = study.execution.micro_batch_sequences
    costs = []
    for job in (_set(job, wanted, attention) for job in _jobs(study)):
        say(f"predicting {job[0]}")
        cost = _counted(job, torch.device("cpu"))
        by_phase = predict_seconds(list_work(job, None if asked == "auto" else asked), calibration, wanted)
        seconds = sum(by_phase.values())
        phases = {
            name: price.model_copy(update={"seconds_per_step": by_phase[name]}) for name, price in cost.phases.items()
        }
        rate = cost.batch_tokens / seconds
        costs.append(
            cost.model_copy(
                update={
                    "phases": phases,
                    "seconds_per_step": seconds,
                    "predicted_seconds_per_step": seconds,
                    "tokens_per_second": rate,
                }
            )
        )
    peak = find_peak(calibration.environment.device_name)
    return CostProfile(
        study=study.name,
        study_key=profile_key(study),
        arms=tuple(cost for cost in costs if cost.arm in study.arms),
        teachers=tuple(cost for cost in costs if cost.arm not in study.arms),
        conventions=CONVENTIONS | {"seconds": "predicted operator by operator from a calibration, not measured"},
        environment=calibration.environment,
        calibration=calibration,
        peak_flops_per_second=None if peak is None else peak.flops_per_second(wanted),
        peak_source=None if peak is None else peak.source,
        predicted_for=f"{calibration.environment.device_name}, {calibration.environment.threads} threads",
    )


def reshaped(study: Study, found: CostProfile, sequences: int, seq_len: int) -> CostProfile:
    """Price a study at another batch and length from the time models of its profile: FLOPs counted, seconds predicted.

    Parameters
    ----------
    study
        What was profiled.
    found
        Its profile, of depth "full".
    sequences, seq_len
        Of one step, in the micro-batches of the profile.

    Raises
    ------
    CallerError
        When the profile has no time models, or the networks not so many positions.
    """
    known = {cost.arm: cost for cost in (*found.arms, *found.teachers)}
    without = [name for name, cost in known.items() if cost.time_model is None]
    if without and found.calibration is not None:
        raise CallerError(
            f"a prediction for {sequences} x {seq_len}",
            f"the batch of {', '.join(without)} is too small to fit a time model to parts of it",
            "raise recipe.batch_tokens",
        )
    if without:
        raise CallerError(
            f"a prediction for {sequences} x {seq_len}", "the profile has no time models", "profile without --quick"
        )
    costs = []
    for name, strategy, student, teacher, recipe in _jobs(study):
        before = known[name]
        longest = positions(student, teacher, seq_len)
        if seq_len > longest:
            raise CallerError(
                f"a prediction for sequences of {seq_len}", f"{name} has positions for {longest}", "take a shorter one"
            )
        micro = min(found.micro_batch_sequences or sequences, sequences)
        changes = {"seq_len": seq_len, "batch_tokens": sequences * seq_len, "dtype": before.dtype}
        recipe = Recipe.model_validate({**recipe.model_dump(), **changes, "attention": before.attention})
        counted = _counted((name, strategy, student, teacher, recipe), torch.device("cpu"))
        model = before.time_model
        assert model is not None
        by_phase = model.phase_seconds(sequences, seq_len, micro)
        seconds = sum(by_phase.values())
        # Of processor time, what the wall clock shows is as at the shape that was measured.
        on_cpu, wall = model.clock == "cpu", 1.0
        if on_cpu and before.seconds_per_step and before.cpu_seconds_per_step:
            wall = before.seconds_per_step / before.cpu_seconds_per_step
        phases = {
            name: price.model_copy(
                update={
                    "seconds_per_step": by_phase[name] * wall,
                    "cpu_seconds_per_step": by_phase[name] if on_cpu else None,
                }
            )
            for name, price in counted.phases.items()
        }
        costs.append(
            counted.model_copy(
                update={
                    "phases": phases, "time_model": model, "seconds_per_step": seconds * wall,
                    "cpu_seconds_per_step": seconds if on_cpu else None,
                    "tokens_per_second": sequences * seq_len / (seconds * wall),
                }
            )
        )  # fmt: skip
    return found.model_copy(
        update={
            "arms": tuple(cost for cost in costs if cost.arm in study.arms),
            "teachers": tuple(cost for cost in costs if cost.arm not in study.arms),
            "timing": None,
            "study_key": "",
            "predicted_for": f"{sequences} sequences of {seq_len} a step on {found.environment.device_name}",
        }
    )


def _jobs(study: Study) -> list[Job]:
    jobs: list[Job] = [
        (arm.name, arm.strategy, study.models[arm.student], study.teacher_of(arm), arm.recipe)
        for arm in study.arms.values()
    ]
    recipe = study.recipe.model_copy(update={"initialisation": "random"})
    for name in study.teacher_names():
        if study.models[name].pretraining_tokens is not None:
            jobs.append((name, StrategySpec(name="no_kd"), study.models[name], None, recipe))
    return jobs


def _set(job: Job, dtype: str, attention: str) -> Job:
    """Fill in what was left to the probe; what an arm's own recipe says stays."""
    own = job[4]
    chosen = {
        "dtype": dtype if own.dtype == "auto" else own.dtype,
        "attention": attention if own.attention == "auto" else own.attention,
    }
    return (*job[:4], Recipe.model_validate({**own.model_dump(), **chosen}))


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
        set_jobs = [_set(job, *chosen) for job in jobs]
        rounds = time_steps(set_jobs, device, effort, say, micro)
        rounds.first = first or rounds.first  # the probe's steps were the first of their kind
        return set_jobs, rounds
    except OutOfMemory:
        if not may_fail:
            raise
        return jobs, None


def _search_micro_batches(study: Study, jobs: list[Job], device: torch.device) -> dict[str, int]:
    """The most sequences at once of each arm, in what takes the most memory of the precisions that may be chosen."""
    dtype, attention = _choices(study)[0][0], _choices(study)[-1][1]
    largest = {job[0]: largest_micro_batch(_set(job, dtype, attention), device) for job in jobs}
    none = [name for name, fits in largest.items() if fits == 0]
    if none:
        raise CallerError(
            f"a step of {', '.join(none)} with one sequence of {study.recipe.seq_len}",
            "the device is out of memory",
            "take a smaller model or recipe.seq_len, or another device",
        )
    return largest


def _choices(study: Study) -> list[tuple[str, str]]:
    dtypes = ["float32", "bfloat16"] if study.recipe.dtype == "auto" else [study.recipe.dtype]
    attentions = ["sdpa", "eager"] if study.recipe.attention == "auto" else [study.recipe.attention]
    return list(product(dtypes, attentions))


def _resolve(
    study: Study, jobs: list[Job], device: torch.device, micro: int | None, say: Callable[[str], None]
) -> tuple[tuple[str, str], dict[str, StepTime] | None]:
    """Choose precision and attention, the same for all arms: the fastest over one step of each arm.

    Returns the first steps of the choice too, where there was one to make.
    """
    choices = _choices(study)
    if len(choices) == 1:
        return choices[0], None
    say("probing precision and attention")
    seconds, first = {}, {}
    for choice in choices:
        rounds = time_steps([_set(job, *choice) for job in jobs], device, Effort(3, 0.0), lambda text: None, micro)
        seconds[choice] = sum(min(step.seconds for step in steps) for steps in rounds.steps.values())
        first[choice] = rounds.first
    best = min(seconds, key=lambda choice: seconds[choice])
    return best, first[best]


def _counted(job: Job, device: torch.device) -> ArmCost:
    """Count an arm; nothing is timed."""
    name, _, _, _, recipe = job
    lean = build_job((*job[:4], recipe.model_copy(update={"execute": "lean"})), "meta")
    required = count_flops(lean, recipe.seq_len, recipe.masked_per_sequence)
    # A lean step's head is the same products on any device, so what a target token costs is known by now.
    known = {phase: price[1] for phase, price in required.items()} if recipe.execute == "lean" else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = build_job(job, device, trained=lean.trained)
        executed = count_flops(real, recipe.seq_len, recipe.masked_per_sequence, executed_on=device, per_target=known)
    agreement = agree(lean, required, recipe)
    fraction = recipe.masked_per_sequence / recipe.seq_len
    head = count_head(lean.student, lean.student_needs)
    phases = {
        phase: PhaseCost(
            required_flops_per_token=required[phase][0] + fraction * required[phase][1],
            executed_flops_per_token=executed[phase][0] + fraction * executed[phase][1],
        )
        for phase in PHASES
    }
    total_params, other_params = count_parameters(lean.student)
    return ArmCost(
        arm=name,
        batch_tokens=recipe.batch_tokens,
        seq_len=recipe.seq_len,
        target_fraction=fraction,
        train_required_flops_per_token=sum(price.required_flops_per_token for price in phases.values()),
        train_executed_flops_per_token=sum(price.executed_flops_per_token for price in phases.values()),
        required_flops_per_position=sum(price[0] for price in required.values()),
        required_flops_per_target_token=sum(price[1] for price in required.values()),
        executed_flops_per_position=sum(price[0] for price in executed.values()),
        executed_flops_per_target_token=sum(price[1] for price in executed.values()),
        head_required_flops_per_token=head[0] + fraction * head[1],
        phases=phases,
        agreement=agreement,
        num_params_total=total_params,
        num_params_non_embedding=other_params,
        idle_parameters=lean.idle_parameters,
        dtype=recipe.dtype if recipe.dtype != "auto" else "float32",
        attention=real.student.attention,
    )


def _timed(cost: ArmCost, rounds: Rounds, first: ArmCost) -> ArmCost:
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


def _predicted(cost: ArmCost, job: Job, calibration: Calibration, micro: int | None) -> ArmCost:
    seconds = predict_seconds(list_work(job, micro), calibration, job[4].dtype)
    return cost.model_copy(update={"predicted_seconds_per_step": sum(seconds.values())})
