"""Which teachers are asked once: what that takes, who reads it, and what each of them pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budgetlab.planner.prices import shared, step_cost, taught_steps
from budgetlab.strategies import build_strategy
from budgetlab.strategies.caching import keeps_all_positions, same_for_all_seeds, why_not_kept
from budgetlab.studies import Study
from budgetlab.values import Arm, ArmCost, Budget, Plan, PlannedCache, content_hash

_TOO_MUCH_BYTES = 1e12


@dataclass(frozen=True)
class _Readers:
    """Arms that read the same entries, and the prices of their steps."""

    study: Study
    arms: list[Arm]
    costs: Mapping[str, ArmCost]
    budgets: list[Budget]
    unique_tokens: int | None
    before: tuple[PlannedCache, ...] = ()

    def pass_steps(self, arm: Arm) -> float:
        """Steps in which all of the text is read once."""
        return taught_steps(arm, self.unique_tokens, "cache", cached=True)

    def steps(self, arm: Arm, readers: int, rung: int = -1) -> int:
        """Steps of an arm, at its largest budget, where so many share the teacher's work of the first pass."""
        charge, budget = self.study.plan.teacher_charge, self.budgets[rung]
        price = step_cost(self.study.execution, self.costs[arm.name], budget.unit, charge, self.pass_steps(arm))
        return int(shared(price, readers if charge == "cache" else 1).steps(budget.amount, 0.0))

    def whole(self, readers: int, rung: int = -1) -> bool:
        """Whether each of them reads all of the text."""
        return all(self.steps(arm, readers, rung) >= self.pass_steps(arm) for arm in self.arms)

    def planned(self) -> PlannedCache:
        """Return what is kept for them, how often it is read, and whether that pays."""
        study, arm, rungs = self.study, self.arms[0], len(self.budgets)
        kept, cost, teacher = arm.kept, self.costs[arm.name], study.teacher_of(arm)
        assert kept is not None and teacher is not None
        student = study.models[arm.student]
        words = min(student.vocab_size or 0, teacher.vocab_size or 0)
        readers, copies = len(self.arms), len(study.seeds)
        # Budgets, and seeds, whose samples come in another order, share all that they read where they read all of it.
        if same_for_all_seeds(arm) and self.whole(readers * copies):
            readers, copies = readers * copies, 1
        if self.whole(readers * rungs, rung=0):
            readers *= rungs
        names, known = {a.name for a in self.arms}, (arm.teacher, kept, copies)
        same = (c for c in self.before if (c.teacher, c.kept, c.copies) == known and names.issuperset(c.arms))
        readers = next((cache.readers for cache in same), readers)
        reached = (min(self.steps(a, readers), self.pass_steps(a)) * a.recipe.batch_sequences for a in self.arms)
        sequences = max(1, math.ceil(max(reached)))
        tokens = sequences * arm.recipe.seq_len
        share = (
            1.0 if keeps_all_positions(arm, build_strategy(arm.strategy), student, teacher) else cost.target_fraction
        )
        size = kept.bytes_per_token(words, share)
        live = {a.name: self._live_steps(a) * self.costs[a.name].batch_tokens for a in self.arms}
        cached = {a.name: self.steps(a, readers) * self.costs[a.name].batch_tokens for a in self.arms}
        forward = cost.phases["teacher_forward"]
        seconds = None if forward.seconds_per_step is None else forward.seconds_per_step / cost.batch_tokens
        made, reason = self._decided(arm, readers, max(live.values()) > tokens, size * tokens * copies)
        return PlannedCache(
            teacher=arm.teacher or "",
            arms=tuple(a.name for a in self.arms),
            kept=kept,
            made=made,
            reason=reason,
            copies=copies,
            readers=readers,
            sequences=sequences,
            tokens=tokens * copies,
            bytes_per_token=size,
            bytes=size * tokens * copies,
            required_flops=forward.required_flops_per_token * tokens * copies,
            executed_flops=forward.executed_flops_per_token * tokens * copies,
            device_seconds=None if seconds is None else seconds * tokens * copies,
            break_even_readers=tokens / max(1, max(live.values())),
            tokens_live=live,
            tokens_cached=cached,
        )

    def _live_steps(self, arm: Arm) -> int:
        budget = self.budgets[-1]
        price = step_cost(self.study.execution, self.costs[arm.name], budget.unit, self.study.plan.teacher_charge)
        return int(price.steps(budget.amount, 0.0))

    def _decided(self, arm: Arm, readers: int, again: bool, size: float) -> tuple[bool, str]:
        if arm.cache != "auto":
            return True, "the study says so"
        student, teacher = self.study.models[arm.student], self.study.teacher_of(arm)
        assert teacher is not None
        if self.study.corpus.masking != "static" and not same_for_all_seeds(arm):
            return False, "masks are drawn anew in every pass"
        if why := why_not_kept(arm, build_strategy(arm.strategy), student, teacher):
            return False, why
        if size > _TOO_MUCH_BYTES:
            return False, "it would be more than a terabyte"
        if readers == 1 and not again:
            return False, "one run reads it, and once"
        return True, f"{readers} runs read each copy" if readers > 1 else "it is read again in every pass"


def planned_caches(
    study: Study,
    costs: Mapping[str, ArmCost],
    budgets: list[Budget],
    unique_tokens: int | None,
    before: Plan | None = None,
) -> tuple[PlannedCache, ...]:
    """Return the caches of a study's arms, those that read the same entries together.

    Parameters
    ----------
    study, costs
        Arms, and the prices of their steps.
    budgets
        Smallest first.
    unique_tokens
        Positions in one pass over the text, where it is known.
    before
        An earlier plan, whose numbers of readers stay where nothing but arms was added.

    Raises
    ------
    CallerError
        When a price was not measured.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in study.arms.values():
        if arm.kept is not None:
            groups.setdefault(_entries_key(study, arm, costs[arm.name]), []).append(arm)
    asked = budgets, study.seeds, study.plan.teacher_charge
    kept: tuple[PlannedCache, ...] = ()
    if before is not None:
        rungs = {schedule.rung: schedule.budget for schedule in before.schedules}
        kept = before.caches if ([rungs[r] for r in sorted(rungs)], before.seeds, before.charge) == asked else ()
    return tuple(_Readers(study, arms, costs, budgets, unique_tokens, kept).planned() for arms in groups.values())


def _entries_key(study: Study, arm: Arm, cost: ArmCost) -> str:
    """Hash of all that decides the entries, but for the text and the masks of a seed."""
    strategy, kept, teacher = build_strategy(arm.strategy, arm.name), arm.kept, study.teacher_of(arm)
    assert kept is not None and teacher is not None
    recipe, student = arm.recipe, study.models[arm.student]
    how: list[Any] = [recipe.seq_len, recipe.masked_per_sequence, recipe.documents, cost.dtype, cost.attention]
    how += [keeps_all_positions(arm, strategy, student, teacher), min(student.vocab_size or 0, teacher.vocab_size or 0)]
    temperature = kept.kept_at(getattr(strategy, "temperature", 1.0))
    return content_hash(arm.teacher, kept, arm.cache, arm.teacher_reads, temperature, *how)


def reads_cache(caches: tuple[PlannedCache, ...], arm: str) -> PlannedCache | None:
    """Return the cache that an arm reads; None where its teacher reads along."""
    return next((cache for cache in caches if cache.made and arm in cache.arms), None)
