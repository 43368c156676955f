"""What is planned: budgets, and the integer schedules that they buy.

FLOPs are two per multiply-add. `tokens` are positions fed to the student, without padding; `target_tokens`
carry loss. None means unknown and prints n/a.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field, model_validator

from budgetlab.values.base import Interval, Value
from budgetlab.values.costs import ArmCost
from budgetlab.values.specs import Arm, CorpusSpec, ExecutionSpec, ModelSpec, Recipe


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
    taught_tokens: int | None = None
    """Of these, what the teacher reads where its answers are kept; None where it reads along, or there is none."""
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
    """One learning rate of one arm, tried with one or several run seeds."""

    arm: str
    learning_rate: float
    schedule: Schedule
    """Of the trial, named `ARM~RATE`."""
    seeds: tuple[int, ...] = ()
    """Run seeds; empty for the first of the study."""
    outcome: str = "readout_loss"
    """The score that decides; adapted_loss where the arm trains no head."""
    loss: float | None = Field(default=None, validation_alias=AliasChoices("loss", "readout_loss"))
    """Mean over the seeds; None until it was run, or where one of them diverged."""


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
    """Of a step of each arm."""
    teacher_costs: dict[str, ArmCost] = {}
    """Of a step of pretraining each teacher, by model."""
    schedules: tuple[Schedule, ...]
    teachers: tuple[TeacherPlan, ...]
    corpus: CorpusSpec
    execution: ExecutionSpec
    audit: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    """Of [tuning]."""
    tuning_share: float | None = None
    """Of what the largest budget leaves an arm, for each trial; None: the arm's smallest budget."""
    tuned: bool = False
    """Whether the trials were run, and the rate of every arm is better than one below and one above it."""
    device_name: str | None = None
    """Where the steps were timed; None where they were not."""
    device: str | None = None
    """Of what kind: cpu, cuda; None where steps were not timed."""
    corpus_hash: str | None = None
    """Of the tokens; None where the corpus had not been read."""
    compiled: bool = False
    """Whether the networks go through `torch.compile`."""
    compile_reason: str = ""
    packing_reason: str = ""
    """Why there are so many workers, where `execution.workers` left that open."""
    warnings: tuple[str, ...] = ()
    """What a reader of the plan should know before running it."""

    @model_validator(mode="before")
    @classmethod
    def _prices_apart(cls, fields: Any) -> Any:
        """Part the prices of arms and of teachers, which earlier plans kept in one table."""
        arms, costs = (fields.get(name) for name in ("arms", "costs")) if isinstance(fields, dict) else (None, None)
        if not isinstance(arms, dict) or not isinstance(costs, dict) or "teacher_costs" in fields:
            return fields
        of_teachers = {name: cost for name, cost in costs.items() if name not in arms}
        return {**fields, "costs": {name: costs[name] for name in costs if name in arms}, "teacher_costs": of_teachers}

    @model_validator(mode="after")
    def _teachers_have_prices(self) -> Plan:
        for teacher in self.teachers:
            if teacher.steps and teacher.model in self.arms and teacher.model not in self.teacher_costs:
                raise ValueError(f"an arm and the teacher {teacher.model!r} share one price; plan again")
        return self

    @property
    def tried(self) -> bool:
        """Whether the trials of [tuning] were run; the arms then have the rates that they chose."""
        return any(trial.loss is not None for trial in self.trials)
