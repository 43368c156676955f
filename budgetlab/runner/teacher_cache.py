"""A teacher's largest logits at the targets, cached on disk: written once, verified, read from memory-mapped files."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetlab.batches import Batches
from budgetlab.errors import CallerError
from budgetlab.hardware import EnergyCounter
from budgetlab.machine import file_lock
from budgetlab.ranks import Ranks
from budgetlab.step import TrainingStep, to_device
from budgetlab.store import write_whole
from budgetlab.units import format_quantity
from budgetlab.values import content_hash

SHARD_BYTES = 2**24
"""Little enough that a stop waits for seconds, and enough that a hundred gigabytes are some thousand files."""


def logit_type(vocab_size: int) -> np.dtype:
    """Return the type of a logit on disk: a float16 and an id."""
    return np.dtype([("value", "<f2"), ("id", "<u2" if vocab_size <= 2**16 else "<u4")])


class TeacherCache:
    """The largest logits of one teacher at the targets of one seed's samples, in the order of their first pass.

    Shard N is `N.npy`, pairs of value and id [samples, targets, K], beside `N.json`, its SHA-256 and what it took; it
    counts once both are there.
    """

    def __init__(self, parent: Path, step: TrainingStep, batches: Batches, about: dict[str, Any], ranks: Ranks) -> None:
        recipe, top_k = step.recipe, step.strategy.largest_logits
        assert top_k is not None and step.teacher is not None
        self.step, self.batches, self.ranks = step, batches, ranks
        self.shape = (recipe.masked_per_sequence, top_k)
        self.pair = logit_type(step.teacher.spec.vocab_size or 0)
        self.samples_per_shard = max(1, SHARD_BYTES // (recipe.masked_per_sequence * top_k * self.pair.itemsize))
        about = about | {name: getattr(recipe, name) for name in ("seq_len", "masked_per_sequence", "dtype")}
        about |= {"top_k": top_k, "attention": step.teacher.attention, "samples_per_shard": self.samples_per_shard}
        self.folder = parent / f"teacher-{content_hash(about)}"
        self.seconds, self.tokens = 0.0, 0
        self.joules: float | None = 0.0
        """None where some of it was made without a counter."""
        self._shard = cache(lambda shard: np.load(self._paths(shard)[0], mmap_mode="r"))
        path = self.folder / "about.json"
        if ranks.first and not path.exists():
            write_whole(path, json.dumps(about, indent=1))
        ranks.wait()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found != about:
            other = ", ".join(name for name in about if found.get(name) != about[name])
            asked = f"teacher's answers in {self.folder}"
            raise CallerError(asked, f"they are of another {other}", "delete the folder and run again")

    def make(
        self, samples: int, counter: EnergyCounter | None, stop_asked: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        """Verify what is there, and ask the teacher for what is missing of so many samples."""
        wanted = range(-(-min(samples, self.batches.num_samples) // self.samples_per_shard))
        waiting = f"waiting for another process, which makes {self.folder}"
        with file_lock(self.folder / "lock", lambda: say(waiting)) if self.ranks.first else nullcontext():
            self.ranks.wait()  # for the first one, which has it now
            for shard in wanted[self.ranks.rank :: self.ranks.world]:
                self._drop_if_damaged(shard, say)
            self.ranks.wait()
            todo = [shard for shard in wanted if self._took(shard) is None]
            todo = json.loads(self.ranks.share(json.dumps(todo) if self.ranks.first else None))
            told = time.monotonic()
            for first in range(0, len(todo), self.ranks.world):
                own = todo[first : first + self.ranks.world][self.ranks.rank :]
                for shard in own[:1]:
                    self._write(shard, counter)
                if self.ranks.first and time.monotonic() - told > 30:
                    told = time.monotonic()
                    say(f"the teacher's answers: {first + self.ranks.world} of {len(todo)} shards")
                if self.ranks.any(stop_asked())[0]:
                    raise KeyboardInterrupt
        took = [self._took(shard) or {} for shard in wanted]
        self.seconds, self.tokens = (sum(each[name] for each in took) for name in ("seconds", "tokens"))
        joules = [each["joules"] for each in took]
        self.joules = None if None in joules else sum(joules)
        if todo and self.ranks.first:
            size = sum(path.stat().st_size for path in self.folder.glob("*.npy"))
            say(f"the teacher's {self.shape[1]} largest logits: {format_quantity(size, 'B')} in {self.folder.name}")

    def _paths(self, shard: int) -> tuple[Path, Path]:
        return self.folder / f"{shard:06d}.npy", self.folder / f"{shard:06d}.json"

    def _took(self, shard: int) -> dict[str, Any] | None:
        array, about = self._paths(shard)
        return json.loads(about.read_text(encoding="utf-8")) if array.exists() and about.exists() else None

    def _drop_if_damaged(self, shard: int, say: Callable[[str], None]) -> None:
        array, about = self._paths(shard)
        try:
            took = self._took(shard)
            intact = took is None or hashlib.sha256(array.read_bytes()).hexdigest() == took["sha256"]
        except (ValueError, KeyError):
            intact = False
        if not intact:
            say(f"{array} is damaged: the teacher is asked again")
            about.unlink()

    def _write(self, shard: int, counter: EnergyCounter | None) -> None:
        first = shard * self.samples_per_shard
        end = min(first + self.samples_per_shard, self.batches.num_samples)
        pairs = np.empty((end - first, *self.shape), self.pair)
        at_once = self.step.recipe.batch_sequences
        began, before = time.perf_counter(), None if counter is None else counter.joules()
        for start in range(first, end, at_once):
            batch = self.batches.first_pass(start, min(at_once, end - start))
            signals = self.step.teacher_forward(to_device(batch, self.step.device), alone=True)
            assert signals is not None and signals.largest is not None
            values, ids = (tensor.cpu().numpy().reshape(-1, *self.shape) for tensor in signals.largest)
            here = pairs[start - first : start - first + len(values)]
            here["value"], here["id"] = values, ids
        took = {
            "seconds": time.perf_counter() - began,
            "joules": None if counter is None or before is None else counter.joules() - before,
            "tokens": (end - first) * self.step.recipe.seq_len,
        }
        content = io.BytesIO()
        np.save(content, pairs)
        array, about = self._paths(shard)
        write_whole(array, content.getvalue())
        write_whole(about, json.dumps({"sha256": hashlib.sha256(content.getvalue()).hexdigest(), **took}))

    def read(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Return values and ids [M, K] at the targets of these samples, in their order."""
        shards, rows = np.divmod(self.batches.first_places[samples], self.samples_per_shard)
        found = np.empty((len(samples), *self.shape), self.pair)
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._shard(int(shard))[rows[here]]
        pairs = found.reshape(-1, self.shape[1])
        return np.ascontiguousarray(pairs["value"]), pairs["id"].astype(np.int32)

    def teacher_tokens(self, tokens: int) -> int:
        """Return what of so many tokens the teacher had to read: each sample once."""
        return min(tokens, self.batches.unique_tokens)

    def share(self, tokens: int) -> float:
        """Return the share of the teacher's work so far that is charged for so many tokens."""
        return self.teacher_tokens(tokens) / self.tokens if self.tokens else 0.0
