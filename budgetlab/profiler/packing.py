"""Whether several processes side by side on this device take more steps a second together than one alone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from loky import cpu_count
from numpy.typing import NDArray

from budgetlab.errors import BudgetlabError
from budgetlab.hardware import is_out_of_memory, prepare
from budgetlab.profiler.clock import Job, build_job, random_batch
from budgetlab.values import ExecutionSpec, Packing
from budgetlab.workers import work

PATIENCE_SECONDS = 120.0
"""For so long those that have begun wait for the others."""
LOOKS_PER_SECOND = 10
MOST_ON_A_GPU = 8
WORTH = 1.1
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
    device = prepare(execution)
    most = MOST_ON_A_GPU if device.type == "cuda" else cpu_count() // execution.threads
    found: list[Packing] = []
    processes, best = 2, 1.0
    while processes <= most:
        say(f"timing {processes} processes side by side")
        try:
            alone, together = (
                _steps_per_second(count, job, execution, micro_batch_sequences, seconds) for count in (1, processes)
            )
        except (RuntimeError, BudgetlabError) as error:
            if isinstance(error, BudgetlabError) or is_out_of_memory(error):
                break
            raise
        if alone is None or together is None:
            break
        found.append(Packing(processes=processes, speed_ratio=together / alone))
        if together / alone < WORTH * best:
            break
        processes, best = 2 * processes, together / alone
    return tuple(found)


def _steps_per_second(
    processes: int, job: Job, execution: ExecutionSpec, micro_batch_sequences: int | None, seconds: float
) -> float | None:
    """Steps a second of all of them while all of them ran; None where they hardly met."""
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (job, execution, micro_batch_sequences, seconds, Path(meeting), processes)
        stamps = [stamp for _, stamp in work(_Stepper, arguments, list(range(processes)), workers=processes)]
    begin, end = (pick(stamp[where, 0] for stamp in stamps) for pick, where in ((max, 0), (min, -1)))
    if end - begin < seconds / 2:
        return None
    return sum(float(np.ptp(np.interp([begin, end], s[:, 0], s[:, 1]))) for s in stamps) / (end - begin)


class _Stepper:
    """Takes an arm's steps for some seconds and says how many it had taken when."""

    def __init__(
        self,
        job: Job,
        execution: ExecutionSpec,
        micro_batch_sequences: int | None,
        seconds: float,
        meeting: Path,
        processes: int,
    ) -> None:
        self.seconds, self.meeting, self.processes = seconds, meeting, processes
        self.device = prepare(execution)
        step, batch = build_job(job, self.device), random_batch(job[2], job[4])
        self.take = lambda: step.run(batch, 1e-6, micro_batch_sequences=micro_batch_sequences)

    def __call__(self, number: int, tell: object, stop_asked: object) -> NDArray[np.float64]:
        """Return rows of (seconds by a clock that all processes share, steps taken until then)."""
        self._take(1)  # makes optimizer state
        (self.meeting / str(number)).touch()
        began = time.monotonic()
        while len(os.listdir(self.meeting)) < self.processes and time.monotonic() - began < PATIENCE_SECONDS:
            time.sleep(0.01)
        began = time.monotonic()
        self._take(1)
        # A look waits for the device, so that there must be few.
        between = max(1, int(1.0 / (LOOKS_PER_SECOND * (time.monotonic() - began))))
        stamps = [(time.monotonic(), 0.0)]
        while stamps[-1][0] - stamps[0][0] < self.seconds:
            self._take(between)
            stamps.append((time.monotonic(), stamps[-1][1] + between))
        return np.array(stamps)

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            self.take()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
