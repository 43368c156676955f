"""Synthetic tables with known truth, for the tests of fitting."""

from __future__ import annotations

import numpy as np
import pandas as pd

from budgetlab.laws import get_law

CHINCHILLA = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.366}
CURVES = {"kd": (1.95, 1.3, 0.35), "no_kd": (2.0, 1.5, 0.35), "minilm": (2.0, 1.2, 0.3), "tinybert": (2.1, 1.4, 0.4)}
"""Floor, coefficient at 1e13 FLOPs and exponent of each arm of a study."""


def surface(points: int, rng: np.random.Generator, noise: float = 0.01, params: dict = CHINCHILLA) -> pd.DataFrame:
    """Make runs over parameters and tokens."""
    num_params = np.exp(rng.uniform(np.log(4e7), np.log(1e10), points))
    tokens = np.exp(rng.uniform(np.log(5e8), np.log(5e11), points))
    loss = get_law("chinchilla").predict(params, {"num_params": num_params, "tokens": tokens})
    return pd.DataFrame(
        {"num_params": num_params, "tokens": tokens, "loss": loss * np.exp(noise * rng.standard_normal(points))}
    )


def curve(arm: str, flops: np.ndarray | float) -> np.ndarray | float:
    """Evaluate the true loss of an arm."""
    floor, size, exponent = CURVES[arm]
    return floor + size * (flops / 1e13) ** -exponent


def study(
    budgets: int,
    seeds: int,
    *,
    arms: tuple[str, ...] = tuple(CURVES),
    noise: float = 0.004,
    trunk: float = 0.0,
    growth: float = 1.0,
    rng: np.random.Generator | None = None,
    span: float = 30.0,
    tasks: tuple[str, ...] = (),
    finetune_seeds: int = 1,
) -> pd.DataFrame:
    """Make the scores of a study: read-out losses, and scores of tasks that follow them.

    `trunk` is the correlation of a run's noise between its budgets; the noise is a share of the loss, times `growth`
    for each budget.
    """
    rng = rng or np.random.default_rng(0)
    rows = []
    for arm in arms:
        shared = rng.standard_normal(seeds)
        for rung, flops in enumerate(np.geomspace(1e13, 1e13 * span, budgets)):
            for seed in range(seeds):
                common = {
                    "run_id": f"{arm}-{rung}-{seed}",
                    "subject": "run",
                    "arm": arm,
                    "rung": rung,
                    "budget_amount": flops,
                    "budget_unit": "required_flops",
                    "run_seed": seed,
                    "teacher_seed": None if arm == "no_kd" else 0,
                    "tokens": int(flops / (1e6 if arm == "no_kd" else 1.6e6)),
                    "required_flops": flops * 0.999,
                    "metric": "any",
                    "num_examples": 100,
                }
                error = (
                    noise * growth**rung * (np.sqrt(trunk) * shared[seed] + np.sqrt(1 - trunk) * rng.standard_normal())
                )
                loss = float(curve(arm, flops)) * np.exp(error)
                rows.append(
                    common | {"task": "readout_loss", "finetune_seed": None, "value": loss, "higher_is_better": False}
                )
                for task in tasks:
                    for finetune in range(finetune_seeds):
                        value = 1.1 - 0.15 * loss + 0.003 * rng.standard_normal()
                        rows.append(
                            common | {"task": task, "finetune_seed": finetune, "value": value, "higher_is_better": True}
                        )
    yardstick = {
        "subject": "teacher",
        "arm": "teacher",
        "task": "readout_loss",
        "value": 1.5,
        "higher_is_better": False,
    }
    return pd.DataFrame([*rows, yardstick])
