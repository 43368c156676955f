"""A synthetic study with the shape of the demo: 4 arms, 3 budgets, 2 seeds, 2 probe tasks. No number is measured."""

from __future__ import annotations

import random

from budgetlab.values import (
    Arm,
    ArmCost,
    Budget,
    CorpusSpec,
    CostProfile,
    CurveFit,
    Environment,
    ExecutionSpec,
    ModelSpec,
    PhaseCost,
    Plan,
    Pretrain,
    Recipe,
    RunRecord,
    Schedule,
    Score,
    StrategySpec,
    TeacherPlan,
    Verdict,
)

ARMS = ("no_kd", "vanilla_kd", "minilm", "tinybert")
WITH_HEAD = ("no_kd", "vanilla_kd")
BUDGETS = (1e12, 2e12, 4e12)
SEEDS = (0, 1)
PROBES = {"replaced": "matthews", "belongs": "accuracy"}
BATCH_TOKENS = 2048
TARGET_FRACTION = 10 / 64

ENVIRONMENT = Environment(
    device="cpu", device_name="synthetic processor", threads=2, python="3.11.2", torch="2.13.0",
    transformers="5.23.0", budgetlab="0.1.0",
)  # fmt: skip

# Required FLOPs a token, and milliseconds a step: teacher forward, student forward, loss, backward, update.
_FLOPS = {
    "no_kd": (0.0, 1.17e6, 0.0, 2.34e6, 0.0),
    "vanilla_kd": (7.22e6, 1.17e6, 0.0, 2.34e6, 0.0),
    "minilm": (6.55e6, 0.75e6, 0.21e6, 1.92e6, 0.0),
    "tinybert": (6.55e6, 0.85e6, 0.26e6, 2.31e6, 0.0),
}
_MILLISECONDS = {
    "no_kd": (0.0, 10.4, 1.9, 19.8, 2.6),
    "vanilla_kd": (36.1, 10.6, 8.7, 21.0, 2.6),
    "minilm": (31.8, 8.2, 3.1, 15.9, 2.5),
    "tinybert": (35.2, 12.4, 2.2, 24.8, 2.7),
}
_PHASES = ("teacher_forward", "student_forward", "loss", "backward", "update")
# Losses and scores at the three budgets, before the noise of a seed.
_READOUT = {"no_kd": (5.72, 5.44, 5.18), "vanilla_kd": (5.83, 5.57, 5.29), "minilm": (5.80, 5.50, 5.20),
            "tinybert": (5.88, 5.66, 5.41)}  # fmt: skip
_MLM = {"no_kd": (5.83, 5.52, 5.22), "vanilla_kd": (5.95, 5.66, 5.35)}
_REPLACED = {"no_kd": (0.12, 0.19, 0.27), "vanilla_kd": (0.10, 0.16, 0.25), "minilm": (0.14, 0.22, 0.29),
             "tinybert": (0.09, 0.15, 0.21)}  # fmt: skip
_BELONGS = {"no_kd": (0.58, 0.61, 0.655), "vanilla_kd": (0.565, 0.60, 0.64), "minilm": (0.585, 0.625, 0.66),
            "tinybert": (0.56, 0.58, 0.61)}  # fmt: skip


def cost(arm: str, *, timed: bool = True) -> ArmCost:
    flops, milliseconds = _FLOPS[arm], _MILLISECONDS[arm]
    head = 0.319e6 * 3 if arm in WITH_HEAD else 0.0
    total, seconds = sum(flops), sum(milliseconds) / 1e3
    return ArmCost(
        arm=arm, batch_tokens=BATCH_TOKENS, target_fraction=TARGET_FRACTION,
        train_required_flops_per_token=total, train_executed_flops_per_token=total,
        required_flops_per_position=total - head, required_flops_per_target_token=head / TARGET_FRACTION,
        executed_flops_per_position=total - head, executed_flops_per_target_token=head / TARGET_FRACTION,
        phases={
            name: PhaseCost(required_flops_per_token=f, executed_flops_per_token=f,
                            seconds_per_step=ms / 1e3 if timed else None)
            for name, f, ms in zip(_PHASES, flops, milliseconds, strict=True)
        },
        seconds_per_step=seconds if timed else None,
        seconds_per_step_interval=(seconds * 0.97, seconds * 1.04) if timed else None,
        tokens_per_second=BATCH_TOKENS / seconds if timed else None, steps_timed=40 if timed else 0,
        peak_memory_bytes=612_000_000 if timed else None, num_params_total=1_470_000,
        num_params_non_embedding=397_000, dtype="float32", attention="sdpa",
    )  # fmt: skip


def teacher_cost() -> ArmCost:
    return cost("no_kd").model_copy(update={
        "arm": "teacher", "train_required_flops_per_token": 21.7e6, "train_executed_flops_per_token": 21.7e6,
        "seconds_per_step": 0.142, "seconds_per_step_interval": (0.139, 0.147),
        "tokens_per_second": BATCH_TOKENS / 0.142,
    })  # fmt: skip


