"""Synthetic studies with known truth: plans, scores and verdicts, for the tests of decisions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from budgetlab.decisions import Evidence
from budgetlab.fitting import compare_arms
from budgetlab.values import (
    Arm,
    ArmCost,
    Budget,
    CorpusSpec,
    ExecutionSpec,
    FitSpec,
    ModelSpec,
    PhaseCost,
    Plan,
    Recipe,
    Schedule,
    StrategySpec,
    TeacherPlan,
)

CURVES = {"no_kd": (2.0, 1.5, 0.35), "vanilla_kd": (2.0, 1.2, 0.35), "minilm": (2.0, 1.0, 0.35)}
"""Floor, coefficient at 1e13 FLOPs and exponent of each arm."""
FLOPS_PER_TOKEN = {"no_kd": 4e6, "vanilla_kd": 12e6, "minilm": 7e6}
STUDENT = ModelSpec(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512, vocab_size=8192)
TEACHER = ModelSpec(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024, vocab_size=8192)


def cost(arm: str, *, num_params: int = 400_000) -> ArmCost:
    flops = FLOPS_PER_TOKEN[arm.partition("_linear")[0].partition("@")[0].partition("+")[0]]
    teacher = 0.0 if arm.startswith("no_kd") else flops / 2
    phases = {"teacher_forward": teacher, "student_forward": (flops - teacher) / 3, "loss": 0.0,
              "backward": (flops - teacher) * 2 / 3, "update": 0.0}  # fmt: skip
    return ArmCost(
        arm=arm, batch_tokens=1024, target_fraction=0.3, train_required_flops_per_token=flops,
        train_executed_flops_per_token=flops, required_flops_per_position=flops, required_flops_per_target_token=0.0,
        executed_flops_per_position=flops, executed_flops_per_target_token=0.0,
        phases={n: PhaseCost(required_flops_per_token=f, executed_flops_per_token=f) for n, f in phases.items()},
        seconds_per_step=flops / 1e8, tokens_per_second=1024e8 / flops, num_params_total=num_params + 1_000_000,
        num_params_non_embedding=num_params, dtype="float32", attention="sdpa",
    )  # fmt: skip


def plan(
    study: str = "synthetic", *, arms: tuple[str, ...] = tuple(CURVES), budgets: tuple[float, ...] = (1e13, 3e13, 9e13),
    seeds: int = 3, recipes: dict[str, Recipe] | None = None, unique_tokens: int | None = None,
    teacher_flops: float = 5e13, charge: str = "inference",
) -> Plan:  # fmt: skip
    costs = {arm: cost(arm) for arm in arms}
    schedules = []
    for rung, budget in enumerate(budgets):
        for arm in arms:
            tokens = int(budget / costs[arm].train_required_flops_per_token / 1024) * 1024
            flops = tokens * costs[arm].train_required_flops_per_token
            schedules.append(Schedule(
                arm=arm, budget=Budget(amount=budget, unit="required_flops"), rung=rung, tokens=tokens,
                target_tokens=tokens // 3, steps=tokens // 1024, passes=tokens / (unique_tokens or 10**9),
                unique_tokens=unique_tokens or 10**9, warmup_steps=10, cooldown_steps=20, required_flops=flops,
                executed_flops=flops, device_seconds=flops / 1e11, unspent_fraction=1 - flops / budget,
            ))  # fmt: skip
    return Plan(
        study=study, match="required_flops", charge=charge, tolerance_fraction=0.01, ladder="separate",
        seeds=tuple(range(seeds)), recipe=Recipe(), models={"student": STUDENT, "teacher": TEACHER},
        arms={
            arm: Arm(name=arm, strategy=StrategySpec(name=arm.partition("_linear")[0]), student="student",
                     teacher=None if arm.startswith("no_kd") else "teacher", recipe=(recipes or {}).get(arm, Recipe()))
            for arm in arms
        },
        costs=costs, schedules=tuple(schedules),
        teachers=(TeacherPlan(model="teacher", tokens=10**7, steps=9766, required_flops=teacher_flops,
                              device_seconds=teacher_flops / 1e11),),
        corpus=CorpusSpec(unique_tokens=unique_tokens), execution=ExecutionSpec(), audit=(),
    )  # fmt: skip


def scores(
    made: Plan, *, curves: dict[str, tuple[float, float, float]] | None = None, noise: float = 0.003,
    tasks: dict[str, dict[str, float]] | None = None, seconds: dict[str, float] | None = None, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Scores of a plan: `curves` give the losses, `tasks` by name the score of each arm, `seconds` the time a FLOP."""
    rng, known = np.random.default_rng(seed), CURVES | (curves or {})
    rows = []
    for schedule in made.schedules:
        floor, size, exponent = known[schedule.arm]
        for run_seed in made.seeds:
            loss = floor + size * (schedule.required_flops / 1e13) ** -exponent
            shared = {
                "run_id": f"{schedule.arm}-{schedule.rung}-{run_seed}", "subject": "run", "arm": schedule.arm,
                "student": "student", "rung": schedule.rung, "run_seed": run_seed, "finetune_seed": None,
                "teacher_seed": None if schedule.arm.startswith("no_kd") else 0, "steps": schedule.steps,
                "tokens": schedule.tokens, "target_tokens": schedule.target_tokens,
                "required_flops": schedule.required_flops, "executed_flops": schedule.executed_flops,
                "device_seconds": schedule.required_flops * (seconds or {}).get(schedule.arm, 1e-11),
                "budget_amount": schedule.budget.amount, "budget_unit": schedule.budget.unit, "num_examples": 100,
                "recipe_hash": "alike", "averaged": True,
            }  # fmt: skip
            error = float(np.exp(noise * rng.standard_normal()))
            rows.append(shared | {"task": "readout_loss", "metric": "nats", "value": loss * error,
                                  "higher_is_better": False})  # fmt: skip
            for task, by_arm in (tasks or {}).items():
                value = by_arm[schedule.arm] + 0.02 * schedule.rung + 0.002 * rng.standard_normal()
                rows.append(shared | {"task": task, "metric": "accuracy", "value": value, "higher_is_better": True})
    return pd.DataFrame(rows)


def evidence(made: Plan, **how) -> Evidence:
    return Evidence(made.study, made, scores(made, **how))


def spec(**changes) -> FitSpec:
    return FitSpec(resamples=200, **changes)


def verdicts(own: Evidence, fit: FitSpec | None = None):
    return compare_arms(own.scores, fit or spec())
