"""How checkpoints are scored and what is fitted: outcomes, tasks, the fine-tuning recipe, presets, laws."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from budgetlab.errors import CallerError, unknown_name
from budgetlab.values.base import Count, CountOrZero, Name, Positive, Seed, Seeds, Share, Value, content_hash

INFORMATIVE_POINTS = 5.0
"""Of a task, by default: a teacher is so many points above random weights where it tells anything."""
READOUT_STEPS = 780
Epochs = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Metric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "pearson_spearman"]
CORRELATIONS = ("pearson", "spearman", "pearson_spearman")
"""Metrics of regression tasks; the others are of classes."""

AGGREGATE = "score"
"""The unweighted mean over the study's tasks that were scored at every budget, of runs that have all of these."""
LOSSES = ("readout_loss", "adapted_loss", "mlm_loss", "lm_loss", "bits_per_byte")
"""Outcomes in nats per target token (bits a byte: in bits), lower is better; every other outcome is a score, where 0.01
is a point."""
OWN_HEAD_LOSSES = ("mlm_loss", "lm_loss")
"""Of the head that a run trained itself: of masked words, of next tokens."""
COMPUTE_COLUMNS = (
    "required_flops", "executed_flops", "device_seconds", "tokens", "target_tokens", "budget_amount",
)  # fmt: skip
"""Columns that a curve can be drawn over."""
PROBES = ("replaced", "belongs")
"""Tasks that are made of held-out text, and fine-tuned."""
CAUSAL_PROBES = ("cloze", "copy")
"""What causal models are asked of held-out text as they stand: the last word, and to copy."""

_LOSS = re.compile(
    r"l|(.*[_/. -])?(loss|nll|perplexity|ppl|bpb|bits_per_(byte|token|char|character|word)|"
    r"cross_entropy|error|error_rate)"
    r"([_/. -](train|eval|val|validation|test|heldout))?"
)
_SCORE = re.compile(
    r"(.*[_/. -])?(acc|accuracy|acc_norm|f1|macro_f1|matthews|mcc|pearson|spearman|pearson_spearman|"
    r"exact_match|score|bleu|auc)"
)


def higher_is_better(outcome: str, asked: str | None = None) -> bool | None:
    """Tell which way an outcome goes: known losses fall, known metrics and the tasks of GLUE rise."""
    name = outcome.strip().lower()
    if _LOSS.fullmatch(name):
        return False
    if (
        _SCORE.fullmatch(name)
        or name in GLUE
        or name in CAUSAL_PROBES
        or name in {row for task in GLUE.values() for row in task.further}
    ):
        return True
    if asked is not None:
        wrong = f"whether more of {outcome} is better is not known"
        raise CallerError(
            asked, wrong, "say higher_is_better, on the command line --higher-is-better or --lower-is-better"
        )
    return None


def unit_of(outcome: str, rises: bool | None = None) -> str:
    """Unit of an outcome: nats for our losses, points (0.01) for scores, units for others' losses, whatever these are.

    `rises` says which way it goes where the runs do; the name says it otherwise.
    """
    if outcome in LOSSES:
        return "bits" if outcome == "bits_per_byte" else "nats"
    return "units" if rises is False or higher_is_better(outcome) is False else "points"


class TaskSpec(Value):
    """A task in the format of GLUE: one JSON object a line."""

    train: str
    """JSON lines, .jsonl or .jsonl.gz."""
    validation: str
    """The same, never trained on."""
    text: tuple[str, ...] = Field(min_length=1, max_length=2)
    """Keys of one text, or of two."""
    label: str = "label"
    """Key of the answer."""
    metric: Metric = "accuracy"
    """The primary one, which also says whether labels are classes or, for correlations, scores."""
    num_labels: int | None = Field(default=None, ge=2)
    """Classes, numbered from 0; None counts those of the training set."""
    label_range: tuple[float, float] | None = None
    """Of scores; None takes any."""
    further: dict[Name, str] = {}
    """Other validation splits, scored from the same fine-tuning under these names."""


def _glue(*text: str, **fields: Any) -> TaskSpec:
    return TaskSpec(**{"train": "train", "validation": "validation", "text": text, "num_labels": 2} | fields)


