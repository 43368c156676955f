"""FLOPs of a step by phase, counted by torch's counter and, for the forward passes, by fvcore's."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from budgetlab.errors import BudgetlabError
from budgetlab.models import Network
from budgetlab.step import PHASES, TrainingStep
from budgetlab.values import Batch, Needs, Recipe

__all__ = ["Price", "count_flops", "second_opinion"]

Price = tuple[float, float]
"""FLOPs of one phase: (a position, a target token)."""


def count_flops(
    step: TrainingStep, seq_len: int, masked: int, *, executed_on: torch.device | None = None
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

    Returns
    -------
    prices
        By phase, per position and per target token: the count is linear in both, so two counts give the two prices.
    """
    few, many = masked, min(2 * masked, seq_len)
    counts = [_count_once(step, seq_len, targets, executed_on or torch.device("meta")) for targets in (few, many)]
    prices = {}
    for phase in PHASES:
        per_target = (counts[1][phase] - counts[0][phase]) / (many - few)
        prices[phase] = ((counts[0][phase] - per_target * few) / seq_len, per_target)
    return prices


def _count_once(step: TrainingStep, seq_len: int, targets: int, device: torch.device) -> dict[str, int]:
    zeros = torch.zeros(targets, dtype=torch.long, device=device)
    ids = torch.zeros((1, seq_len), dtype=torch.long, device=device)
    found: dict[str, int] = dict.fromkeys(PHASES, 0)
    # torch's counter knows the CUDA kernels of attention but silently counts the CPU one as nothing.
    aten = torch.ops.aten
    cpu_attention: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=cpu_attention) as counter:
        so_far = 0

        def on_phase(phase: str) -> None:
            nonlocal so_far
            found[phase] = counter.get_total_flops() - so_far
            so_far = counter.get_total_flops()

        step.forward_backward(Batch(input_ids=ids, target_positions=zeros, target_ids=zeros), on_phase=on_phase)
    return found


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _cpu_attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_LIGHT = (
    "add", "embedding", "expand", "eq", "gelu", "gather", "index", "mul", "dropout", "softmax", "tanh", "div", "sub",
    "clone", "ones", "zeros", "where", "masked_fill", "rsub", "unsqueeze", "contiguous", "to", "view", "slice",
    "arange", "ne", "cumsum", "cos", "sin", "neg",
)  # fmt: skip
"""Operators that fvcore does not count and that are element-wise or a look-up."""


def second_opinion(step: TrainingStep, required: dict[str, Price], recipe: Recipe) -> None:
    """Compare the forward counts with fvcore's, an independent counter of multiply-adds.

    Raises
    ------
    BudgetlabError
        When they differ, or fvcore meets an operator that it does not know and that may be heavy.
    """
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
        unknown = [op for op in analysis.unsupported_ops() if op.removeprefix("aten::").rstrip("_") not in _LIGHT]
    return 2.0 * multiply_adds, unknown
