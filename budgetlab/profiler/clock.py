"""Seconds, memory and energy of steps on this device: paired rounds in random order, the first not counted."""

from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from loky import cpu_count

from budgetlab.batches import MaskedBatch
from budgetlab.engines.local import work
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.hardware import prepare
from budgetlab.hardware.meters import (
    EnergyCounter,
    PhaseMeter,
    StepTime,
    is_out_of_memory,
    largest_that_fits,
    peak_memory,
    release_memory,
    throttled,
    waited_seconds,
)
from budgetlab.profiler.arms import Job
from budgetlab.resampling import median_interval
from budgetlab.step import TrainingStep
from budgetlab.transfer import Staged, stage
from budgetlab.values import CompiledCost, ExecutionSpec, Packing, Ratio, Timing

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

    @property
    def least_seconds(self) -> float:
        """Of the arm that was measured the least."""
        return min(sum(step.seconds for step in steps) for steps in self.steps.values())


@dataclass(frozen=True)
class Ready:
    """A step with its batch, to be taken again and again; where memory runs out it says what to do."""

    name: str
    step: TrainingStep
    batch: MaskedBatch
    micro_batch_sequences: int | None = None

    @cached_property
    def staged(self) -> MaskedBatch | Staged:
        """The batch as a run has it when a step begins."""
        return stage(self.batch, self.micro_batch_sequences, self.step.device)

    def __call__(self, on_phase: Callable[[str], None] | None = None) -> None:
        """Take the step once."""
        micro, whole = self.micro_batch_sequences, len(self.batch.input_ids)
        with _within_memory(self.name, min(micro or whole, whole)):
            self.step.run(self.staged, 1e-6, micro_batch_sequences=micro, on_phase=on_phase)


def _make_ready(job: Job, device: torch.device, micro: int | None) -> Ready:
    with _within_memory(job.name, micro or job.recipe.batch_sequences):
        return Ready(job.name, job.build(device), job.batch(), micro)


@contextlib.contextmanager
def _within_memory(name: str, sequences: int) -> Iterator[None]:
    """Turn what torch says when memory runs out into a line that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = f"a step of {name} with {sequences} sequence{'s' * (sequences != 1)} at once"
        remedy = f"set execution.micro_batch_sequences below {sequences}" if sequences > 1 else "take a smaller model"
        raise OutOfMemory(asked, "the device is out of memory", remedy) from None


def time_steps(
    jobs: Sequence[Job], device: torch.device, effort: Effort, say: Callable[[str], None], micro: int | None
) -> Rounds:
    """Time the steps of all arms, in micro-batches of so many sequences, interleaved so that drift hits all alike."""
    return _time_rounds([_make_ready(job, device, micro) for job in jobs], device, effort, say)


def time_shapes(
    job: Job, shapes: Sequence[tuple[int, int]], device: torch.device, rounds: int
) -> dict[tuple[int, int], list[StepTime]]:
    """Time one arm's step at several shapes, (sequences, positions), all at once and interleaved."""
    step = job.build(device)
    ready = {shape: Ready(f"{job.name} at {shape[0]} x {shape[1]}", step, job.batch(*shape)) for shape in shapes}
    steps = _time_rounds(list(ready.values()), device, Effort(rounds, 0.0)).steps
    return {shape: steps[one.name] for shape, one in ready.items()}


def time_compiled(job: Job, device: torch.device, effort: Effort, micro: int | None) -> CompiledCost:
    """Time one arm's step compiled and not, in turn."""
    ready, took = [], []
    for how in ("as it is", "compiled"):
        one = Ready(f"{job.name} {how}", job.build(device, compiled=how == "compiled"), job.batch(), micro)

        def warm_up(on_phase: Callable[[str], None], one: Ready = one) -> None:
            one.step.warm_up(one.batch, micro)
            on_phase("compile")

        took.append(PhaseMeter(device).time(warm_up).seconds)
        ready.append(one)
    steps = _time_rounds(ready, device, effort).steps
    plain, compiled = ([step.seconds for step in steps[one.name]] for one in ready)
    return CompiledCost(seconds_ratio=paired_ratio(compiled, plain), compile_seconds=max(0.0, took[1] - took[0]))


def paired_ratio(own: Sequence[float], reference: Sequence[float], share: float = 1.0) -> Ratio:
    """Median over rounds of the ratio to a reference in the same round, with its interval."""
    ratios = [share * a / b for a, b in zip(own, reference, strict=True)]
    return Ratio(value=statistics.median(ratios), interval=median_interval(ratios))


def _time_rounds(
    ready: Sequence[Ready],
    device: torch.device,
    effort: Effort,
    say: Callable[[str], None] = lambda text: None,
) -> Rounds:
    """Take every step once a round, each round in another order; the first only warms up."""
    meter, shuffle = PhaseMeter(device), random.Random(0)
    found, done, before = Rounds({one.name: [] for one in ready}, {}), 0, waited_seconds()

    def while_busy() -> None:
        if (reason := throttled(device)) is not None:
            found.throttling.add(reason)

    while done <= effort.rounds or (done <= effort.most_rounds and found.least_seconds < effort.seconds):
        for one in shuffle.sample(sorted(ready, key=lambda one: one.name), len(ready)):
            warm = found.first.get(one.name) or StepTime()
            timed = meter.time(one, while_busy, steps=meter.steps_at_once(warm.seconds) if done else 1)
            if done:
                found.steps[one.name].append(timed)
            else:  # makes optimizer state, warms the kernels up
                found.first[one.name] = timed
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


