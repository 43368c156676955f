"""The units of work of a plan: one folder each, named by the content of what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from budgetlab.checkpoint import is_whole, step_name, tensors_hash
from budgetlab.corpus import Corpus
from budgetlab.models import build_network, given_key
from budgetlab.planner.prices import StepCost, step_costs
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.strategies.caching import kept_of
from budgetlab.values import ExecutionSpec, Kept, ModelSpec, Plan, PlanUnit, Recipe, StrategySpec, content_hash


@dataclass(frozen=True, kw_only=True)
class Unit(PlanUnit):
    """One training: what the plan says of it, and what decides its outcome."""

    strategy: StrategySpec
    spec: ModelSpec
    recipe: Recipe
    corpus_key: str
    trunk: str | None = None
    """run_id that a branch leaves, at `first_step`."""
    teacher: str | None = None
    teacher_key: str | None = None
    teacher_seed: int | None = None
    kept: Kept | None = None
    """What its teacher is reduced to."""
    teacher_reads: Literal["masked", "unmasked"] = "masked"
    cached: bool = False
    """Whether that is kept on disk."""
    planned_cache: bool = False
    """By one of the plan's caches, not by its strategy."""
    student_key: str | None = None
    """Of the weights that the student starts from; None where they are random."""

    @property
    def record_kind(self) -> Literal["teacher", "trunk", "rung"]:
        """What its record calls it: a branch and a whole run both end at a rung of the ladder."""
        return self.kind if self.kind in ("teacher", "trunk") else "rung"

    @property
    def reduced(self) -> bool:
        """Whether the arm says to what its teacher is reduced, live or kept."""
        return self.kept is not None and not build_strategy(self.strategy).keeps_teacher

    @property
    def keep_steps(self) -> tuple[int, ...]:
        """Steps whose checkpoints are kept: where branches leave it, or the end."""
        return self.branch_steps if self.kind == "trunk" else (self.last_step,)

    @cached_property
    def key(self) -> str:
        """Hash of what decides the outcome, and of nothing else."""
        ending = None if self.kind == "trunk" else (self.last_step, self.cooldown_steps)
        training = self.recipe.model_dump(mode="json", exclude={"execute", "warmup_tokens"})
        what = (self.record_kind, self.strategy, build_strategy(self.strategy).source_hash(), self.spec.untrained())
        where = (self.seed, self.corpus_key, self.teacher_key, self.warmup_steps, ending)
        start: tuple[Any, ...] = () if self.student_key is None else (self.student_key,)
        if self.teacher_reads != "masked" or self.reduced:
            start += (self.kept, self.teacher_reads)
        return content_hash(*what, training, *where, *start)

    @property
    def run_id(self) -> str:
        """Readable, and unique by content: by its steps, not by the number of its budget, which others may change."""
        return f"{self.id}-{self.key[:8]}"

    @property
    def price(self) -> StepCost:
        """Planned seconds of its steps on one device, or their FLOPs where they were not timed."""
        return step_costs(ExecutionSpec(), self.cost, self.teacher_steps)[0] or self.flops

    @property
    def flops(self) -> StepCost:
        """Required FLOPs of its steps."""
        return step_costs(ExecutionSpec(), self.cost, self.teacher_steps)[1]


def plan_units(plan: Plan, corpus: Corpus, store: Store | None = None) -> list[Unit]:
    """List the units of a plan in the order in which they can run: each after what it needs."""
    given = [teacher.model for teacher in plan.teachers if teacher.weights is not None]
    keys = {name: given_key(plan.models[name]) for name in given}
    if store is not None and given:
        # Runs of an earlier version are keyed by the path of given weights alone: they count while these taught them.
        by_path = {name: content_hash("weights", plan.models[name].identity()) for name in given}
        before = _keyed(plan, corpus, by_path)
        keys |= {name: by_path[name] for name in given if _taught(name, plan, before, store)}
    return _keyed(plan, corpus, keys)