GLUE = {
    "cola": _glue("sentence", metric="matthews"),
    "sst2": _glue("sentence"),
    "mrpc": _glue("sentence1", "sentence2", metric="f1"),
    "stsb": _glue("sentence1", "sentence2", metric="pearson_spearman", num_labels=None, label_range=(0.0, 5.0)),
    "qqp": _glue("question1", "question2", metric="f1"),
    "mnli": _glue(
        "premise", "hypothesis", validation="validation_matched", num_labels=3,
        further={"mnli_mismatched": "validation_mismatched"},
    ),
    "qnli": _glue("question", "sentence"),
    "rte": _glue("sentence1", "sentence2"),
    "wnli": _glue("sentence1", "sentence2"),
}  # fmt: skip
"""The tasks of GLUE (Wang et al. 2019, arXiv 1804.07461), with the column names of the hub's nyu-mll/glue."""

GLUE_ROWS = {
    "cola": (8551, 1043), "sst2": (67_349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "qqp": (363_846, 40_430),
    "mnli": (392_702, 9815), "mnli_mismatched": (392_702, 9832), "qnli": (104_743, 5463), "rte": (2490, 277),
    "wnli": (635, 71),
}  # fmt: skip
"""Rows of (train, validation), from the data set card of nyu-mll/glue."""


def subset_words(task: str, train_examples: int, num_examples: int, train_available: int = 0) -> str:
    """Say what of a task was used, where that is not all: "10,475 of 104,743 train"; empty where it is."""
    official = GLUE_ROWS.get(task, (train_available, 0))
    pairs = ((train_examples, official[0], "train"), (num_examples, official[1], "validation"))
    return ", ".join(f"{used:,} of {whole:,} {split}" for used, whole, split in pairs if 0 < used < whole)


class FinetuneRecipe(Value):
    """What decides a fine-tuning's outcome, besides the checkpoint, the examples and the seed."""

    epochs: int
    learning_rate: float
    batch_size: int
    max_train_examples: int | None = None
    dropout: float = 0.1
    pooling: Literal["first", "mean"] = "first"

    def words(self) -> str:
        """Say it in a few words."""
        return f"{self.learning_rate:g} x {self.batch_size}, {self.epochs} epochs"


class TaskSettings(Value):
    """What one task has of its own; all arms share it."""

    seeds: Seeds | None = None
    epochs: Epochs | None = None
    max_train_examples: Count | None = None
    folder: str | None = None
    """Where this task is read from; "hub" is nyu-mll/glue."""


def harness_task(asked: str) -> str:
    """Return the name of a task of lm-evaluation-harness: itself, or that of the task's .yaml file."""
    return asked.removesuffix(".yaml").rpartition("/")[2] if asked.endswith(".yaml") else asked


def harness_scores(asked: str) -> tuple[str, str]:
    """Return the outcomes of such a task: its own metric, and the bits a byte of its answers."""
    return harness_task(asked), f"{harness_task(asked)}_bits_per_byte"


class EvaluateSpec(Value):
    """How checkpoints are scored."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"readout_steps", "lm_eval"})

    preset: Literal["default", "paper", "quick"] | None = None
    """`PROTOCOLS`, filled in when the study is read; keys that are written out win."""
    source: Literal["glue", "probes"] = "glue"
    """GLUE and own tasks, or the probes that are made of held-out text."""
    folder: str | None = None
    """Of TASK/SPLIT files; None, or "hub", reads nyu-mll/glue from the hub."""
    tasks: Annotated[tuple[Name, ...], Field(max_length=1000)] = ()
    """What is fine-tuned; none leaves the losses alone."""
    lm_eval: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+~/-]*$", max_length=200)], ...] = ()
    """Of causal models: tasks of the installed lm-evaluation-harness, by name or as a task's .yaml (a data path)."""
    seeds: Seeds = (0,)
    """Of fine-tuning, nested in the run seeds."""
    epochs: Epochs = 3
    """Passes over a task's training set."""
    learning_rate: Positive | Annotated[tuple[Positive, ...], Field(min_length=1, max_length=30)] = 1e-4
    """At its peak; a list makes a grid."""
    batch_size: BatchSize | Annotated[tuple[BatchSize, ...], Field(min_length=1, max_length=30)] = 32
    """Lists make a grid."""
    selection: Literal["cross_fit", "maximum"] = "cross_fit"
    """Of a point of the grid, by its mean over seeds. cross_fit: each half of the validation set is scored by the point
    that is best on the other half; maximum: the point that is best on the set it is then reported on, which is too
    good by what the grid's noise allows."""
    dropout: Share = 0.1
    """In fine-tuning."""
    pooling: Literal["first", "mean"] = "first"
    """"first": [CLS] of the joined texts, as BERT; "mean": each text on its own, all layers averaged."""
    max_train_examples: Count | None = None
    by_task: dict[str, TaskSettings] = {}
    """What one task has of its own: seeds, epochs, max_train_examples, folder."""
    primary: dict[str, Metric] = {}
    """The metric that stands for a task, where not the task's own; all are stored."""
    average: tuple[str, ...] = ()
    """Tasks of the average, which weigh alike; empty takes all tasks, MNLI once (matched)."""
    largest_budget_only: tuple[str, ...] = ()
    """Tasks that are too dear, or too hard, for the smaller budgets."""
    readout_tokens: Count = 640_000
    """That the read-out's head is trained on, outside the budget; at least enough for `readout_steps`."""
    readout_steps: Count = READOUT_STEPS
    """Of the read-out's head, at least; enough are those that make it no worse than the own heads."""
    adapted_tokens: CountOrZero = 320_000
    """That the whole network is trained on for the adapted loss, outside the budget; 0 leaves it out."""
    informative_points: float = Field(default=INFORMATIVE_POINTS, ge=0)
    """A task counts in means and headlines where a teacher is so many points above random weights."""
    own: dict[Name, TaskSpec] = {}
    """Tasks of your own, in the format of GLUE."""

    @model_validator(mode="after")
    def _names_are_of_tasks(self) -> EvaluateSpec:
        harness = [harness_task(task) for task in self.lm_eval]
        unknown = set(self.largest_budget_only) - {*self.tasks, *harness, "adapted_loss"}
        if unknown:
            raise ValueError(f"largest_budget_only names {sorted(unknown)}, which are not among the tasks")
        offered = [*((*PROBES, *CAUSAL_PROBES) if self.source == "probes" else GLUE), *self.own]
        for task in self.tasks:
            if task not in offered:
                raise unknown_name("task", task, offered, "evaluate.tasks")
        if falling := [name for name in self.own if higher_is_better(name) is False]:
            raise ValueError(f"own tasks are scores and may not be called as losses are: {', '.join(falling)}")
        further = [name for task in (*GLUE.values(), *self.own.values()) for name in task.further]
        taken = {*GLUE, *LOSSES, AGGREGATE, *PROBES, *CAUSAL_PROBES, "mnli_mismatched"} & {*self.own, *harness}
        if taken:
            raise ValueError(f"own tasks may not be called {', '.join(sorted(taken))}")
        known = {*self.tasks, *further, *GLUE}
        for key in ("by_task", "primary", "average"):
            unknown = set(getattr(self, key)) - known
            if unknown:
                raise ValueError(f"{key} names {sorted(unknown)}, which are not among the tasks")
        return self

    def outcomes(self) -> tuple[str, ...]:
        """Return what runs are scored by: losses, tasks with their further splits, and their mean."""
        known = {**GLUE, **self.own}
        further = [name for task in self.tasks if task in known for name in known[task].further]
        harness = [row for task in self.lm_eval for row in harness_scores(task)]
        return (*LOSSES, *([AGGREGATE] if self.tasks else []), *self.tasks, *further, *harness)

    def recipes(self, task: str) -> tuple[FinetuneRecipe, ...]:
        """Return the points of the grid for a task: one where nothing is a list."""
        own = self.by_task.get(task, TaskSettings())
        rates = self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)
        sizes = self.batch_size if isinstance(self.batch_size, tuple) else (self.batch_size,)
        return tuple(
            FinetuneRecipe(
                epochs=own.epochs or self.epochs,
                learning_rate=rate,
                batch_size=size,
                max_train_examples=own.max_train_examples or self.max_train_examples,
                dropout=self.dropout,
                pooling=self.pooling,
            )
            for rate, size in itertools.product(rates, sizes)
        )

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """Return the fine-tuning seeds of a task."""
        return self.by_task.get(task, TaskSettings()).seeds or self.seeds

    def folder_of(self, task: str) -> str | None:
        """Return the folder of a task; None is the hub."""
        folder = self.by_task.get(task, TaskSettings()).folder or self.folder
        return None if folder == "hub" else folder

    def is_averaged(self, task: str) -> bool:
        """Whether a task is part of the average."""
        return task in self.average if self.average else task in self.tasks


