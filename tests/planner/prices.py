"""Made prices for the tests of the planner: FLOPs a token, half a second a step."""

from __future__ import annotations

from small import ENVIRONMENT

from budgetlab.studies import Study
from budgetlab.values import ArmCost, CostProfile, PhaseCost


def cost(arm: str, teacher: float, student: float, seconds: float | None = 0.5, batch_tokens: int = 128) -> ArmCost:
    phases = {
        "teacher_forward": PhaseCost(
            required_flops_per_token=teacher, executed_flops_per_token=2 * teacher,
            seconds_per_step=None if seconds is None else 0.4 * seconds,
        ),
        "student_forward": PhaseCost(
            required_flops_per_token=student, executed_flops_per_token=2 * student,
            seconds_per_step=None if seconds is None else 0.6 * seconds,
        ),
    }  # fmt: skip
    total = teacher + student
    return ArmCost(
        arm=arm, batch_tokens=batch_tokens, target_fraction=0.125,
        train_required_flops_per_token=total, train_executed_flops_per_token=2 * total,
        required_flops_per_position=total, required_flops_per_target_token=0.0,
        executed_flops_per_position=2 * total, executed_flops_per_target_token=0.0, phases=phases,
        seconds_per_step=seconds, seconds_per_step_interval=None if seconds is None else (0.9 * seconds, 1.2 * seconds),
        num_params_total=1, num_params_non_embedding=1, dtype="float32", attention="sdpa",
    )  # fmt: skip


def profile_of(study: Study, seconds: float | None = 0.5) -> CostProfile:
    prices = {"no_kd": (0.0, 300.0), "vanilla_kd": (180.0, 300.0), "minilm": (150.0, 250.0), "tinybert": (170.0, 270.0)}
    arms = tuple(cost(name, *prices[name], seconds) for name in study.arms)
    return CostProfile(
        study=study.name,
        arms=arms,
        teachers=(cost("teacher", 0.0, 600.0, seconds),),
        conventions={},
        environment=ENVIRONMENT,
    )
