"""Sums over a run's steps: what they took, by phase, its overheads apart; and the means of the logged terms."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from budgetlab.batches import MaskedBatch
from budgetlab.hardware import EnergyCounter, PhaseMeter
from budgetlab.ranks import Ranks
from budgetlab.runner.teacher_cache import TeacherCache
from budgetlab.values import PHASES, ArmCost, PhaseCost, PhaseSpent

_OVERHEADS: tuple[str, ...] = ("start", "compile", "data_wait", "evaluation", "checkpoint")
_SAVED = ("tokens", "target_tokens", "digest", "seconds", "joules", "rank_seconds", "overheads",
          "overhead_joules")  # fmt: skip


class Ledger:
    """Sums over a run's steps since its first (of its trunk, for a branch); steps that a crash undid are left out."""

    def __init__(
        self,
        cost: ArmCost,
        device: torch.device,
        ranks: Ranks,
        counter: EnergyCounter | None,
        cache: TeacherCache | None = None,
    ) -> None:
        self.cost, self.ranks, self.counter, self.cache = cost, ranks, counter, cache
        self.meter = PhaseMeter(device)
        self.tokens = self.target_tokens = self.digest = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.joules: dict[str, float] | None = None if counter is None else dict.fromkeys(PHASES, 0.0)
        self.overheads = dict.fromkeys(_OVERHEADS, 0.0)
        self.overhead_joules = None if counter is None else 0.0
        """Between steps, from the first one on."""
        self.rank_seconds: list[float] | None = [0.0] * ranks.world
        """Device time of each process; None where they were other processes before."""
        self._counted = (0, 0, 0)  # tokens, targets and digest of this process since the last sum over all
        self._joules_before, self._joules_between = self._read_joules(), 0.0

    def count(self, batch: MaskedBatch, digest: int) -> None:
        """Count this process's share of a step."""
        tokens, targets, before = self._counted
        self._counted = (tokens + batch.tokens, targets + len(batch.target_ids), (before + digest) % 2**64)

    @contextmanager
    def overhead(self, name: str) -> Iterator[None]:
        """Meter what is no part of any step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.overheads[name] += time.perf_counter() - began

    def mark(self) -> None:
        """Joules from here on are the steps'; those since the last sum are none of any step."""
        before, self._joules_before = self._joules_before, self._read_joules()
        self._joules_between += self._joules_before - before

    def _read_joules(self) -> float:
        return self.counter.joules() if self.counter is not None else math.nan

    def settle(self) -> None:
        """Bring the sums up to date, over all processes; waits for the device."""
        seconds = self.meter.collect()
        before, self._joules_before = self._joules_before, self._read_joules()
        tokens, targets, digest = self._counted
        own = [
            float(tokens),
            float(targets),
            self._joules_before - before,
            self._joules_between,
            *(seconds.get(name, 0.0) for name in PHASES),
        ]
        # Each process's own seconds: the sum over processes has all.
        own += [sum(seconds.values()) if rank == self.ranks.rank else 0.0 for rank in range(self.ranks.world)]
        tokens, targets, joules, between, *rest = self.ranks.sum(own)
        by_phase = dict(zip(PHASES, rest, strict=False))
        self.tokens, self.target_tokens = self.tokens + int(tokens), self.target_tokens + int(targets)
        self.digest = (self.digest + self.ranks.sum_modulo(digest)) % 2**64
        total = sum(by_phase.values())
        if self.joules is not None and total:
            shared = {name: self.joules[name] + joules * took / total for name, took in by_phase.items()}
            self.joules = None if math.isnan(joules) else shared  # nan: some process has no counter
        if self.overhead_joules is not None:
            self.overhead_joules = None if math.isnan(between) else self.overhead_joules + between
        for name, took in by_phase.items():
            self.seconds[name] += took
        if self.rank_seconds is not None:
            by_rank = rest[len(PHASES) :]
            self.rank_seconds = [before + took for before, took in zip(self.rank_seconds, by_rank, strict=True)]
        self._counted, self._joules_between = (0, 0, 0), 0.0

    @property
    def device_seconds(self) -> float:
        """Of all phases, on all devices together."""
        return sum(self.seconds.values()) + self._cached_teacher()[1]

    def _cached_teacher(self) -> tuple[int | None, float, float | None]:
        """Tokens, seconds and joules of a cached teacher, as far as they were needed; (None, 0, 0) without one."""
        if self.cache is None:
            return None, 0.0, 0.0
        share = self.cache.share(self.tokens)
        joules = None if self.cache.joules is None else self.cache.joules * share
        return self.cache.teacher_tokens(self.tokens), self.cache.seconds * share, joules

    def spent(self) -> dict[str, Any]:
        """Return the sums that a point, a record and a score have in common."""
        teacher_tokens, _, _ = self._cached_teacher()
        return {
            "tokens": self.tokens,
            "target_tokens": self.target_tokens,
            "required_flops": self.cost.required_flops(self.tokens, self.target_tokens, teacher_tokens),
            "executed_flops": self.cost.executed_flops(self.tokens, self.target_tokens, teacher_tokens),
            "device_seconds": self.device_seconds,
        }

    def account(self, tokens_per_pass: int) -> dict[str, Any]:
        """Return all of it, for the record; a pass reads each sample once."""
        teacher_tokens, teacher_seconds, teacher_joules = self._cached_teacher()
        phases, teacher = {}, self.cost.phases.get("teacher_forward")
        if self.cache is not None and self.cache.phase == "cache" and teacher is not None:
            # The teacher's work is that of making the cache, of which this run pays its share.
            size = self.cache.bytes * self.cache.share(self.tokens)
            phases["cache"] = _spent(teacher, teacher_tokens or 0, teacher_seconds, teacher_joules, size)
            teacher_tokens, teacher_seconds, teacher_joules = 0, 0.0, 0.0
        for name, price in self.cost.phases.items():
            tokens, seconds, joules = self.tokens, 0.0, 0.0
            if teacher_tokens is not None and name == "teacher_forward":
                tokens, seconds, joules = teacher_tokens, teacher_seconds, teacher_joules
            joules = None if self.joules is None or joules is None else self.joules[name] + joules
            phases[name] = _spent(price, tokens, self.seconds[name] + seconds, joules)
        rates = None
        if self.ranks.world > 1 and self.rank_seconds is not None and all(self.rank_seconds):
            rates = tuple(self.tokens / self.ranks.world / seconds for seconds in self.rank_seconds)
        joules = [phase.joules for phase in phases.values()]
        return {
            **self.spent(),
            "unique_tokens": min(self.tokens, tokens_per_pass),
            "joules": None if None in joules else sum(joules),
            "overhead_joules": self.overhead_joules,
            "phases": phases,
            "overhead_seconds": dict(self.overheads),
            "samples_digest": f"{self.digest:016x}",
            "tokens_per_second_by_rank": rates,
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain JSON."""
        return {name: getattr(self, name) for name in _SAVED}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.rank_seconds is not None and len(self.rank_seconds) != self.ranks.world:
            self.rank_seconds = None


def _spent(
    price: PhaseCost, tokens: int, seconds: float, joules: float | None, size: float | None = None
) -> PhaseSpent:
    return PhaseSpent(
        required_flops=price.required_flops_per_token * tokens,
        executed_flops=price.executed_flops_per_token * tokens,
        device_seconds=seconds,
        joules=joules,
        bytes=size,
    )


class Means:
    """Sums of each logged term from one point to the next, on the device, so that no step waits for a number."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._steps, self._sums = 0, dict[str, Tensor]()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add a step's terms."""
        self._sums = {name: self._sums[name] + term if self._steps else term for name, term in terms.items()}
        self._steps += 1

    def own(self) -> dict[str, float]:
        """Return the means over this process's samples."""
        return {name: float(total) / self._steps for name, total in self._sums.items()}

    def all(self) -> dict[str, float]:
        """Return the means over all processes' samples; all of them call it."""
        if not self._sums:
            return {}
        means = self._ranks.mean(torch.stack(list(self._sums.values()))) / self._steps
        return dict(zip(self._sums, means.tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Return what `load` restores, of all processes, which all call it."""
        own = [float(total) for total in self._sums.values()]
        # Each process's own sums: every row but one's own is zero, and the sum over processes has all.
        world, here = self._ranks.world, self._ranks.rank
        table = self._ranks.sum([x for rank in range(world) for x in (own if rank == here else [0.0] * len(own))])
        rows = [table[rank * len(own) : (rank + 1) * len(own)] for rank in range(world)]
        return {"names": list(self._sums), "steps": self._steps, "sums": rows}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore this process's sums; where others saved them, the mean is the same, its bits are not."""
        rows = state["sums"]
        if len(rows) == self._ranks.world:
            row = rows[self._ranks.rank]
        else:
            row = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        self._steps = state["steps"]
        self._sums = {name: torch.tensor(value, device=device) for name, value in zip(state["names"], row, strict=True)}