class FitSpec(Value):
    """Which law is fitted to which columns, and how."""

    law: str = "power"
    """Of one input."""
    x: str = "required_flops"
    """Column that the curves run over."""
    y: str = "readout_loss"
    """Primary outcome: readout_loss, adapted_loss, mlm_loss, a task, or score, the mean over tasks; of causal models
    lm_loss or bits_per_byte. Omitted, causal arms that all train a head are compared by lm_loss."""
    primary: tuple[str, ...] = ()
    """Primary contrasts, such as "minilm - no_kd", at the largest budget that both arms have; by default each arm
    against the from-scratch arm of its student."""
    objective: Literal["huber_log", "lad", "squared", "squared_log"] = "huber_log"
    """What a misfit costs."""
    delta: Positive = 1e-3
    """Of the Huber loss, in log residuals."""
    resamples: int = Field(default=1000, ge=0, le=1_000_000)
    """Of the intervals of curves; 0 for none."""
    margin: Positive = 0.5
    """Equivalence margin, in points (1 point = 0.01 of a score)."""
    margin_nats: Positive = 0.01
    """Equivalence margin where y is a loss, in nats per target token."""
    interval_level: float = Field(default=0.95, gt=0, lt=1)
    """Nominal coverage of all intervals; tests are at one minus this."""
    seed: Seed = 0
    """Of the resampling."""
    pinned: dict[str, float] = {}
    """Parameters of the law held at a value, such as a floor known from elsewhere."""
    shared: tuple[str, ...] = ()
    """Parameters that all arms have in common, such as the floor: then the arms are fitted jointly."""

    @property
    def primary_pairs(self) -> tuple[tuple[str, str], ...]:
        """The two arms of each primary contrast."""
        pairs = (text.partition(" - ") for text in self.primary)
        return tuple((a.strip(), b.strip()) for a, _, b in pairs)

    @field_validator("primary")
    @classmethod
    def _two_arms_each(cls, primary: tuple[str, ...]) -> tuple[str, ...]:
        for text in primary:
            a, _, b = (part.strip() for part in text.partition(" - "))
            if not (a and b):
                raise ValueError(f'primary {text!r} does not name two arms; write "minilm - no_kd"')
            if a == b:
                raise ValueError(f"primary {text!r} names one arm twice; name two")
        return primary

    @field_validator("law")
    @classmethod
    def _law_is_a_word(cls, law: str) -> str:
        if not law.isidentifier():
            raise ValueError(f"law {law!r} is not the name of a law")
        return law

    @field_validator("x")
    @classmethod
    def _x_is_compute(cls, x: str) -> str:
        if x not in COMPUTE_COLUMNS:
            raise unknown_name("column of compute", x, COMPUTE_COLUMNS)
        return x


