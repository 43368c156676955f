"""DistiLLM's skewed Kullback-Leibler divergences between the two output distributions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from budgetlab.strategies.base import LogitStrategy

if TYPE_CHECKING:
    from torch import Tensor


class Skew(LogitStrategy):
    """L = (1 - alpha) CE + alpha D, where D is a divergence from a mixture of both distributions.

    "forward": KL(p_T || lambda p_T + (1 - lambda) p_S); "reverse": KL(p_S || (1 - lambda) p_T + lambda p_S).

    Ko et al. 2024 (arXiv 2402.03898). lambda is the share of the first distribution in the mixture: the forward mixture
    is mostly the student at the usual 0.1, and lambda = 0 is the plain divergence. The authors' forward loss leaves out
    the teacher's entropy, which has no gradient. Means over the targets, in nats; p are softmax(z / T), without T^2.
    """

    share: float = Field(default=0.1, ge=0, lt=1, alias="lambda")
    direction: Literal["forward", "reverse"] = "forward"

    @property
    def in_teacher(self) -> Literal["linear", "bounded", "unbounded"]:
        """As the divergence is."""
        return "unbounded" if self.direction == "reverse" and not self.share else "bounded"

    def compare(self, teacher_MV: Tensor, student_MV: Tensor) -> Tensor:
        """KL(first || share of the first in the second)."""
        import torch
        from torch.nn import functional

        logs = [(logits / self.temperature).log_softmax(-1) for logits in (teacher_MV, student_MV)]
        first_MV, second_MV = logs if self.direction == "forward" else reversed(logs)
        if self.share:
            second_MV = torch.logaddexp(first_MV + math.log(self.share), second_MV + math.log1p(-self.share))
        return functional.kl_div(second_MV, first_MV, reduction="batchmean", log_target=True)