def profile(*, timed: bool = True) -> CostProfile:
    return CostProfile(
        study="synthetic",
        arms=tuple(cost(arm, timed=timed) for arm in ARMS),
        teachers=(teacher_cost(),),
        conventions={
            "flop": "two per multiply-add",
            "required": "each matmul of the lean step once; trained parts three times, frozen parts once",
            "tokens": "positions fed to the student, without padding",
        },
        environment=ENVIRONMENT,
    )


def _schedule(arm: str, rung: int) -> Schedule:
    price = cost(arm)
    budget = BUDGETS[rung]
    steps = int(budget / (price.train_required_flops_per_token * BATCH_TOKENS))
    tokens = steps * BATCH_TOKENS
    spent = tokens * price.train_required_flops_per_token
    seconds = steps * (price.seconds_per_step or 0.0)
    return Schedule(
        arm=arm, budget=Budget(amount=budget, unit="required_flops"), rung=rung, tokens=tokens,
        target_tokens=round(tokens * TARGET_FRACTION), steps=steps, passes=tokens / 3.9e6, unique_tokens=3_900_000,
        warmup_steps=round(0.06 * steps), cooldown_steps=round(0.2 * steps), required_flops=spent,
        executed_flops=spent, device_seconds=seconds, device_seconds_interval=(0.97 * seconds, 1.04 * seconds),
        unspent_fraction=1 - spent / budget,
    )  # fmt: skip


def plan(*, infeasible: str | None = None) -> Plan:
    schedules = [_schedule(arm, rung) for rung in range(len(BUDGETS)) for arm in ARMS]
    if infeasible is not None:
        schedules = [
            s.model_copy(update={
                "feasible": False, "reason": "one step costs 1.3 TFLOP; the smallest feasible budget is 1.3 TFLOP",
                "tokens": 0, "target_tokens": 0, "steps": 0, "required_flops": 0.0, "executed_flops": 0.0,
                "device_seconds": None, "device_seconds_interval": None, "unspent_fraction": 1.0,
            }) if s.arm == infeasible and s.rung == 0 else s
            for s in schedules
        ]  # fmt: skip
    student = ModelSpec(num_layers=2, hidden_size=128, num_heads=4, intermediate_size=512, vocab_size=8192)
    teacher = ModelSpec(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024, vocab_size=8192,
                        pretrain=Pretrain(tokens=2_252_800))  # fmt: skip
    return Plan(
        study="synthetic", match="required_flops", charge="inference", tolerance_fraction=0.01, ladder="branched",
        seeds=SEEDS, models={"student": student, "teacher": teacher},
        arms={
            arm: Arm(name=arm, strategy=StrategySpec(name=arm), student="student",
                     teacher=None if arm == "no_kd" else "teacher", recipe=Recipe())
            for arm in ARMS
        },
        costs={arm: cost(arm) for arm in ARMS} | {"teacher": teacher_cost()}, schedules=tuple(schedules),
        teachers=(TeacherPlan(model="teacher", tokens=2_252_800, steps=1100, warmup_steps=66, cooldown_steps=220,
                              required_flops=48.9e12, device_seconds=156.2),),
        corpus=CorpusSpec(), recipe=Recipe(), execution=ExecutionSpec(),
        audit=(
            "strategy: no_kd, vanilla_kd, minilm, tinybert",
            "MLM head trained: no_kd, vanilla_kd yes; minilm, tinybert no",
            "last block: minilm trains its queries, keys and values only",
        ),
    )  # fmt: skip


def _record(schedule: Schedule, seed: int) -> RunRecord:
    return RunRecord(
        run_id=f"{schedule.arm}-b{schedule.rung}-s{seed}", key=f"{schedule.arm}{schedule.rung}{seed}", kind="rung",
        arm=schedule.arm, student="student", schedule=schedule, run_seed=seed,
        teacher_seed=None if schedule.arm == "no_kd" else 0, status="complete", steps=schedule.steps,
        tokens=schedule.tokens, target_tokens=schedule.target_tokens,
        required_flops=schedule.required_flops * 0.9994, executed_flops=schedule.executed_flops * 0.9994,
        device_seconds=(schedule.device_seconds or 0.0) * (1.031 + 0.012 * seed), environment=ENVIRONMENT,
    )  # fmt: skip


def teacher_record() -> RunRecord:
    return RunRecord(
        run_id="teacher-s0", key="teacher", kind="teacher", arm="teacher", student="teacher", run_seed=0,
        status="complete", steps=1100, tokens=2_252_800, target_tokens=352_000, required_flops=48.87e12,
        executed_flops=48.87e12, device_seconds=161.9, environment=ENVIRONMENT,
    )  # fmt: skip


def records() -> list[RunRecord]:
    return [teacher_record(), *(_record(s, seed) for s in plan().schedules for seed in SEEDS)]


