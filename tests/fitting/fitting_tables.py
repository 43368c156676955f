"""Synthetic tables with known truth, for the tests of fitting."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import stdtrit

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


# Noise of contrasts: standard deviations of one run, the reference first, and the correlation of runs of one seed.
DESIGNS: dict[str, tuple[list[float], float]] = {
    "equal noise": ([1.0] * 4, 0.0),
    "equal noise, twelve arms": ([1.0] * 12, 0.0),
    "wikipedia_small at 4 TFLOP": ([0.0026, 0.0030, 0.0627, 0.0072], 0.0),
    "wikipedia_small at 16 TFLOP": ([0.0083, 0.0091, 0.0282, 0.0102], 0.0),
    "linear_vs_branched": (
        [0.0022, 0.0033, 0.0038, 0.0056, 0.0065, 0.005, 0.0197, 0.0644, 0.0227, 0.009, 0.0099, 0.0085],
        0.0,
    ),
    "one noisy arm of four": ([1.0, 1.0, 1.0, 10.0], 0.0),
    "one noisy arm of twelve": ([1.0] * 11 + [10.0], 0.0),
    "one quiet arm of four": ([1.0, 1.0, 1.0, 0.1], 0.0),
    "a noisy reference": ([10.0, 1.0, 1.0, 1.0], 0.0),
    "a quiet reference": ([0.1, 1.0, 1.0, 1.0], 0.0),
    "arms correlated by seed": ([1.0] * 4, 0.8),
    "a quiet reference, distilled arms correlated by seed": ([0.1, 1.0, 1.0, 1.0], 0.9),
    "noisy arms correlated by seed": ([1.0, 1.0, 5.0, 10.0], 0.8),
    "spread 32-fold": ([1.0, 3.2, 10.0, 32.0], 0.0),
    "spread 32-fold, twelve arms": (np.geomspace(1.0, 32.0, 12).tolist(), 0.5),
}


def noisy_tables(design: str, seeds: int, tables: int, rng: np.random.Generator, skewed: bool = False) -> np.ndarray:
    """Values of runs without any true difference, shape (tables, arms, seeds)."""
    sds, correlation = DESIGNS[design]
    shape = (tables, len(sds), seeds)
    own = rng.exponential(size=shape) - 1.0 if skewed else rng.standard_normal(shape)
    common = rng.standard_normal((tables, 1, seeds))
    return np.array(sds)[:, None] * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)


def paired_t(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half-width of the 95 % interval of a mean, over the last axis."""
    count = differences.shape[-1]
    error = differences.std(axis=-1, ddof=1) / np.sqrt(count)
    return differences.mean(axis=-1), stdtrit(count - 1, 0.975) * error


def coverage_of(tables: np.ndarray) -> dict[int, float]:
    """Share of tables in which each contrast with the first arm covers zero, by arm."""
    centre, half = paired_t(tables[:, 1:] - tables[:, :1])
    return dict(enumerate((np.abs(centre) <= half).mean(axis=0).tolist(), start=1))


def crossing_study(
    seeds: int, noise: dict[str, float], trunk: float, growth: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Two arms whose curves cross at 5e13 FLOPs, at three budgets, with noise of their own; and the truth at 3e14.

    `noise` is a share of the loss, times `growth` for each budget; `trunk` the correlation of a run's noise between
    its budgets; runs of one seed share half of their noise where `trunk` is above zero.
    """
    slopes = {"kd": 0.4, "no_kd": 0.25}
    floor, level, cross, top = 2.0, 1.0, 5e13, 3e14
    rows = []
    luck = rng.standard_normal(seeds)
    for arm, exponent in slopes.items():
        own = rng.standard_normal(seeds)
        for rung, flops in enumerate(np.geomspace(1e13, top, 3)):
            fresh = rng.standard_normal(seeds)
            error = np.sqrt(trunk) * own + np.sqrt(1 - trunk) * fresh
            if trunk:
                error = np.sqrt(0.5) * (luck + error)
            loss = (floor + level * (flops / cross) ** -exponent) * np.exp(noise[arm] * growth**rung * error)
            rows += [
                {"subject": "run", "arm": arm, "rung": rung, "budget_amount": flops, "budget_unit": "required_flops",
                 "run_seed": seed, "finetune_seed": None, "teacher_seed": None, "required_flops": flops,
                 "tokens": flops / 1e6, "task": "readout_loss", "value": loss[seed], "higher_is_better": False}
                for seed in range(seeds)
            ]  # fmt: skip
    needed = cross * (top / cross) ** (slopes["no_kd"] / slopes["kd"])
    return pd.DataFrame(rows), {"multiplier": top / needed, "crossover": cross}
