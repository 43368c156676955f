"""What was asked: models, corpus, recipe, execution and arms of a study file, one frozen model each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from budgetlab.errors import unknown_name
from budgetlab.values.base import Count, CountOrZero, Positive, Share, Value
from budgetlab.values.kept import AUTO, CacheSetting, Sampled, TopK, TopP


class TokenizerSpec(Value):
    """Train a WordPiece vocabulary of this size on the corpus itself."""

    train: int = Field(gt=64, le=1_000_000)
    """Entries of the vocabulary."""


class CorpusSpec(Value):
    """Where the text comes from and how it becomes masked samples."""

    source: Literal["docs", "text", "hub"] = "docs"
    """The documentation that comes with Python's packages, files, or a data set of the hub."""
    train: tuple[str, ...] = ()
    """Files under --data-root, $BUDGETLAB_DATA_ROOT or beside the study file; * stands for any part of a name. Of
    "docs" packages, such as "stdlib" and "scipy"; none are all."""
    heldout: tuple[str, ...] = ()
    """Files, or packages, that nothing is trained on."""
    dataset: str | None = None
    """Its id on the hub."""
    dataset_config: str | None = Field(default=None, alias="config")
    """Of the data set."""
    split: str = "train"
    """Of the data set."""
    column: str = "text"
    """Where rows of a data set, JSON lines and parquet files have the text."""
    weights: tuple[Positive, ...] = ()
    """One for each entry of `train`: their shares of the train text. Of the parts that have more than theirs, documents
    are left out, drawn by a hash of their text; none is read twice for it."""
    tokenizer: TokenizerSpec | str = TokenizerSpec(train=8192)
    """Trained on the text, or given: the path of a vocab.txt, a tokenizer.json or a folder with one, or an id on the
    hub."""
    unique_tokens: Count | None = None
    """The text that the arms may read, and repeat; a teacher that is pretrained here reads all of it."""
    masking: Literal["dynamic", "static"] = "dynamic"
    """Other masks in every pass over the text, or the same."""

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> CorpusSpec:
        if self.source == "text" and not (self.train and self.heldout):
            raise ValueError('source = "text" needs both train and heldout, lists of paths')
        if self.weights and (self.source != "text" or len(self.weights) != len(self.train)):
            raise ValueError(f'weights are for source = "text", one for each of the {len(self.train)} entries of train')
        if self.source == "hub" and not self.dataset:
            raise ValueError('source = "hub" needs dataset')
        return self


class TeacherLayers(Value):
    """Start the student from these blocks of the teacher, its embeddings and its head."""

    teacher_layers: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """One for each block of the student, counted from 0 as in DistilBERT's scripts (Sanh et al. 2019, 1910.01108)."""


class Recipe(Value):
    """Everything that two arms share: batch, schedule, optimizer, masking, precision."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"documents", "causal_attention"})

    seq_len: int = Field(default=64, ge=8, le=8192)
    """Positions of a sequence."""
    batch_tokens: Count = 2048
    """Positions of a step, a multiple of `seq_len`."""
    learning_rate: Positive = 1e-3
    """At its peak."""
    schedule: Literal["linear", "cosine", "wsd", "wsd_sqrt", "inverse_sqrt"] = "wsd"
    """wsd: warm-up, constant, linear cooldown; wsd_sqrt: cooldown by 1 - sqrt of its share."""
    warmup_tokens: CountOrZero | None = None
    """With a rate that rises from 0, the same in every arm and at every budget; omitted, 0.06 of the fewest tokens that
    an arm reads at its smallest budget."""
    warmup_fraction: Share | None = None
    """Instead of `warmup_tokens`: of each arm's own steps, so that arms warm up for different numbers of tokens."""
    cooldown_fraction: Share = 0.2
    """Of the steps, of wsd and wsd_sqrt."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    betas: tuple[Share, Share] = (0.9, 0.98)
    """Of AdamW."""
    eps: Positive = 1e-6
    """Of AdamW."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 does not clip."""
    mask_fraction: float = Field(default=0.15, gt=0, le=1)
    """Of the positions of every sequence, rounded, at least one. Of causal models it is 1: every position is a
    target."""
    documents: Literal["joined", "apart"] = "joined"
    """Of causal models: whether a position attends to earlier documents of its sequence, or to its own alone."""
    causal_attention: Literal["full", "half"] = "full"
    """How causal attention is counted in FLOPs: all pairs, as kernels do it by default, or those that are allowed
    (half of them, the convention of some papers)."""
    dropout: Share = 0.0
    """In pretraining."""
    initialisation: Literal["random"] | TeacherLayers = "random"
    """Of the student."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: what the profile finds to be faster here, the same for all arms."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """auto: likewise."""
    execute: Literal["lean", "everything"] = "lean"
    """lean: what no loss reads is not computed."""

    @model_validator(mode="after")
    def _whole_sequences(self) -> Recipe:
        if self.warmup_tokens is not None and self.warmup_fraction is not None:
            raise ValueError("both warmup_tokens and warmup_fraction are set; give one of them")
        if self.cools_down and (self.warmup_fraction or 0.0) + self.cooldown_fraction > 1:
            raise ValueError("warmup_fraction and cooldown_fraction together are more than the whole run")
        if self.batch_tokens % self.seq_len:
            raise ValueError(f"batch_tokens {self.batch_tokens} is no multiple of seq_len {self.seq_len}")
        if self.batch_tokens > 2**30:
            raise ValueError(f"batch_tokens {self.batch_tokens} is more than {2**30}")
        return self

    @property
    def cools_down(self) -> bool:
        """Whether the schedule ends in a cooldown of its own, so that it can be cut anywhere before."""
        return self.schedule in ("wsd", "wsd_sqrt")

    @property
    def batch_sequences(self) -> int:
        """Sequences in one step."""
        return self.batch_tokens // self.seq_len

    @property
    def causal(self) -> bool:
        """Whether every position is a target: of the next token."""
        return self.mask_fraction == 1

    @property
    def masked_per_sequence(self) -> int:
        """Target positions in every sequence, at least one."""
        return max(1, round(self.mask_fraction * self.seq_len))


class ExecutionSpec(Value):
    """Where and how a study runs; nothing here may change what is learned."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset(
        {"slurm", "deterministic", "tf32", "bfloat16_sums", "bfloat16_gradients"}
    )

    device: str = "auto"
    """cpu, cuda, ...; auto: a GPU where there is one."""
    devices: int = Field(default=1, ge=1, le=1_000_000)
    """Processes that train one run together, under torchrun."""
    threads: int = Field(default=2, ge=1, le=4096)
    """Of each worker."""
    workers: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = 1
    """Processes that train and evaluate small units side by side; "auto": as many as the profile finds to be faster
    together. Prices are those of a worker that has the device to itself."""
    micro_batch_sequences: Annotated[int, Field(ge=1, le=2**30)] | Literal["auto"] = "auto"
    """Sequences that go through the networks at once; auto: as many as fit."""
    compile: Literal["auto", "never", "always"] = "auto"
    """`torch.compile` of the networks; "auto": on a GPU, where the profile and the plan say that it pays."""
    deterministic: bool = False
    """On a GPU take only kernels that sum in one order, so that a resumed run has the bits of an uninterrupted one; a
    CPU always does."""
    tf32: bool = False
    """On a GPU multiply float32 matrices in TF32, which rounds their numbers to 10 bits."""
    bfloat16_sums: bool = True
    """On a GPU let products of bfloat16 matrices add up partial sums in bfloat16, as torch does by default."""
    bfloat16_gradients: bool = False
    """Of several processes: gradients are averaged in bfloat16, half as much to send."""
    keep_checkpoints: int = Field(default=2, ge=1, le=1_000_000)
    """Of a training in progress, the newest so many beside those that rungs branch off from; the older ones are there
    in case a newer one cannot be read."""
    trackers: tuple[str, ...] = ()
    """"tensorboard", "wandb", "trackio", "mlflow", or the path of a file with a class `Tracker` (`runner.Tracker`)."""
    scaling_efficiency: float = Field(default=1.0, ge=1e-6, le=1)
    """Of several devices, for planning; what it was is in each run's record."""
    device_memory_bytes: Count | None = None
    """Of one device: a plan says what will not fit."""
    usd_per_device_hour: float | None = Field(default=None, ge=1e-6, le=1e9)
    """For budgets in money."""
    slurm: dict[str, str | int | float] = {}
    """Of a worker as a job of Slurm: `minutes`, `gpus`, and options of sbatch by their long names."""

    @property
    def side_by_side(self) -> int:
        """How many workers there are; one where that was left open and never decided."""
        return 1 if self.workers == "auto" else self.workers


