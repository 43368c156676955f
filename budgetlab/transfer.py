"""Batches on their way to the device; to a GPU ahead of their step, from pinned memory, on a stream of their own."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetlab.batches import MaskedBatch
from budgetlab.values import Batch


def to_device(batch: MaskedBatch, device: torch.device, *, pinned: bool = False) -> Batch:
    """Move masked samples to the device; `pinned`: from memory that it reads by itself."""

    def moved(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)

    input_ids, target_positions, target_ids = map(moved, (batch.input_ids, batch.target_positions, batch.target_ids))
    kept = allowed_BTT = None
    if batch.kept is not None:
        values, ids = map(moved, batch.kept)
        kept = values, ids.long()
    if batch.documents is not None:
        documents_BT = moved(batch.documents)
        allowed_BTT = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()
    return Batch(input_ids, target_positions, target_ids, allowed_BTT, kept, batch.causal)


@dataclass(frozen=True)
class Staged:
    """Micro-batches on a GPU, each with its share of the batch, once their copies have arrived."""

    parts: list[tuple[Batch, float]]
    arrived: Any

    def take(self) -> list[tuple[Batch, float]]:
        """Return them to a stream that is to read them: it waits for them, and the processor does not."""
        stream = torch.cuda.current_stream()
        stream.wait_event(self.arrived)
        for part, _ in self.parts:
            for tensor in tensors_of(part):
                tensor.record_stream(stream)  # else its memory would be used again while this stream reads it
        return self.parts


def stage(batch: MaskedBatch, micro_batch_sequences: int | None, device: torch.device) -> MaskedBatch | Staged:
    """Begin to copy a batch to a GPU, in micro-batches, while it computes; for another device it stays as it is."""
    if device.type != "cuda":
        return batch
    stream = _copies(device)
    with torch.cuda.stream(stream):
        parts = [(to_device(part, device, pinned=True), share) for part, share in batch.split(micro_batch_sequences)]
        return Staged(parts, stream.record_event())


@functools.cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def tensors_of(batch: Batch) -> list[Tensor]:
    """List what a batch holds."""
    found = []
    for field in fields(batch):
        value = getattr(batch, field.name)
        found += [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Tensor)]
    return found
