"""What was found: records, scores, fits, verdicts and the assumptions behind them.

FLOPs are two per multiply-add. `tokens` are positions fed to the student, without padding; `target_tokens`
carry loss. Losses are nats per target token. None means unknown and prints n/a.
"""

from __future__ import annotations

from html import escape
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from budgetlab.values.base import Interval, Record, Value, passed_over
from budgetlab.values.costs import Environment
from budgetlab.values.plans import Budget, Schedule
from budgetlab.values.scoring import subset_words

NUMERICS_VERSION = 1
"""Of everything that decides a trained weight beside the study: step, losses, batches, models, optimiser.

It rises with a change after which the same unit would end with other weights by more than rounding, and CHANGELOG.md
then says which records the change retires. Runs of two versions are never mixed in one study."""


class Point(Value):
    """One evaluation point of a run, cumulative from its first step (of the trunk, for a branch)."""

    step: int
    tokens: int
    target_tokens: int
    required_flops: float
    executed_flops: float
    device_seconds: float
    learning_rate: float
    losses: dict[str, float]
    """Means over the steps since the last point, by term; "loss" is their weighted sum."""
    signs: dict[str, float] = {}
    """How the optimiser fares, by the same steps: "gradient_norm" (before clipping), "clipped_fraction" of steps; at
    every few points "gradient_share.TERM" and "below_eps_fraction" (`TrainingStep.signs`)."""


class PhaseSpent(Value):
    """What one phase of all steps took; a run's FLOPs are the sums over its phases."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"bytes"})

    required_flops: float = 0.0
    executed_flops: float = 0.0
    device_seconds: float = 0.0
    joules: float | None = None
    """Of the device's counter, by the phases' shares of its time."""
    bytes: float | None = None
    """On disk, of the phase `cache`: what was kept of the teacher, as far as it is charged here."""


class RunRecord(Record):
    """What happened in one run; a branch's sums begin at the first step of its trunk."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"overhead_joules"})

    run_id: str
    key: str
    numerics_version: int | None = None
    """`NUMERICS_VERSION` of the program that trained it; None in records older than the number."""
    kind: Literal["teacher", "trunk", "rung"]
    arm: str
    student: str
    schedule: Schedule | None = None
    run_seed: int
    teacher_seed: int | None = None
    teacher_key: str | None = None
    status: Literal["running", "complete", "failed"] = "running"
    message: str = ""
    steps: int = 0
    tokens: int = 0
    target_tokens: int = 0
    unique_tokens: int = 0
    """Of `tokens`, those of samples that were read for the first time."""
    required_flops: float = 0.0
    executed_flops: float = 0.0
    device_seconds: float = 0.0
    """Of the step's phases, on all devices together; nothing of `overhead_seconds` is in it."""
    joules: float | None = None
    overhead_joules: float | None = None
    """What the same counter saw between the steps; with `joules`, of the whole run."""
    phases: dict[str, PhaseSpent] = {}
    overhead_seconds: dict[str, float] = {}
    """What this unit alone took beside its steps, charged to no arm: "start" (networks, corpus, checkpoint read),
    "compile", "data_wait" (making or awaiting batches), "evaluation" (signs of the optimiser), "checkpoint"."""
    tokens_per_second_by_rank: tuple[float, ...] | None = None
    """Of each of several processes' share of the tokens, in its own device time, waiting for the others included."""
    scaling_efficiency: float | None = None
    """Of several devices: the device time of the same steps on one, as profiled there, over what they took together."""
    samples_digest: str | None = None
    """Sum over the steps of what they saw (`MaskedBatch.digest`): equal for arms at equal steps and seed."""
    teacher_hash: str | None = None
    """Of the teacher's weights, which never change."""
    weights_hash: str | None = None
    state_hash: str | None = None
    """Of weights, optimizer state and the logged losses at the end: equal, whatever interrupted the run."""
    points: tuple[Point, ...] = ()
    environment: Environment