_SMALL = {"seeds": [0, 1, 2, 3, 4], "epochs": 10}
_EIGHT = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]

PROTOCOLS: dict[str, dict[str, Any]] = {
    # Small tasks need more steps and more seeds (Mosbach et al. 2021, arXiv 2006.04884; Zhang et al. 2021, 2006.05987).
    "default": {
        "tasks": _EIGHT, "seeds": [0, 1, 2], "epochs": 3, "learning_rate": 3e-5, "batch_size": 32, "dropout": 0.1,
        "by_task": {task: _SMALL for task in ("cola", "mrpc", "stsb", "rte")},
    },
    # The scripts of Bui et al. 2024 (arXiv 2404.19319) fine-tune once a point; which point they report is not in them.
    "paper": {
        "tasks": [task for task in _EIGHT if task != "stsb"], "seeds": [0], "epochs": 5,
        "learning_rate": [1e-5, 3e-5, 5e-5, 8e-5], "batch_size": [16, 32], "dropout": 0.1, "selection": "maximum",
    },
    "quick": {
        "tasks": _EIGHT, "seeds": [0], "epochs": 2, "learning_rate": 1e-4, "batch_size": 32, "dropout": 0.1,
        "max_train_examples": 2000,
    },
}  # fmt: skip
"""What `evaluate.preset` stands for."""

CONVERGED_NATS = 0.05
"""A yardstick whose last doubling of tokens and steps changes a loss, or a difference, by more has not converged."""

PROTOCOL_VERSION = 3
"""Of the fine-tuning itself: warm-up, decay, batches by length, seeds that follow the run's.
Scores of another version are not mixed with these."""


def recipe_hash(recipe: FinetuneRecipe, *further: Any) -> str:
    """Hash of what decides a fine-tuning's outcome, the checkpoint, the examples and the seed apart."""
    return content_hash(PROTOCOL_VERSION, recipe, *further)
