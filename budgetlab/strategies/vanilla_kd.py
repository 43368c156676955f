"""Distillation of the teacher's output distribution, beside the usual MLM loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from budgetlab.errors import CallerError
from budgetlab.strategies.base import Maps, Strategy, Terms, word_term
from budgetlab.strategies.losses import real_rows, soft_divergence, soft_divergence_of_largest
from budgetlab.values import Batch, ModelSpec, Needs, Signals

if TYPE_CHECKING:
    from torch import Tensor


class VanillaKD(Strategy):
    """L = w_hard CE(z_S, y) + w_soft T^2 (1/N) sum_i H(softmax(z_T,i / T), softmax(z_S,i / T)), in nats.

    Hinton et al. 2015 (arXiv 1503.02531). The hard term runs over masked positions; the soft one over the same, or
    over all N real tokens (`positions = "all"`, which needs both heads everywhere). `divergence = "kl"` subtracts the
    teacher's entropy: same gradient, zero at teacher = student. `reduction = "released_code"` also divides the soft
    term by the vocabulary size, as the code released with arXiv 2404.19319 does, so that its effect can be shown.

    `top_k` cuts the teacher off after its largest logits at a position: its other words get no probability. With
    `cached` these are kept on disk, so that the teacher reads every sample once however often the student does.
    """

    temperature: float = Field(default=1.0, gt=0)
    hard_weight: float = Field(default=1.0, ge=0)
    soft_weight: float = Field(default=1.0, gt=0)
    divergence: Literal["soft_cross_entropy", "kl"] = "soft_cross_entropy"
    reduction: Literal["per_token", "released_code"] = "per_token"
    positions: Literal["masked", "all"] = "masked"
    top_k: int | None = Field(default=None, ge=1)
    cached: bool = False

    @model_validator(mode="after")
    def _what_is_kept_is_small(self) -> VanillaKD:
        if self.cached and (self.top_k is None or self.positions == "all"):
            raise ValueError('cached needs top_k, and positions = "masked": all the rest is too much to keep')
        return self

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse to keep more logits than there are."""
        words = None if teacher is None else teacher.vocab_size
        if self.top_k is not None and words is not None and self.top_k > words:
            raise CallerError(f"top_k = {self.top_k}", f"the vocabulary has {words} entries", "lower it")

    @property
    def in_teacher(self) -> Literal["linear", "bounded", "unbounded"]:
        """As the cross-entropy is."""
        return "linear"

    @property
    def by_rows(self) -> bool:
        """Unless it reads other positions, or some of the teacher's logits."""
        return self.positions == "masked" and self.top_k is None

    @property
    def largest_logits(self) -> int | None:
        """As the setting says."""
        return self.top_k

    @property
    def keeps_teacher(self) -> bool:
        """As the setting says."""
        return self.cached

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits where the soft term runs."""
        return Needs(logits=self.positions)

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Logits where the soft term runs."""
        return Needs(logits=self.positions)

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"mlm" or "lm", "soft"}."""
        assert student.logits is not None and teacher is not None

        def rows(logits: Tensor) -> Tensor:
            return real_rows(logits, batch.real_BT) if self.positions == "all" else logits

        ours, minus_entropy = rows(student.logits), self.divergence == "kl"
        at_targets = (
            student.logits.index_select(0, batch.target_positions) if self.positions == "all" else student.logits
        )
        if teacher.largest is not None:
            values, ids = teacher.largest
            theirs = rows(values), rows(ids)
            soft = soft_divergence_of_largest(theirs, ours, self.temperature, minus_entropy=minus_entropy)
        else:
            assert teacher.logits is not None
            soft = soft_divergence(rows(teacher.logits), ours, self.temperature, minus_entropy=minus_entropy)
        if self.reduction == "released_code":
            soft = soft / ours.shape[-1]
        return word_term(batch, at_targets, self.hard_weight) | {"soft": self.soft_weight * soft}
