"""The generalised Jensen-Shannon divergence between the two output distributions, as TRL's GKD trainer has it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from budgetlab.strategies.base import LogitStrategy

if TYPE_CHECKING:
    from torch import Tensor


class JSD(LogitStrategy):
    """L = (1 - alpha) CE + alpha (beta KL(p_T || M) + (1 - beta) KL(p_S || M)), M = beta p_T + (1 - beta) p_S.

    Agarwal et al. 2023 (arXiv 2306.13649), with their ends as TRL has them: beta = 0 is KL(p_T || p_S), beta = 1 is
    KL(p_S || p_T). p are softmax(z / T), without T^2. Means over the targets, in nats.
    """

    beta: float = Field(default=0.5, ge=0, le=1)

    @property
    def in_teacher(self) -> Literal["linear", "bounded", "unbounded"]:
        """As the divergence is."""
        return "linear" if self.beta == 0 else "unbounded" if self.beta == 1 else "bounded"

    def compare(self, teacher_MV: Tensor, student_MV: Tensor) -> Tensor:
        """The divergence at temperature T."""
        import torch
        from torch.nn import functional

        theirs_MV, ours_MV = ((logits / self.temperature).log_softmax(-1) for logits in (teacher_MV, student_MV))

        def kl(p_MV: Tensor, q_MV: Tensor) -> Tensor:
            return functional.kl_div(q_MV, p_MV, reduction="batchmean", log_target=True)

        if self.beta in (0, 1):
            return kl(ours_MV, theirs_MV) if self.beta else kl(theirs_MV, ours_MV)
        mixed_MV = torch.logaddexp(theirs_MV + math.log(self.beta), ours_MV + math.log1p(-self.beta))
        return self.beta * kl(theirs_MV, mixed_MV) + (1 - self.beta) * kl(ours_MV, mixed_MV)
