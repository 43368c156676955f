"""TinyBERT, general distillation: embeddings, hidden states and raw attention scores, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from budgetlab.errors import CallerError
from budgetlab.strategies.base import Strategy
from budgetlab.strategies.losses import masked_lm, mean_over_pairs
from budgetlab.values import Batch, ModelSpec, Needs, Signals

if TYPE_CHECKING:
    from torch import Tensor, nn


class TinyBERT(Strategy):
    """L = MSE(E_S W, E_T) + sum_l MSE(H_S,l W, H_T,g(l)) + sum_l MSE(A_S,l, A_T,g(l)), g(l) = l L_T / L_S.

    Jiao et al. 2020 (arXiv 1909.10351), general distillation only: no prediction loss, all weights 1. A are raw scaled
    scores before mask and softmax; means run over real positions and real pairs. `projection`: one learned W for
    all states as in the authors' code ("shared"), one per state ("per_layer"), or "none" at equal width.
    """

    projection: Literal["shared", "per_layer", "none"] = "shared"
    mlm_weight: float = Field(default=0.0, ge=0)

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse depths without a uniform map, unequal heads, and unequal widths without a projection."""
        assert teacher is not None
        if teacher.num_layers % student.num_layers:
            raise CallerError(
                f"tinybert with a student of {student.num_layers} layers",
                f"they do not divide the teacher's {teacher.num_layers}",
                "choose depths that divide",
            )
        if teacher.num_heads != student.num_heads:
            raise CallerError(
                f"tinybert with a student of {student.num_heads} heads",
                f"the teacher has {teacher.num_heads}, and scores are compared head by head",
                "give both the same number of heads",
            )
        if self.projection == "none" and teacher.hidden_size != student.hidden_size:
            raise CallerError(
                'projection = "none"',
                f"the widths differ: student {student.hidden_size}, teacher {teacher.hidden_size}",
                'use projection = "shared" or "per_layer"',
            )

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """All states and all scores."""
        blocks = tuple(range(1, student.num_layers + 1))
        return Needs(logits="masked" if self.mlm_weight else "none", hidden=(0, *blocks), scores=blocks)

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """States and scores at g(l)."""
        stride = teacher.num_layers // student.num_layers
        blocks = tuple(stride * block for block in range(1, student.num_layers + 1))
        return Needs(hidden=(0, *blocks), scores=blocks)

    def projections(self, student: ModelSpec, teacher: ModelSpec | None) -> dict[str, tuple[int, int]]:
        """One map, one per state, or none."""
        assert teacher is not None
        names = {
            "shared": ["shared"],
            "per_layer": [f"state_{i}" for i in range(student.num_layers + 1)],
            "none": [],
        }
        return {name: (student.hidden_size, teacher.hidden_size) for name in names[self.projection]}

    def loss(
        self,
        batch: Batch,
        student: Signals,
        teacher: Signals | None,
        projections: nn.ModuleDict | None = None,
    ) -> dict[str, Tensor]:
        """Return {"embeddings", "hidden", "attention"} and "mlm" where it is weighted."""
        assert teacher is not None
        real_BT = batch.attention_mask
        errors: list[Tensor] = []
        for index, (layer, target_layer) in enumerate(zip(sorted(student.hidden), sorted(teacher.hidden), strict=True)):
            state_BTD = student.hidden[layer]
            if projections is not None and self.projection != "none":
                state_BTD = projections["shared" if self.projection == "shared" else f"state_{index}"](state_BTD)
            squared_BTD = (state_BTD.float() - teacher.hidden[target_layer].float()).square()
            errors.append(squared_BTD.mean() if real_BT is None else squared_BTD[real_BT].mean())
        terms = {"embeddings": errors[0], "hidden": sum(errors[2:], errors[1])}
        scores = [
            mean_over_pairs((student.scores[ours].float() - teacher.scores[theirs].float()).square(), real_BT)
            for ours, theirs in zip(sorted(student.scores), sorted(teacher.scores), strict=True)
        ]
        terms["attention"] = sum(scores[1:], scores[0])
        if self.mlm_weight:
            assert student.logits is not None
            terms["mlm"] = self.mlm_weight * masked_lm(student.logits, batch.target_ids)
        return terms

    @property
    def trains_head(self) -> bool:
        """Only with an MLM term."""
        return self.mlm_weight > 0