def scores() -> list[Score]:
    noise = random.Random(7)
    found = []
    for record in records()[1:]:
        schedule = record.schedule
        assert schedule is not None
        rung, arm = schedule.rung, record.arm
        shared = {
            "run_id": record.run_id, "arm": arm, "rung": rung, "budget": schedule.budget,
            "run_seed": record.run_seed, "teacher_seed": record.teacher_seed, "steps": record.steps,
            "tokens": record.tokens, "target_tokens": record.target_tokens,
            "required_flops": record.required_flops, "executed_flops": record.executed_flops,
            "device_seconds": record.device_seconds, "recipe_hash": "0123456789abcdef",
        }  # fmt: skip
        found.append(_loss("readout_loss", _READOUT[arm][rung] + noise.gauss(0, 0.025), **shared))
        if arm in WITH_HEAD:
            found.append(_loss("mlm_loss", _MLM[arm][rung] + noise.gauss(0, 0.02), **shared))
        for task, value in (("replaced", _REPLACED[arm][rung]), ("belongs", _BELONGS[arm][rung])):
            of_run = noise.gauss(0, 0.010)
            for finetune_seed in (0, 1):
                found.append(_probe(task, value + of_run + noise.gauss(0, 0.004), finetune_seed, **shared))
    return found + yardsticks()


def yardsticks() -> list[Score]:
    teacher = {"run_id": "teacher-s0", "subject": "teacher", "arm": "teacher", "run_seed": 0, "tokens": 2_252_800,
               "steps": 1100, "required_flops": 48.87e12, "recipe_hash": "0123456789abcdef"}  # fmt: skip
    weights = {
        "run_id": "random-s0",
        "subject": "random",
        "arm": "student",
        "run_seed": 0,
        "recipe_hash": "0123456789abcdef",
    }
    majority = {"run_id": "majority", "subject": "majority", "arm": "majority", "recipe_hash": "0123456789abcdef"}
    unigram = {"run_id": "unigram", "subject": "unigram", "arm": "unigram", "recipe_hash": "0123456789abcdef"}
    return [
        _loss("readout_loss", 4.71, **teacher), _loss("mlm_loss", 4.61, **teacher),
        _probe("replaced", 0.431, 0, **teacher), _probe("belongs", 0.742, 0, **teacher),
        _loss("readout_loss", 5.99, **weights), _probe("replaced", 0.012, 0, **weights),
        _probe("belongs", 0.514, 0, **weights), _probe("replaced", 0.0, None, **majority),
        _probe("belongs", 0.5, None, **majority), _loss("mlm_loss", 6.03, **unigram),
    ]  # fmt: skip


def _loss(task: str, value: float, **shared) -> Score:
    return Score(task=task, metric="cross_entropy_nats", value=value, higher_is_better=False, num_examples=20_000,
                 **shared)  # fmt: skip


def _probe(task: str, value: float, finetune_seed: int | None, **shared) -> Score:
    return Score(task=task, metric=PROBES[task], value=value, higher_is_better=True, num_examples=1000,
                 train_examples=4000, finetune_seed=finetune_seed, **shared)  # fmt: skip


def verdicts() -> list[Verdict]:
    rows = (
        ("vanilla_kd", "readout_loss", -0.105, 0.062, "b_better", True),
        ("minilm", "readout_loss", -0.052, 0.062, "not_resolved", True),
        ("tinybert", "readout_loss", -0.203, 0.062, "b_better", True),
        ("vanilla_kd", "score", -2.3, 3.1, "not_resolved", False),
        ("minilm", "score", 0.8, 3.1, "not_resolved", False),
        ("tinybert", "score", -5.6, 3.1, "b_better", False),
    )
    words = {"not_resolved": "is not resolved from", "b_better": "is worse than"}
    return [
        Verdict(
            contrast=(arm, "no_kd"), at=Budget(amount=BUDGETS[-1], unit="required_flops"), y=y,
            unit="points" if y == "score" else "nats", difference=difference,
            interval=(difference - half, difference + half), verdict=verdict,
            minimum_detectable_difference=1.4 * half, margin=0.5 if y == "score" else 0.01, num_pairs=2,
            primary=primary, p_value=0.01, adjusted_p_value=None if primary else 0.03, one_teacher=True,
            sentence=f"At 4.00 TFLOP, {arm} {words[verdict]} no_kd on {y}: {difference:+.3g}, for this teacher.",
        )
        for arm, y, difference, half, verdict, primary in rows
    ]  # fmt: skip


def fits() -> list[CurveFit]:
    return [
        CurveFit(
            arm=arm, law="power", params={}, objective=None, objective_name="huber_log", status="not_identified",
            status_text="three budgets cannot identify a floor; no curve is given", num_points=6,
            x_range=(BUDGETS[0], BUDGETS[-1]), columns={"x": "required_flops", "y": "readout_loss"},
        )
        for arm in ARMS
    ]  # fmt: skip