def _keyed(plan: Plan, corpus: Corpus, given: dict[str, str]) -> list[Unit]:
    """What the plan trains once, with what decides the outcome; `given` are the keys of given teachers."""
    units: dict[str, Unit] = {}
    for planned in plan.units():
        if planned.kind == "trial":
            continue
        about: dict[str, Any] = {}
        unique = plan.corpus.unique_tokens
        if planned.kind == "teacher":
            unique, student = None, plan.models[planned.model].untrained()
            strategy = StrategySpec(name="no_kd")
            how = {"dtype": planned.cost.dtype, "attention": planned.cost.attention, "initialisation": "random"}
            recipe = plan.recipe.model_copy(update=how)
        else:
            arm, student = plan.arms[planned.arm], plan.models[planned.model]
            strategy, recipe = arm.strategy, arm.recipe
            needed = {units[name].kind: units[name] for name in planned.needs}
            about["trunk"] = needed["trunk"].run_id if "trunk" in needed else None
            built = build_strategy(strategy, arm.name)
            about["kept"], about["teacher_reads"] = kept_of(arm, built), arm.teacher_reads
            about["planned_cache"] = plan.cache_of(planned.arm) is not None
            about["cached"] = built.keeps_teacher or about["planned_cache"]
            about["student_key"] = None if student.weights is None else given_key(student)
            if arm.teacher is not None:
                about["teacher"] = arm.teacher
                about["teacher_key"] = needed["teacher"].key if "teacher" in needed else given[arm.teacher]
                about["teacher_seed"] = next((t.seed for t in plan.teachers if t.model == arm.teacher), None)
        units[planned.id] = Unit(
            **vars(planned),
            **about,
            strategy=strategy,
            spec=student.untrained() if student.weights is None else student.identity(),
            recipe=recipe,
            corpus_key=content_hash(corpus.content_hash, plan.corpus.masking, unique),
        )
    return list(units.values())


def _taught(name: str, plan: Plan, units: list[Unit], store: Store) -> bool:
    """Whether there are runs among these, and the weights that are now given taught all of them."""
    own = [unit for unit in units if unit.teacher == name]
    records = [store.read_record(unit.run_id) for unit in own]
    hashes = {record.teacher_hash for record in records if record is not None and record.teacher_hash is not None}
    if not hashes:
        return False
    network = build_network(plan.models[name], seq_len=own[0].recipe.seq_len)
    return hashes == {tensors_hash(dict(network.named_parameters()))}


def unfinished(units: list[Unit], store: Store) -> list[Unit]:
    """List units with work left, and the trunks and teachers that these need; a failed unit is left alone."""
    status = {unit.run_id: store.record_status(unit.run_id) for unit in units}

    def usable(unit: Unit, steps: list[int]) -> bool:
        """Whether nothing is to be done for those that go on from these steps of it."""
        whole = status[unit.run_id] == "complete" and _are_whole(unit, steps, store)
        return whole or status[unit.run_id] == "failed"

    ended = {run_id for run_id, said in status.items() if said in ("complete", "failed")}
    rungs = [unit for unit in units if unit.record_kind == "rung" and unit.run_id not in ended]
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


def ended_since(todo: list[Unit], store: Store) -> Callable[[Unit], bool]:
    """Return what says of an unfinished unit whether another worker has ended it meanwhile."""
    leave: dict[str | None, list[int]] = {}
    for unit in todo:
        leave.setdefault(unit.trunk, []).append(unit.first_step)

    def has_ended(unit: Unit) -> bool:
        status = store.record_status(unit.run_id)
        if status != "complete" or unit.record_kind == "rung":
            return status in ("complete", "failed")
        return _are_whole(unit, leave.get(unit.run_id, unit.keep_steps[-1:]), store)

    return has_ended


def _are_whole(unit: Unit, steps: Iterable[int], store: Store) -> bool:
    return all(is_whole(store.checkpoints(unit.run_id) / step_name(step)) for step in steps)
