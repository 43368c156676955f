"""FLOPs of a step by phase: torch's counter, held against a closed form of every phase and fvcore's forward passes."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from budgetlab.errors import BudgetlabError
from budgetlab.models import Network, describe_model
from budgetlab.step import TrainingStep
from budgetlab.values import PHASES, Batch, Needs, Recipe
from budgetlab.values.model_specs import LIKE_LLAMA

Price = tuple[float, float]
"""FLOPs of one phase: (a position, a target token)."""

_ATEN = torch.ops.aten
FURTHER: dict[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
    _ATEN.bmm: lambda one, other, *_, **__: 2 * one[0] * one[1] * one[2] * other[2],
    _ATEN.dot: lambda one, *_, **__: 2 * one[0],
    _ATEN.vdot: lambda one, *_, **__: 2 * one[0],
    _ATEN.mv: lambda matrix, *_, **__: 2 * matrix[0] * matrix[1],
    _ATEN.addmv: lambda _, matrix, *__, **___: 2 * matrix[0] * matrix[1],
}
"""Products that torch's counter silently counts as nothing, or cannot where the result has a type of its own, with
their FLOPs by the shapes of their arguments."""

_LIGHT = frozenset({
    "adaptive_avg_pool2d", "alias", "all", "amax", "aminmax", "any", "arange", "argmax", "argmin", "argsort",
    "as_strided", "as_strided_scatter", "avg_pool1d", "avg_pool2d", "bernoulli", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "bincount", "bitwise_and", "bucketize", "cat", "clone", "col2im",
    "constant_pad_nd", "copy", "count_nonzero", "cummax", "cummin", "cumprod", "cumsum", "detach", "diag_embed",
    "diagonal", "diagonal_scatter", "dist", "embedding", "embedding_bag", "embedding_dense", "embedding_renorm",
    "empty", "empty_strided", "equal", "expand", "exponential", "eye", "fill", "flip", "full", "fused_rms_norm",
    "gather", "histc", "huber_loss", "im2col", "imag", "index", "index_add", "index_copy", "index_fill", "index_put",
    "index_select", "is_same_size", "isin", "kthvalue", "lift_fresh", "linalg_vector_norm", "linspace",
    "local_scalar_dense", "log_sigmoid", "log_softmax", "logaddexp", "logcumsumexp", "logsumexp", "masked_fill",
    "masked_scatter", "masked_select", "max", "max_pool2d_with_indices", "mean", "median", "min", "mode", "mse_loss",
    "msort", "multi_margin_loss", "nanmedian", "nansum", "native_batch_norm", "native_dropout", "native_group_norm",
    "native_layer_norm", "nll_loss", "nll_loss2d", "nonzero", "norm", "normal", "one_hot", "ones", "polar", "prod",
    "put", "rand", "randint", "randn", "randperm", "real", "reflection_pad1d", "renorm", "repeat",
    "repeat_interleave", "replication_pad1d", "resize", "roll", "rot90", "safe_softmax", "scalar_tensor", "scatter",
    "scatter_add", "scatter_reduce", "searchsorted", "select", "select_scatter", "set", "slice", "slice_scatter",
    "smooth_l1_loss", "soft_margin_loss", "softmax", "softplus", "sort", "split", "stack", "std", "std_mean", "sum",
    "t", "take", "to_copy", "topk", "trace", "tril", "tril_indices", "triu", "triu_indices", "unbind", "uniform",
    "unique2", "unique_consecutive", "unsafe_index", "unsafe_index_put", "unsafe_view", "var", "var_mean",
    "view_as_complex", "zero", "zeros",
})  # fmt: skip
"""Operators of torch that move numbers, reduce them or draw them, and their backward passes: no FLOPs for us."""
_VARIANT = re.compile(r"^new_|_(backward|backward_data|forward|like)$")


class UncountedOps(TorchDispatchMode):
    """Collects operators that no counter knows and that may multiply matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        stem = _VARIANT.sub("", packet.__name__.strip("_"))
        light = torch.Tag.pointwise in func.tags or func.is_view or stem in _LIGHT
        counted = packet in flop_registry or packet in FURTHER
        if not counted and not (func.namespace == "prim" or (func.namespace == "aten" and light)):
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))

    def refuse_any(self, what: str, remedy: str) -> None:
        """Raise a BudgetlabError that names them, where there are any."""
        if self.names:
            wrong = f"nobody counts {', '.join(sorted(self.names))}, which may be heavy"
            raise BudgetlabError(f"counting {what}", wrong, remedy)


