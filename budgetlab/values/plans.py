"""What is planned: prices of a step, budgets, and the integer schedules that they buy.

FLOPs are two per multiply-add. `tokens` are positions fed to the student, without padding; `target_tokens`
carry loss. None means unknown and prints n/a.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from budgetlab.values.base import Interval, Value
from budgetlab.values.specs import Arm, CorpusSpec, ExecutionSpec, ModelSpec, Recipe

__all__ = [
    "ArmCost",
    "Budget",
    "CostProfile",
    "Environment",
    "ModelCost",
    "PhaseCost",
    "Plan",
    "Schedule",
    "TeacherPlan",
    "Trial",
]


class Environment(Value):
    """The machine and the versions that a number was measured with."""

    device: str
    device_name: str
    device_memory_bytes: int | None = None
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
        return tokens * self.required_flops_per_position + target_tokens * self.required_flops_per_target_token

    def executed_flops(self, tokens: int, target_tokens: int) -> float:
        """Executed FLOPs of training on so many tokens."""
        return tokens * self.executed_flops_per_position + target_tokens * self.executed_flops_per_target_token


class ModelCost(Value):
    """FLOPs of one language model by itself; a position is a token of a sequence without padding."""

    model: str
    architecture: str
    kind: Literal["masked", "causal"]
    seq_len: int
    body_forward_flops_per_token: float
    head_forward_flops_per_position: float
    """Where logits are computed."""
    backward_flops_per_token: float
    """With logits at every position, and every parameter trained."""
    train_required_flops_per_token: float
    """With logits at `target_fraction` of the positions."""
    target_fraction: float
    num_params_total: int
    num_params_non_embedding: int
    verdict: dict[str, str]
    """What agrees with torch's count."""


class CostProfile(Value):
    """The prices of a study's arms and teachers on a device."""

    study: str
    study_key: str = ""
    """Hash of what decided the prices: models, arms, recipe, execution."""
    arms: tuple[ArmCost, ...]
    teachers: tuple[ArmCost, ...] = ()
    """Pretraining each teacher, named as its model."""
    conventions: dict[str, str]
    environment: Environment

    @property
    def timed(self) -> bool:
        """Whether steps were timed, not only counted."""
        return all(cost.seconds_per_step is not None for cost in (*self.arms, *self.teachers))


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
    tokens_interval: Interval | None = None
    """At the ends of the step time's interval, where the budget is time or money."""
    target_tokens: int
    steps: int
    effective_tokens: float | None = None
    """What repeated text is worth in fresh text, by a law of causal models: an indication, never planned with."""
    passes: float | None = None
    unique_tokens: int | None = None
    """Tokens in one pass over the data; None where the corpus has not been read yet."""
    warmup_steps: int
    cooldown_steps: int
    required_flops: float
    executed_flops: float
    device_seconds: float | None = None
    device_seconds_interval: Interval | None = None
    interval_level: float = 0.95
    teacher_charge: float = 0.0
    """What of the budget goes to the teacher's pretraining, in the budget's unit."""
    tuning_charge: float = 0.0
    """What of the budget goes to trials of learning rates, in the budget's unit."""
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


class Trial(Value):
    """One learning rate of one arm, tried at the smallest budget with the first run seed."""

    arm: str
    learning_rate: float
    schedule: Schedule
    """Of the trial, named `ARM~RATE`."""
    readout_loss: float | None = None
    """None until it was run."""


class Plan(Value):
    """All that `run` needs."""

    study: str
    match: str
    charge: str
    tolerance_fraction: float
    ladder: Literal["branched", "separate"]
    seeds: tuple[int, ...]
    recipe: Recipe
    """Of the study, as profiled; teachers are pretrained with it."""
    models: dict[str, ModelSpec]
    arms: dict[str, Arm]
    costs: dict[str, ArmCost]
    """By arm, and by model for each teacher to pretrain."""
    schedules: tuple[Schedule, ...]
    teachers: tuple[TeacherPlan, ...]
    corpus: CorpusSpec
    execution: ExecutionSpec
    audit: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    """Of [tuning]."""
    tuned: bool = False
    """Whether the trials were run and the arms have the rates that they chose."""
    warnings: tuple[str, ...] = ()
    """What a reader of the plan should know before running it."""
