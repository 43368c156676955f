"""DistilBERT's triple loss: the teacher's distribution, the words, and the direction of the last hidden states."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from budgetlab.errors import CallerError
from budgetlab.strategies.base import Maps, Strategy, Terms, word_term
from budgetlab.strategies.losses import real_rows, soft_divergence
from budgetlab.values import Batch, ModelSpec, Needs, Signals


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

    @model_validator(mode="after")
    def _something_is_learned(self) -> DistilBERT:
        if not (self.soft_weight or self.mlm_weight or self.cosine_weight):
            raise ValueError("all weights are 0")
        return self

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse hidden states of unequal width."""
        assert teacher is not None
        if self.cosine_weight and teacher.hidden_size != student.hidden_size:
            raise CallerError(
                f"distilbert with cosine_weight = {self.cosine_weight:g}",
                f"the widths differ: student {student.hidden_size}, teacher {teacher.hidden_size}",
                "give both one hidden_size, or set cosine_weight = 0",
            )

    @property
    def in_teacher(self) -> Literal["linear", "bounded", "unbounded"]:
        """As the cross-entropy is."""
        return "linear"

    @property
    def trains_head(self) -> bool:
        """Unless only the cosine is weighted."""
        return bool(self.soft_weight or self.mlm_weight)

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits where a term with a weight runs, and the last hidden states."""
        logits = self.positions if self.soft_weight else "masked" if self.mlm_weight else "none"
        return Needs(logits=logits, hidden=(student.num_layers,) if self.cosine_weight else ())

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Logits where the KL runs, and the last hidden states."""
        logits = self.positions if self.soft_weight else "none"
        return Needs(logits=logits, hidden=(teacher.num_layers,) if self.cosine_weight else ())

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"soft", "mlm" or "lm", "cosine"}, a term of weight 0 left out."""
        from torch.nn import functional

        assert teacher is not None
        terms: Terms = {}
        at_targets = student.logits
        if self.soft_weight:
            assert student.logits is not None and teacher.logits is not None
            ours, theirs = student.logits, teacher.logits
            if self.positions == "all":
                at_targets = ours.index_select(0, batch.target_positions)
                ours, theirs = (real_rows(logits, batch.real_BT) for logits in (ours, theirs))
            terms["soft"] = self.soft_weight * soft_divergence(theirs, ours, self.temperature)
        if self.mlm_weight:
            assert at_targets is not None
            terms |= word_term(batch, at_targets, self.mlm_weight)
        if self.cosine_weight:
            (state_S,), (state_T,) = student.hidden.values(), teacher.hidden.values()
            rows_S, rows_T = (real_rows(state, batch.real_BT).float() for state in (state_S, state_T))
            terms["cosine"] = self.cosine_weight * (1 - functional.cosine_similarity(rows_S, rows_T, dim=-1)).mean()
        return terms
