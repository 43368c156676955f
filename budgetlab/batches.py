"""Which samples and masks a step sees: pure functions of (run_seed, pass, sample id).

Nothing here has a state, so any step can be asked for at any time, by any number of processes, and a resumed run
sees what an uninterrupted one would. All arms with one run_seed see the same masked samples in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetlab.errors import CallerError
from budgetlab.values import Recipe, SpecialIds

_ORDER, _PRIORITY, _KIND, _RANDOM_WORD, _SUBSET = range(5)
_TARGET = 0x7461726765747321  # tells a target from a word that is read


def batches_of(
    stream: NDArray[np.integer], special: SpecialIds, vocab_size: int, recipe: Recipe, *, run_seed: int, **further: Any
) -> Batches:
    """Return the samples that a recipe asks for; `further` as for `Batches`."""
    shape = {"seq_len": recipe.seq_len, "masked_per_sequence": recipe.masked_per_sequence}
    how = {"causal": recipe.causal, "apart": recipe.documents == "apart"}
    return Batches(stream, special, vocab_size, run_seed=run_seed, **shape, **how, **further)


def keyed_uniform(seed: int, stream: int, *keys: NDArray[np.integer] | int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) as a pure function of (seed, stream, keys), broadcast over the keys.

    splitmix64 (Steele, Lea and Flood 2014) chained over the keys: the same on every platform and numpy version.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(stream + 1))
        for key in keys:
            state = _mix(state ^ _mix(np.asarray(key).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    value = np.asarray(value, dtype=np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True)
class MaskedBatch:
    """`input_ids` int64 [B, T]; flat `target_positions` int64 [M] into B*T; `target_ids` int64 [M].

    `samples` int64 [B] are their ids. `kept` is what was kept of the teacher, at the targets or at all positions:
    values float32 and ids int32, [M or B*T, K]. Of a causal batch every position is a target, and `documents` int64
    [B, T] numbers the documents of each sequence where attention is kept within them.
    """

    input_ids: NDArray[np.int64]
    target_positions: NDArray[np.int64]
    target_ids: NDArray[np.int64]
    samples: NDArray[np.int64] | None = None
    kept: tuple[NDArray[np.float32], NDArray[np.int32]] | None = None
    causal: bool = False
    documents: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """Positions fed to the student."""
        return self.input_ids.size

    def split(self, sequences: int | None) -> list[tuple[MaskedBatch, float]]:
        """Return micro-batches of so many sequences (None: all at once), each with its share of the batch."""
        total, length = self.input_ids.shape
        if sequences is None or sequences >= total:
            return [(self, 1.0)]
        parts = []
        for first in range(0, total, sequences):
            ids = self.input_ids[first : first + sequences]
            inside = (self.target_positions >= first * length) & (self.target_positions < (first + len(ids)) * length)
            positions = self.target_positions[inside] - first * length
            rows = self._kept_rows(first, sequences, inside)
            kept = None if self.kept is None else (self.kept[0][rows], self.kept[1][rows])
            # Every sequence has the same number of targets, so the share of sequences is the share of targets too.
            apart = None if self.documents is None else self.documents[first : first + sequences]
            part = MaskedBatch(ids, positions, self.target_ids[inside], None, kept, self.causal, apart)
            parts.append((part, len(ids) / total))
        return parts

    def _kept_rows(self, first: int, sequences: int, inside: NDArray[np.bool_]) -> slice | NDArray[np.bool_]:
        if self.kept is None or len(self.kept[0]) == len(inside):
            return inside
        length = self.input_ids.shape[1]
        return slice(first * length, (first + sequences) * length)

    def digest(self, step: int) -> int:
        """Fingerprint what a step sees, below 2^64: of step, words, masks and targets, in whatever order its samples.

        Digests of parts of a batch add up, modulo 2^64, to that of the whole, so that the sum over all steps and
        processes says whether two runs saw the same masked samples at the same steps. It finds mistakes, not malice.
        """
        length = self.input_ids.shape[1]
        with np.errstate(over="ignore"):
            marks = _mix(self.input_ids.astype(np.uint64) * np.uint64(length) + np.arange(length, dtype=np.uint64))
            row, column = np.divmod(self.target_positions, length)
            targets = _mix(_mix(self.target_ids * length + column) ^ np.uint64(_TARGET))
            seen = marks.sum(axis=1, dtype=np.uint64)
            np.add.at(seen, row, targets)
            return int(_mix(_mix(seen) ^ _mix(np.uint64(step))).sum(dtype=np.uint64))


class Batches:
    """Samples of one token stream.

    Masked, a sample is [CLS] + (seq_len - 2) tokens of the stream + [SEP]. Exactly `masked_per_sequence` of its
    positions, never special ones while others remain, carry loss: 80 % become [MASK], 10 % a random word, 10 % stay.
    `causal`, it is seq_len tokens of the stream, documents one after the other, and its targets are the next tokens at
    all positions; `apart` numbers its documents, so that none attends to another.
    """

    def __init__(
        self,
        stream: NDArray[np.integer],
        special: SpecialIds,
        vocab_size: int,
        *,
        seq_len: int,
        masked_per_sequence: int,
        run_seed: int,
        causal: bool = False,
        apart: bool = False,
        static_masks: bool = False,
        unique_tokens: int | None = None,
    ) -> None:
        self._stream, self._special = stream, special
        self._words = np.setdiff1d(np.arange(vocab_size), special.all())
        self.seq_len, self.masked_per_sequence, self._seed = seq_len, masked_per_sequence, run_seed
        self._static_masks, self.causal, self._apart = static_masks, causal, apart
        available = (len(stream) - 1) // seq_len if causal else len(stream) // (seq_len - 2)
        wanted = available if unique_tokens is None else unique_tokens // seq_len
        if not 1 <= wanted <= available:
            raise CallerError(
                f"{wanted:,} samples of {seq_len} positions",
                f"the corpus has {len(stream):,} word pieces, enough for {available:,}",
                "use more text, a shorter seq_len, or other unique_tokens",
            )
        self.available, self.num_samples = available, wanted

    @property
    def unique_tokens(self) -> int:
        """Positions in one pass."""
        return self.num_samples * self.seq_len

    @lru_cache(maxsize=2)  # noqa: B019  two passes meet in one step at most, and the object lives as long as the run
    def _order(self, pass_index: int) -> NDArray[np.int64]:
        samples = np.arange(self.num_samples)
        if self.num_samples < self.available:
            chosen = np.argsort(keyed_uniform(0, _SUBSET, np.arange(self.available)), kind="stable")
            samples = np.sort(chosen[: self.num_samples])
        return samples[np.argsort(keyed_uniform(self._seed, _ORDER, pass_index, samples), kind="stable")]

    def step(self, step: int, batch_sequences: int, rank: int = 0, world: int = 1) -> MaskedBatch:
        """Return the samples of one step, counted from 0, or every `world`-th of them from number `rank` on."""
        return self._at(step * batch_sequences + np.arange(rank, batch_sequences, world))

    def shuffled(self, first: int, count: int) -> MaskedBatch:
        """Return the samples at places first..first+count in the order of a run, one pass after the other."""
        return self._at(first + np.arange(count))

    def _at(self, index: NDArray[np.int64]) -> MaskedBatch:
        passes, places = index // self.num_samples, index % self.num_samples
        samples = np.empty(len(index), dtype=np.int64)
        for pass_index in np.unique(passes):
            here = passes == pass_index
            samples[here] = self._order(int(pass_index))[places[here]]
        return self._masked_batch(samples, np.zeros_like(passes) if self._static_masks else passes)

    def first_samples(self, count: int) -> NDArray[np.int64]:
        """Return the ids of the first so many samples of the first pass, all of them at most."""
        return self._order(0)[:count]

    def first_masked(self, samples: NDArray[np.int64]) -> MaskedBatch:
        """Return samples, masked as in the first pass."""
        return self._masked_batch(samples, np.zeros_like(samples))

    def in_order(self, first: int, count: int) -> MaskedBatch:
        """Return samples first..first+count of the stream in reading order, masked as in pass 0."""
        samples = np.arange(first, min(first + count, self.available))
        return self._masked_batch(samples, np.zeros_like(samples))

    def _causal_batch(self, samples: NDArray[np.int64]) -> MaskedBatch:
        length, positions = self.seq_len, np.arange(len(samples) * self.seq_len)
        tokens = self._stream[samples[:, None] * length + np.arange(length + 1)].astype(np.int64)
        ids, documents = np.ascontiguousarray(tokens[:, :-1]), None
        if self._apart:  # the end-of-text token belongs to the document that it ends
            ends = ids == self._special.sep
            documents = np.cumsum(ends, axis=1) - ends
        return MaskedBatch(ids, positions, tokens[:, 1:].ravel(), samples, causal=True, documents=documents)

    def _masked_batch(self, samples: NDArray[np.int64], passes: NDArray[np.int64]) -> MaskedBatch:
        if self.causal:
            return self._causal_batch(samples)
        body = self.seq_len - 2
        content = self._stream[samples[:, None] * body + np.arange(body)].astype(np.int64)
        edge = np.full((len(samples), 1), self._special.cls), np.full((len(samples), 1), self._special.sep)
        ids = np.concatenate([edge[0], content, edge[1]], axis=1)

        sample_keys, pass_keys, position = samples[:, None], passes[:, None], np.arange(self.seq_len)[None, :]
        priority = keyed_uniform(self._seed, _PRIORITY, sample_keys, pass_keys, position)
        priority = priority + np.isin(ids, self._special.all())  # special positions come last
        count = self.masked_per_sequence
        columns = np.sort(np.argpartition(priority, count - 1, axis=1)[:, :count], axis=1)
        rows = np.arange(len(samples))[:, None]
        targets = ids[rows, columns]

        kind = keyed_uniform(self._seed, _KIND, sample_keys, pass_keys, columns)
        draw = keyed_uniform(self._seed, _RANDOM_WORD, sample_keys, pass_keys, columns)
        random_words = self._words[(draw * len(self._words)).astype(np.int64)]
        ids[rows, columns] = np.where(kind < 0.8, self._special.mask, np.where(kind < 0.9, random_words, targets))
        return MaskedBatch(ids, (rows * self.seq_len + columns).ravel(), targets.ravel(), samples)
