"""Closed forms of the FLOPs of transformers: arithmetic that the counters must agree with, to the unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from budgetlab.models import Network, describe_model
from budgetlab.step import TrainingStep
from budgetlab.values import Needs

Price = tuple[float, float]
"""FLOPs of one phase: (a position, a target token)."""


def _queries_keys_values(sizes: Mapping[str, int]) -> int:
    narrow = sizes["key_value_heads"] * sizes["head_width"]
    return 2 * sizes["width"] * (sizes["heads"] * sizes["head_width"] + 2 * narrow)


def _blocks(sizes: Mapping[str, int], length: int, *, gated: bool = False) -> int:
    """Blocks of a transformer, a position: Q, K, V and output projections, scores and values, feed-forward."""
    width, heads = sizes["width"], sizes["heads"] * sizes["head_width"]
    projections = _queries_keys_values(sizes) + 2 * heads * width
    feed_forward = (6 if gated else 4) * width * sizes["inner"]
    return sizes["layers"] * (projections + 4 * length * heads + feed_forward)


def _masked_head(sizes: Mapping[str, int]) -> int:
    width, vocab = sizes["width"], sizes["vocab"]
    return 2 * width * width + 2 * width * vocab


def _electra_body(sizes: Mapping[str, int], length: int) -> int:
    width, narrow = sizes["width"], sizes["embedding"]
    return _blocks(sizes, length) + (2 * narrow * width if narrow != width else 0)


def _electra_head(sizes: Mapping[str, int]) -> int:
    return 2 * sizes["width"] * sizes["embedding"] + 2 * sizes["embedding"] * sizes["vocab"]


def _decoder(sizes: Mapping[str, int]) -> int:
    return 2 * sizes["width"] * sizes["vocab"]


Form = tuple[Callable[[Mapping[str, int], int], int], Callable[[Mapping[str, int]], int]]

_BERT: Form = (_blocks, _masked_head)
_LLAMA: Form = (lambda sizes, length: _blocks(sizes, length, gated=True), _decoder)
CLOSED_FORMS: dict[str, Form] = {
    "bert": _BERT,
    "roberta": _BERT,
    "megatron-bert": _BERT,
    "electra": (_electra_body, _electra_head),
    "modernbert": (lambda sizes, length: _blocks(sizes, length, gated=True), _masked_head),
    "gpt2": (_blocks, _decoder),
    "llama": _LLAMA,
}
"""By architecture: forward FLOPs a position of the body, and of the head where logits are computed."""


def closed_form(step: TrainingStep, seq_len: int) -> dict[str, Price] | None:
    """FLOPs of each phase of a lean step; None where there is no form for an architecture or for the loss.

    What is trained is multiplied three times: forward, and backward for its input and for its weights. That holds for
    the student and for the student's side of the loss, every part of which reaches something that learns.
    """
    teacher_spec = None if step.teacher is None else step.teacher.spec
    own = step.strategy.loss_flops(step.student.spec, teacher_spec, seq_len)
    student = _forward(step.student, step.student_needs, seq_len)
    teacher = (0.0, 0.0) if step.teacher is None else _forward(step.teacher, step.teacher_needs, seq_len)
    if own is None or student is None or teacher is None:
        return None
    of_student, of_teacher = own
    return {
        "teacher_forward": teacher,
        "student_forward": student,
        "loss": (float(of_student + of_teacher), 0.0),
        "backward": (2 * (student[0] + of_student), 2 * student[1]),
        "update": (0.0, 0.0),
    }


def _forward(network: Network, needs: Needs, seq_len: int) -> Price | None:
    """Of a network as far as `needs` says: whole blocks, the next one's Q, K, V, and its head where logits are."""
    config: Any = network.model.config
    form = CLOSED_FORMS.get(config.model_type)
    if form is None:
        return None
    sizes = describe_model(config)
    whole = sizes["layers"] if needs.trunk_depth < 0 else max(needs.trunk_depth, needs.projected_depth - 1)
    body = form[0]({**sizes, "layers": whole}, seq_len)
    if needs.projected_depth > whole:
        body += _queries_keys_values(sizes)
    head = form[1](sizes)
    everywhere, at_targets = needs.logits == "all", needs.logits == "masked"
    return float(body + head * everywhere), float(head * at_targets)
