"""A loss that is a mean over rows of logits, a few rows at a time, so that they are never in memory together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class InParts(torch.autograd.Function):
    """A loss that is a mean over rows, whose gradients are taken part by part on the way forward."""

    @staticmethod
    def terms(
        part: Callable[[int, Tensor], dict[str, Tensor]], states_MD: Tensor, parameters: list[nn.Parameter], rows: int
    ) -> dict[str, Tensor]:
        """Return the terms of all parts; `part(first, rows_MD)` those of some rows, `parameters` what it learns by."""
        found: dict[str, Tensor] = {}
        total = InParts.apply(part, rows, found, states_MD, *parameters)
        first = next(iter(found))
        # The gradient of the sum is known, not that of each term: all of it hangs on the first one.
        return found | {first: found[first] + (total - total.detach())}

    @staticmethod
    def forward(
        ctx: Any, part: Any, rows: int, found: dict[str, Tensor], states_MD: Tensor, *parameters: Any
    ) -> Tensor:
        """Sum the terms, and keep the gradients of the sum."""
        sums: list[Tensor] = []
        gradient_MD, total = torch.empty_like(states_MD), states_MD.new_zeros((), dtype=torch.float32)
        for first in range(0, len(states_MD), rows):
            with torch.enable_grad():
                rows_MD = states_MD[first : first + rows].detach().requires_grad_()
                terms = part(first, rows_MD)
                share = len(rows_MD) / len(states_MD)
                loss = torch.stack(list(terms.values())).sum() * share
            own, *theirs = torch.autograd.grad(loss, [rows_MD, *parameters])
            gradient_MD[first : first + rows] = own
            sums = [a.add_(b) for a, b in zip(sums, theirs, strict=True)] if sums else list(theirs)
            total += loss.detach()
            for name, term in terms.items():
                found[name] = found.get(name, 0.0) + term.detach() * share
        ctx.save_for_backward(gradient_MD, *sums)
        return total

    @staticmethod
    def backward(ctx: Any, *scale: Any) -> Any:
        """Return the gradients that were kept, scaled."""
        return None, None, None, *(gradient * scale[0] for gradient in ctx.saved_tensors)
