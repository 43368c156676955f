"""Seconds and memory of steps on this device: arms interleaved, the first round not counted."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch

from budgetlab.batches import MaskedBatch
from budgetlab.hardware import device_clock, peak_memory_bytes
from budgetlab.step import PHASES, TrainingStep, build_step
from budgetlab.strategies import build_strategy
from budgetlab.values import ModelSpec, Recipe, StrategySpec

__all__ = ["Job", "build_job", "peak_memory", "time_steps"]

Job = tuple[str, StrategySpec, ModelSpec, ModelSpec | None, Recipe]
"""Name, strategy, student, teacher and recipe of what is priced."""


def build_job(job: Job, device: str | torch.device) -> TrainingStep:
    """Build the step of an arm, or of pretraining a teacher."""
    name, strategy, student, teacher, recipe = job
    # Random weights cost what given ones do.
    teacher = None if teacher is None else teacher.untrained()
    return build_step(name, build_strategy(strategy, name), student, teacher, recipe, seed=0, device=device)


def peak_memory(job: Job, device: torch.device, micro_batch_sequences: int | None) -> int | None:
    """Of the arm alone on the device; None on a CPU."""
    if device.type != "cuda":
        return None
    peak_memory_bytes(device)
    step, batch = build_job(job, device), _random_batch(job)
    for _ in range(2):  # the first makes optimizer state
        step.run(batch, 1e-6, micro_batch_sequences=micro_batch_sequences)
    return peak_memory_bytes(device)


def time_steps(
    jobs: list[Job],
    device: torch.device,
    steps: int,
    say: Callable[[str], None],
    micro_batch_sequences: int | None,
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each phase of each timed step, arms interleaved so that drift of the machine hits all alike."""
    built = {job[0]: (build_job(job, device), _random_batch(job)) for job in jobs}
    clock = device_clock(device)
    shuffle = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in built}
    for round_index in range(steps + 1):
        for name in shuffle.sample(sorted(built), len(built)):
            step, batch = built[name]
            seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
            mark = clock()

            def on_phase(phase: str, seconds: dict[str, float] = seconds) -> None:
                nonlocal mark
                now = clock()
                seconds[phase] += now - mark
                mark = now

            step.run(batch, 1e-6, micro_batch_sequences=micro_batch_sequences, on_phase=on_phase)
            if round_index:  # the first round makes optimizer state and warms the kernels up
                found[name].append(seconds)
        if round_index % 5 == 0:
            say(f"timing steps {round_index}/{steps}")
    return found


def _random_batch(job: Job) -> MaskedBatch:
    recipe, vocab_size = job[4], job[2].vocab_size or 0
    draw = np.random.default_rng(0)
    ids = draw.integers(vocab_size, size=(recipe.batch_sequences, recipe.seq_len))
    columns = np.tile(np.arange(recipe.masked_per_sequence), recipe.batch_sequences)
    rows = np.repeat(np.arange(recipe.batch_sequences), recipe.masked_per_sequence)
    return MaskedBatch(ids, rows * recipe.seq_len + columns, draw.integers(vocab_size, size=len(rows)))
