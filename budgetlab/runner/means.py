"""Means of the logged terms from one point of a training to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from budgetlab.ranks import Ranks


class Means:
    """Sums of each term over steps, on the device, so that no step waits for a number."""

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
