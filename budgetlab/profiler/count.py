"""FLOPs of a step by phase, counted by torch's counter and, for the forward passes, by fvcore's."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from budgetlab.errors import BudgetlabError
from budgetlab.models import Network
from budgetlab.profiler.forms import Price, closed_form
from budgetlab.step import PHASES, TrainingStep
from budgetlab.values import Batch, ModelSpec, Needs, Recipe

_ATEN = torch.ops.aten


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _cpu_attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _dot(one: Any, *_: Any, **__: Any) -> int:
    return 2 * one[0]


def _matrix_vector(matrix: Any, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _add_matrix_vector(_: Any, matrix: Any, *__: Any, **___: Any) -> int:
    return _matrix_vector(matrix)


_FURTHER: dict[Any, Any] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    _ATEN.dot: _dot,
    _ATEN.vdot: _dot,
    _ATEN.mv: _matrix_vector,
    _ATEN.addmv: _add_matrix_vector,
}
"""Products that torch's counter silently counts as nothing, with their FLOPs by the shapes of their arguments."""

_POINTWISE_AND_MOVES = frozenset({
    "_adaptive_avg_pool2d", "_adaptive_avg_pool2d_backward", "_embedding_bag", "_embedding_bag_backward",
    "_fused_rms_norm", "_fused_rms_norm_backward", "_local_scalar_dense", "_log_softmax",
    "_log_softmax_backward_data", "_safe_softmax", "_softmax", "_softmax_backward_data", "_to_copy", "_unique2",
    "_unsafe_index", "_unsafe_index_put", "_unsafe_view", "alias", "all", "amax", "aminmax", "any", "arange",
    "argmax", "argmin", "argsort", "as_strided", "as_strided_scatter", "avg_pool1d", "avg_pool2d",
    "avg_pool2d_backward", "bernoulli", "bernoulli_", "binary_cross_entropy", "binary_cross_entropy_backward",
    "binary_cross_entropy_with_logits", "bincount", "bitwise_and", "bucketize", "cat", "clone", "col2im",
    "constant_pad_nd", "copy_", "count_nonzero", "cummax", "cummin", "cumprod", "cumsum", "detach", "detach_",
    "diag_embed", "diagonal_backward", "diagonal_scatter", "dist", "embedding", "embedding_dense_backward",
    "embedding_renorm_", "empty", "empty_like", "empty_strided", "equal", "expand", "exponential_", "eye", "fill_",
    "flip", "full", "full_like", "gather", "histc", "huber_loss", "huber_loss_backward", "im2col", "imag", "index",
    "index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_", "index_put", "index_put_",
    "index_select", "is_same_size", "isin", "kthvalue", "lift_fresh", "linalg_vector_norm", "linspace",
    "log_sigmoid_backward", "log_sigmoid_forward", "logaddexp", "logcumsumexp", "logsumexp", "masked_fill_",
    "masked_scatter", "masked_scatter_", "masked_select", "max", "max_pool2d_with_indices",
    "max_pool2d_with_indices_backward", "mean", "median", "min", "mode", "mse_loss", "mse_loss_backward", "msort",
    "multi_margin_loss", "multi_margin_loss_backward", "nanmedian", "nansum", "native_batch_norm", "native_dropout",
    "native_group_norm", "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "nll_loss2d_backward", "nll_loss2d_forward",
    "nll_loss_backward", "nll_loss_forward", "nonzero", "norm", "normal_", "one_hot", "ones", "ones_like", "polar",
    "prod", "put_", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "real",
    "reflection_pad1d", "renorm", "repeat", "repeat_interleave", "replication_pad1d", "resize_", "roll", "rot90",
    "scalar_tensor", "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_",
    "searchsorted", "select", "select_backward", "select_scatter", "set_", "slice_backward", "slice_scatter",
    "smooth_l1_loss", "smooth_l1_loss_backward", "soft_margin_loss", "soft_margin_loss_backward", "softplus_backward",
    "sort", "split", "stack", "std", "std_mean", "sum", "t", "take", "topk", "trace", "tril", "tril_indices", "triu",
    "triu_indices", "unbind", "uniform_", "unique_consecutive", "var", "var_mean", "view_as_complex", "zero_",
    "zeros", "zeros_like",
})  # fmt: skip
"""Operators of torch that move numbers, reduce them or draw them: no FLOPs by our convention."""


