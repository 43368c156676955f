"""The units of work of a plan: one folder each, named by the content of what they do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from budgetlab.checkpoint import is_whole, step_name, tensors_hash
from budgetlab.corpus import Corpus
from budgetlab.models import build_network, given_key
from budgetlab.planner.prices import Tariff, tariffs, taught_steps
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


@dataclass(frozen=True)
class Unit:
    """One training: a teacher, the constant-rate trunk of an arm, or a rung (all of a run, or its cooldown branch)."""

    kind: Literal["teacher", "trunk", "rung"]
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
    teacher_steps: float = math.inf
    """After so many steps a cached teacher has read all of the text."""

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
        return tariffs(ExecutionSpec(), self.cost, self.teacher_steps)[0] or self.flops

    @property
    def flops(self) -> Tariff:
        """Required FLOPs of its steps."""
        return tariffs(ExecutionSpec(), self.cost, self.teacher_steps)[1]

    def needs(self, units: list[Unit]) -> list[Unit]:
        """Return the units that must have ended before this one: its teacher, its trunk."""
        return [u for u in units if u.run_id == self.trunk or (u.kind == "teacher" and u.model == self.teacher)]


def plan_units(plan: Plan, corpus: Corpus, store: Store | None = None) -> list[Unit]:
    """List the units of a plan in the order in which they can run: each after what it needs."""
    corpus_key = content_hash(corpus.content_hash, plan.corpus.masking, plan.corpus.unique_tokens)
    all_text = content_hash(corpus.content_hash, plan.corpus.masking, None)
    teachers = [_teacher_unit(plan, teacher, all_text) for teacher in plan.teachers if teacher.weights is None]
    given = [teacher.model for teacher in plan.teachers if teacher.weights is not None]
    keys = {unit.model: unit.key for unit in teachers} | {name: given_key(plan.models[name]) for name in given}

    def arms() -> list[Unit]:
        return [u for seed in plan.seeds for name in plan.arms for u in _arm_units(plan, name, seed, keys, corpus_key)]

    if store is not None and given:
        # Runs of an earlier version are keyed by the path of given weights alone: they count while these taught them.
        by_content = dict(keys)
        keys |= {name: content_hash("weights", plan.models[name].identity()) for name in given}
        before = arms()
        keys |= {name: by_content[name] for name in given if not _taught(name, plan, before, store)}
    return [*teachers, *arms()]


def _taught(name: str, plan: Plan, units: list[Unit], store: Store) -> bool:
    """Whether there are runs among these, and the weights that are now given taught all of them."""
    own = [unit for unit in units if unit.teacher == name]
    records = [store.read_record(unit.run_id) for unit in own]
    hashes = {record.teacher_hash for record in records if record is not None and record.teacher_hash is not None}
    if not hashes:
        return False
    network = build_network(plan.models[name], seq_len=own[0].recipe.seq_len)
    return hashes == {tensors_hash(dict(network.named_parameters()))}


def _teacher_unit(plan: Plan, teacher: TeacherPlan, corpus_key: str) -> Unit:
    cost = plan.teacher_costs[teacher.model]
    chosen = {"dtype": cost.dtype, "attention": cost.attention, "initialisation": "random"}
    return Unit(
        kind="teacher",
        arm=teacher.model,
        strategy=StrategySpec(name="no_kd"),
        model=teacher.model,
        spec=plan.models[teacher.model].untrained(),
        recipe=plan.recipe.model_copy(update=chosen),
        cost=cost,
        seed=teacher.seed,
        corpus_key=corpus_key,
        last_step=teacher.steps,
        warmup_steps=teacher.warmup_steps,
        cooldown_steps=teacher.cooldown_steps,
        keep_steps=(teacher.steps,),
    )


def _arm_units(plan: Plan, name: str, seed: int, teacher_keys: dict[str, str], corpus_key: str) -> list[Unit]:
    """Return an arm's trunk and the rungs that branch from it; of a separate ladder the rungs alone."""
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
        "teacher_steps": taught_steps(arm, schedules[0].unique_tokens),
        "teacher_seed": next((teacher.seed for teacher in plan.teachers if teacher.model == arm.teacher), None),
    }
    trunks = []
    if plan.ladder == "branched":
        ends = tuple(schedule.steps - schedule.cooldown_steps for schedule in schedules)
        warmup = schedules[0].warmup_steps
        trunks = [Unit(kind="trunk", last_step=max(ends), warmup_steps=warmup, keep_steps=ends, **shared)]
    rungs = [
        Unit(
            kind="rung",
            last_step=schedule.steps,
            warmup_steps=schedule.warmup_steps,
            cooldown_steps=schedule.cooldown_steps,
            keep_steps=(schedule.steps,),
            trunk=trunks[0].run_id if trunks else None,
            schedule=schedule,
            **shared,
        )
        for schedule in schedules
    ]
    return [*trunks, *rungs]


def unfinished(units: list[Unit], store: Store) -> list[Unit]:
    """List units with work left, and the trunks and teachers that these need; a failed unit is left alone."""
    records = {unit.run_id: store.read_record(unit.run_id) for unit in units}
    status = {run_id: None if record is None else record.status for run_id, record in records.items()}

    def usable(unit: Unit, steps: list[int]) -> bool:
        """Whether nothing is to be done for those that go on from these steps of it."""
        folder = store.checkpoints(unit.run_id)
        whole = status[unit.run_id] == "complete" and all(is_whole(folder / step_name(step)) for step in steps)
        return whole or status[unit.run_id] == "failed"

    ended = {run_id for run_id, said in status.items() if said in ("complete", "failed")}
    rungs = [unit for unit in units if unit.kind == "rung" and unit.run_id not in ended]
    branches = {rung.trunk: [r.first_step for r in rungs if r.trunk == rung.trunk] for rung in rungs}
    trunks = [unit for unit in units if unit.run_id in branches and not usable(unit, branches[unit.run_id])]
    wanted = {unit.teacher for unit in (*trunks, *rungs)}
    teachers = [
        unit
        for unit in units
        if unit.kind == "teacher"
        and not (usable(unit, list(unit.keep_steps)) if unit.model in wanted else unit.run_id in ended)
    ]
    chosen = {unit.run_id for unit in (*teachers, *trunks, *rungs)}
    return [unit for unit in units if unit.run_id in chosen]
