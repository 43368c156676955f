"""What every strategy answers; all final strategies subclass this one abstract class."""

from __future__ import annotations

import hashlib
import sys
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from budgetlab.errors import CallerError
from budgetlab.strategies.losses import masked_lm
from budgetlab.values import Batch, ModelSpec, Needs, Signals, Value

if TYPE_CHECKING:
    from torch import Tensor, nn

Terms: TypeAlias = "dict[str, Tensor]"
"""The weighted terms of a loss by name, each a float32 scalar; the loss is their sum."""
Maps: TypeAlias = "nn.ModuleDict | None"
"""The learned linear maps that a strategy names in `projections`."""


class Strategy(Value):
    """A way to train a student. Its fields are its settings."""

    uses_teacher: ClassVar[bool] = True

    @abstractmethod
    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Say what the loss reads from the student."""

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Say what the loss reads from the teacher; nothing by default."""
        return Needs()

    def check(self, student: ModelSpec, teacher: ModelSpec | None) -> None:
        """Refuse what cannot work, from the specifications alone.

        Raises
        ------
        CallerError
            With what was asked, what is wrong and what to do.
        """

    def projections(self, student: ModelSpec, teacher: ModelSpec | None) -> dict[str, tuple[int, int]]:
        """Name the learned linear maps from student to teacher width: {name: (inputs, outputs)}."""
        return {}

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int] | None:
        """Matrix products of the loss itself, a position: the student's side, the teacher's.

        Two FLOPs per multiply-add. The profiler holds its count against this; None where it is not stated.
        """
        return None

    @abstractmethod
    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Compute the weighted terms, each a float32 scalar; the loss is their sum.

        Parameters
        ----------
        batch
            The masked samples that both networks read.
        student, teacher
            The signals that were asked for; the teacher's carry no gradient.
        projections
            The learned maps of `projections`.
        """

    def source_hash(self) -> str:
        """Hash of the file that defines it when it is a user's own, else ""; part of what identifies a run."""
        module = sys.modules.get(type(self).__module__)
        path = getattr(module, "__file__", None)
        if path is None or type(self).__module__.startswith("budgetlab."):
            return ""
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]

    @property
    def trains_head(self) -> bool:
        """Whether the student's own MLM head learns (else its `mlm_loss` is null)."""
        return True

    @property
    def reads_unmasked(self) -> bool:
        """Whether both networks read the words themselves at the masked positions."""
        return False

    @property
    def by_rows(self) -> bool:
        """Whether the loss is a mean over the rows of the logits at the targets, and reads nothing else.

        Then the vocabulary's head and the loss are computed a few rows at a time, and no more logits are in memory.
        """
        return False

    @property
    def largest_logits(self) -> int | None:
        """How many of the teacher's logits are read at a position, the largest ones; None for all."""
        return None

    @property
    def in_teacher(self) -> Literal["linear", "bounded", "unbounded"]:
        """How the teacher's probabilities enter: linearly, but for what has no gradient, or otherwise.

        Unbounded: the loss is infinite where a word has none.
        """
        return "bounded"

    @property
    def keeps_teacher(self) -> bool:
        """Whether these are kept on disk, so that the teacher reads each sample once; its signals must be no others."""
        return False


def word_term(batch: Batch, logits: Tensor, weight: float = 1.0) -> Terms:
    """Cross-entropy of the target tokens, {"mlm"} of masked words and {"lm"} of next tokens."""
    return {"lm" if batch.causal else "mlm": weight * masked_lm(logits, batch.target_ids)}


class LogitStrategy(Strategy):
    """A strategy that compares the two output distributions at the targets: L = (1 - alpha) CE + alpha D."""

    alpha: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)

    @abstractmethod
    def compare(self, teacher_MV: Tensor, student_MV: Tensor) -> Tensor:
        """Compare logits at the targets, mean over rows, in nats; the temperature is not yet applied."""

    @property
    def by_rows(self) -> bool:
        """Nothing else is read."""
        return True

    def student_needs(self, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        """Logits at the targets."""
        return Needs(logits="masked")

    def teacher_needs(self, student: ModelSpec, teacher: ModelSpec) -> Needs:
        """Logits at the targets."""
        return Needs(logits="masked")

    def loss_flops(self, student: ModelSpec, teacher: ModelSpec | None, seq_len: int) -> tuple[int, int]:
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(self, batch: Batch, student: Signals, teacher: Signals | None, projections: Maps = None) -> Terms:
        """Return {"mlm" or "lm", "soft"}, a term of weight 0 left out."""
        assert student.logits is not None and teacher is not None and teacher.logits is not None
        terms = word_term(batch, student.logits, 1 - self.alpha) if self.alpha < 1 else {}
        if self.alpha:
            terms["soft"] = self.alpha * self.compare(teacher.logits.float(), student.logits.float())
        return terms


class FeatureStrategy(Strategy):
    """A strategy whose published loss compares features only.

    `mlm_weight` adds the MLM loss (0: the method as published), which separates what the teacher's features give from
    what the words do. `inputs`: both networks read the masked samples, or the same text unmasked.
    """

    mlm_weight: float = Field(default=0.0, ge=0)
    inputs: Literal["masked", "unmasked"] = "masked"

    @model_validator(mode="after")
    def _words_to_guess_are_hidden(self) -> FeatureStrategy:
        if self.mlm_weight and self.inputs == "unmasked":
            raise ValueError('mlm_weight needs inputs = "masked": the words to be guessed would be read')
        return self

    @property
    def mlm_logits(self) -> Literal["none", "masked"]:
        """The logits that the MLM term needs."""
        return "masked" if self.mlm_weight else "none"

    def mlm_term(self, batch: Batch, student: Signals) -> Terms:
        """Return {"mlm"} (of causal models {"lm"}) where it is weighted, else nothing."""
        return {} if student.logits is None else word_term(batch, student.logits, self.mlm_weight)

    @property
    def trains_head(self) -> bool:
        """Only with an MLM term."""
        return self.mlm_weight > 0

    @property
    def reads_unmasked(self) -> bool:
        """As the setting says."""
        return self.inputs == "unmasked"


def layer_index(layer: int, num_layers: int, setting: str) -> int:
    """Turn a layer counted from 1, or from the end with -1, into 1..num_layers."""
    index = layer if layer > 0 else num_layers + 1 + layer
    if layer == 0 or not 1 <= index <= num_layers:
        wrong, remedy = f"the network has layers 1 to {num_layers}", f"choose one of them, or -1 to {-num_layers}"
        raise CallerError(f"{setting} = {layer}", wrong, remedy)
    return index
