"""Distillation of the teacher's output distribution, beside the usual MLM loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from budgetlab.strategies.base import Strategy
from budgetlab.strategies.losses import masked_lm
from budgetlab.values import Batch, ModelSpec, Needs, Signals

if TYPE_CHECKING:
    from torch import Tensor, nn


class VanillaKD(Strategy):
    """L = w_hard CE(z_S, y) + w_soft T^2 (1/M) sum_i H(softmax(z_T,i / T), softmax(z_S,i / T)), in nats.

    Hinton et al. 2015 (arXiv 1503.02531) at the M masked positions. `divergence = "kl"` subtracts the teacher's
    entropy: same gradient, zero at teacher = student. `reduction = "released_code"` also divides the soft term by
    the vocabulary size, as the code released with arXiv 2404.19319 does, so that its effect can be shown.
    """

    temperature: float = Field(default=1.0, gt=0)
    hard_weight: float = Field(default=1.0, ge=0)
    soft_weight: float = Field(default=1.0, ge=0)
    divergence: Literal["soft_cross_entropy", "kl"] = "soft_cross_entropy"
    reduction: Literal["per_token", "released_code"] = "per_token"

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits at masked positions."""
        return Needs(logits="masked")

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Logits at masked positions."""
        return Needs(logits="masked")

    def loss(
        self,
        batch: Batch,
        student: Signals,
        teacher: Signals | None,
        projections: nn.ModuleDict | None = None,
    ) -> dict[str, Tensor]:
        """Return {"mlm", "soft"}."""
        assert student.logits is not None and teacher is not None and teacher.logits is not None
        teacher_log_MV = (teacher.logits.float() / self.temperature).log_softmax(-1)
        student_log_MV = (student.logits.float() / self.temperature).log_softmax(-1)
        teacher_MV = teacher_log_MV.exp()
        compared_MV = teacher_log_MV - student_log_MV if self.divergence == "kl" else -student_log_MV
        soft = (teacher_MV * compared_MV).sum(-1).mean() * self.temperature**2
        if self.reduction == "released_code":
            soft = soft / student.logits.shape[-1]
        hard = masked_lm(student.logits, batch.target_ids)
        return {"mlm": self.hard_weight * hard, "soft": self.soft_weight * soft}
