"""TinyBERT, general distillation: embeddings, hidden states and raw attention scores, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt, model_validator

from budgetlab.errors import CallerError
from budgetlab.strategies.base import FeatureStrategy, Maps, Terms, layer_index
from budgetlab.strategies.losses import mean_over_pairs, product, real_rows
from budgetlab.values import Batch, ModelSpec, Needs, Signals

if TYPE_CHECKING:
    from torch import Tensor


class TinyBERT(FeatureStrategy):
    """L = MSE(E_S W, E_T) + sum_l MSE(H_S,l W, H_T,g(l)) + sum_l MSE(A_S,l, A_T,g(l)).

    Jiao et al. 2020 (arXiv 1909.10351), general distillation only: no prediction loss, all weights 1. A are raw scaled
    scores before mask and softmax; means run over real positions and real pairs, of causal models over allowed pairs.

    `layer_map`: g(l) = l L_T / L_S ("uniform"), the last layer alone from the last one ("last"), or a list with the
    teacher's layer for each student layer, counted from 1. `projection`: one learned W for all states as in the
    authors' code ("shared"; theirs has a bias too), one per state ("per_layer"), or "none" at equal width.

    `variant = "released_code"` is what the code released with arXiv 2404.19319 computes: the last layer alone, no
    projection, and the first layers' attention scores in the place of the embeddings.
    """

    layer_map: Literal["uniform", "last"] | tuple[PositiveInt, ...] = "uniform"
    projection: Literal["shared", "per_layer", "none"] = "shared"
    variant: Literal["published", "released_code"] = "published"

    @model_validator(mode="before")
    @classmethod
    def _released_code_says_the_rest(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("variant") == "released_code":
            return {"layer_map": "last", "projection": "none", **given}
        return given

    @model_validator(mode="after")
    def _released_code_has_no_choice(self) -> TinyBERT:
        if self.variant == "released_code" and (self.layer_map, self.projection) != ("last", "none"):
            raise ValueError('variant = "released_code" has layer_map = "last" and projection = "none"')
        return self

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse layer maps that do not fit, unequal heads, and unequal widths without a projection."""
        assert teacher is not None
        if self.layer_map == "uniform" and teacher.num_layers % student.num_layers:
            wrong = f"they do not divide the teacher's {teacher.num_layers}"
            remedy = f"choose depths that divide, or give layer_map a list of {student.num_layers} teacher layers"
            raise CallerError(f"tinybert with a student of {student.num_layers} layers", wrong, remedy)
        if isinstance(self.layer_map, tuple):
            if len(self.layer_map) != student.num_layers:
                wrong = f"{len(self.layer_map)} entries for a student of {student.num_layers} layers"
                remedy = "give one teacher layer for each student layer"
                raise CallerError(f"layer_map = {list(self.layer_map)}", wrong, remedy)
            for layer in self.layer_map:
                layer_index(layer, teacher.num_layers, "layer_map entry")
        if teacher.num_heads != student.num_heads:
            asked = f"tinybert with a student of {student.num_heads} heads"
            wrong = f"the teacher has {teacher.num_heads}, and scores are compared head by head"
            raise CallerError(asked, wrong, "give both the same number of heads")
        if self.projection == "none" and teacher.hidden_size != student.hidden_size:
            wrong = f"the widths differ: student {student.hidden_size}, teacher {teacher.hidden_size}"
            raise CallerError('projection = "none"', wrong, 'use projection = "shared" or "per_layer"')

    def _needs(self, blocks: set[int], logits: Literal["none", "masked"] = "none") -> Needs:
        if self.variant == "released_code":
            return Needs(logits=logits, hidden=tuple(blocks), scores=tuple(sorted({1, *blocks})))
        return Needs(logits=logits, hidden=(0, *sorted(blocks)), scores=tuple(sorted(blocks)))

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """States and scores of the layers that learn, and the embeddings."""
        last = student.num_layers
        return self._needs({last} if self.layer_map == "last" else set(range(1, last + 1)), self.mlm_logits)

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """States and scores at g(l)."""
        if isinstance(self.layer_map, tuple):
            return self._needs(set(self.layer_map))
        last, stride = teacher.num_layers, teacher.num_layers // student.num_layers
        return self._needs({last} if self.layer_map == "last" else set(range(stride, last + 1, stride)))

    def projections(self, student: ModelSpec, teacher: ModelSpec | None) -> dict[str, tuple[int, int]]:
        """One map, one per state, or none."""
        assert teacher is not None
        per_layer = [f"state_{layer}" for layer in self.student_needs(student, teacher).hidden]
        names = {"shared": ["shared"], "per_layer": per_layer, "none": []}[self.projection]
        return dict.fromkeys(names, (student.hidden_size, teacher.hidden_size))

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """A projection of every state that is compared; scores are those that the attention computes anyway."""
        assert teacher is not None
        states = 0 if self.projection == "none" else len(self.student_needs(student, teacher).hidden)
        return 2 * states * student.hidden_size * teacher.hidden_size, 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"embeddings", "hidden", "attention"} and the words' term where it is weighted."""
        assert teacher is not None
        real_BT, allowed_BTT = batch.real_BT, batch.allowed() if batch.causal else None

        def state_error(ours: int, theirs: int) -> Tensor:
            state_ND = real_rows(student.hidden[ours], real_BT)
            if projections is not None and self.projection != "none":
                name = "shared" if self.projection == "shared" else f"state_{ours}"
                state_ND = product(state_ND, projections.get_parameter(f"{name}.weight").T)
            return (state_ND.float() - real_rows(teacher.hidden[theirs], real_BT).float()).square().mean()

        def score_error(ours: int, theirs: int) -> Tensor:
            return mean_over_pairs(
                (student.scores[ours].float() - teacher.scores[theirs].float()).square(), real_BT, allowed_BTT
            )

        if isinstance(self.layer_map, tuple):
            pairs = list(enumerate(self.layer_map, start=1))
        else:
            ours, theirs = (sorted(of.hidden.keys() - {0}) for of in (student, teacher))
            pairs = list(zip(ours, theirs, strict=True))
        hidden, attention = ([error(*pair) for pair in pairs] for error in (state_error, score_error))
        first = score_error(1, 1) if self.variant == "released_code" else state_error(0, 0)
        return {
            "embeddings": first,
            "hidden": sum(hidden[1:], hidden[0]),
            "attention": sum(attention[1:], attention[0]),
        } | self.mlm_term(batch, student)
