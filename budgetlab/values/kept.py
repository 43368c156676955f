"""What is kept of a teacher's distribution at a position: a class a kind, its bytes, and the logits that it stands for.

Tensor suffixes follow `values.signals`; K entries at most are kept at a row. torch loads on the first call.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from budgetlab.values.base import Value

if TYPE_CHECKING:
    from torch import Tensor

Entries = tuple["Tensor", "Tensor"]
"""Log-probabilities float32 and ids int64, [M, K]; a row that has fewer ends in -inf at id 0."""
_LEAST = 1e-30
"""A probability that stands for none, whose logarithm is finite."""


class Kept(Value):
    """What is kept of one row of logits, and how it is written: entries of an id and a value, in whole bytes."""

    ragged: ClassVar[bool] = True
    """Whether rows have unequal numbers of entries."""
    tail: Literal["renormalise", "zero", "uniform", "other"] = "renormalise"
    """What becomes of the probability that was cut off. renormalise: the entries get it. zero: nothing is asked of it,
    so that the gradient is that of the entries' own probabilities; the student's distribution stands in its place.
    uniform: all other words share it. other: the other words are one class, of which only the sum is compared."""

    def __str__(self) -> str:
        """Return its settings in a line."""
        settings = self.model_dump()
        kind = settings.pop("kind")
        return ", ".join([kind, *(f"{name} = {value}" for name, value in settings.items())])

    @property
    @abstractmethod
    def most(self) -> int:
        """The most entries of a row."""

    @property
    def value_bits(self) -> int:
        """Of a value."""
        return 16

    @property
    def uniforms(self) -> int:
        """Uniform numbers in [0, 1) that a row is drawn with."""
        return 0

    @abstractmethod
    def entries(self, logits_MV: Tensor, uniforms: Tensor | None = None) -> Entries:
        """Keep of each row what is written, rounded as it is written; `uniforms` float64 [M, draws], or torch's."""

    @abstractmethod
    def _codes(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]: ...

    @abstractmethod
    def _values(self, codes: NDArray[np.uint16]) -> NDArray[np.float32]: ...

    @property
    def at_any_temperature(self) -> bool:
        """Whether entries at temperature 1 say what they are at any other."""
        return self.tail == "renormalise" and not self.uniforms

    def kept_at(self, temperature: float) -> float:
        """Return the temperature at which probabilities are kept for a loss at this one."""
        return 1.0 if self.at_any_temperature else temperature

    @property
    def leaves_none(self) -> bool:
        """Whether words without an entry have no probability at all."""
        return self.tail == "renormalise"

    def entry_bytes(self, vocab_size: int) -> int:
        """Return the bytes of an entry of an id and a value."""
        return -(-(max(1, (vocab_size - 1).bit_length()) + self.value_bits) // 8)

    def bytes_per_token(self, vocab_size: int, rows_per_token: float) -> float:
        """Return what a token takes on disk, of ragged rows at most."""
        most = min(self.most, vocab_size)
        return rows_per_token * (most * self.entry_bytes(vocab_size) + (2 if self.ragged else 0))

    def encode(
        self, values: NDArray[np.float32], ids: NDArray[np.integer], vocab_size: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return the entries [N, bytes] of all rows one after the other, and how many each row has [M]."""
        there, width = np.isfinite(values), self.entry_bytes(vocab_size)
        codes = ids[there].astype(np.uint64) << np.uint64(self.value_bits) | self._codes(values[there])
        return codes.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :], there.sum(1).astype(np.uint16)

    def decode(
        self, packed: NDArray[np.uint8], sizes: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return values and ids [M, K] of entries [N, bytes]; K is the most of these rows."""
        wide = np.zeros((len(packed), 8), np.uint8)
        wide[:, 8 - packed.shape[1] :] = packed
        codes = wide.view(">u8").ravel().astype(np.uint64)
        shape = len(sizes), int(sizes.max(initial=0))
        there = np.arange(shape[1]) < np.asarray(sizes)[:, None]
        values, ids = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
        values[there] = self._values((codes & np.uint64(2**self.value_bits - 1)).astype(np.uint16))
        ids[there] = codes >> np.uint64(self.value_bits)
        return values, ids

    def logits(self, entries: Entries, student_MV: Tensor, temperature: float = 1.0) -> Tensor:
        """Return teacher's logits [M, V] whose distribution at this temperature is what the entries stand for.

        `student_MV` carries no gradient. Where the tail is "other" or "zero", the student's own distribution stands in
        for what was not kept, so that every divergence has the value and the gradient of the classes that are compared.
        """
        values_MK, ids_MK = entries
        if self.at_any_temperature:
            values_MK = (values_MK / temperature).log_softmax(-1)
        chances_MK = values_MK.exp()
        chances_MV = student_MV.new_zeros(student_MV.shape, dtype=values_MK.dtype).scatter_add(1, ids_MK, chances_MK)
        if self.tail != "renormalise":
            rest_M = (1 - chances_MK.sum(-1, keepdim=True)).clamp_min(0)
            ours_MV = (student_MV.float() / temperature).softmax(-1)
            if self.tail == "uniform":
                ours_MV = ours_MV.new_ones(ours_MV.shape)
            if self.tail != "zero":
                ours_MV = ours_MV.masked_fill(chances_MV > 0, 0.0)
            chances_MV = chances_MV + rest_M * ours_MV / ours_MV.sum(-1, keepdim=True).clamp_min(_LEAST)
        return chances_MV.clamp_min(_LEAST).log() * temperature


class _Largest(Kept):
    """The largest probabilities of a row, largest first."""

    values: Literal["fp16", "bf16"] = "fp16"
    """Of the log-probabilities."""

    def _rounded(self, values_MK: Tensor) -> Tensor:
        return (values_MK.half() if self.values == "fp16" else values_MK.bfloat16()).float()

    def _codes(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        if self.values == "fp16":
            return values.astype(np.float16).view(np.uint16)
        return (values.view(np.uint32) >> 16).astype(np.uint16)  # they are rounded

    def _values(self, codes: NDArray[np.uint16]) -> NDArray[np.float32]:
        if self.values == "fp16":
            return codes.view(np.float16).astype(np.float32)
        return (codes.astype(np.uint32) << 16).view(np.float32)


class TopK(_Largest):
    """The `k` largest probabilities."""

    ragged: ClassVar[bool] = False
    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=64, ge=1, le=2**15)

    @property
    def most(self) -> int:
        """All of them."""
        return self.k

    def entries(self, logits_MV: Tensor, uniforms: Tensor | None = None) -> Entries:
        """Take the largest."""
        logs_MK, ids_MK = logits_MV.float().log_softmax(-1).topk(self.k, dim=-1)
        # What is too small for the format still has an entry.
        return self._rounded(logs_MK.clamp_min(-6e4)), ids_MK


class TopP(_Largest):
    """The fewest words that have the probability `p` together, `k` at most."""

    kind: Literal["top_p"] = "top_p"
    p: float = Field(default=0.95, gt=0, lt=1)
    k: int = Field(default=100, ge=1, le=2**15)

    @property
    def most(self) -> int:
        """As the setting says."""
        return self.k

    def entries(self, logits_MV: Tensor, uniforms: Tensor | None = None) -> Entries:
        """Take the largest until they have it."""
        logs_MK, ids_MK = logits_MV.float().log_softmax(-1).topk(min(self.k, logits_MV.shape[-1]), dim=-1)
        chances_MK = logs_MK.exp()
        without = chances_MK.cumsum(-1) - chances_MK >= self.p
        return self._rounded(logs_MK.clamp_min(-6e4)).masked_fill(without, -np.inf), ids_MK.masked_fill(without, 0)


class Sampled(Kept):
    """Words drawn from the teacher's distribution, each with how often it came: unbiased (arXiv 2503.16870)."""

    kind: Literal["sampled"] = "sampled"
    draws: int = Field(default=50, ge=1, le=2**15)

    @model_validator(mode="after")
    def _no_tail(self) -> Sampled:
        if self.tail != "renormalise":
            raise ValueError("what was not drawn has no probability: that is what makes it unbiased; leave tail out")
        return self

    @property
    def most(self) -> int:
        """Where no word comes twice."""
        return self.draws

    @property
    def value_bits(self) -> int:
        """Of a count."""
        return self.draws.bit_length()

    @property
    def uniforms(self) -> int:
        """One a draw."""
        return self.draws

    def entries(self, logits_MV: Tensor, uniforms: Tensor | None = None) -> Entries:
        """Draw by the inverse of the cumulated distribution, and count."""
        import torch

        if uniforms is None:
            uniforms = torch.rand(len(logits_MV), self.draws, dtype=torch.float64, device=logits_MV.device)
        below_MV = logits_MV.double().softmax(-1).cumsum(-1)
        drawn_MK = torch.searchsorted(below_MV, uniforms * below_MV[:, -1:], right=True).sort(-1).values
        drawn_MK = drawn_MK.clamp_max(logits_MV.shape[-1] - 1)
        first_MK = torch.ones_like(drawn_MK)
        first_MK[:, 1:] = (drawn_MK[:, 1:] != drawn_MK[:, :-1]).long()
        place_MK = first_MK.cumsum(-1) - 1
        counts_MK = torch.zeros_like(drawn_MK).scatter_add(1, place_MK, torch.ones_like(drawn_MK))
        ids_MK = torch.zeros_like(drawn_MK).scatter(1, place_MK, drawn_MK)
        return (counts_MK.float() / self.draws).log(), ids_MK

    def _codes(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        return np.rint(np.exp(values) * self.draws).astype(np.uint16)

    def _values(self, codes: NDArray[np.uint16]) -> NDArray[np.float32]:
        return np.log(codes.astype(np.float32) / np.float32(self.draws))


KINDS: dict[str, type[Kept]] = {"top_k": TopK, "top_p": TopP, "sampled": Sampled}
AUTO = TopK(k=64, tail="other")
"""What `cache = "auto"` reduces a teacher to, whether or not that is then kept."""


def _read_cache(raw: Any) -> Any:
    """Pick the class of a kind, and say in its words what is wrong with it."""
    if not isinstance(raw, dict):
        return raw
    kind = raw.get("kind")
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r} of cache; known: {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        known = [name for name in KINDS[kind].model_fields if name != "kind"]
        raise ValueError(
            f"{kind}: {(first['loc'] or ['settings'])[0]}: {first['msg']}; it takes {', '.join(known)}"
        ) from None


CacheSetting = Annotated[Literal["auto", "never"] | TopK | TopP | Sampled, BeforeValidator(_read_cache)]
