"""Distillation of the teacher's output distribution, beside the usual MLM loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from budgetlab.strategies.base import Strategy
from budgetlab.strategies.losses import masked_lm, real_rows, soft_divergence
from budgetlab.values import Batch, ModelSpec, Needs, Signals

if TYPE_CHECKING:
    from torch import Tensor, nn


class VanillaKD(Strategy):
    """L = w_hard CE(z_S, y) + w_soft T^2 (1/N) sum_i H(softmax(z_T,i / T), softmax(z_S,i / T)), in nats.

    Hinton et al. 2015 (arXiv 1503.02531). The hard term runs over masked positions; the soft one over the same, or
    over all N real tokens (`positions = "all"`, which needs both heads everywhere). `divergence = "kl"` subtracts the
    teacher's entropy: same gradient, zero at teacher = student. `reduction = "released_code"` also divides the soft
    term by the vocabulary size, as the code released with arXiv 2404.19319 does, so that its effect can be shown.
    """

    temperature: float = Field(default=1.0, gt=0)
    hard_weight: float = Field(default=1.0, ge=0)
    soft_weight: float = Field(default=1.0, gt=0)
    divergence: Literal["soft_cross_entropy", "kl"] = "soft_cross_entropy"
    reduction: Literal["per_token", "released_code"] = "per_token"
    positions: Literal["masked", "all"] = "masked"

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits where the soft term runs."""
        return Needs(logits=self.positions)

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Logits where the soft term runs."""
        return Needs(logits=self.positions)

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(
        self,
        batch: Batch,
        student: Signals,
        teacher: Signals | None,
        projections: nn.ModuleDict | None = None,
    ) -> dict[str, Tensor]:
        """Return {"mlm", "soft"}."""
        assert student.logits is not None and teacher is not None and teacher.logits is not None
        ours, theirs, at_targets = student.logits, teacher.logits, student.logits
        if self.positions == "all":
            at_targets = ours[batch.target_positions]
            ours, theirs = (real_rows(logits, batch.attention_mask) for logits in (ours, theirs))
        soft = soft_divergence(theirs, ours, self.temperature, minus_entropy=self.divergence == "kl")
        if self.reduction == "released_code":
            soft = soft / ours.shape[-1]
        return {
            "mlm": self.hard_weight * masked_lm(at_targets, batch.target_ids),
            "soft": self.soft_weight * soft,
        }
