"""Distillation of the last hidden state, beside the output distribution with ModelOpt's balance."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from budgetlab.strategies.base import Maps, Strategy, Terms
from budgetlab.strategies.losses import product, real_rows, soft_divergence
from budgetlab.values import Batch, ModelSpec, Needs, Signals


class Hidden(Strategy):
    """L = L_soft + a L_hidden, with L_soft = T^2 KL(p_T || p_S) and a = L_soft / L_hidden of each micro-batch.

    a is a number, without a gradient, so both terms are of one size, as in NVIDIA's Model Optimizer. L_hidden compares
    the last hidden states, which the head reads, at all real tokens: 1 - cos ("cosine"), or the mean square of the
    difference ("squared"). Students of another width learn one linear map. `logits = false` leaves L_soft out, and the
    student's head does not learn.
    """

    distance: Literal["cosine", "squared"] = "cosine"
    logits: bool = True
    temperature: float = Field(default=1.0, gt=0)

    @property
    def trains_head(self) -> bool:
        """Where the distribution is compared."""
        return self.logits

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """The last hidden state, and logits at the targets."""
        return Needs(logits="masked" if self.logits else "none", hidden=(student.num_layers,))

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """The last hidden state, and logits at the targets."""
        return Needs(logits="masked" if self.logits else "none", hidden=(teacher.num_layers,))

    def projections(self, student: ModelSpec, teacher: ModelSpec | None) -> dict[str, tuple[int, int]]:
        """One map where the widths differ."""
        assert teacher is not None
        widths = student.hidden_size, teacher.hidden_size
        return {} if widths[0] == widths[1] else {"last": widths}

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """The map."""
        return sum(2 * ours * theirs for ours, theirs in self.projections(student, teacher).values()), 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"hidden", "soft"}."""
        from torch.nn import functional

        assert teacher is not None
        (ours,), (theirs,) = student.hidden.values(), teacher.hidden.values()
        ours_ND, theirs_ND = (real_rows(state, batch.real_BT) for state in (ours, theirs))
        if projections:
            ours_ND = product(ours_ND, projections.get_parameter("last.weight").T)
        ours_ND, theirs_ND = ours_ND.float(), theirs_ND.float()
        if self.distance == "cosine":
            hidden = (1 - functional.cosine_similarity(ours_ND, theirs_ND, dim=-1)).mean()
        else:
            hidden = functional.mse_loss(ours_ND, theirs_ND)
        if student.logits is None or teacher.logits is None:
            return {"hidden": hidden}
        soft = soft_divergence(teacher.logits, student.logits, self.temperature)
        balance = (soft / hidden.clamp_min(1e-12)).detach()
        return {"hidden": balance * hidden, "soft": soft}