def describe_rounds(found: Rounds, further: Sequence[str] = ()) -> Timing:
    """Say how the seconds were taken, and what speaks against them: other programs, throttling, drift, and further."""
    changes, warnings = [], []
    for steps in found.steps.values():
        half = len(steps) // 2
        if half:
            early, late = ([step.seconds for step in part] for part in (steps[:half], steps[-half:]))
            changes.append(np.log(statistics.median(late) / statistics.median(early)))
    # Geometric mean over arms of the second half's median over the first half's.
    drift = float(np.expm1(np.mean(changes))) if changes else 0.0
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
        measured_seconds=found.least_seconds,
        waiting_share=found.waiting_share,
        drift=drift,
        warnings=(*warnings, *further),
    )


def measure_memory(job: Job, device: torch.device, micro: int | None) -> dict[str, object]:
    """Measure the peak of the arm alone: networks, optimizer state, activations.

    Returns the fields of an `ArmCost`, none where the system does not say.
    """

    def build_and_train() -> None:
        take = _make_ready(job, device, micro)
        for _ in range(2):  # the first makes optimizer state
            take()

    found = peak_memory(build_and_train, device)
    return {} if found is None else asdict(found)


def largest_micro_batch(job: Job, device: torch.device) -> int:
    """Search the most sequences of a batch that fit on the device at once; 0 if one does not."""
    release_memory(device)

    def fits(sequences: int) -> bool:
        try:
            step = job.build(device)
            for _ in range(2):
                step.run(job.batch(sequences), 1e-6)
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

    return largest_that_fits(fits, job.recipe.batch_sequences)


def measure_energy(job: Job, device: torch.device, micro: int | None, counter: EnergyCounter) -> dict[str, object]:
    """Measure joules a token over a window of seconds: all that the counter counts, idle power included.

    Returns the fields of an `ArmCost`.
    """
    take, meter = _make_ready(job, device, micro), PhaseMeter(device)
    steps = meter.steps_at_once(meter.time(take).seconds)
    before, seconds, tokens = counter.joules(), 0.0, 0
    while seconds < counter.window_seconds:
        seconds += steps * meter.time(take, steps=steps).seconds
        tokens += steps * take.batch.input_ids.size
    return {"joules_per_token": (counter.joules() - before) / tokens, "joules_source": counter.source}


_PATIENCE_SECONDS = 120.0
"""For so long those processes that have begun wait for the others."""
_LOOKS_PER_SECOND = 10
_MOST_ON_A_GPU = 8
_WORTH = 1.1
"""More processes are not tried once the last ones have not brought this much."""


def measure_packing(
    job: Job,
    execution: ExecutionSpec,
    micro_batch_sequences: int | None,
    say: Callable[[str], None],
    *,
    seconds: float = 5.0,
) -> tuple[Packing, ...]:
    """Time one arm's steps in 2, 4, 8 ... processes at once, as `run` would have them, and in one alone.

    It ends where more bring little, where memory ends, or, on a CPU, where cores do.
    """
    most = _MOST_ON_A_GPU if prepare(execution).type == "cuda" else cpu_count() // execution.threads
    found: list[Packing] = []

    def steps_per_second(processes: int) -> float:
        with tempfile.TemporaryDirectory() as meeting:
            arguments = (job, execution, micro_batch_sequences, seconds, Path(meeting), processes)
            return sum(rate for _, rate in work(_stepper, arguments, list(range(processes)), workers=processes))

    while (processes := 2 ** (len(found) + 1)) <= most:
        say(f"timing {processes} processes side by side")
        try:
            ratio = steps_per_second(processes) / steps_per_second(1)
        except (RuntimeError, BudgetlabError) as error:
            if isinstance(error, BudgetlabError) or is_out_of_memory(error):
                break
            raise
        if math.isnan(ratio):
            break
        before = found[-1].speed_ratio if found else 1.0
        found.append(Packing(processes=processes, speed_ratio=ratio))
        if ratio < _WORTH * before:
            break
    return tuple(found)


def _stepper(
    job: Job, execution: ExecutionSpec, micro: int | None, seconds: float, meeting: Path, processes: int
) -> Callable[..., float]:
    """Make what says how many of an arm's steps it takes a second beside the others; NaN if they never met."""
    device = prepare(execution)
    step, batch = job.build(device), job.batch()

    def take(steps: int) -> float:
        for _ in range(steps):
            step.run(batch, 1e-6, micro_batch_sequences=micro)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic()

    def run(number: int, tell: object, stop_asked: object) -> float:
        ready = take(1)  # makes optimizer state
        (meeting / str(number)).touch()
        while len(os.listdir(meeting)) < processes:
            if time.monotonic() - ready > _PATIENCE_SECONDS:
                return math.nan
            time.sleep(0.01)
        began = time.monotonic()
        now, steps = take(1), 1
        # A look waits for the device, so that there must be few.
        between = max(1, int(1.0 / (_LOOKS_PER_SECOND * (now - began))))
        while now - began < seconds:
            now, steps = take(between), steps + between
        return steps / (now - began)

    return run
