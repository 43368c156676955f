"""FLOPs of any masked or causal language model by itself, counted three ways."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.models import SingleModel, describe_model
from budgetlab.profiler.count import CLOSED_FORMS, FURTHER, UncountedOps, count_by_fvcore
from budgetlab.values import ModelCost

_LARGEST = {"layers": 1000, "vocab": 2**24, "inner": 2**20}
_LARGEST_OF_OTHERS = 2**17


def count_model(model: SingleModel, *, seq_len: int = 128, mask_fraction: float = 0.15) -> ModelCost:
    """Count the FLOPs a position of one model, forward and backward, with logits at every position.

    Torch's counter counts a forward and a backward pass of the model built without storage; fvcore's counts the forward
    pass again; for the architectures of `CLOSED_FORMS` arithmetic does. Attention is full: no causal half is taken off.
    A BudgetlabError where two counts disagree, or nobody counts an operator that may be heavy.
    """
    asked, sizes = f"--model {model.name}", describe_model(model.config)
    large = [name for name, size in sizes.items() if size > _LARGEST.get(name, _LARGEST_OF_OTHERS)]
    if large:
        wrong = f"its {', '.join(f'{name} ({sizes[name]:,})' for name in large)} is more than can be built"
        raise CallerError(asked, wrong, "correct its sizes")
    small = [name for name, size in sizes.items() if size < 1]
    if small:
        raise CallerError(asked, f"its {', '.join(small)} is below 1", "correct its sizes")
    body, head, backward, params, embedding = _torch_counts(model, seq_len)
    forward, verdict, form = body + head, {}, CLOSED_FORMS.get(model.config.model_type)
    mine = f"torch counts {body:.0f} + {head:.0f} forward FLOPs a position (body + head)"
    if form is None:
        verdict["closed form"] = "n/a for this architecture"
    else:
        expected = (form[0](sizes, seq_len), form[1](sizes))
        if expected != (body, head):
            wrong = f"{mine}, the closed form says {expected[0]:.0f} + {expected[1]:.0f}"
            raise BudgetlabError(f"counting {model.name}", wrong, "report this")
        verdict["closed form"] = "equal"
    other, why = _fvcore_count(model, seq_len)
    if other is not None and abs(other - forward) > 1e-9 * forward:
        raise BudgetlabError(f"counting {model.name}", f"{mine}, fvcore says {other:.0f} in all", "report this")
    verdict["fvcore"] = f"n/a ({why})" if other is None else "equal"
    # Logits where they carry loss only; the backward pass of the head is what it is of the forward one.
    fraction = 1.0 if model.kind == "causal" else mask_fraction
    lean = forward + backward if model.kind == "causal" else (body + fraction * head) * (1 + backward / forward)
    return ModelCost(
        model=model.name,
        architecture=model.config.model_type,
        kind=model.kind,
        seq_len=seq_len,
        body_forward_flops_per_token=body,
        head_forward_flops_per_position=head,
        backward_flops_per_token=backward,
        train_required_flops_per_token=lean,
        target_fraction=fraction,
        num_params_total=params,
        num_params_non_embedding=params - embedding,
        verdict=verdict,
    )


def _logits(model: SingleModel, network: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of a network built of the model, at every position."""
    further = {"use_cache": False} if model.kind == "causal" else {}
    return network(input_ids=ids, attention_mask=torch.ones_like(ids), **further).logits


def _torch_counts(model: SingleModel, seq_len: int) -> tuple[float, float, float, int, int]:
    """Forward of the body and of the head, backward; parameters, and those of embedding tables. Without storage."""
    asked = f"--model {model.name}"
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            network: Any = model.build().train()
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise CallerError(asked, f"cannot be built ({reason})", "correct its sizes") from None
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        ids = torch.zeros((1, seq_len), dtype=torch.long)
        longest = _longest(network, model)
        if longest is not None and seq_len > longest:
            raise CallerError(f"seq={seq_len}", f"{model.name} has positions for {longest}", "take a shorter one")
        try:
            with UncountedOps() as uncounted, FlopCounterMode(display=False, custom_mapping=FURTHER) as counter:
                logits = _logits(model, network, ids)
                forward = counter.get_total_flops()
                body = _within(counter, f"{type(network).__name__}.{network.base_model_prefix}")
                logits.sum().backward()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            wrong = f"cannot be run without storage ({reason})"
            raise CallerError(asked, wrong, "check its sizes, or report it") from None
        backward = counter.get_total_flops() - forward
        uncounted.refuse_any(model.name, "report this")
        params = sum(parameter.numel() for parameter in network.parameters())
        tables = {id(m.weight): m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Embedding)}
    return body / seq_len, (forward - body) / seq_len, backward / seq_len, params, sum(tables.values())


def _longest(network: torch.nn.Module, model: SingleModel) -> int | None:
    """Positions that the model has; RoBERTa and its like count them from past the padding token."""
    tables = [m for name, m in network.named_modules() if name.endswith("position_embeddings")]
    shifts = [m.padding_idx + 1 for m in tables if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None]
    longest = getattr(model.config, "max_position_embeddings", None)
    return None if longest is None else longest - max(shifts, default=0)


def _within(counter: FlopCounterMode, name: str) -> int:
    """FLOPs of a module; where it is not called itself, of its parts that are."""
    counts = {key: sum(found.values()) for key, found in counter.get_flop_counts().items()}
    if name in counts:
        return counts[name]
    parts = [key for key in counts if key.startswith(f"{name}.")]
    depth = min((key.count(".") for key in parts), default=0)
    return sum(counts[key] for key in parts if key.count(".") == depth)


def _fvcore_count(model: SingleModel, seq_len: int) -> tuple[float | None, str]:
    """Forward FLOPs a position by fvcore, or None and why it cannot."""
    with torch.device("meta"):
        network = model.build().eval()
        ids = torch.zeros((1, seq_len), dtype=torch.long)
    try:
        flops, heavy = count_by_fvcore(network, lambda ids: _logits(model, network, ids), (ids,))
    except Exception as error:
        return None, f"it cannot trace this: {' '.join(str(error).split())[:80]}"
    return (None, f"it does not know {', '.join(heavy)}") if heavy else (flops / seq_len, "")
