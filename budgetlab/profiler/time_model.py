"""Seconds of a step from a few short measurements, phase by phase, so that another batch or length needs none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch

from budgetlab.errors import CallerError
from budgetlab.hardware.meters import StepTime, release_memory
from budgetlab.profiler.arms import Job, arms_and_teachers, count_arm, jobs_of
from budgetlab.profiler.clock import OutOfMemory, time_shapes
from budgetlab.studies import Study
from budgetlab.values import PHASES, ArmCost, CostProfile, HeldOut, ModelSpec, PhaseTime, Recipe, TimeModel

Shape = tuple[int, int]
_ROUNDS = 4
_FEWEST_SHAPES = 5
"""Three coefficients, and something to see them err by."""
_CHANGE = 0.1


def positions(student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> int:
    """Positions that both networks have; as many as are asked for, and at least 512, where the study does not say."""
    specs = [student] if teacher is None else [student, teacher]
    return min(int(spec.config.get("max_position_embeddings", max(512, seq_len))) for spec in specs)


def shapes_for(sequences: int, seq_len: int, longest: int = 512) -> tuple[list[Shape], list[Shape]]:
    """Choose up to eight shapes of at most half the batch's tokens to fit, and two larger ones to hold out.

    Lengths are half, once and twice the recipe's, as far as networks have positions.
    """
    tokens = sequences * seq_len
    short, long = max(8, seq_len // 2), max(seq_len, min(2 * seq_len, longest))
    wanted = [(16, seq_len), (8, short), (8, long), (4, seq_len), (4, long), (2, short), (2, seq_len), (2, long)]
    fitted = [(tokens // part // length, length) for part, length in wanted]
    held = [(sequences, seq_len), (tokens // long, long)]
    kept = [shape for shape in dict.fromkeys(fitted) if shape[0] >= 1]
    return kept, [shape for shape in dict.fromkeys(held) if shape[0] >= 1 and shape not in kept]


def measure_time_model(job: Job, device: torch.device, micro_batch_sequences: int | None = None) -> TimeModel | None:
    """Measure an arm's step at several shapes and fit each phase.

    On a CPU the clock is processor time, on a GPU that of the device. None where the batch is too small to be cut into
    enough shapes, or memory holds too few of them.
    """
    recipe, on_gpu = job.recipe, device.type == "cuda"
    largest = min(micro_batch_sequences or recipe.batch_sequences, recipe.batch_sequences)
    fitted, held = shapes_for(largest, recipe.seq_len, positions(job.student, job.teacher, recipe.seq_len))
    timed: dict[Shape, list[StepTime]] = {}
    while not timed and held and len(fitted) >= _FEWEST_SHAPES:
        try:
            timed = time_shapes(job, [*fitted, *held], device, _ROUNDS)
        except OutOfMemory:
            # Longer sequences take more memory at the same tokens.
            largest_shape = max((*fitted, *held), key=lambda shape: shape[0] * shape[1] ** 2)
            fitted, held = ([shape for shape in part if shape != largest_shape] for part in (fitted, held))
        release_memory(device)
    if not timed:
        return None
    phases = {}
    for phase in PHASES:
        by_shape = [[(s.device if on_gpu else s.cpu).get(phase, 0.0) for s in timed[shape]] for shape in fitted]
        phases[phase] = fit_phase(fitted, [statistics.median(seconds) for seconds in by_shape], launch_bound=on_gpu)
    model = TimeModel(clock="device" if on_gpu else "cpu", phases=phases, shapes=tuple(fitted), held_out=())
    held_out = tuple(
        HeldOut(
            sequences=shape[0],
            seq_len=shape[1],
            predicted_seconds=model.seconds(*shape),
            measured_seconds=statistics.median(step.seconds if on_gpu else step.cpu_seconds for step in timed[shape]),
        )
        for shape in held
    )
    return model.model_copy(update={"held_out": held_out})


def fit_phase(shapes: Sequence[Shape], seconds: Sequence[float], *, launch_bound: bool = False) -> PhaseTime:
    """Fit ``constant + tokens * (a + b * seq_len)``, none of them negative, to relative errors.

    With `launch_bound` the phases of the smallest shapes may lie on a floor instead: as many as fit best.
    """
    tokens = np.array([count * length for count, length in shapes], dtype=float)
    lengths = np.array([length for _, length in shapes], dtype=float)
    measured = np.asarray(seconds, dtype=float)
    if measured.max(initial=0.0) <= 0.0:
        return PhaseTime(constant_seconds=0.0, seconds_per_token=0.0, seconds_per_token_position=0.0)
    from scipy.optimize import nnls

    scale = np.maximum(measured, 1e-3 * measured.max())
    features = np.stack([np.ones_like(tokens), tokens, tokens * lengths], axis=1)
    sizes = features.max(axis=0)  # in which the coefficients are of one order
    order = np.argsort(tokens, kind="stable")
    best, least = PhaseTime(constant_seconds=0.0, seconds_per_token=0.0, seconds_per_token_position=0.0), np.inf
    for on_floor in range(4) if launch_bound else (0,):
        rest = order[on_floor:]
        found = nnls(features[rest] / sizes / scale[rest, None], measured[rest] / scale[rest])[0] / sizes
        phase = PhaseTime(
            constant_seconds=float(found[0]),
            seconds_per_token=float(found[1]),
            seconds_per_token_position=float(found[2]),
            floor_seconds=float(np.median(measured[order[:on_floor]])) if on_floor else 0.0,
        )
        predicted = np.array([phase.seconds(t, int(s)) for t, s in zip(tokens, lengths, strict=True)])
        error = float((((predicted - measured) / scale) ** 2).sum())
        # A floor has to earn its place: it is one more number.
        if error < 0.5 * least:
            best, least = phase, error
    return best


def machine_changed(cost: ArmCost) -> str | None:
    """Say that a step took another time when the time model was measured: what no clock of this process sees."""
    model = cost.time_model
    before = cost.cpu_seconds_per_step if model is not None and model.clock == "cpu" else cost.seconds_per_step
    whole = (cost.batch_tokens // (cost.seq_len or 1), cost.seq_len)
    again = [h.measured_seconds for h in model.held_out if (h.sequences, h.seq_len) == whole] if model else []
    if not before or not again or abs(again[0] / before - 1.0) <= _CHANGE:
        return None
    change = f"{100 * (again[0] / before - 1.0):+.0f} %"
    return f"{cost.arm}'s step took {change} when it was timed again: the machine changed"


def reshaped(study: Study, found: CostProfile, sequences: int, seq_len: int) -> CostProfile:
    """Price a study at another batch and length from the time models of its profile: FLOPs counted, seconds predicted.

    The profile is of depth "full"; `sequences` of `seq_len` are a step's, in the micro-batches of the profile. A
    CallerError where there are no time models, or the networks have not so many positions.
    """
    known = [*found.arms, *found.teachers]  # in the order of `jobs_of`
    without = [cost.arm for cost in known if cost.time_model is None]
    if without:
        wrong, remedy = "the profile has no time models", "profile without --quick"
        if len(without) < len(known):
            wrong = f"{', '.join(without)} has no time model: its batch is too small to fit one to parts of it"
            wrong, remedy = f"{wrong}, or memory is", "raise recipe.batch_tokens, or take another device"
        raise CallerError(f"a prediction for {sequences} x {seq_len}", wrong, remedy)
    micro = min(found.micro_batch_sequences or sequences, sequences)
    costs = []
    for before, job in zip(known, jobs_of(study), strict=True):
        longest = positions(job.student, job.teacher, seq_len)
        if seq_len > longest:
            asked, wrong = f"a prediction for sequences of {seq_len}", f"{job.name} has positions for {longest}"
            raise CallerError(asked, wrong, "take a shorter one")
        shape = {"seq_len": seq_len, "batch_tokens": sequences * seq_len}
        settings = shape | {"dtype": before.dtype, "attention": before.attention}
        recipe = Recipe.model_validate({**job.recipe.model_dump(), **settings})
        counted, model = count_arm(job._replace(recipe=recipe), torch.device("cpu")), before.time_model
        assert model is not None
        by_phase = model.phase_seconds(sequences, seq_len, micro)
        # Of processor time, what the wall clock shows is as at the shape that was measured.
        on_cpu, wall = model.clock == "cpu", 1.0
        if on_cpu and before.seconds_per_step and before.cpu_seconds_per_step:
            wall = before.seconds_per_step / before.cpu_seconds_per_step

        def timed(seconds: float, on_cpu: bool = on_cpu, wall: float = wall) -> dict[str, float | None]:
            return {"seconds_per_step": seconds * wall, "cpu_seconds_per_step": seconds if on_cpu else None}

        step = timed(sum(by_phase.values()))
        phases = {name: p.model_copy(update=timed(by_phase[name])) for name, p in counted.phases.items()}
        rate = sequences * seq_len / (sum(by_phase.values()) * wall)
        costs.append(
            counted.model_copy(update={"phases": phases, "time_model": model, "tokens_per_second": rate, **step})
        )
    where = f"{sequences} sequences of {seq_len} a step on {found.environment.device_name}"
    arms, teachers = arms_and_teachers(study, costs)
    changes = {"arms": arms, "teachers": teachers, "timing": None, "study_key": "", "predicted_for": where}
    return found.model_copy(update=changes)