class Score(Record):
    """One measurement of one checkpoint."""

    run_id: str
    subject: Literal["run", "teacher", "random", "majority", "unigram"] = "run"
    """A run, or a yardstick: the teacher, random weights, the majority class, the unigram entropy."""
    arm: str
    student: str | None = None
    """Which model was trained."""
    rung: int | None = None
    budget: Budget | None = None
    run_seed: int | None = None
    teacher_seed: int | None = None
    finetune_seed: int | None = None
    steps: int = 0
    tokens: int = 0
    target_tokens: int = 0
    required_flops: float = 0.0
    executed_flops: float = 0.0
    device_seconds: float = 0.0
    task: str
    """A task's name, or a loss: "readout_loss", "adapted_loss", "mlm_loss"."""
    metric: str
    value: float
    higher_is_better: bool
    num_examples: int
    train_examples: int = 0
    """Fine-tuned on."""
    train_available: int = 0
    """In the training file."""
    metrics: dict[str, float] = {}
    """All metrics of the task; `metric` names the primary one, whose value is `value`."""
    standard_errors: dict[str, float] = {}
    """Of the metrics, by the evaluation set's own examples alone (bootstrap)."""
    half_value: float | None = None
    """A yardstick with half its tokens and steps: what its last doubling is worth."""
    converged: bool | None = None
    """Of a yardstick, whether that is 0.05 nats at most; None where it is unknown."""
    validation_loss: float | None = None
    """Cross-entropy in nats an example, or mean squared error; None where it was not finite."""
    degenerate: bool | None = None
    """Whether one answer was given to all examples; None where nobody looked."""
    averaged: bool = True
    """Whether the task is part of the average, as the study defines it."""
    recipe: str = ""
    """Of the fine-tuning, in words; of a grid, how its point was chosen."""
    key: str = ""
    """Of its file, and of the predictions beside it."""
    recipe_hash: str
    evaluation_seconds: float = 0.0
    """Metered outside the budget."""

    @property
    def subset(self) -> str:
        """What of the task was used, such as "10,475 of 104,743 train"; empty where all of it was."""
        return subset_words(self.task, self.train_examples, self.num_examples, self.train_available)


class CurveFit(Record):
    """A law fitted to a table, with its certificate and all that a reader needs to fit it again."""

    arm: str | None = None
    law: str
    formula: str = ""
    """As fitted, after any fall-back to a smaller law."""
    params: dict[str, float]
    derived: dict[str, float] = {}
    """What follows from the parameters, such as the exponent of the optimal number of parameters in compute."""
    intervals: dict[str, Interval | None] = {}
    """Of parameters and derived quantities; None where there is none."""
    standard_errors: dict[str, float] = {}
    interval_level: float = 0.95
    interval_method: str = "none"
    """none, rows, clusters, wild or pooled_t."""
    resamples: int = 0
    """Resamples whose fit converged, which the intervals come from."""
    seed: int = 0
    objective: float | None
    objective_name: str
    delta: float | None = None
    asymmetry: float = 1.0
    status: str
    """One word; `status_text` says whether the numbers may be used."""
    status_text: str
    usable_for: Literal["everything", "interpolation", "nothing"] = "nothing"
    """Interpolation: the curve inside the fitted range, but neither its parameters nor its extrapolation."""
    certificate: dict[str, Any] = {}
    num_points: int
    x_range: Interval | None = None
    """Of the first input."""
    input_ranges: dict[str, Interval] = {}
    columns: dict[str, str] = {}
    """Which column each of the law's names was read from."""
    outcome_transform: Literal["y", "1 - y"] = "y"
    """What the law describes: a loss itself, or the distance of a score from 1."""
    weights: str | None = None
    clusters: str | None = None
    num_clusters: int | None = None
    pinned: dict[str, float] = {}
    shared: tuple[str, ...] = ()
    excluded: dict[str, int] = {}
    """Rows left out, by reason."""
    flags: tuple[str, ...] = ()
    definitions: dict[str, str] = {}
    """What the inputs and the objective mean."""
    band: dict[str, tuple[float, ...]] = {}
    """Curve for a figure, for laws of one input: x, prediction, low, high, in the units of the table."""
    validation: tuple[dict[str, Any], ...] = ()
    sensitivity: tuple[dict[str, Any], ...] = ()
    draws: dict[str, tuple[float, ...]] = Field(default={}, exclude=True, repr=False)
    """Parameters of the resamples, in memory only: the seed makes them again."""

    def __repr__(self) -> str:
        """Return the report: the terminal shows it."""
        return str(self)

    def __str__(self) -> str:
        rows = []
        for parameter, value in (self.params | self.derived).items():
            low, high = self.intervals.get(parameter) or (None, None)
            shown = "pinned" if parameter in self.pinned else "n/a"
            rows.append((parameter, f"{value:.7g}", shown if low is None else f"{low:.6g} to {high:.6g}"))
        level = "no interval" if self.interval_method == "none" else f"{100 * self.interval_level:g} % interval"
        head = ("", "estimate", f"{level} ({self.interval_method}, {self.resamples} resamples)")
        width = max((len(row[0]) for row in rows), default=0)
        lines = [f"{self.arm}: " if self.arm else "", f"{self.status}: {self.status_text}"]
        lines[0] += f"{self.law}  {self.formula}  ({self.num_points} points)"
        lines += [f"{a:{width}}  {b:>12}  {c}" for a, b, c in [head, *rows] if rows]
        if self.objective is not None:
            delta = f"(delta {self.delta:g})" if self.delta is not None else ""
            lines.append(f"objective {self.objective_name}{delta} = {self.objective:.10e}")
        lines += [f"left out: {count} rows, {reason}" for reason, count in self.excluded.items()]
        return "\n".join([*lines, *(f"note: {flag}" for flag in self.flags)])

    def _repr_html_(self) -> str:
        """Return the same report for a notebook."""
        return f"<pre>{escape(str(self))}</pre>"


