"""What was found: prices, schedules, records, scores, fits and the verdict.

FLOPs are two per multiply-add. `tokens` are positions fed to the student, without padding; `target_tokens`
carry loss. Losses are nats per target token. None means unknown and prints n/a.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from budgetlab.values.base import Interval, Value
from budgetlab.values.specs import Arm, CorpusSpec, ExecutionSpec, ModelSpec

__all__ = [
    "ArmCost",
    "Budget",
    "CostProfile",
    "CurveFit",
    "Environment",
    "PhaseCost",
    "Plan",
    "Point",
    "RunRecord",
    "Schedule",
    "Score",
    "TeacherPlan",
    "Verdict",
]


class Environment(Value):
    """The machine and the versions that a number was measured with."""

    device: str
    device_name: str
    devices: int = 1
    threads: int
    python: str
    torch: str
    transformers: str
    budgetlab: str


class PhaseCost(Value):
    """The price of one phase of the step; FLOPs a token, seconds a step."""

    required_flops_per_token: float
    executed_flops_per_token: float
    seconds_per_step: float | None = None


class ArmCost(Value):
    """The price of one arm (or of pretraining one teacher) on one device.

    `train_required_flops_per_token` is the sum over phases at `target_fraction`. It is linear in the number of
    target tokens: `flops = tokens * ..._per_position + target_tokens * ..._per_target_token`.
    """

    arm: str
    batch_tokens: int
    target_fraction: float
    train_required_flops_per_token: float
    train_executed_flops_per_token: float
    required_flops_per_position: float
    required_flops_per_target_token: float
    executed_flops_per_position: float
    executed_flops_per_target_token: float
    phases: dict[str, PhaseCost]
    seconds_per_step: float | None = None
    seconds_per_step_interval: Interval | None = None
    interval_level: float = 0.95
    tokens_per_second: float | None = None
    steps_timed: int = 0
    peak_memory_bytes: int | None = None
    joules_per_token: float | None = None
    joules_source: str | None = None
    num_params_total: int
    num_params_non_embedding: int
    idle_parameters: tuple[str, ...] = ()
    """Student tensors that get no gradient, hence no weight decay and no optimizer state."""
    dtype: str
    attention: str

    def required_flops(self, tokens: int, target_tokens: int) -> float:
        """Required FLOPs of training on so many tokens."""
        return (
            tokens * self.required_flops_per_position + target_tokens * self.required_flops_per_target_token
        )

    def executed_flops(self, tokens: int, target_tokens: int) -> float:
        """Executed FLOPs of training on so many tokens."""
        return (
            tokens * self.executed_flops_per_position + target_tokens * self.executed_flops_per_target_token
        )


class CostProfile(Value):
    """The prices of a study's arms and teachers on a device."""

    study: str
    arms: tuple[ArmCost, ...]
    teachers: tuple[ArmCost, ...] = ()
    """Pretraining each teacher, named as its model."""
    conventions: dict[str, str]
    environment: Environment

    def arm(self, name: str) -> ArmCost:
        """Return the price of one arm."""
        return next(cost for cost in self.arms if cost.arm == name)


class Budget(Value):
    """One amount of one thing, in canonical units (`units.BUDGET_UNITS`)."""

    amount: float = Field(gt=0)
    unit: str


class Schedule(Value):
    """One arm at one budget, in integer steps that never cost more than the budget."""

    arm: str
    budget: Budget
    rung: int
    """Index of the budget, smallest first."""
    feasible: bool = True
    reason: str | None = None
    """Why the arm is infeasible, with the smallest feasible budget."""
    tokens: int
    target_tokens: int
    steps: int
    passes: float
    unique_tokens: int
    warmup_steps: int
    cooldown_steps: int
    required_flops: float
    executed_flops: float
    device_seconds: float | None = None
    device_seconds_interval: Interval | None = None
    interval_level: float = 0.95
    teacher_charge: float = 0.0
    """What of the budget goes to the teacher's pretraining, in the budget's unit."""
    unspent_fraction: float


class TeacherPlan(Value):
    """One teacher: given weights, or pretrained by the runner outside the arms' budget unless it is charged."""

    model: str
    weights: str | None = None
    tokens: int = 0
    steps: int = 0
    warmup_steps: int = 0
    cooldown_steps: int = 0
    seed: int = 0
    required_flops: float = 0.0
    device_seconds: float | None = None


class Plan(Value):
    """All that `run` needs."""

    study: str
    match: str
    charge: str
    tolerance_fraction: float
    ladder: Literal["branched", "separate"]
    seeds: tuple[int, ...]
    models: dict[str, ModelSpec]
    arms: dict[str, Arm]
    costs: dict[str, ArmCost]
    """By arm, and by model for each teacher to pretrain."""
    schedules: tuple[Schedule, ...]
    teachers: tuple[TeacherPlan, ...]
    corpus: CorpusSpec
    execution: ExecutionSpec
    audit: tuple[str, ...]


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


class RunRecord(Value):
    """What happened in one run."""

    run_id: str
    key: str
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
    required_flops: float = 0.0
    executed_flops: float = 0.0
    device_seconds: float = 0.0
    mlm_loss: float | None = None
    """Held-out, from the run's own head; None where the strategy trains no head."""
    weights_hash: str | None = None
    points: tuple[Point, ...] = ()
    environment: Environment


class Score(Value):
    """One measurement of one checkpoint."""

    run_id: str
    subject: Literal["run", "teacher", "random", "majority", "unigram"] = "run"
    """A run, or a yardstick: the teacher, random weights, the majority class, the unigram entropy."""
    arm: str
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
    """A task's name, or "readout_loss" or "mlm_loss"."""
    metric: str
    value: float
    higher_is_better: bool
    num_examples: int
    train_examples: int = 0
    recipe_hash: str
    evaluation_seconds: float = 0.0
    """Metered outside the budget."""


class CurveFit(Value):
    """A law fitted to a table, with its certificate."""

    arm: str | None = None
    law: str
    params: dict[str, float]
    intervals: dict[str, Interval | None] = {}
    interval_level: float = 0.95
    objective: float | None
    objective_name: str
    delta: float | None = None
    status: str
    """One word; `status_text` says whether the numbers may be used."""
    status_text: str
    certificate: dict[str, Any] = {}
    num_points: int
    x_range: Interval | None = None
    columns: dict[str, str] = {}


class Verdict(Value):
    """The answer to one contrast of two arms."""

    contrast: tuple[str, str]
    """(A, B); the difference is A minus B, in points, positive when A is better."""
    at: Budget
    y: str
    difference: float | None
    interval: Interval | None
    interval_level: float = 0.95
    verdict: Literal["a_better", "b_better", "equivalent", "not_resolved"]
    minimum_detectable_difference: float | None = None
    margin: float
    num_pairs: int
    primary: bool = False
    sentence: str
