"""DistilBERT's triple loss: the teacher's distribution, the words, and the direction of the last hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from budgetlab.errors import CallerError
from budgetlab.strategies.base import Strategy
from budgetlab.strategies.losses import masked_lm, real_rows, soft_divergence
from budgetlab.values import Batch, ModelSpec, Needs, Signals

if TYPE_CHECKING:
    from torch import Tensor, nn


class DistilBERT(Strategy):
    """L = w_soft T^2 KL(p_T || p_S) + w_mlm CE(z_S, y) + w_cos (1 - cos(H_S, H_T)), means over positions.

    Sanh et al. 2019 (arXiv 1910.01108), section 3; weights and temperature as in the command of the authors' README
    (5, 2, 1; T = 2). `positions`: where the KL runs; they take all real tokens, "masked" is their
    `restrict_ce_to_mask`. The cosine compares the last hidden states at real tokens, so widths must be equal unless its
    weight is 0. Their student starts from teacher layers: `[recipe] initialisation`.
    """

    temperature: float = Field(default=2.0, gt=0)
    soft_weight: float = Field(default=5.0, ge=0)
    mlm_weight: float = Field(default=2.0, ge=0)
    cosine_weight: float = Field(default=1.0, ge=0)
    positions: Literal["masked", "all"] = "all"

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse hidden states of unequal width."""
        assert teacher is not None
        if self.cosine_weight and teacher.hidden_size != student.hidden_size:
            raise CallerError(
                f"distilbert with cosine_weight = {self.cosine_weight:g}",
                f"the widths differ: student {student.hidden_size}, teacher {teacher.hidden_size}",
                "give both one hidden_size, or set cosine_weight = 0",
            )

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits where the KL runs, and the last hidden states."""
        return Needs(logits=self.positions, hidden=(student.num_layers,) if self.cosine_weight else ())

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """The same."""
        return Needs(logits=self.positions, hidden=(teacher.num_layers,) if self.cosine_weight else ())

    def loss(
        self,
        batch: Batch,
        student: Signals,
        teacher: Signals | None,
        projections: nn.ModuleDict | None = None,
    ) -> dict[str, Tensor]:
        """Return {"soft", "mlm", "cosine"}, a term of weight 0 left out."""
        from torch.nn import functional

        assert student.logits is not None and teacher is not None and teacher.logits is not None
        ours, theirs, at_targets = student.logits, teacher.logits, student.logits
        if self.positions == "all":
            at_targets = ours[batch.target_positions]
            ours, theirs = (real_rows(logits, batch.attention_mask) for logits in (ours, theirs))
        terms: dict[str, Tensor] = {}
        if self.soft_weight:
            terms["soft"] = self.soft_weight * soft_divergence(theirs, ours, self.temperature)
        if self.mlm_weight:
            terms["mlm"] = self.mlm_weight * masked_lm(at_targets, batch.target_ids)
        if self.cosine_weight:
            states = [
                real_rows(next(iter(of.hidden.values())), batch.attention_mask).float() for of in (student, teacher)
            ]
            terms["cosine"] = self.cosine_weight * (1 - functional.cosine_similarity(*states, dim=-1)).mean()
        return terms
