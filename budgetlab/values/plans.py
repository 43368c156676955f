"""What is asked of a plan, and what is planned: trials, integer schedules, and the trainings that these are made of.

FLOPs are two per multiply-add. `tokens` are positions fed to the student, without padding; `target_tokens`
carry loss. None means unknown and prints n/a.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from budgetlab.units import parse_charge
from budgetlab.values.base import Interval, Positive, Record, SeedsOrNone, Value, passed_over
from budgetlab.values.costs import ArmCost
from budgetlab.values.kept import Sampled, TopK, TopP
from budgetlab.values.model_specs import ModelSpec
from budgetlab.values.specs import Arm, CorpusSpec, ExecutionSpec, Recipe


class TuningSpec(Value):
    """The same learning-rate trials for every arm, at the smallest budget or at a share of the largest."""

    learning_rate: tuple[Positive, ...] = Field(min_length=1, max_length=100)
    """Peak rates to try; the best by read-out loss is taken, by adapted loss where an arm trains no head. An arm is
    tuned where its best lies between two others."""
    budget_share: float | None = Field(default=None, gt=0, le=1)
    """Of what the largest budget leaves an arm, for each trial; omitted, a trial is the run at the smallest budget."""
    seeds: SeedsOrNone = Field(default=(), max_length=100)
    """Run seeds of each trial, whose mean loss decides; omitted, the study's first."""
    charge: bool = False
    """Whether trials are paid out of the budgets."""

    @model_validator(mode="after")
    def _trials_can_be_paid(self) -> TuningSpec:
        if self.charged_trials * (self.budget_share or 0.0) >= 1:
            shown = f"{self.charged_trials} charged trials of {self.budget_share:g} of the largest budget"
            raise ValueError(f"{shown} leave nothing of it")
        return self

    @property
    def charged_trials(self) -> int:
        """Trainings of each arm, every rate with every seed, that are paid out of the budgets."""
        return len(self.learning_rate) * max(1, len(self.seeds)) if self.charge else 0


class PlanSpec(Value):
    """What "the same compute" means, and how much of it."""

    match: str = "required_flops"
    """required_flops, executed_flops, device_seconds, joules, usd, equal_tokens, or tokens:ARM, which is the required
    FLOPs of that arm's tokens."""
    budgets: tuple[str | float, ...] = Field(min_length=1, max_length=100)
    """Amounts such as "1e16 flops", "4 h" (wall time on `devices`), "8 gpu-hours", "4.6B tokens"; a bare number is
    FLOPs, where FLOPs are matched."""
    ladder: Literal["branched", "separate"] = "branched"
    """branched: the budgets of an arm are one run, from which each branches off into a cooldown of its own; separate: a
    run for each."""
    teacher_charge: str = "inference"
    """What of the teacher an arm pays for: none, inference, cache (inference once, shared by the runs that read what
    was kept), pretraining (and inference), amortised:K."""
    tolerance_fraction: float = Field(default=0.01, gt=0, lt=1)
    """A plan that would leave more of a budget unspent is refused."""

    @field_validator("teacher_charge")
    @classmethod
    def _charge_is_known(cls, charge: str) -> str:
        parse_charge(charge)
        return charge.replace("amortized", "amortised")


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


class PlannedCache(Value):
    """What is kept of one teacher for some arms, and what it costs; amounts are those of all its copies."""

    teacher: str
    arms: tuple[str, ...]
    kept: TopK | TopP | Sampled
    made: bool = True
    """Whether it is, or the teacher reads along, reduced alike."""
    reason: str = ""
    """Why."""
    copies: int = 1
    """One, or one for each seed."""
    readers: int
    """Runs of this plan that read the same copy, at one budget or, where all of them read all of the text, at all: what
    its cost is divided by where the charge is "cache"."""
    sequences: int
    """Of each copy."""
    tokens: int
    bytes_per_token: float
    """At most."""
    bytes: float
    required_flops: float
    executed_flops: float
    device_seconds: float | None = None
    break_even_readers: float
    """From how many readers on the teacher reads fewer tokens than live."""
    tokens_live: dict[str, int]
    """Of each arm at the largest budget, where the teacher reads along."""
    tokens_cached: dict[str, int]


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


