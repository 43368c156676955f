"""MiniLM, first version: distil the last block's attention distribution and value relation."""

from __future__ import annotations

from budgetlab.errors import CallerError
from budgetlab.strategies.base import FeatureStrategy, Maps, Terms, layer_index
from budgetlab.strategies.losses import relation_divergence
from budgetlab.values import Batch, ModelSpec, Needs, Signals


class MiniLMv1(FeatureStrategy):
    """L = KL(A_T || A_S) + KL(VR_T || VR_S), means over heads and real positions, in nats.

    Wang et al. 2020 (arXiv 2002.10957), sections 3.1 and 3.2: A = softmax(Q K' / sqrt(d_h)) and
    VR = softmax(V V' / sqrt(d_h)) of the last blocks, head by head; widths may differ, head counts may not. Q, K, V are
    all that is read of a last block, so it is cut after them, and A is made from them.
    """

    teacher_layer: int = -1
    """Counted from 1, or from the end with -1."""

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse unequal head counts, and layers that do not exist."""
        assert teacher is not None
        if any(spec.key_value_heads != spec.num_heads for spec in (student, teacher)):
            wrong = "queries share keys and values there, and Q K' is taken head by head"
            raise CallerError("minilm_v1 with num_kv_heads below num_heads", wrong, "use minilm, or as many of both")
        layer_index(self.teacher_layer, teacher.num_layers, "teacher_layer")
        if teacher.num_heads != student.num_heads:
            raise CallerError(
                f"minilm_v1 with a student of {student.num_heads} heads",
                f"the teacher has {teacher.num_heads}, and distributions are compared head by head",
                "give both the same number of heads, or use minilm",
            )

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Q, K, V of the last block."""
        return Needs(logits=self.mlm_logits, qkv=(student.num_layers,))

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Q, K, V of the chosen block."""
        return Needs(qkv=(layer_index(self.teacher_layer, teacher.num_layers, "teacher_layer"),))

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """Q K' and V V'."""
        assert teacher is not None
        ours, theirs = (spec.num_heads * spec.head_width for spec in (student, teacher))
        return 4 * seq_len * ours, 4 * seq_len * theirs

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"attention", "values"} and "mlm" where it is weighted."""
        assert teacher is not None
        (q_T,), (k_T,), (v_T,) = (part.values() for part in (teacher.queries, teacher.keys, teacher.values))
        (q_S,), (k_S,), (v_S,) = (part.values() for part in (student.queries, student.keys, student.values))
        heads, pairs = q_T.shape[1], (batch.real_BT, batch.allowed())
        return {
            "attention": relation_divergence((q_T, k_T), (q_S, k_S), heads, *pairs),
            "values": relation_divergence((v_T, v_T), (v_S, v_S), heads, *pairs),
        } | self.mlm_term(batch, student)