class StrategySpec(Value, extra="allow"):
    """The name (or the file) of a strategy and its settings, as written in the study."""

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings without the name."""
        return dict(self.model_extra or {})


class Arm(Value):
    """One contender: a strategy, a student, and a teacher where the strategy needs one."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"cache", "teacher_reads"})

    name: str
    strategy: StrategySpec
    """A name, or a table of `name` and settings; a path that ends in .py is a file of your own."""
    student: str
    """A name of [models]; a list makes an arm of each."""
    teacher: str | None = None
    """Likewise, where the strategy needs one."""
    recipe: Recipe
    cache: CacheSetting = "never"
    """What of the teacher's distributions is kept on disk, so that it is asked once: a table of a `kind` (top_k, top_p,
    sampled) and its settings; "auto": its 64 largest probabilities, kept where that pays."""
    teacher_reads: Literal["masked", "unmasked"] = "masked"
    """unmasked: the text itself, in which it sees the words to be guessed, so that one cache serves all masks."""

    @property
    def kept(self) -> TopK | TopP | Sampled | None:
        """What the teacher is reduced to, live or kept; None where it is asked in full."""
        return None if self.cache == "never" else AUTO if self.cache == "auto" else self.cache


def reference_arm(
    arm: str | None, arms: Iterable[str], asked: str | None = None, students: Mapping[str, str] | None = None
) -> str | None:
    """Return what an arm is compared with, or where it is None a whole table; None where there is nothing.

    Plain pretraining (`no_kd`, or what is asked for) of the same student and, where there are several, the same
    further words in its name; else the only reference. Without any the first arm serves: a comparison needs something
    to compare with.
    """
    arms, word, known = list(arms), asked or "no_kd", students or {}
    family = reference_family(arms, asked)
    if asked is not None and not family:
        raise unknown_name("arm", asked, arms, f"reference = {asked!r}")
    if arm is None:
        return next(iter([*family, *arms]), None)
    if word in arms:
        return word

    def student(name: str) -> str:  # of an arm such as `minilm@small+teacher`
        return known.get(name, name.partition("@")[2].partition("+")[0])

    same = [name for name in family if student(name) == student(arm)]
    alike = [name for name in same if name.partition("+")[2] == arm.partition("+")[2]]
    if same:
        return (alike or same)[0]
    return None if arm in family else (family or arms)[0]


def reference_family(arms: Iterable[str], asked: str | None = None) -> list[str]:
    """Return the arms that are the reference, one per student: plain pretraining, unless another is asked for."""
    word = (asked or "no_kd").partition("@")[0].partition("+")[0]
    return [name for name in arms if name.partition("@")[0].partition("+")[0] == word]


def base_arm(arms: Iterable[str]) -> str | None:
    """Return the arm that the ratios of a whole table refer to."""
    return reference_arm(None, arms)
