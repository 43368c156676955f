"""Seconds, memory and energy of steps on this device: paired rounds in random order, the first not counted."""

from __future__ import annotations

import contextlib
import math
import random
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from budgetlab.batches import MaskedBatch
from budgetlab.errors import CallerError
from budgetlab.hardware import (
    PeakMemory,
    PhaseClock,
    StepTime,
    find_energy_counter,
    is_out_of_memory,
    largest_that_fits,
    peak_memory,
    release_memory,
    throttled,
    waited_seconds,
)
from budgetlab.resampling import median_interval
from budgetlab.step import TrainingStep, build_step
from budgetlab.strategies import build_strategy
from budgetlab.values import CompiledCost, ModelSpec, Ratio, Recipe, StrategySpec, Timing

Job = tuple[str, StrategySpec, ModelSpec, ModelSpec | None, Recipe]
"""Name, strategy, student, teacher and recipe of what is priced."""

_WAITING = 0.05
"""Of the time that threads could have run: above this, other programs took part of the machine."""
_DRIFT = 0.05


class OutOfMemory(CallerError):
    """A step does not fit into the device's memory."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least so many rounds, and so many seconds of every arm, but not more than `most`.

    Where the first counted steps of all arms together take more than `give_up_seconds`, they are the only ones.
    """

    rounds: int = 10
    seconds: float = 1.0
    most_rounds: int = 200
    give_up_seconds: float = math.inf


QUICK: Effort = Effort(rounds=6, seconds=0.0)


@dataclass
class Rounds:
    """The timed steps of every arm, one a round; `first` is the round that warmed up."""

    steps: dict[str, list[StepTime]]
    first: dict[str, StepTime]
    waiting_share: float | None = None
    throttling: set[str] = field(default_factory=set)


def build_job(
    job: Job, device: str | torch.device, trained: Collection[str] | None = None, *, compiled: bool = False
) -> TrainingStep:
    """Build the step of an arm, or of pretraining a teacher; `trained` and `compiled` as in `TrainingStep`."""
    name, strategy, student, teacher, recipe = job
    # Random weights cost what given ones do.
    student, teacher = student.untrained(), None if teacher is None else teacher.untrained()
    built = build_strategy(strategy, name)
    return build_step(name, built, student, teacher, recipe, seed=0, device=device, trained=trained, compiled=compiled)


def time_steps(
    jobs: Sequence[Job],
    device: torch.device,
    effort: Effort,
    say: Callable[[str], None],
    micro_batch_sequences: int | None,
) -> Rounds:
    """Time the steps of all arms, interleaved in a random order so that drift of the machine hits all alike."""
    work = {}
    for job in jobs:
        with _within_memory(job[0], micro_batch_sequences or job[4].batch_sequences):
            work[job[0]] = (build_job(job, device), random_batch(job[2], job[4]), micro_batch_sequences)
    return _rounds(work, device, effort, say)


def time_shapes(
    job: Job, shapes: Sequence[tuple[int, int]], device: torch.device, rounds: int
) -> dict[tuple[int, int], list[StepTime]]:
    """Time one arm's step at several shapes, (sequences, positions), all at once and interleaved."""
    step = build_job(job, device)
    names = {shape: f"{job[0]} at {shape[0]} x {shape[1]}" for shape in shapes}
    work = {name: (step, random_batch(job[2], job[4], *shape), None) for shape, name in names.items()}
    found = _rounds(work, device, Effort(rounds, 0.0), lambda text: None)
    return {shape: found.steps[name] for shape, name in names.items()}


def time_compiled(job: Job, device: torch.device, effort: Effort, micro_batch_sequences: int | None) -> CompiledCost:
    """Time one arm's step compiled and not, in turn."""
    batch = random_batch(job[2], job[4])
    names = {False: f"{job[0]} as it is", True: f"{job[0]} compiled"}
    work, took = {}, {}
    for how, name in names.items():
        step = build_job(job, device, compiled=how)
        took[how] = PhaseClock(device).time(lambda _, step=step: step.warm_up(batch, micro_batch_sequences)).seconds
        work[name] = (step, batch, micro_batch_sequences)
    found = _rounds(work, device, effort, lambda text: None)
    plain, compiled = ([step.seconds for step in found.steps[names[how]]] for how in (False, True))
    ratios = [one / other for one, other in zip(compiled, plain, strict=True)]
    ratio = Ratio(value=statistics.median(ratios), interval=median_interval(ratios))
    return CompiledCost(seconds_ratio=ratio, compile_seconds=max(0.0, took[True] - took[False]))


def _rounds(
    work: Mapping[str, tuple[TrainingStep, MaskedBatch, int | None]],
    device: torch.device,
    effort: Effort,
    say: Callable[[str], None],
) -> Rounds:
    clock, shuffle = PhaseClock(device), random.Random(0)
    found = Rounds({name: [] for name in work}, {})
    before = waited_seconds()
    done = 0

    def while_busy() -> None:
        if (reason := throttled(device)) is not None:
            found.throttling.add(reason)

    while done <= effort.rounds or (done <= effort.most_rounds and _least_seconds(found) < effort.seconds):
        for name in shuffle.sample(sorted(work), len(work)):
            timed = clock.time(_runner(name, *work[name]), while_busy)
            if done:
                found.steps[name].append(timed)
            else:  # makes optimizer state, warms the kernels up
                found.first[name] = timed
        if done % 5 == 0:
            say(f"timing steps, round {done}, at least {effort.rounds}")
        if done == 1 and sum(steps[0].seconds for steps in found.steps.values()) > effort.give_up_seconds:
            break
        done += 1
    after = waited_seconds()
    if before is not None and after is not None:
        ran, waited = after[0] - before[0], after[1] - before[1]
        found.waiting_share = waited / (ran + waited) if ran + waited > 0 else 0.0
    return found


