"""The processes that train one run together, one a device, as torchrun starts them; or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from budgetlab.errors import LostRank

_PATIENCE, _FIRST_PATIENCE = timedelta(minutes=20), timedelta(hours=12)
"""One that dies is noticed at once, by its closed connection, one whose machine is gone after this; the others wait
longer at first, while the first builds the corpus and measures."""
_LOST = ("closed by peer", "reset by peer", "Connection refused", "Broken pipe", "connectFullMesh", "Timed out",
         "remote process exited", "Watchdog caught collective")  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; all of them call the same methods in the same order."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Which of those on this machine."""
    patient: Any = None
    """The group whose collectives wait for long."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any process has it set."""
        if self.world == 1:
            return flags
        return tuple(map(bool, _reduced(torch.tensor(flags, dtype=torch.int32), dist.ReduceOp.MAX).tolist()))

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Add numbers up over the processes, in float64."""
        return list(numbers) if self.world == 1 else _reduced(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def sum_modulo(self, number: int) -> int:
        """Add whole numbers up over the processes, modulo 2^64."""
        if self.world == 1:
            return number
        signed = torch.tensor([number - 2**64 if number >= 2**63 else number], dtype=torch.int64)
        return int(_reduced(signed).item()) % 2**64  # it wraps round

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        return tensor if self.world == 1 else _reduced(tensor.clone()) / self.world

    def share(self, text: str | None) -> str:
        """Return the first process's text in all of them."""
        if self.world > 1:
            box = [text]
            dist.broadcast_object_list(box, src=0, group=self.patient)
            text = box[0]
        assert text is not None
        return text

    def wait(self) -> None:
        """Go on once all are here."""
        self.any(False)  # not a barrier, which with NCCL would want the devices, and each its own


def _reduced(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    dist.all_reduce(tensor, operation)
    return tensor


def averaged_in_bfloat16(_: object, bucket):  # torch compares the annotations, which may not be strings
    """Average gradients rounded to bfloat16, as a hook of torch's data parallel module; torch's own refuses gloo."""
    sent = bucket.buffer().bfloat16().div_(dist.get_world_size())
    done = dist.all_reduce(sent, async_op=True)
    assert done is not None
    return done.get_future().then(lambda future: bucket.buffer().copy_(future.value()[0]))


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, this one alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    number, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
        yield Ranks(number, world, local, dist.new_group(backend="gloo", timeout=_FIRST_PATIENCE))
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        said = " ".join(str(error).split())[:120]
        remedy = "give the same command again; it goes on from the last checkpoint"
        raise LostRank(f"rank {number} of {world}", f"another rank was lost ({said})", remedy) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