class Verdict(Record):
    """The answer to one contrast of two arms."""

    _retired = passed_over("num_finetune_seeds")

    contrast: tuple[str, str]
    """(A, B); the difference is A minus B, positive when A is better."""
    at: Budget
    y: str
    unit: Literal["points", "nats", "bits", "units"] = "points"
    """Of differences, intervals and the margin; 1 point is 0.01 of a score, units are those of any other loss."""
    difference: float | None
    interval: Interval | None
    """Of the contrast by itself."""
    interval_level: float = 0.95
    adjusted_interval: Interval | None = None
    """At the contrast's own step of Holm's procedure: the verdict is read off it. Such intervals do not hold
    simultaneously."""
    adjusted_interval_level: float | None = None
    verdict: Literal["a_better", "b_better", "equivalent", "not_resolved"]
    minimum_detectable_difference: float | None = None
    """The smallest true difference that this design resolves four times in five."""
    margin: float
    num_pairs: int
    primary: bool = False
    tuned: bool | None = None
    """Whether the learning rate of every arm was tried; None where that is unknown."""
    informative: bool | None = None
    """Of a task, whether a teacher is far enough above random weights on it; None where that is unknown, or a loss."""
    converged: bool | None = None
    """Of a yardstick, whether its last doubling of tokens and steps changed the difference by 0.05 nats at most."""
    p_value: float | None = None
    adjusted_p_value: float | None = Field(
        default=None, validation_alias=AliasChoices("adjusted_p_value", "p_value_adjusted")
    )
    """By Holm's procedure over its family: the primary contrasts, or all others. None for a contrast by itself."""
    p_value_equivalence: float | None = None
    """Of the two one-sided tests, unadjusted."""
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    run_sd: float | None = None
    """Standard deviation of one run of these two arms at this budget, pairing removed, as if both had the same."""
    num_seeds_to_resolve: dict[str, int | None] = {}
    """Runs per arm that would resolve a difference of so many points four times in five."""
    one_teacher: bool = False
    compute_multiplier: dict[str, Any] | None = None
    """C_B / C_A at equal y: `value`, `interval` with its level and note, `at_outcome`, `method`; or the `reason`."""
    crossover: dict[str, Any] | None = None
    """Amount of compute where the curves cross: `value` in `unit`, `interval`, the `range` looked in; or the `reason`
    why there is none."""
    decomposition: dict[str, Any] | None = None
    """`difference` at equal compute = `gain_per_token` + `effect_of_tokens` that the budget allows, each a `value` with
    its `interval`; `tokens_a` and `tokens_b`; or the `reason`, and no `method`."""
    notes: tuple[str, ...] = ()
    sentence: str

    def __repr__(self) -> str:
        """Return the sentence: the terminal shows it."""
        return f"{self.verdict}: {self.sentence}"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        """Return the sentence for a notebook."""
        return f"<b>{escape(self.verdict.replace('_', ' '))}</b>: {escape(self.sentence)}"


class Assumption(Value):
    """One assumption behind a comparison: how it was tested here, and what came of it.

    "holds" means that the data at hand do not contradict it at the level of the study, never that it is proven.
    """

    name: str
    tested: str
    """How, in one phrase; where it was not, how it would be."""
    outcome: Literal["holds", "violated", "not_tested"]
    evidence: str = ""
    """The numbers, with their units; empty where it was not tested."""
    effect: str = ""
    """What becomes of the answer without the assumption."""
    missing: str = ""
    """The one thing that a test would need; empty where it was tested."""
    p_value: float | None = None
    """Of the assumption; adjusted by Holm's procedure where several contrasts were tested."""
    studies: tuple[str, ...] = ()
    """Whose records were used beside the study's own."""