def _runner(
    name: str, step: TrainingStep, batch: MaskedBatch, micro: int | None
) -> Callable[[Callable[[str], None]], object]:
    size = min(micro or len(batch.input_ids), len(batch.input_ids))

    def run(on_phase: Callable[[str], None]) -> object:
        with _within_memory(name, size):
            return step.run(batch, 1e-6, micro_batch_sequences=micro, on_phase=on_phase)

    return run


@contextlib.contextmanager
def _within_memory(name: str, sequences: int) -> Iterator[None]:
    """Turn what torch says when memory runs out into a line that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"a step of {name} with {sequences} sequence{'s' * (sequences != 1)} at once",
            "the device is out of memory",
            f"set execution.micro_batch_sequences below {sequences}" if sequences > 1 else "take a smaller model",
        ) from None


def _least_seconds(found: Rounds) -> float:
    return min(sum(step.seconds for step in steps) for steps in found.steps.values())


def describe_rounds(found: Rounds) -> Timing:
    """Say how the seconds were taken, and what speaks against them: other programs, throttling, drift."""
    drift = _drift(found)
    warnings = []
    if found.waiting_share is not None and found.waiting_share > _WAITING:
        warnings.append(
            f"other programs ran: threads waited for a core {100 * found.waiting_share:.0f} % of the time; "
            "wall time is inflated, processor time less so"
        )
    if abs(drift) > _DRIFT:
        change = f"{100 * abs(drift):.0f} % {'slower' if drift > 0 else 'faster'}"
        warnings.append(f"steps of the second half of the rounds were {change} than of the first: the device drifts")
    warnings += [f"the GPU was held back: {reason}" for reason in sorted(found.throttling)]
    return Timing(
        rounds=min(len(steps) for steps in found.steps.values()),
        measured_seconds=_least_seconds(found),
        waiting_share=found.waiting_share,
        drift=drift,
        warnings=tuple(warnings),
    )


def _drift(found: Rounds) -> float:
    """Geometric mean over arms of the second half's median over the first half's."""
    changes = []
    for steps in found.steps.values():
        half = len(steps) // 2
        if half:
            early, late = ([step.seconds for step in part] for part in (steps[:half], steps[-half:]))
            changes.append(np.log(statistics.median(late) / statistics.median(early)))
    return float(np.expm1(np.mean(changes))) if changes else 0.0


def measure_memory(job: Job, device: torch.device, micro_batch_sequences: int | None) -> PeakMemory | None:
    """Measure the peak of the arm alone: networks, optimizer state, activations; None where the system does not say."""

    def work() -> None:
        with _within_memory(job[0], micro_batch_sequences or job[4].batch_sequences):
            step, batch = build_job(job, device), random_batch(job[2], job[4])
            for _ in range(2):  # the first makes optimizer state
                step.run(batch, 1e-6, micro_batch_sequences=micro_batch_sequences)

    return peak_memory(work, device)


def largest_micro_batch(job: Job, device: torch.device) -> int:
    """Search the most sequences of a batch that fit on the device at once; 0 if one does not."""
    recipe = job[4]
    release_memory(device)

    def fits(sequences: int) -> bool:
        try:
            step = build_job(job, device)
            for _ in range(2):
                step.run(random_batch(job[2], recipe, sequences), 1e-6)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            step = None
            release_memory(device)
        return True

    return largest_that_fits(fits, recipe.batch_sequences)


def measure_energy(
    jobs: Sequence[Job], device: torch.device, micro_batch_sequences: int | None
) -> tuple[dict[str, float], str | None]:
    """Joules per token of each arm over windows of seconds, and where they come from; nothing where none is counted.

    All that the counter counts, idle power included, is the arm's.
    """
    counter = find_energy_counter(device)
    if counter is None:
        return {}, None
    found = {}
    clock = PhaseClock(device)
    for job in jobs:
        step = run = None  # what the last arm held goes first
        batch = random_batch(job[2], job[4])
        with _within_memory(job[0], micro_batch_sequences or len(batch.input_ids)):
            step = build_job(job, device)
        run = _runner(job[0], step, batch, micro_batch_sequences)
        clock.time(run)
        before, seconds, tokens = counter.joules(), 0.0, 0
        while seconds < counter.window_seconds:
            seconds += clock.time(run).seconds
            tokens += batch.input_ids.size
        found[job[0]] = (counter.joules() - before) / tokens
    return found, counter.source


def random_batch(
    student: ModelSpec, recipe: Recipe, sequences: int | None = None, seq_len: int | None = None
) -> MaskedBatch:
    """Draw a batch of the recipe's shape, or of another, with its share of masked positions."""
    count, length = sequences or recipe.batch_sequences, seq_len or recipe.seq_len
    masked = max(1, round(recipe.mask_fraction * length))
    draw = np.random.default_rng(0)
    vocab_size = student.vocab_size or 0
    columns = np.tile(np.arange(masked), count)
    rows = np.repeat(np.arange(count), masked)
    ids = draw.integers(vocab_size, size=(count, length))
    return MaskedBatch(ids, rows * length + columns, draw.integers(vocab_size, size=len(rows)))