def count_flops(
    step: TrainingStep,
    seq_len: int,
    masked: int,
    *,
    executed_on: torch.device | None = None,
    per_target: Mapping[str, float] | None = None,
) -> dict[str, Price]:
    """Count the FLOPs of each phase, per position and per target token: linear in both, so that two counts give both.

    `seq_len` and `masked` are the positions and masked positions of a sequence. The step is built on the meta device,
    or within a fake-tensor mode for the kernels that the device `executed_on` would choose. `per_target` are the FLOPs
    a target token where they are known. A BudgetlabError where an operator that may be heavy was counted by nobody, or
    the loss of a strategy that does not state its FLOPs multiplies across samples.
    """
    few = max(1, min(masked, seq_len // 2))
    device = executed_on or torch.device("meta")
    with UncountedOps() as uncounted:
        counts = _count_once(step, seq_len, few, device)
    uncounted.refuse_any(step.arm, "write the loss with other operators, or report this")
    teacher = None if step.teacher is None else step.teacher.spec
    if step.strategy.loss_flops(step.student.spec, teacher, seq_len) is None:
        twice = _count_once(step, seq_len, 2 * few, device, sequences=2)
        if any(twice[phase] != 2 * counts[phase] for phase in PHASES):
            wrong = "two sequences cost other than twice one: its loss multiplies across samples"
            remedy = "write it sample by sample; FLOPs a token would depend on the batch"
            raise BudgetlabError(f"counting {step.arm}", wrong, remedy)
    if per_target is None:
        # A loss of ours that reads nothing at target positions costs the same for any number of them.
        reads_targets = "masked" in (step.student_needs.logits, step.teacher_needs.logits)
        again = reads_targets or bool(step.strategy.source_hash())
        more = _count_once(step, seq_len, 2 * few, device) if again else counts
        per_target = {phase: (more[phase] - counts[phase]) / few for phase in PHASES}
    return {phase: ((counts[phase] - per_target[phase] * few) / seq_len, per_target[phase]) for phase in PHASES}


def _count_once(
    step: TrainingStep, seq_len: int, targets: int, device: torch.device, sequences: int = 1
) -> dict[str, int]:
    zeros = torch.zeros(targets, dtype=torch.long, device=device)
    ids = torch.zeros((sequences, seq_len), dtype=torch.long, device=device)
    found: dict[str, int] = dict.fromkeys(PHASES, 0)
    with FlopCounterMode(display=False, custom_mapping=FURTHER) as counter:

        def on_phase(phase: str) -> None:
            found[phase] = counter.get_total_flops() - sum(found.values())

        step.forward_backward(Batch(ids, zeros, zeros, causal=step.student.spec.causal), on_phase=on_phase)
    return found


def count_head(network: Network, needs: Needs) -> Price:
    """FLOPs of the output head, of those of the network's forward pass: a position, a target token."""
    if needs.logits == "none":
        return 0.0, 0.0
    weight = next(network.parameters())
    hidden = torch.zeros((1, network.spec.hidden_size), dtype=weight.dtype, device=weight.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.head(hidden)
    flops = float(counter.get_total_flops())
    return (flops, 0.0) if needs.logits == "all" else (0.0, flops)


Sizes = Mapping[str, int]
"""Of an architecture, as `describe_model` names them."""


def _queries_keys_values(sizes: Sizes) -> int:
    return 2 * sizes["width"] * (sizes["heads"] + 2 * sizes["key_value_heads"]) * sizes["head_width"]


def _blocks(sizes: Sizes, length: int) -> int:
    """Blocks of a transformer, a position: Q, K, V and output projections, scores and values, feed-forward."""
    width, heads = sizes["width"], sizes["heads"] * sizes["head_width"]
    attention = _queries_keys_values(sizes) + 2 * heads * width + 4 * length * heads
    return sizes["layers"] * (attention + 4 * width * sizes["inner"])


def _gated_blocks(sizes: Sizes, length: int) -> int:
    return _blocks(sizes, length) + sizes["layers"] * 2 * sizes["width"] * sizes["inner"]


def _electra_body(sizes: Sizes, length: int) -> int:
    width, narrow = sizes["width"], sizes["embedding"]
    return _blocks(sizes, length) + (2 * narrow * width if narrow != width else 0)


def _masked_head(sizes: Sizes) -> int:
    return 2 * sizes["width"] * (sizes["width"] + sizes["vocab"])


def _electra_head(sizes: Sizes) -> int:
    return 2 * sizes["embedding"] * (sizes["width"] + sizes["vocab"])


def _decoder(sizes: Sizes) -> int:
    return 2 * sizes["width"] * sizes["vocab"]


CLOSED_FORMS: dict[str, tuple[Callable[[Sizes, int], int], Callable[[Sizes], int]]] = {
    "bert": (_blocks, _masked_head),
    "roberta": (_blocks, _masked_head),
    "megatron-bert": (_blocks, _masked_head),
    "electra": (_electra_body, _electra_head),
    "modernbert": (_gated_blocks, _masked_head),
    "gpt2": (_blocks, _decoder),
    **dict.fromkeys(("llama", "qwen2", "qwen3", "olmo2", "gemma3_text", *LIKE_LLAMA), (_gated_blocks, _decoder)),
    **dict.fromkeys(("arcee", "jais2", "starcoder2"), (_blocks, _decoder)),
}
"""By architecture: forward FLOPs a position of the body, and of the head where logits are computed."""


def _closed_form(step: TrainingStep, seq_len: int) -> dict[str, Price] | None:
    """FLOPs of each phase of a lean step; None where there is no form for an architecture or for the loss.

    What is trained is multiplied three times: forward, and backward for its input and for its weights. That holds for
    the student and for the student's side of the loss, every part of which reaches something that learns.
    """
    own = step.strategy.loss_flops(step.student.spec, None if step.teacher is None else step.teacher.spec, seq_len)
    student = _forward_form(step.student, step.student_needs, seq_len)
    teacher = (0.0, 0.0) if step.teacher is None else _forward_form(step.teacher, step.teacher_needs, seq_len)
    if own is None or student is None or teacher is None:
        return None
    return {
        "teacher_forward": teacher,
        "student_forward": student,
        "loss": (float(sum(own)), 0.0),
        "backward": (2 * (student[0] + own[0]), 2 * student[1]),
        "update": (0.0, 0.0),
    }


def _forward_form(network: Network, needs: Needs, seq_len: int) -> Price | None:
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
    return float(body + head * (needs.logits == "all")), float(head * (needs.logits == "masked"))


def half_attention(step: TrainingStep, counted: dict[str, Price]) -> dict[str, Price]:
    """Return a count in which causal attention takes half of its pairs, the other convention of the literature."""
    halves = {"teacher_forward": _half_attention(step.teacher, step.teacher_needs, step.recipe.seq_len),
              "student_forward": _half_attention(step.student, step.student_needs, step.recipe.seq_len)}  # fmt: skip
    halves["backward"] = 2 * halves["student_forward"]
    return {phase: (price[0] - halves.get(phase, 0.0), price[1]) for phase, price in counted.items()}


def _half_attention(network: Network | None, needs: Needs, length: int) -> float:
    """Half of what the scores and the weighted values of the whole blocks cost, a position."""
    if network is None:
        return 0.0
    spec = network.spec
    whole = spec.num_layers if needs.trunk_depth < 0 else max(needs.trunk_depth, needs.projected_depth - 1)
    return 2.0 * whole * length * spec.num_heads * spec.head_width


def agree(step: TrainingStep, required: dict[str, Price], recipe: Recipe) -> dict[str, str]:
    """Hold torch's count of a lean step against the closed form, phase by phase, and against fvcore's forward passes.

    Returns by name of the other count "equal", or "n/a" and why; a BudgetlabError where they differ, or fvcore meets an
    operator that it does not know and that may be heavy.
    """
    expected, verdict = _closed_form(step, recipe.seq_len), "equal"
    if expected is None:
        expected, verdict = {}, "n/a for this architecture or loss (loss and backward are torch's count alone)"
    for phase, price in expected.items():
        if price != required[phase]:
            counted, by_form = (f"{p[0]:.0f} a position + {p[1]:.0f} a target token" for p in (required[phase], price))
            wrong = f"torch counts {counted}, the closed form {by_form}"
            raise BudgetlabError(f"counting {step.arm}, {phase}", wrong, "report this")
    return {"closed form": verdict, "fvcore": _agree_with_fvcore(step, required, recipe)}


def _agree_with_fvcore(step: TrainingStep, required: dict[str, Price], recipe: Recipe) -> str:
    """Compare the forward counts with fvcore's, an independent counter; "equal", or "n/a" and why."""
    if importlib.util.find_spec("fvcore") is None:
        return "n/a (not installed)"
    ids = torch.zeros((1, recipe.seq_len), dtype=torch.long, device="meta")
    targets = torch.zeros(recipe.masked_per_sequence, dtype=torch.long, device="meta")
    networks = {"student_forward": (step.student, step.student_needs)}
    if step.teacher is not None:
        networks["teacher_forward"] = (step.teacher, step.teacher_needs)
    for phase, (network, needs) in networks.items():

        def signals(ids: torch.Tensor, targets: torch.Tensor, network=network, needs=needs) -> list[torch.Tensor]:
            kept = network(ids, needs, targets)
            parts = (kept.hidden, kept.queries, kept.keys, kept.values, kept.scores)
            found = [tensor for part in parts for tensor in part.values()]
            return found if kept.logits is None else [*found, kept.logits]

        other, unknown = count_by_fvcore(network, signals, (ids, targets))
        if unknown:
            wrong = f"fvcore does not know {', '.join(unknown)}"
            raise BudgetlabError(f"counting {step.arm}, {phase}", wrong, "report this")
        counted = required[phase][0] * recipe.seq_len + required[phase][1] * recipe.masked_per_sequence
        if abs(other - counted) > 1e-9 * counted:
            wrong = f"torch counts {counted:.0f} FLOPs, fvcore {other:.0f}"
            raise BudgetlabError(f"counting {step.arm}, {phase}", wrong, "report this")
    return "equal"


def count_by_fvcore(
    network: torch.nn.Module, forward: Callable[..., Any], inputs: tuple[torch.Tensor, ...]
) -> tuple[float, Sequence[str]]:
    """Count the FLOPs of a network's `forward(*inputs)` by fvcore; and what it does not know that may be heavy."""
    from fvcore.nn import FlopCountAnalysis

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: torch.Tensor) -> Any:
            return forward(*inputs)

    def attention(inputs: list[Any], outputs: list[Any]) -> float:
        batch, heads, length, width = inputs[0].type().sizes()
        return 2 * batch * heads * length * inputs[1].type().sizes()[2] * width

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces with TorchScript, which torch deprecates
        analysis = FlopCountAnalysis(Traced(), inputs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        # A handle of None leaves the built-in one in place, so layer norm is given one that counts nothing.
        analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
        multiply_adds = analysis.total()
        heavy = {packet.__name__ for packet in flop_registry}
        unknown = sorted(op.removeprefix("aten::") for op in analysis.unsupported_ops())
    return 2.0 * multiply_adds, [op for op in unknown if op.rstrip("_") in heavy]
