"""The units of work of a plan: one folder each, named by the content of what they do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from budgetlab.checkpoint import tensors_hash
from budgetlab.corpus import Corpus
from budgetlab.models import build_network, given_key
from budgetlab.planner.prices import Tariff, tariffs, taught_steps
from budgetlab.runner.teacher_cache import bytes_per_target
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.values import (
    ArmCost,
    ExecutionSpec,
    ModelSpec,
    Plan,
    Recipe,
    Schedule,
    StrategySpec,
    TeacherPlan,
    content_hash,
)

Kind = Literal["teacher", "trunk", "rung"]


@dataclass(frozen=True)
class Unit:
    """One training: a teacher, the constant-rate trunk of an arm, or a rung (all of a run, or its cooldown branch)."""

    kind: Kind
    arm: str
    strategy: StrategySpec
    model: str
    spec: ModelSpec
    recipe: Recipe
    cost: ArmCost
    seed: int
    corpus_key: str
    last_step: int
    warmup_steps: int
    cooldown_steps: int = 0
    """Steps of decay before `last_step`; 0 for a trunk, which never cools down."""
    keep_steps: tuple[int, ...] = ()
    """Steps whose checkpoints are kept: where rungs branch off, and the end."""
    trunk: str | None = None
    """run_id that a rung branches from, at `first_step`."""
    schedule: Schedule | None = None
    teacher: str | None = None
    teacher_key: str | None = None
    teacher_seed: int | None = None
    student_key: str | None = None
    """Of the weights that the student starts from; None where they are random."""
    taught_steps: float = math.inf
    """After so many steps a teacher whose answers are kept has read all of the text."""

    @cached_property
    def key(self) -> str:
        """Hash of what decides the outcome, and of nothing else."""
        ending = None if self.kind == "trunk" else (self.last_step, self.cooldown_steps)
        training = self.recipe.model_dump(mode="json", exclude={"execute", "warmup_tokens"})
        what = (self.strategy, build_strategy(self.strategy).source_hash())
        where = (self.seed, self.corpus_key, self.teacher_key)
        start = () if self.student_key is None else (self.student_key,)
        return content_hash(
            self.kind, *what, self.spec.untrained(), training, *where, self.warmup_steps, ending, *start
        )

    @property
    def run_id(self) -> str:
        """Readable, and unique by content: by its steps, not by the number of its budget, which others may change."""
        part = f"-{self.last_step}" if self.schedule is not None else "-trunk" if self.kind == "trunk" else ""
        return f"{self.arm}{part}-s{self.seed}-{self.key[:8]}"

    @property
    def first_step(self) -> int:
        """Where its own work begins: a rung's branch point, else 0."""
        return self.last_step - self.cooldown_steps if self.trunk is not None else 0

    @property
    def price(self) -> Tariff:
        """Planned seconds of its steps on one device, or their FLOPs where they were not timed."""
        return tariffs(ExecutionSpec(), self.cost, self.taught_steps)[0] or self.flops

    @property
    def flops(self) -> Tariff:
        """Required FLOPs of its steps."""
        return tariffs(ExecutionSpec(), self.cost, self.taught_steps)[1]

    @property
    def kept_bytes(self) -> int:
        """What its teacher's answers take on disk, where they are kept."""
        top_k = build_strategy(self.strategy, self.arm).largest_logits
        if math.isinf(self.taught_steps) or top_k is None:
            return 0
        sequences = math.ceil(min(self.last_step, self.taught_steps) * self.recipe.batch_sequences)
        return sequences * self.recipe.masked_per_sequence * bytes_per_target(top_k, self.spec.vocab_size or 0)


def bytes_needed(units: list[Unit], newest: int, workers: int) -> int:
    """Return about what the checkpoints of these units take on disk at most.

    Float32 weights, and AdamW's two moments where a unit goes on from there: a trunk keeps that at every branch point;
    a rung and a teacher end as weights and as a transformers folder. While one trains, its `newest` are there too, and
    the one that is being written. Of a teacher whose answers are kept, these, once for each arm and seed.
    """
    weights = [4 * unit.cost.num_params_total for unit in units]
    kept = [
        (3 * len(unit.keep_steps) if unit.kind == "trunk" else 2) * own
        for unit, own in zip(units, weights, strict=True)
    ]
    training = sorted((3 * (newest + 1) * own for own in weights), reverse=True)[:workers]
    asked = {(unit.arm, unit.seed, unit.kept_bytes) for unit in units}
    answers = {(arm, seed): max(size for a, s, size in asked if (a, s) == (arm, seed)) for arm, seed, _ in asked}
    return sum(kept) + sum(training) + sum(answers.values())