@dataclass(frozen=True)
class PlanUnit:
    """One training: a teacher, a trial, the constant-rate trunk of an arm, a branch off it, or a whole run.

    Attributes
    ----------
    id
        Readable; the runner's run_id is this and a hash of the content.
    arm, model
        Whose training it is, and which model is trained; of a teacher both are the teacher's name.
    needs
        Ids of the units that must have ended before: its teacher, its trunk.
    first_step, last_step
        Between which its own steps are: a branch's begin where it leaves its trunk.
    branch_steps
        Of a trunk, the steps at which branches leave it.
    teacher_steps
        After so many steps a cached teacher has read all of the text; infinite for others.
    """

    id: str
    kind: Literal["teacher", "trial", "trunk", "branch", "run"]
    arm: str
    model: str
    cost: ArmCost
    seed: int
    last_step: int
    warmup_steps: int
    cooldown_steps: int = 0
    first_step: int = 0
    needs: tuple[str, ...] = ()
    branch_steps: tuple[int, ...] = ()
    schedule: Schedule | None = None
    teacher_steps: float = math.inf

    @property
    def steps(self) -> int:
        """Its own steps."""
        return self.last_step - self.first_step

    @property
    def required_flops(self) -> float:
        """Of its own steps."""
        return self._flops(self.last_step) - self._flops(self.first_step)

    def _flops(self, steps: int) -> float:
        tokens, samples = steps * self.cost.batch_tokens, self.teacher_steps * self.cost.batch_tokens
        read = None if math.isinf(samples) else min(tokens, round(samples))
        return self.cost.required_flops(tokens, round(tokens * self.cost.target_fraction), read)

    def as_json(self) -> dict[str, Any]:
        """Return what `plan --json` says of it."""
        return {name: getattr(self, name) for name in ("id", "kind", "needs", "steps", "required_flops")}


class Plan(Record):
    """All that `run` needs."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"caches"})

    _said_by_schedules = passed_over("units")  # which --json adds

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
    caches: tuple[PlannedCache, ...] = ()
    """Of the arms with a `cache`."""
    warnings: tuple[str, ...] = ()
    """What a reader of the plan should know before running it."""

    @classmethod
    def upgraded(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Part the prices of arms and of teachers, which earlier plans kept in one table."""
        arms, costs = fields.get("arms"), fields.get("costs")
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

    def units(self, ladder: str | None = None) -> tuple[PlanUnit, ...]:
        """List what is trained, each once: teachers, trials, and for every seed and arm a trunk and branches, or runs.

        Parameters
        ----------
        ladder
            "branched" or "separate", in the place of the plan's own.
        """
        teachers = [
            PlanUnit(
                id=f"{teacher.model}-s{teacher.seed}",
                kind="teacher",
                arm=teacher.model,
                model=teacher.model,
                cost=self.teacher_costs[teacher.model],
                seed=teacher.seed,
                last_step=teacher.steps,
                warmup_steps=teacher.warmup_steps,
                cooldown_steps=teacher.cooldown_steps,
            )
            for teacher in self.teachers
            if teacher.weights is None
        ]
        trials = [
            self._run(trial.arm, seed, "trial", trial.schedule)
            for trial in self.trials
            for seed in trial.seeds or self.seeds[:1]
        ]
        arms = [
            unit
            for seed in self.seeds
            for arm in self.arms
            for unit in self._arm_units(arm, seed, ladder or self.ladder)
        ]
        return (*teachers, *trials, *arms)

    def _arm_units(self, arm: str, seed: int, ladder: str) -> Iterator[PlanUnit]:
        schedules = [schedule for schedule in self.schedules if schedule.arm == arm and schedule.feasible]
        if ladder != "branched" or not schedules:
            yield from (self._run(arm, seed, "run", schedule) for schedule in schedules)
            return
        leaves = tuple(schedule.steps - schedule.cooldown_steps for schedule in schedules)
        last = self._run(arm, seed, "trunk", schedules[0])
        trunk = replace(
            last, id=f"{arm}-trunk-s{seed}", last_step=max(leaves), cooldown_steps=0, branch_steps=leaves, schedule=None
        )
        yield trunk
        for schedule, leave in zip(schedules, leaves, strict=True):
            branch = self._run(arm, seed, "branch", schedule)
            yield replace(branch, first_step=leave, needs=(*branch.needs, trunk.id))

    def _run(self, arm: str, seed: int, kind: Any, schedule: Schedule) -> PlanUnit:
        """Return the whole training of a schedule, whose arm may have the name of a trial."""
        teacher = self.arms[arm].teacher
        return PlanUnit(
            id=f"{schedule.arm}-{schedule.steps}-s{seed}",
            kind=kind,
            arm=schedule.arm,
            model=self.arms[arm].student,
            cost=self.costs[arm],
            seed=seed,
            last_step=schedule.steps,
            warmup_steps=schedule.warmup_steps,
            cooldown_steps=schedule.cooldown_steps,
            needs=tuple(f"{t.model}-s{t.seed}" for t in self.teachers if t.model == teacher and t.weights is None),
            schedule=schedule,
            teacher_steps=self.teacher_steps(arm, schedule),
        )

    def cache_of(self, arm: str) -> PlannedCache | None:
        """Return the cache that an arm reads; None where its teacher reads along."""
        return next((cache for cache in self.caches if cache.made and arm in cache.arms), None)

    def teacher_steps(self, arm: str, schedule: Schedule) -> float:
        """Return the steps after which a cached teacher has read all of the text; infinite for others."""
        unique, recipe = schedule.unique_tokens, self.arms[arm].recipe
        if self.charge == "cache" and self.cache_of(arm) is not None:
            return (schedule.taught_tokens or 0) / recipe.batch_tokens
        if schedule.taught_tokens is None or unique is None:
            return math.inf
        return unique // recipe.seq_len / recipe.batch_sequences