class Watch(TorchDispatchMode):
    """Collects operators that no counter knows and that may multiply matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        light = torch.Tag.pointwise in func.tags or func.is_view or packet.__name__ in _POINTWISE_AND_MOVES
        counted = packet in flop_registry or packet in _FURTHER
        if not counted and not (func.namespace == "prim" or (func.namespace == "aten" and light)):
            self.unknown.add(str(packet))
        return func(*args, **(kwargs or {}))


def count_flops(
    step: TrainingStep,
    seq_len: int,
    masked: int,
    *,
    executed_on: torch.device | None = None,
    per_target: Mapping[str, float] | None = None,
) -> dict[str, Price]:
    """Count the FLOPs of each phase of a step on the meta device.

    Parameters
    ----------
    step
        Built on the meta device, or, with `executed_on`, anywhere within a fake-tensor mode.
    seq_len, masked
        Positions and masked positions of a sequence.
    executed_on
        The device whose kernels are counted, as it would choose them; None for the meta device.
    per_target
        FLOPs a target token of each phase where they are known; else a second count finds them.

    Returns
    -------
    prices
        By phase, per position and per target token: the count is linear in both, so two counts give the two prices.

    Raises
    ------
    BudgetlabError
        When an operator that may be heavy was counted by nobody, or the loss of a strategy that does not state its
        FLOPs multiplies across samples.
    """
    few = max(1, min(masked, seq_len // 2))
    device = executed_on or torch.device("meta")
    watch = Watch()
    with watch:
        counts = _count_once(step, seq_len, few, device)
    if watch.unknown:
        unknown = ", ".join(sorted(watch.unknown))
        remedy = "write the loss with other operators, or report this"
        raise BudgetlabError(f"counting {step.arm}", f"nobody counts {unknown}, which may be heavy", remedy)
    if step.strategy.loss_flops(*_specs(step), seq_len) is None:
        twice = _count_once(step, seq_len, 2 * few, device, sequences=2)
        if any(twice[phase] != 2 * counts[phase] for phase in PHASES):
            raise BudgetlabError(
                f"counting {step.arm}",
                "two sequences cost other than twice one: its loss multiplies across samples",
                "write it sample by sample; FLOPs a token would depend on the batch",
            )
    if per_target is None:
        more = _count_once(step, seq_len, 2 * few, device) if _reads_targets(step) else counts
        per_target = {phase: (more[phase] - counts[phase]) / few for phase in PHASES}
    return {phase: ((counts[phase] - per_target[phase] * few) / seq_len, per_target[phase]) for phase in PHASES}


def _specs(step: TrainingStep) -> tuple[ModelSpec, ModelSpec | None]:
    return step.student.spec, None if step.teacher is None else step.teacher.spec


def _reads_targets(step: TrainingStep) -> bool:
    """Whether the number of target positions may change the count."""
    own = step.strategy.source_hash() != ""
    return own or "masked" in (step.student_needs.logits, step.teacher_needs.logits)


def _count_once(
    step: TrainingStep, seq_len: int, targets: int, device: torch.device, sequences: int = 1
) -> dict[str, int]:
    zeros = torch.zeros(targets, dtype=torch.long, device=device)
    ids = torch.zeros((sequences, seq_len), dtype=torch.long, device=device)
    found: dict[str, int] = dict.fromkeys(PHASES, 0)
    with FlopCounterMode(display=False, custom_mapping=_FURTHER) as counter:
        so_far = 0

        def on_phase(phase: str) -> None:
            nonlocal so_far
            found[phase] = counter.get_total_flops() - so_far
            so_far = counter.get_total_flops()

        step.forward_backward(Batch(input_ids=ids, target_positions=zeros, target_ids=zeros), on_phase=on_phase)
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


def agree(step: TrainingStep, required: dict[str, Price], recipe: Recipe) -> dict[str, str]:
    """Hold torch's count of a lean step against the closed form, phase by phase, and against fvcore's forward passes.

    Returns
    -------
    verdict
        By name of the other count: "equal", or "n/a" and why.

    Raises
    ------
    BudgetlabError
        When they differ, or fvcore meets an operator that it does not know and that may be heavy.
    """
    expected = closed_form(step, recipe.seq_len)
    if expected is None:
        alone = "n/a for this architecture or loss (loss and backward are torch's count alone)"
        return {"closed form": alone, "fvcore": second_opinion(step, required, recipe)}
    for phase, price in expected.items():
        if price != required[phase]:
            counted, by_form = (f"{p[0]:.0f} a position + {p[1]:.0f} a target token" for p in (required[phase], price))
            raise BudgetlabError(
                f"counting {step.arm}, {phase}", f"torch counts {counted}, the closed form {by_form}", "report this"
            )
    return {"closed form": "equal", "fvcore": second_opinion(step, required, recipe)}


def second_opinion(step: TrainingStep, required: dict[str, Price], recipe: Recipe) -> str:
    """Compare the forward counts with fvcore's, an independent counter of multiply-adds.

    Returns "equal", or "n/a" and why where fvcore is not installed.

    Raises
    ------
    BudgetlabError
        When they differ, or fvcore meets an operator that it does not know and that may be heavy.
    """
    if importlib.util.find_spec("fvcore") is None:
        return "n/a (not installed)"
    for phase, network, needs in (
        ("student_forward", step.student, step.student_needs),
        ("teacher_forward", step.teacher, step.teacher_needs),
    ):
        if network is None:
            continue
        counted = required[phase][0] * recipe.seq_len + required[phase][1] * recipe.masked_per_sequence
        other, unknown = _fvcore_flops(network, needs, recipe)
        if unknown:
            raise BudgetlabError(f"counting {step.arm}, {phase}", f"fvcore does not know {unknown}", "report this")
        if abs(other - counted) > 1e-9 * counted:
            raise BudgetlabError(
                f"counting {step.arm}, {phase}", f"torch counts {counted:.0f} FLOPs, fvcore {other:.0f}", "report this"
            )
    return "equal"


def _fvcore_flops(network: Network, needs: Needs, recipe: Recipe) -> tuple[float, list[str]]:
    import logging
    import warnings

    from fvcore.nn import FlopCountAnalysis

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
            kept = self.network(ids, needs, positions)
            found = [*kept.hidden.values(), *kept.queries.values(), *kept.keys.values(), *kept.values.values()]
            found += kept.scores.values()
            return found if kept.logits is None else [*found, kept.logits]

    def attention(inputs: list[Any], outputs: list[Any]) -> float:
        batch, heads, length, width = inputs[0].type().sizes()
        return 2 * batch * heads * length * inputs[1].type().sizes()[2] * width

    ids = torch.zeros((1, recipe.seq_len), dtype=torch.long, device="meta")
    positions = torch.zeros(recipe.masked_per_sequence, dtype=torch.long, device="meta")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces with TorchScript, which torch deprecates
        analysis = FlopCountAnalysis(Traced(), (ids, positions))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        # A handle of None leaves the built-in one in place, so layer norm is given one that counts nothing.
        analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
        multiply_adds = analysis.total()
        known = {f"aten::{packet.__name__}" for packet in flop_registry}
        unknown = [op for op in analysis.unsupported_ops() if op.rstrip("_") in known]
    return 2.0 * multiply_adds, unknown
