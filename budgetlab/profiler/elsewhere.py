"""Prices that are predicted: on a device that is not here, or at another batch and length."""

from __future__ import annotations

from collections.abc import Callable

import torch

from budgetlab.errors import CallerError
from budgetlab.hardware import find_peak
from budgetlab.profiler.arms import CONVENTIONS, arms_and_teachers, count_arm, jobs_of, settled
from budgetlab.profiler.clock import Job
from budgetlab.profiler.roofline import list_work, predict_seconds
from budgetlab.profiler.timemodel import positions
from budgetlab.studies import Study, profile_key
from budgetlab.values import ArmCost, Calibration, CostProfile, Recipe


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
    for job in (settled(job, wanted, attention) for job in jobs_of(study)):
        say(f"predicting {job[0]}")
        cost = count_arm(job, torch.device("cpu"))
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
    arms, teachers = arms_and_teachers(study, costs)
    return CostProfile(
        study=study.name,
        study_key=profile_key(study),
        arms=arms,
        teachers=teachers,
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
    known = [*found.arms, *found.teachers]  # in the order of `jobs_of`
    without = [cost.arm for cost in known if cost.time_model is None]
    if without and found.calibration is not None:
        raise CallerError(
            f"a prediction for {sequences} x {seq_len}",
            f"{', '.join(without)} has no time model: its batch is too small to fit one to parts of it, or memory is",
            "raise recipe.batch_tokens, or take another device",
        )
    if without:
        raise CallerError(
            f"a prediction for {sequences} x {seq_len}", "the profile has no time models", "profile without --quick"
        )
    costs = []
    for before, (name, strategy, student, teacher, recipe) in zip(known, jobs_of(study), strict=True):
        longest = positions(student, teacher, seq_len)
        if seq_len > longest:
            raise CallerError(
                f"a prediction for sequences of {seq_len}", f"{name} has positions for {longest}", "take a shorter one"
            )
        micro = min(found.micro_batch_sequences or sequences, sequences)
        changes = {"seq_len": seq_len, "batch_tokens": sequences * seq_len, "dtype": before.dtype}
        recipe = Recipe.model_validate({**recipe.model_dump(), **changes, "attention": before.attention})
        counted = count_arm((name, strategy, student, teacher, recipe), torch.device("cpu"))
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
    arms, teachers = arms_and_teachers(study, costs)
    return found.model_copy(
        update={
            "arms": arms,
            "teachers": teachers,
            "timing": None,
            "study_key": "",
            "predicted_for": f"{sequences} sequences of {seq_len} a step on {found.environment.device_name}",
        }
    )


def with_prediction(cost: ArmCost, job: Job, calibration: Calibration, micro: int | None) -> ArmCost:
    """Add what the calibration of the device predicts for a step, beside what was measured."""
    if calibration.peak_flops_per_second(job[4].dtype) is None:
        return cost  # an arm of another precision than was calibrated
    seconds = predict_seconds(list_work(job, micro), calibration, job[4].dtype)
    return cost.model_copy(update={"predicted_seconds_per_step": sum(seconds.values())})
