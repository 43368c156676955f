"""Loss terms that several strategies share, in float32 whatever the autocast says.

Tensor suffixes follow `values.signals`. torch loads on the first call, never on import.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def masked_lm(logits_MV: Tensor, target_ids_M: Tensor) -> Tensor:
    """Cross-entropy of the target tokens, nats per target token."""
    from torch.nn import functional

    return functional.cross_entropy(logits_MV.float(), target_ids_M)


def soft_divergence(
    teacher_MV: Tensor, student_MV: Tensor, temperature: float, *, minus_entropy: bool = True
) -> Tensor:
    """T^2 KL(softmax(z_T / T) || softmax(z_S / T)), nats per row: a mean over rows, a sum over the vocabulary.

    Hinton et al. 2015 (arXiv 1503.02531), section 2; T^2 keeps the size of its gradient. With `minus_entropy=False` it
    is the soft cross-entropy: the teacher's entropy more, the same gradient.
    """
    from torch.nn import functional

    teacher_MV, student_MV = teacher_MV.float(), student_MV.float()
    if temperature != 1:
        teacher_MV, student_MV = teacher_MV / temperature, student_MV / temperature
    if minus_entropy:
        logs_MV = student_MV.log_softmax(-1), teacher_MV.log_softmax(-1)
        found = functional.kl_div(*logs_MV, reduction="batchmean", log_target=True)
    else:
        found = functional.cross_entropy(student_MV, teacher_MV.softmax(-1))
    return found * temperature**2


def largest(logits_MV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row less the very largest, float16 [M, K], and their ids, int64 [M, K].

    A softmax does not see what is subtracted; float16 then is finest where the probability is.
    """
    values_MK, ids_MK = logits_MV.float().topk(count, dim=-1)
    return (values_MK - values_MK[:, :1]).half(), ids_MK


def soft_divergence_of_largest(
    teacher_MK: tuple[Tensor, Tensor], student_MV: Tensor, temperature: float, *, minus_entropy: bool = True
) -> Tensor:
    """`soft_divergence` from a teacher cut off after its `largest` logits: the other words get none of its mass."""
    values_MK, ids_MK = teacher_MK
    theirs_log_MK = (values_MK.float() / temperature).log_softmax(-1)
    ours_log_MK = (student_MV.float() / temperature).log_softmax(-1).gather(-1, ids_MK)
    theirs_MK = theirs_log_MK.exp()
    found_M = -(theirs_MK * ours_log_MK).sum(-1)
    if minus_entropy:
        found_M = found_M + (theirs_MK * theirs_log_MK).sum(-1)
    return found_M.mean() * temperature**2


def real_rows(x_NX: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    """Rows of [B*T, X] or [B, T, X] at real tokens, [N, X]."""
    flat = x_NX.flatten(0, -2)
    return flat if attention_mask_BT is None else flat[attention_mask_BT.flatten()]


def relation_divergence(
    teacher_BHTE: tuple[Tensor, Tensor],
    student_BHTE: tuple[Tensor, Tensor],
    relation_heads: int,
    attention_mask_BT: Tensor | None,
    allowed_BTT: Tensor | None = None,
) -> Tensor:
    """KL(R_teacher || R_student) of relations, mean over relation heads and real queries, in nats.

    R = softmax(X Y' / sqrt(D/R)) of a pair (X, Y), regrouped from attention heads to `relation_heads` of equal width:
    (Q, K) is the attention distribution (MiniLM, Wang et al. 2020, arXiv 2002.10957, section 3.1), (X, X) a
    self-relation (MiniLMv2, Wang et al. 2021, arXiv 2012.15828, section 3.1). Keys are masked to real tokens, or to
    those that a query of a causal model may attend to (`Batch.allowed`), on both sides.
    """
    if allowed_BTT is None and attention_mask_BT is not None:
        allowed_BTT = attention_mask_BT[:, None, :]
    teacher_log_BRTT = _log_relation(*teacher_BHTE, relation_heads, allowed_BTT)
    student_log_BRTT = _log_relation(*student_BHTE, relation_heads, allowed_BTT)
    # exp(-inf) * (-inf - -inf) is NaN at keys left out: both are zero there, so the difference is set to zero.
    difference_BRTT = teacher_log_BRTT - student_log_BRTT
    if allowed_BTT is not None:
        difference_BRTT = difference_BRTT.masked_fill(~allowed_BTT[:, None], 0.0)
    divergence_BRT = (teacher_log_BRTT.exp() * difference_BRTT).sum(-1)
    if attention_mask_BT is None:
        return divergence_BRT.mean()
    real_BRT = attention_mask_BT[:, None, :].expand_as(divergence_BRT)
    return divergence_BRT[real_BRT].mean()


def _log_relation(x_BHTE: Tensor, y_BHTE: Tensor, relation_heads: int, allowed_BTT: Tensor | None) -> Tensor:
    x_BRTE, y_BRTE = _regroup(x_BHTE, relation_heads), _regroup(y_BHTE, relation_heads)
    scores_BRTT = product(x_BRTE, y_BRTE.transpose(-1, -2)) / x_BRTE.shape[-1] ** 0.5
    if allowed_BTT is not None:
        scores_BRTT = scores_BRTT.masked_fill(~allowed_BTT[:, None], float("-inf"))
    return scores_BRTT.log_softmax(-1)


def _regroup(x_BHTE: Tensor, relation_heads: int) -> Tensor:
    batch, heads, length, width = x_BHTE.shape
    # Heads must be merged before they are regrouped: reshaping [B, H, T, E] directly would mix positions and heads.
    merged_BTD = x_BHTE.transpose(1, 2).reshape(batch, length, heads * width)
    return merged_BTD.reshape(batch, length, relation_heads, -1).transpose(1, 2)


def product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply in float32; on an NVIDIA GPU bfloat16 numbers of x are taken as they are, and summed in float32."""
    import torch

    if x.dtype == torch.bfloat16 and x.is_cuda and torch.version.hip is None:
        return _bfloat16_product()(x, y.bfloat16())
    return x.float() @ y.float()


@cache
def _bfloat16_product() -> Callable[[Tensor, Tensor], Tensor]:
    """Make the product of bfloat16 [..., N, K] and [..., K, M] in float32, which torch cannot differentiate."""
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(x, y)
            stacks = (each.reshape(-1, *each.shape[-2:]) for each in (x, y))
            return torch.bmm(*stacks, out_dtype=torch.float32).view(*x.shape[:-1], y.shape[-1])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
            x, y = ctx.saved_tensors
            gradient = gradients[0].bfloat16()
            return gradient @ y.transpose(-1, -2), x.transpose(-1, -2) @ gradient

    return Product.apply


def mean_over_pairs(
    squared_BHTT: Tensor, attention_mask_BT: Tensor | None, allowed_BTT: Tensor | None = None
) -> Tensor:
    """Mean over real query-key pairs and heads; of a causal model over those that may attend (`Batch.allowed`)."""
    if allowed_BTT is not None:
        kept_BHTT = squared_BHTT.masked_fill(~allowed_BTT[:, None], 0.0)
        return kept_BHTT.mean() / allowed_BTT.float().mean()
    if attention_mask_BT is None:
        return squared_BHTT.mean()
    pairs_BTT = attention_mask_BT[:, :, None] & attention_mask_BT[:, None, :]
    return squared_BHTT[pairs_BTT[:, None].expand_as(squared_BHTT)].mean()
