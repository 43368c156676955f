"""What is kept of a teacher, on disk: written once in shards by any number of processes, verified when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from budgetlab.batches import Batches, MaskedBatch, keyed_uniform
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.hardware import EnergyCounter
from budgetlab.machine import another_lives
from budgetlab.ranks import Ranks
from budgetlab.step import LOGITS_AT_ONCE, TrainingStep, to_device
from budgetlab.store import write_whole
from budgetlab.units import format_quantity
from budgetlab.values import Kept, Needs, content_hash

SHARD_BYTES, SHARD_TOKENS = 2**24, 2**18
"""At most: little enough that a stop waits for seconds, and enough that a hundred gigabytes are some thousand files."""
_FORMAT, _HEADER_BYTES = "budgetlab cache 1", 512
_LEFT_SECONDS, _LOOK_EVERY_SECONDS = 600.0, 0.5
"""A claim that is older is nobody's."""
_DRAW = 5
"""Stream of the uniform numbers that draws are made with."""


class Shard(NamedTuple):
    """One file: a header, the samples' ids, of ragged rows their sizes, and the entries of all rows."""

    path: Path
    header: dict[str, Any]
    samples: NDArray[np.int64]
    begins: int
    """Where the sizes or the entries begin in the file."""


class TeacherCache:
    """What is kept of one teacher at the samples that a run reads, whoever asked for them first.

    A folder is named by all that decides its entries: the teacher's weights, the text, the masks and the settings. A
    shard is named by the samples that it holds, so that whoever lacks some adds shards, and two that write the same
    one write the same file.
    """

    def __init__(
        self,
        parent: Path,
        step: TrainingStep,
        batches: Batches,
        about: dict[str, Any],
        ranks: Ranks | None = None,
        *,
        all_positions: bool = False,
        taught_tokens: int | None = None,
        phase: str = "teacher_forward",
    ) -> None:
        recipe = step.recipe
        assert step.kept is not None and step.teacher is not None
        self.step, self.batches, self.kept, self.ranks = step, batches, step.kept, ranks or Ranks()
        self.all_positions, self.phase = all_positions, phase
        self.taught_tokens = batches.unique_tokens if taught_tokens is None else taught_tokens
        self.rows = recipe.seq_len if all_positions else recipe.masked_per_sequence
        self.vocab_size = step.shared_vocab or step.teacher.spec.vocab_size or 0
        about = about | {name: getattr(recipe, name) for name in ("seq_len", "dtype", "documents")}
        about |= {"kept": step.kept.model_dump(mode="json"), "temperature": step.kept.kept_at(step.temperature)}
        about |= {"rows": self.rows, "vocab_size": self.vocab_size, "attention": step.teacher.attention}
        self.about = {"format": _FORMAT, **about, "unmasked": step.teacher_unmasked}
        self.folder = parent / f"teacher-{content_hash(self.about)}"
        each = max(1.0, step.kept.bytes_per_token(self.vocab_size, self.rows))
        self.sequences_per_shard = max(1, int(min(SHARD_BYTES / each, SHARD_TOKENS // recipe.seq_len)))
        self.seconds, self.tokens, self.bytes = 0.0, 0, 0.0
        self.joules: float | None = 0.0
        """None where some of it was made without a counter."""
        self._shards: list[Shard] = []
        self._entries: dict[int, tuple[NDArray[np.uint8], NDArray[np.integer], NDArray[np.int64]]] = {}
        self._say: Callable[[str], None] = lambda line: None
        path = self.folder / "about.json"
        if self.ranks.first and not path.exists():
            write_whole(path, json.dumps(self.about, indent=1))
        self.ranks.wait()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found != self.about:
            other = ", ".join(name for name in self.about if found.get(name) != self.about[name])
            asked = f"teacher's answers in {self.folder}"
            raise CallerError(asked, f"they are of another {other}", "delete the folder and run again")

    def make(
        self, samples: int, counter: EnergyCounter | None, stop_asked: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        """Ask the teacher for what is missing of so many samples of a run."""
        self._say, wanted = say, self.batches.first_samples(samples)
        self._look(say)
        parts = [wanted[i : i + self.sequences_per_shard] for i in range(0, len(wanted), self.sequences_per_shard)]
        todo = [part[self._where[part] < 0] for part in parts]
        self.ranks.wait()  # nobody writes before all have seen what is there
        own = [part for part in todo if len(part)][self.ranks.rank :: self.ranks.world]
        stopped, made, told = False, bool(own), time.monotonic()
        while own and not stopped:
            later = []
            for part in own:
                with self._claimed(part) as mine:
                    if mine and not shard_path(self.folder, part).exists():
                        self._write(part, counter)
                    elif not mine:
                        later.append(part)
                if stopped := stop_asked():
                    break
                if self.ranks.first and time.monotonic() - told > 30:
                    told = time.monotonic()
                    say(f"the teacher's answers: {format_quantity(sum(map(len, own)))} sequences were missing")
            if later and len(later) == len(own):
                say(f"waiting for another process, which makes {self.folder}")
                time.sleep(_LOOK_EVERY_SECONDS)
            own = later
        if self.ranks.any(stopped)[0]:
            raise KeyboardInterrupt
        self._look(say)
        if made and self.ranks.first:
            size = sum(shard.path.stat().st_size for shard in self._shards)
            say(f"the teacher's answers ({self.kept}): {format_quantity(size, 'B')} in {self.folder.name}")
        self._account(wanted)

    def _account(self, wanted: NDArray[np.int64]) -> None:
        """Sum up what the samples of this run took of the shards that they are in."""
        held = np.bincount(self._where[wanted], minlength=len(self._shards))
        shares = [(shard.header, n / len(shard.samples)) for shard, n in zip(self._shards, held, strict=True) if n]
        self.seconds, self.bytes = (sum(took[key] * share for took, share in shares) for key in ("seconds", "bytes"))
        self.tokens = len(wanted) * self.step.recipe.seq_len
        joules = [took["joules"] and took["joules"] * share for took, share in shares]
        self.joules = None if None in joules else sum(joules)

    def _look(self, say: Callable[[str], None]) -> None:
        """List the shards that are there, by their headers; what is cut or of another cache is taken away."""
        self._shards, self._entries = [], {}
        self._where = np.full(self.batches.available, -1, np.int32)
        self._place = np.zeros(self.batches.available, np.int32)
        for path in sorted(self.folder.glob("*.shard")):
            try:
                shard = read_header(path)
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError, IndexError) as error:
                say(f"{path} is damaged ({error}): the teacher is asked again")
                path.unlink(missing_ok=True)
                continue
            self._where[shard.samples], self._place[shard.samples] = len(self._shards), np.arange(len(shard.samples))
            self._shards.append(shard)

    @contextmanager
    def _claimed(self, samples: NDArray[np.int64]) -> Iterator[bool]:
        """Say whether this process is the one that makes a shard."""
        claim = shard_path(self.folder, samples).with_suffix(".claim")
        with suppress(FileNotFoundError, ValueError):
            pid, host = claim.read_text(encoding="utf-8").split()
            gone = host == platform.node() and pid != str(os.getpid()) and not another_lives(pid)
            if gone or time.time() - claim.stat().st_mtime > _LEFT_SECONDS:
                claim.unlink(missing_ok=True)
        try:
            with claim.open("x", encoding="utf-8") as file:
                file.write(f"{os.getpid()} {platform.node()}")
        except FileExistsError:
            yield False
            return
        try:
            yield True
        finally:
            claim.unlink(missing_ok=True)

    def _write(self, samples: NDArray[np.int64], counter: EnergyCounter | None) -> None:
        each = self.rows * max(1, self.vocab_size)
        at_once = max(1, min(self.step.recipe.batch_sequences, LOGITS_AT_ONCE // each))
        began, before = time.perf_counter(), None if counter is None else counter.joules()
        parts = [self.ask(samples[first : first + at_once]) for first in range(0, len(samples), at_once)]
        encoded = [self.kept.encode(values, ids, self.vocab_size) for values, ids in parts]
        packed, sizes = (np.concatenate(found) for found in zip(*encoded, strict=True))
        joules = None if counter is None or before is None else counter.joules() - before
        took = {"seconds": time.perf_counter() - began, "joules": joules}
        write_shard(self.folder, samples, sizes if self.kept.ragged else None, packed, took)

    def ask(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return what is kept of the live teacher at some samples: values and ids [samples * rows, K]."""
        step, masked = self.step, self.batches.first_masked(samples)
        assert step.teacher is not None
        batch = to_device(masked, step.device)
        batch = batch.unmasked() if step.teacher_unmasked else batch
        needs = Needs(logits="all" if self.all_positions else "masked")
        with torch.no_grad(), step.autocast:
            inputs = batch.input_ids, needs, batch.target_positions, batch.attention_mask
            logits = step.teacher.forward(*inputs).logits
        assert logits is not None
        uniforms = None
        if self.kept.uniforms:
            positions = masked.target_positions % step.recipe.seq_len
            if self.all_positions:
                positions = np.tile(np.arange(self.rows), len(samples))
            keys = np.repeat(samples, self.rows)[:, None], positions[:, None], np.arange(self.kept.uniforms)
            uniforms = torch.from_numpy(keyed_uniform(0, _DRAW, *keys)).to(step.device)
        logits = logits[..., : self.vocab_size] / self.kept.kept_at(step.temperature)
        values, ids = self.kept.entries(logits, uniforms)
        return values.cpu().numpy(), ids.cpu().numpy()

    def _mapped(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.integer], NDArray[np.int64]]:
        """Return the entries of a shard [N, bytes], sizes [samples, rows], and where each sample's entries begin."""
        if number not in self._entries:
            shard = self._shards[number]
            if not is_intact(shard):
                self._say(f"{shard.path} is damaged: the teacher is asked again")
                shard.path.unlink(missing_ok=True)
                self._write(shard.samples, None)
                shard = self._shards[number] = read_header(shard.path)
            packed, sizes = read_entries(shard, self.kept, self.rows, self.vocab_size)
            ends = np.cumsum(sizes.sum(1, dtype=np.int64))
            self._entries[number] = packed, sizes, np.concatenate([[0], ends])
        return self._entries[number]

    def read(self, batch: MaskedBatch) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return values and ids [M or B*T, K] of a batch: at its targets, or where its strategy reads all, everywhere.

        Raises
        ------
        BudgetlabError
            Where a sample was never asked for.
        """
        assert batch.samples is not None
        where, places = self._where[batch.samples], self._place[batch.samples]
        if (where < 0).any():
            wrong = f"{int((where < 0).sum())} of {len(where)} sequences are not kept"
            raise BudgetlabError(f"teacher's answers in {self.folder}", wrong, "give the same command again")
        packed, sizes = [], []
        for number, place in zip(where.tolist(), places.tolist(), strict=True):
            entries, rows, begins = self._mapped(number)
            packed.append(entries[begins[place] : begins[place + 1]])
            sizes.append(rows[place])
        values, ids = self.kept.decode(np.concatenate(packed), np.concatenate(sizes))
        if self.all_positions and self.step.teacher_needs.logits == "masked":
            return values[batch.target_positions], ids[batch.target_positions]
        return values, ids

    def teacher_tokens(self, tokens: int) -> int:
        """Return what of so many tokens the teacher's work is charged for."""
        return min(tokens, self.taught_tokens)

    def share(self, tokens: int) -> float:
        """Return the share of the teacher's work so far that is charged for so many tokens."""
        return self.teacher_tokens(tokens) / self.tokens if self.tokens else 0.0


def shard_path(folder: Path, samples: NDArray[np.int64]) -> Path:
    """Return the file of a shard, named by its samples."""
    return folder / f"{hashlib.sha256(samples.astype('<i8').tobytes()).hexdigest()[:16]}.shard"


def read_header(path: Path) -> Shard:
    """Read what a shard says of itself; a ValueError or the like where it is cut or of another cache."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length != _HEADER_BYTES:
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
        samples = np.frombuffer(file.read(8 * header["sequences"]), "<i8").astype(np.int64)
    if header["cache"] != path.parent.name:
        raise ValueError(f"it is of another cache, {header['cache']}")
    if path.stat().st_size != 8 + length + header["bytes"] or shard_path(path.parent, samples) != path:
        raise ValueError("it is cut")
    return Shard(path, header, samples, 8 + length + 8 * len(samples))


def write_shard(
    folder: Path,
    samples: NDArray[np.int64],
    sizes: NDArray[np.integer] | None,
    packed: NDArray[np.uint8],
    took: dict[str, Any],
) -> None:
    """Write a shard, whole; `sizes` of ragged rows, and what it `took`."""
    body = samples.astype("<i8").tobytes() + (b"" if sizes is None else sizes.astype("<u2").tobytes())
    body += packed.tobytes()
    header = {"cache": folder.name, "sequences": len(samples), "bytes": len(body), **took}
    head = json.dumps(header | {"sha256": hashlib.sha256(body).hexdigest()}).encode().ljust(_HEADER_BYTES)
    write_whole(shard_path(folder, samples), len(head).to_bytes(8, "little") + head + body)


def read_entries(shard: Shard, kept: Kept, rows: int, vocab_size: int) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    """Map the entries of a shard [N, bytes], and return how many each row has [samples, rows]."""
    sizes: NDArray[np.integer] = np.full((len(shard.samples), rows), kept.most)
    begins = shard.begins
    if kept.ragged:
        sizes = np.fromfile(shard.path, "<u2", sizes.size, offset=begins).reshape(sizes.shape)
        begins += 2 * sizes.size
    return np.memmap(shard.path, np.uint8, "r", begins).reshape(-1, kept.entry_bytes(vocab_size)), sizes


def is_intact(shard: Shard) -> bool:
    """Say whether a shard is what was written."""
    try:
        with shard.path.open("rb") as file:
            file.seek(shard.begins - 8 * len(shard.samples))
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.header["sha256"]
    except FileNotFoundError:
        return False
