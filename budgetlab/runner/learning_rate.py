"""The learning rate at a step: a function of the step alone, never of the clock."""

from __future__ import annotations

import math

from budgetlab.values import Recipe


def learning_rate_factor(recipe: Recipe, step: int, steps: int, warmup_steps: int, cooldown_steps: int) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    Linear warm-up, then constant with a cooldown to zero, linear ("wsd") or by 1 - sqrt of its share that is over
    ("wsd_sqrt"; both Hägele et al. 2024, arXiv 2405.18392), or linear, cosine or inverse square root decay. The clock
    never enters.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if recipe.schedule == "inverse_sqrt":
        return (max(warmup_steps, 1) / (step + 1)) ** 0.5
    if recipe.cools_down:
        left = min(1.0, (steps - step) / cooldown_steps) if cooldown_steps else 1.0
        return left if recipe.schedule == "wsd" else 1.0 - (1.0 - left) ** 0.5
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 1.0 - progress if recipe.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
