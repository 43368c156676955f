"""What a run has really taken: tokens, FLOPs, seconds and joules by phase, and its overheads apart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from budgetlab.batches import MaskedBatch
from budgetlab.hardware import EnergyCounter, PhaseMeter
from budgetlab.ranks import Ranks
from budgetlab.runner.teacher_cache import TeacherCache
from budgetlab.values import PHASES, ArmCost, PhaseSpent


class Ledger:
    """Sums over a run's steps since its first (of its trunk, for a branch); steps that a crash undid are left out."""

    def __init__(
        self,
        cost: ArmCost,
        device: torch.device,
        ranks: Ranks,
        counter: EnergyCounter | None,
        kept: TeacherCache | None = None,
    ) -> None:
        self.cost, self.ranks, self.counter, self.kept = cost, ranks, counter, kept
        self.meter = PhaseMeter(device)
        self.tokens = self.target_tokens = self.digest = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.joules: dict[str, float] | None = None if counter is None else dict.fromkeys(PHASES, 0.0)
        self.overheads: dict[str, float] = dict.fromkeys(
            ("start", "compile", "data_wait", "evaluation", "checkpoint"), 0.0
        )
        self.rank_seconds: list[float] | None = [0.0] * ranks.world
        """Device time of each process; None where they were other processes before."""
        self._fed = (0, 0, 0)  # tokens, targets and digest of this process since the last sum over all
        self.mark()

    def feed(self, batch: MaskedBatch, digest: int) -> None:
        """Count this process's share of a step."""
        tokens, targets, before = self._fed
        self._fed = (tokens + batch.tokens, targets + len(batch.target_ids), (before + digest) % 2**64)

    @contextmanager
    def overhead(self, name: str) -> Iterator[None]:
        """Meter what is no part of any step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.overheads[name] += time.perf_counter() - began

    def mark(self) -> None:
        """Joules from here on are the steps'."""
        self._joules_before = self.counter.joules() if self.counter is not None else float("nan")

    def settle(self) -> None:
        """Bring the sums up to date, over all processes; waits for the device."""
        seconds = self.meter.collect()
        now = self.counter.joules() if self.counter is not None else float("nan")
        tokens, targets, digest = self._fed
        own = [float(tokens), float(targets), now - self._joules_before, *(seconds.get(name, 0.0) for name in PHASES)]
        # Each process's own seconds: the sum over processes has all.
        own += [sum(seconds.values()) if rank == self.ranks.rank else 0.0 for rank in range(self.ranks.world)]
        tokens, targets, joules, *rest = self.ranks.sum(own)
        by_phase, by_rank = rest[: len(PHASES)], rest[len(PHASES) :]
        self.tokens, self.target_tokens = self.tokens + int(tokens), self.target_tokens + int(targets)
        self.digest = (self.digest + self.ranks.sum_modulo(digest)) % 2**64
        whole = sum(by_phase)
        if self.joules is not None and whole:
            shares = zip(PHASES, by_phase, strict=True)
            self.joules = {name: self.joules[name] + joules * share / whole for name, share in shares}
            if math.isnan(joules):  # some process has no counter
                self.joules = None
        for name, took in zip(PHASES, by_phase, strict=True):
            self.seconds[name] += took
        if self.rank_seconds is not None:
            self.rank_seconds = [before + took for before, took in zip(self.rank_seconds, by_rank, strict=True)]
        self._fed = (0, 0, 0)
        self.mark()

    @property
    def device_seconds(self) -> float:
        """Of all phases, on all devices together."""
        return sum(self.seconds.values()) + self._asking_took[0]

    @property
    def _taught_tokens(self) -> int | None:
        return None if self.kept is None else self.kept.taught_tokens(self.tokens)

    @property
    def _asking_took(self) -> tuple[float, float | None]:
        """Seconds and joules of the teacher whose answers are kept, as far as they were needed."""
        if self.kept is None:
            return 0.0, 0.0
        share = self.kept.share(self.tokens)
        return self.kept.seconds * share, None if self.kept.joules is None else self.kept.joules * share

    def spent(self) -> dict[str, Any]:
        """Return the sums that a point, a record and a score have in common."""
        return {
            "tokens": self.tokens,
            "target_tokens": self.target_tokens,
            "required_flops": self.cost.required_flops(self.tokens, self.target_tokens, self._taught_tokens),
            "executed_flops": self.cost.executed_flops(self.tokens, self.target_tokens, self._taught_tokens),
            "device_seconds": self.device_seconds,
        }

    def account(self, samples_per_pass_tokens: int) -> dict[str, Any]:
        """Return all of it, for the record; a pass holds so many tokens, each sample once."""
        phases = {}
        for name, price in self.cost.phases.items():
            asked = self.kept is not None and name == "teacher_forward"
            tokens = self.kept.taught_tokens(self.tokens) if self.kept is not None and asked else self.tokens
            seconds, joules = self._asking_took if asked else (0.0, 0.0)
            phases[name] = PhaseSpent(
                required_flops=price.required_flops_per_token * tokens,
                executed_flops=price.executed_flops_per_token * tokens,
                device_seconds=self.seconds[name] + seconds,
                joules=None if self.joules is None or joules is None else self.joules[name] + joules,
            )
        joules = [phase.joules for phase in phases.values()]
        return {
            **self.spent(),
            "unique_tokens": min(self.tokens, samples_per_pass_tokens),
            "joules": None if None in joules else sum(joules),
            "phases": phases,
            "overhead_seconds": dict(self.overheads),
            "samples_digest": f"{self.digest:016x}",
            "tokens_per_second_by_rank": self._rates(),
        }

    def _rates(self) -> tuple[float, ...] | None:
        if self.ranks.world == 1 or self.rank_seconds is None or not all(self.rank_seconds):
            return None
        return tuple(self.tokens / self.ranks.world / seconds for seconds in self.rank_seconds)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain JSON."""
        names = ("tokens", "target_tokens", "digest", "seconds", "joules", "rank_seconds", "overheads")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.rank_seconds is not None and len(self.rank_seconds) != self.ranks.world:
            self.rank_seconds = None
