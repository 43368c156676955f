"""Clocks of a step by phase, and how long threads had to wait for a core."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_PENDING = 600  # stamps: a hundred steps


@dataclass
class StepTime:
    """Seconds of each phase of one step.

    `device`: time on the device, which on a CPU is wall time. `cpu`: processor time of this process, summed over its
    threads; on a GPU empty.
    """

    device: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.device.values())

    @property
    def cpu_seconds(self) -> float:
        """Of the whole step."""
        return sum(self.cpu.values())


class PhaseClock:
    """Times the phases of steps on a device.

    On a GPU by events that the device itself stamps, so that nothing waits within a step; on a CPU by its two clocks.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(
        self, step: Callable[[Callable[[str], None]], object], while_busy: Callable[[], None] | None = None
    ) -> StepTime:
        """Run `step(on_phase)` and return its times; a phase that comes again (micro-batches) adds up.

        On a GPU `while_busy` is called once all is launched, while the device still works.
        """
        return self._by_events(step, while_busy) if self.device.type == "cuda" else self._by_clocks(step)

    def _by_clocks(self, step: Callable[[Callable[[str], None]], object]) -> StepTime:
        found = StepTime()
        wall, cpu = time.perf_counter(), time.process_time()

        def on_phase(phase: str) -> None:
            nonlocal wall, cpu
            wall_now, cpu_now = time.perf_counter(), time.process_time()
            found.device[phase] = found.device.get(phase, 0.0) + wall_now - wall
            found.cpu[phase] = found.cpu.get(phase, 0.0) + cpu_now - cpu
            wall, cpu = wall_now, cpu_now

        step(on_phase)
        return found

    def _by_events(
        self, step: Callable[[Callable[[str], None]], object], while_busy: Callable[[], None] | None
    ) -> StepTime:
        torch.cuda.synchronize(self.device)
        stamps: list[tuple[str, torch.cuda.Event]] = []

        def on_phase(phase: str) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            stamps.append((phase, event))

        on_phase("")
        step(on_phase)
        if while_busy is not None:
            while_busy()
        torch.cuda.synchronize(self.device)
        found = StepTime()
        for (_, before), (phase, after) in itertools.pairwise(stamps):
            found.device[phase] = found.device.get(phase, 0.0) + before.elapsed_time(after) / 1e3
        return found


class PhaseMeter:
    """Adds up the device's seconds by phase over many steps, and waits for the device in none of them.

    `begin()` at the start of a step, then the meter itself as the step's `on_phase`, and `collect()` now and then.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stamps: list[tuple[str, Any]] = []
        self._seconds: dict[str, float] = {}

    def begin(self) -> None:
        """A step begins; what came since the last one ended is none of any phase."""
        if len(self._stamps) > _PENDING:  # the device has long passed the older half of them
            begins = [i for i, (phase, _) in enumerate(self._stamps) if phase == ""]
            half = max((i for i in begins if i <= _PENDING // 2), default=0) or begins[-1]
            self._add_up(self._stamps[:half])
            del self._stamps[:half]
        self("")

    def __call__(self, phase: str) -> None:
        """A phase ends."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._stamps.append((phase, event))
        else:
            self._stamps.append((phase, time.perf_counter()))

    def collect(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, of steps that have ended; waits for the device."""
        self._add_up(self._stamps)
        found, self._seconds, self._stamps = self._seconds, {}, []
        return found

    def _add_up(self, stamps: list[tuple[str, Any]]) -> None:
        if stamps and self.device.type == "cuda":
            stamps[-1][1].synchronize()
        for (_, before), (phase, after) in itertools.pairwise(stamps):
            if phase:
                took = before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before
                self._seconds[phase] = self._seconds.get(phase, 0.0) + took


def waited_seconds() -> tuple[float, float] | None:
    """Seconds that the threads of this process ran, and that they were ready but had no core; None off Linux."""
    ran = waited = 0
    try:
        for thread in Path("/proc/self/task").iterdir():
            numbers = (thread / "schedstat").read_text().split()
            ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except (OSError, ValueError, IndexError):
        return None
    return ran / 1e9, waited / 1e9
