"""How long a learning rate rises and falls, in steps: the same tokens in every arm, unless asked otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from budgetlab.values import Arm, Recipe, Schedule

WARMUP_FRACTION = 0.06
"""Of the fewest tokens that an arm reads at its smallest budget, where a study does not say how long a warm-up is."""

_MOST_FEWEST = 10_000


def fewest_steps(recipe: Recipe) -> int:
    """Return the fewest steps that hold a warm-up and a cooldown."""
    stays = 1.0 - (recipe.cooldown_fraction if recipe.cools_down else 0.0)
    least = 2 if recipe.warmup_tokens is None else max(2, math.floor((warmup_steps(recipe, 0) - 0.5) / stays))
    counts = range(least, least + _MOST_FEWEST)
    fitting = (n for n in counts if warmup_steps(recipe, n) + cooldown_steps(recipe, n) <= n)
    return next(fitting, counts[-1] + 1)


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Return the steps of a warm-up: of the tokens that were asked for, or a share of so many steps."""
    if recipe.warmup_tokens is not None:
        return math.ceil(recipe.warmup_tokens / recipe.batch_tokens)
    return math.ceil((WARMUP_FRACTION if recipe.warmup_fraction is None else recipe.warmup_fraction) * steps)


def cooldown_steps(recipe: Recipe, steps: int) -> int:
    """Return the steps of a cooldown at the end of so many."""
    return max(1, round(recipe.cooldown_fraction * steps)) if recipe.cools_down and steps else 0


def shared_warmups(arms: Mapping[str, Arm], first_steps: Mapping[str, int]) -> dict[str, int | None]:
    """Return the warm-up steps of each arm, the same tokens in all; None: by its fraction."""
    fewest = min((arms[arm].recipe.batch_tokens * steps for arm, steps in first_steps.items() if steps), default=0)

    def shared(recipe: Recipe) -> int | None:
        if recipe.warmup_fraction is not None:
            return None
        tokens = WARMUP_FRACTION * fewest if recipe.warmup_tokens is None else recipe.warmup_tokens
        return math.ceil(tokens / recipe.batch_tokens)

    return {name: shared(arm.recipe) for name, arm in arms.items()}


def warmup_tokens(schedules: Iterable[Schedule], arms: Mapping[str, Arm]) -> dict[str, int]:
    """Return the tokens of each arm's warm-up at its smallest feasible budget."""
    firsts: dict[str, Schedule] = {}
    for schedule in sorted(schedules, key=lambda schedule: schedule.rung):
        if schedule.feasible:
            firsts.setdefault(schedule.arm, schedule)
    return {arm: firsts[arm].warmup_steps * arms[arm].recipe.batch_tokens for arm in arms if arm in firsts}
