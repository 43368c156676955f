"""A model of an arm's seconds from a few short measurements, so that another batch or length needs none."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from budgetlab.hardware import StepTime, release_memory
from budgetlab.profiler.clock import Job, OutOfMemory, time_shapes
from budgetlab.step import PHASES
from budgetlab.values import HeldOut, ModelSpec, PhaseTime, TimeModel

Shape = tuple[int, int]
_ROUNDS = 4
_FEWEST_SHAPES = 5
"""Three coefficients, and something to see them err by."""


def positions(student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> int:
    """Positions that both networks have; as many as are asked for, and at least 512, where the study does not say."""
    return min(
        int(spec.config.get("max_position_embeddings", max(512, seq_len)))
        for spec in (student, teacher)
        if spec is not None
    )


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
    recipe = job[4]
    largest = min(micro_batch_sequences or recipe.batch_sequences, recipe.batch_sequences)
    fitted, held = shapes_for(largest, recipe.seq_len, positions(job[2], job[3], recipe.seq_len))
    timed = None
    while timed is None and held and len(fitted) >= _FEWEST_SHAPES:
        try:
            timed = time_shapes(job, [*fitted, *held], device, _ROUNDS)
        except OutOfMemory:
            # Longer sequences take more memory at the same tokens.
            largest_shape = max((*fitted, *held), key=lambda shape: shape[0] * shape[1] ** 2)
            fitted, held = ([shape for shape in part if shape != largest_shape] for part in (fitted, held))
        release_memory(device)
    if timed is None:
        return None
    return _fitted(timed, fitted, held, on_gpu=device.type == "cuda")


def _fitted(
    timed: Mapping[Shape, Sequence[StepTime]], fitted: Sequence[Shape], held: Sequence[Shape], *, on_gpu: bool
) -> TimeModel:
    def seconds(shape: Shape, phase: str) -> float:
        return statistics.median((step.device if on_gpu else step.cpu).get(phase, 0.0) for step in timed[shape])

    def whole(shape: Shape) -> float:
        return statistics.median(step.seconds if on_gpu else step.cpu_seconds for step in timed[shape])

    phases = {
        phase: fit_phase(fitted, [seconds(shape, phase) for shape in fitted], launch_bound=on_gpu) for phase in PHASES
    }
    model = TimeModel(clock="device" if on_gpu else "cpu", phases=phases, shapes=tuple(fitted), held_out=())
    outcomes = tuple(
        HeldOut(
            sequences=shape[0],
            seq_len=shape[1],
            predicted_seconds=model.seconds(*shape),
            measured_seconds=whole(shape),
        )
        for shape in held
    )
    return model.model_copy(update={"held_out": outcomes})


def fit_phase(shapes: Sequence[Shape], seconds: Sequence[float], *, launch_bound: bool = False) -> PhaseTime:
    """Fit ``constant + tokens * (a + b * seq_len)``, none of them negative, to relative errors.

    With `launch_bound` the phases of the smallest shapes may lie on a floor instead: as many as fit best.
    """
    tokens = np.array([count * length for count, length in shapes], dtype=float)
    lengths = np.array([length for _, length in shapes], dtype=float)
    measured = np.asarray(seconds, dtype=float)
    if measured.max(initial=0.0) <= 0.0:
        return PhaseTime(constant_seconds=0.0, seconds_per_token=0.0, seconds_per_token_position=0.0)
    scale = np.maximum(measured, 1e-3 * measured.max())
    features = np.stack([np.ones_like(tokens), tokens, tokens * lengths], axis=1)
    order = np.argsort(tokens, kind="stable")
    best: tuple[float, PhaseTime] | None = None
    for on_floor in range(4) if launch_bound else (0,):
        floor = float(np.median(measured[order[:on_floor]])) if on_floor else 0.0
        rest = order[on_floor:]
        constant, per_token, per_pair = _nonnegative(features[rest] / scale[rest, None], measured[rest] / scale[rest])
        phase = PhaseTime(
            constant_seconds=constant,
            seconds_per_token=per_token,
            seconds_per_token_position=per_pair,
            floor_seconds=floor,
        )
        predicted = np.array([phase.seconds(t, int(s)) for t, s in zip(tokens, lengths, strict=True)])
        error = float((((predicted - measured) / scale) ** 2).sum())
        # A floor has to earn its place: it is one more number.
        if best is None or error < 0.5 * best[0]:
            best = (error, phase)
    assert best is not None
    return best[1]


def _nonnegative(features: np.ndarray, outcome: np.ndarray) -> tuple[float, float, float]:
    """Least squares without negative coefficients: the best of the eight subsets whose own solution has none."""
    best, least = np.zeros(3), float((outcome**2).sum())
    for size in (1, 2, 3):
        for subset in itertools.combinations(range(3), size):
            found = np.linalg.lstsq(features[:, subset], outcome, rcond=None)[0]
            error = float(((features[:, subset] @ found - outcome) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(3), error
                best[list(subset)] = found
    return float(best[0]), float(best[1]), float(best[2])
