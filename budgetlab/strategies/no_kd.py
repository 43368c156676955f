"""Pretraining from scratch: cross-entropy of masked words, or of next tokens; no teacher."""

from __future__ import annotations

from typing import ClassVar

from budgetlab.strategies.base import Maps, Strategy, Terms, word_term
from budgetlab.values import Batch, ModelSpec, Needs, Signals


class NoKD(Strategy):
    """L = CE(z_S, y), mean over the M targets, in nats.

    Masked words (Devlin et al. 2019, arXiv 1810.04805), or the next tokens of a causal model.
    """

    uses_teacher: ClassVar[bool] = False

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits at the targets."""
        return Needs(logits="masked")

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"mlm"}, of causal models {"lm"}."""
        assert student.logits is not None
        return word_term(batch, student.logits)

    @property
    def by_rows(self) -> bool:
        """Nothing else is read."""
        return True
