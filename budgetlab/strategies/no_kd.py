"""Pretraining from scratch: cross-entropy at masked positions, no teacher."""

from __future__ import annotations

from typing import ClassVar

from budgetlab.strategies.base import Maps, Strategy, Terms
from budgetlab.strategies.losses import masked_lm
from budgetlab.values import Batch, ModelSpec, Needs, Signals


class NoKD(Strategy):
    """L = CE(z_S, y), mean over the M masked positions, in nats (Devlin et al. 2019, arXiv 1810.04805)."""

    uses_teacher: ClassVar[bool] = False

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits at masked positions."""
        return Needs(logits="masked")

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"mlm"}."""
        assert student.logits is not None
        return {"mlm": masked_lm(student.logits, batch.target_ids)}
