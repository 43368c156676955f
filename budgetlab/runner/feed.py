"""The next step's samples, made in the background while the device works on this step's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from budgetlab.batches import Batches, MaskedBatch
from budgetlab.ranks import Ranks
from budgetlab.runner.teacher_cache import TeacherCache

Fed = tuple[MaskedBatch, int]


class Feed:
    """Batches of consecutive steps and their digests, one ahead; used in a `with` block."""

    def __init__(
        self, batches: Batches, batch_sequences: int, ranks: Ranks, last_step: int, kept: TeacherCache | None = None
    ) -> None:
        self._make: Callable[[int], Fed] = lambda step: _made(batches, step, batch_sequences, ranks, kept)
        self._last_step, self._at = last_step, -1
        self._next: Future[Fed] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def step(self, step: int) -> Fed:
        """Return what this process is fed at a step, and begin to make the next one's."""
        found = self._next.result() if self._next is not None and self._at == step else self._make(step)
        self._at, self._next = step + 1, None
        if self._at < self._last_step:
            self._next = self._pool.submit(self._make, self._at)
        return found


def _made(batches: Batches, step: int, batch_sequences: int, ranks: Ranks, kept: TeacherCache | None) -> Fed:
    batch = batches.step(step, batch_sequences, ranks.rank, ranks.world)
    digest = batch.digest(step)
    if kept is not None and batch.samples is not None:
        batch = replace(batch, largest=kept.read(batch.samples))
    return batch, digest
