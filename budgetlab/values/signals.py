"""What flows between a network and a loss: what a strategy needs, and the tensors it then gets.

Shapes: B sequences, T positions, M target positions of the whole batch, V vocabulary, D width, H heads, E head width.
Blocks and hidden states are numbered as in the papers: state 0 is the embedding output, state l and the
queries, keys, values and scores l belong to block l = 1..L.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; they are never masked while others remain, and never drawn as random words."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    def all(self) -> tuple[int, ...]:
        """All of them, ascending and each once."""
        return tuple(sorted({self.pad, self.unk, self.cls, self.sep, self.mask}))


@dataclass(frozen=True)
class Needs:
    """What a strategy reads from one network; whatever is not named is not computed."""

    logits: Literal["none", "masked", "all"] = "none"
    hidden: tuple[int, ...] = ()
    qkv: tuple[int, ...] = ()
    scores: tuple[int, ...] = ()

    @property
    def trunk_depth(self) -> int:
        """The deepest block that must run whole (0: none, -1: all, for the head)."""
        return -1 if self.logits != "none" else max((*self.hidden, *self.scores, 0))

    @property
    def projected_depth(self) -> int:
        """The deepest block whose queries, keys and values must be computed."""
        return max((*self.qkv, 0))


@dataclass(frozen=True)
class Batch:
    """Samples: `input_ids` [B, T], flat `target_positions` [M] into B*T, `target_ids` [M].

    The targets are the masked words, or of a `causal` batch the next tokens at all positions. `attention_mask` [B, T]
    is true at real tokens, None where nothing is padded; of a causal batch, which has no padding, it is true at the
    pairs that may attend, [B, T, T], and None where that is every earlier position. `kept` is what was kept of the
    teacher, as in `Signals`.
    """

    input_ids: Tensor
    target_positions: Tensor
    target_ids: Tensor
    attention_mask: Tensor | None = None
    kept: tuple[Tensor, Tensor] | None = None
    causal: bool = False

    @property
    def real_BT(self) -> Tensor | None:
        """True at real tokens; None where all are."""
        return None if self.causal else self.attention_mask

    def allowed(self) -> Tensor | None:
        """Which key each query attends to, true at [B or 1, T or 1, T]; None where each attends to all."""
        if not self.causal:
            return None if self.attention_mask is None else self.attention_mask[:, None, :]
        if self.attention_mask is not None:
            return self.attention_mask
        length = self.input_ids.shape[1]
        return self.input_ids.new_ones((1, length, length)).tril().bool()

    def unmasked(self) -> Batch:
        """Return the same samples with the words themselves at the masked positions; causal ones hide none."""
        if self.causal:
            return self
        ids = self.input_ids.flatten().index_copy(0, self.target_positions, self.target_ids)
        return replace(self, input_ids=ids.view_as(self.input_ids))


@dataclass
class Signals:
    """What one forward pass yields: `logits` [M or B*T, V], `hidden` [B, T, D], others [B, H, T, E or T]."""

    logits: Tensor | None = None
    largest: tuple[Tensor, Tensor] | None = None
    """Instead of logits, where a strategy reads the `largest_logits` alone: values float16 and ids int64, [M, K]."""
    kept: tuple[Tensor, Tensor] | None = None
    """Instead of a teacher's logits: log-probabilities float32 and ids int64, [M or B*T, K] (`values.kept`)."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    """Raw scaled attention scores, before mask and softmax."""
