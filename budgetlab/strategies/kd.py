"""Distillation of the output distribution beside the words: the loss of most trainers of causal models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from budgetlab.strategies.base import LogitStrategy
from budgetlab.strategies.losses import soft_divergence

if TYPE_CHECKING:
    from torch import Tensor


class KD(LogitStrategy):
    """L = (1 - alpha) CE(z_S, y) + alpha T^2 D(softmax(z_T / T), softmax(z_S / T)), means over the targets, in nats.

    Hinton et al. 2015 (arXiv 1503.02531). D is KL(p_T || p_S) ("forward"), KL(p_S || p_T) ("reverse"), or the sum of
    both ("jeffreys", Jeffreys 1946). alpha = 1 is Busbridge et al. 2025 (arXiv 2502.08606) and Minitron (2407.14679).
    """

    divergence: Literal["forward", "reverse", "jeffreys"] = "forward"

    @property
    def in_teacher(self) -> Literal["linear", "bounded", "unbounded"]:
        """As the divergence is."""
        return "linear" if self.divergence == "forward" else "unbounded"

    def compare(self, teacher_MV: Tensor, student_MV: Tensor) -> Tensor:
        """T^2 D."""
        if self.divergence == "reverse":
            return soft_divergence(student_MV, teacher_MV, self.temperature)
        forward = soft_divergence(teacher_MV, student_MV, self.temperature)
        if self.divergence == "forward":
            return forward
        return forward + soft_divergence(student_MV, teacher_MV, self.temperature)
