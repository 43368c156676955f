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
    """Masked samples: `input_ids` [B, T], flat `target_positions` [M] into B*T, `target_ids` [M].

    `attention_mask` [B, T] is true at real tokens, None where nothing is padded. `largest` are the teacher's largest
    logits at the targets where they were kept, as in `Signals`.
    """

    input_ids: Tensor
    target_positions: Tensor
    target_ids: Tensor
    attention_mask: Tensor | None = None
    largest: tuple[Tensor, Tensor] | None = None

    def unmasked(self) -> Batch:
        """Return the same samples with the words themselves at the masked positions."""
        ids = self.input_ids.flatten().index_copy(0, self.target_positions, self.target_ids)
        return replace(self, input_ids=ids.view_as(self.input_ids))


@dataclass
class Signals:
    """What one forward pass yields: `logits` [M or B*T, V], `hidden` [B, T, D], others [B, H, T, E or T]."""

    logits: Tensor | None = None
    largest: tuple[Tensor, Tensor] | None = None
    """Instead of logits, where a strategy reads the `largest_logits` alone: values float16 and ids int64, [M, K]."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    """Raw scaled attention scores, before mask and softmax."""