def plan_units(plan: Plan, corpus: Corpus, store: Store | None = None) -> list[Unit]:
    """List the units of a plan in the order in which they can run: each after what it needs."""
    corpus_key = content_hash(corpus.content_hash, plan.corpus.masking, plan.corpus.unique_tokens)
    whole = content_hash(corpus.content_hash, plan.corpus.masking, None)
    teachers = [_teacher(plan, teacher, whole) for teacher in plan.teachers if teacher.weights is None]
    trained = {unit.model: unit.key for unit in teachers}
    given = [teacher.model for teacher in plan.teachers if teacher.weights is not None]

    def arms(keys: dict[str, str]) -> list[Unit]:
        return [u for seed in plan.seeds for arm in plan.arms for u in _arm(plan, arm, seed, keys, corpus_key)]

    keys = {name: given_key(plan.models[name]) for name in given}
    if store is not None and given:
        by_path = {name: content_hash("weights", plan.models[name].identity()) for name in given}
        before = arms(by_path | trained)
        keys |= {name: key for name, key in by_path.items() if _taught(name, plan, before, store)}
    return [*teachers, *arms(keys | trained)]


def _taught(name: str, plan: Plan, units: list[Unit], store: Store) -> bool:
    """Whether there are runs among these, and the weights that are now given taught all of them."""
    records = [(unit, store.read_record(unit.run_id)) for unit in units if unit.teacher == name]
    found = {record.teacher_hash for _, record in records if record is not None and record.teacher_hash is not None}
    if not found:
        return False
    network = build_network(plan.models[name], seq_len=records[0][0].recipe.seq_len)
    return found == {tensors_hash(dict(network.named_parameters()))}


def _teacher(plan: Plan, teacher: TeacherPlan, corpus_key: str) -> Unit:
    cost = plan.teacher_costs[teacher.model]
    return Unit(
        kind="teacher",
        arm=teacher.model,
        strategy=StrategySpec(name="no_kd"),
        model=teacher.model,
        spec=plan.models[teacher.model].untrained(),
        recipe=plan.recipe.model_copy(
            update={"dtype": cost.dtype, "attention": cost.attention, "initialisation": "random"}
        ),
        cost=cost,
        seed=teacher.seed,
        corpus_key=corpus_key,
        last_step=teacher.steps,
        warmup_steps=teacher.warmup_steps,
        cooldown_steps=teacher.cooldown_steps,
        keep_steps=(teacher.steps,),
    )


def _arm(plan: Plan, name: str, seed: int, teacher_keys: dict[str, str], corpus_key: str) -> list[Unit]:
    arm = plan.arms[name]
    schedules = [schedule for schedule in plan.schedules if schedule.arm == name and schedule.feasible]
    if not schedules:
        return []
    student = plan.models[arm.student]
    shared: dict[str, Any] = {
        "arm": name,
        "strategy": arm.strategy,
        "model": arm.student,
        "spec": student.untrained() if student.weights is None else student.identity(),
        "student_key": None if student.weights is None else given_key(student),
        "recipe": arm.recipe,
        "cost": plan.costs[name],
        "seed": seed,
        "corpus_key": corpus_key,
        "teacher": arm.teacher,
        "teacher_key": None if arm.teacher is None else teacher_keys[arm.teacher],
        "taught_steps": taught_steps(arm, schedules[0].unique_tokens),
        "teacher_seed": next((teacher.seed for teacher in plan.teachers if teacher.model == arm.teacher), None),
    }
    branches = tuple(schedule.steps - schedule.cooldown_steps for schedule in schedules)
    trunk = Unit(
        kind="trunk", last_step=max(branches), warmup_steps=schedules[0].warmup_steps, keep_steps=branches, **shared
    )
    branched = plan.ladder == "branched"
    rungs = [
        Unit(
            kind="rung",
            last_step=schedule.steps,
            warmup_steps=schedule.warmup_steps,
            cooldown_steps=schedule.cooldown_steps,
            keep_steps=(schedule.steps,),
            trunk=trunk.run_id if branched else None,
            schedule=schedule,
            **shared,
        )
        for schedule in schedules
    ]
    return [trunk, *rungs] if branched else rungs
