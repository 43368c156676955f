"""MiniLMv2: distil the self-attention relations of one teacher layer into the student's last layer."""

from __future__ import annotations

from pydantic import Field

from budgetlab.errors import CallerError
from budgetlab.strategies.base import FeatureStrategy, Maps, Terms, layer_index
from budgetlab.strategies.losses import relation_divergence
from budgetlab.values import Batch, ModelSpec, Needs, Signals


class MiniLM(FeatureStrategy):
    """L = sum over X in {Q, K, V} of KL(R_X^teacher || R_X^student), mean over relation heads and real positions.

    Wang et al. 2021 (arXiv 2012.15828). R_X = softmax(X_r X_r' / sqrt(d_r)) after X is regrouped into
    `relation_heads` heads of equal width, so widths and head counts of teacher and student may differ. Without
    `mlm_weight` the last student block after Q, K, V and the head get no gradient and are not computed. Of causal
    models Q and K are those after the rotation, and a row holds the positions up to its own.
    """

    relation_heads: int | None = Field(default=None, gt=0)
    """None: the teacher's attention heads. The authors took 48 for BERT-base and 64 for BERT-large."""
    teacher_layer: int = -1
    """Counted from 1, or from the end with -1."""

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse relation heads that do not divide a width, and layers that do not exist."""
        assert teacher is not None
        layer_index(self.teacher_layer, teacher.num_layers, "teacher_layer")
        heads = self.relation_heads or teacher.num_heads
        for role, spec in (("student", student), ("teacher", teacher)):
            for of, count in (("queries", spec.num_heads), ("keys and values", spec.key_value_heads)):
                if (width := count * spec.head_width) % heads:
                    what = f"hidden_size {width}" if width == spec.hidden_size else f"{of}, {width} wide"
                    wrong = f"does not divide the {role}'s {what}"
                    raise CallerError(f"relation_heads = {heads}", wrong, "choose a divisor of both widths")

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Q, K, V of the last block."""
        return Needs(logits=self.mlm_logits, qkv=(student.num_layers,))

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Q, K, V of the chosen block."""
        return Needs(qkv=(layer_index(self.teacher_layer, teacher.num_layers, "teacher_layer"),))

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """X X' for queries, keys and values."""
        assert teacher is not None
        ours, theirs = ((spec.num_heads + 2 * spec.key_value_heads) * spec.head_width for spec in (student, teacher))
        return 2 * seq_len * ours, 2 * seq_len * theirs

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"queries", "keys", "values"} and "mlm" where it is weighted."""
        assert teacher is not None
        terms = {}
        for name in ("queries", "keys", "values"):
            (x_T,), (x_S,) = (getattr(signals, name).values() for signals in (teacher, student))
            heads = self.relation_heads or x_T.shape[1]
            terms[name] = relation_divergence((x_T, x_T), (x_S, x_S), heads, batch.real_BT, batch.allowed())
        return terms | self.mlm_term(batch, student)
