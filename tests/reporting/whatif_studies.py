"""Studies for the what-if planner: those whose results are committed, and made-up ones for what those do not have."""

from __future__ import annotations

from pathlib import Path

from small import ENVIRONMENT, write_small_study

from budgetlab.planner import plan
from budgetlab.store import read_value
from budgetlab.studies import Study, load_study
from budgetlab.values import ArmCost, CostProfile, ExecutionSpec, PhaseCost, Plan, TuningSpec

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = ("wikipedia_small", "wikipedia_small_limited", "teacher_top_k", "linear_vs_branched")
MADE_UP = ("several_devices", "counted_only", "kept_answers")


def study_of(name: str, folder: Path) -> tuple[Study, CostProfile, Plan]:
    """Return a study, its prices and its plan, which no rest of a budget has refused."""
    if name in COMMITTED:
        study = load_study(RESULTS / name / "study.toml")
        return (
            study,
            read_value(CostProfile, RESULTS / name / "profile.json"),
            read_value(Plan, RESULTS / name / "plan.json"),
        )
    folder.mkdir()
    # 37 steps: a number that is no power of two, so that the order of its products is seen in the last digit.
    text = write_small_study(folder).read_text(encoding="utf-8").replace("tokens = 4096", "tokens = 4700")
    (folder / "study.toml").write_text(text, encoding="utf-8")
    study, profile = {
        "several_devices": _several_devices,
        "counted_only": _counted_only,
        "kept_answers": _kept_answers,
    }[name](load_study(folder / "study.toml"))
    return study, profile, plan(study, profile)


def _several_devices(study: Study) -> tuple[Study, CostProfile]:
    """Four devices that lose time to each other, energy and money priced, learning rates tried and charged.

    A quarter of the steps is cooldown: every fourth number of steps has a half to round.
    """
    recipe = study.recipe.model_copy(update={"cooldown_fraction": 0.25})
    arms = {name: arm.model_copy(update={"recipe": recipe}) for name, arm in study.arms.items()}
    study = study.model_copy(update={"recipe": recipe, "arms": arms})
    execution = ExecutionSpec(device="cpu", devices=4, scaling_efficiency=0.83, usd_per_device_hour=2.57)
    tuning = TuningSpec(learning_rate=(1e-3, 2e-3), charge=True)
    free = study.plan.model_copy(update={"tolerance_fraction": 0.5})
    return study.model_copy(update={"execution": execution, "tuning": tuning, "plan": free}), _profile(
        study, joules=0.037
    )


def _counted_only(study: Study) -> tuple[Study, CostProfile]:
    """No step was timed; the teacher was given, its cost is stated in FLOPs; a warm-up in tokens, trials at a share."""
    given = study.models["teacher"].model_copy(
        update={"pretrain": None, "weights": "teacher", "pretrained_for": "2.1e9 flops"}
    )
    recipe = study.recipe.model_copy(update={"warmup_tokens": 4000})
    arms = {name: arm.model_copy(update={"recipe": recipe}) for name, arm in study.arms.items()}
    tuning = TuningSpec(learning_rate=(1e-3, 2e-3), seeds=(0, 1), budget_share=0.1, charge=True)
    update = {"models": study.models | {"teacher": given}, "recipe": recipe, "arms": arms, "tuning": tuning,
              "plan": study.plan.model_copy(update={"tolerance_fraction": 0.5})}  # fmt: skip
    known = study.model_copy(update=update)
    return known, _profile(study, seconds=None, teacher_priced=False)


def _kept_answers(study: Study) -> tuple[Study, CostProfile]:
    """A teacher whose answers are kept, text that is read again, and a schedule without a cooldown."""
    recipe = study.recipe.model_copy(update={"schedule": "linear", "warmup_fraction": 0.11})
    arms = {name: arm.model_copy(update={"recipe": recipe}) for name, arm in study.arms.items()}
    strategy = arms["vanilla_kd"].strategy.model_copy(update={"cached": True, "top_k": 8})
    arms["vanilla_kd"] = arms["vanilla_kd"].model_copy(update={"strategy": strategy})
    corpus = study.corpus.model_copy(update={"masking": "static", "unique_tokens": 5003})
    separate = study.plan.model_copy(update={"ladder": "separate"})
    return (
        study.model_copy(update={"recipe": recipe, "arms": arms, "corpus": corpus, "plan": separate}),
        _profile(study, seconds=0.417),
    )


def _profile(
    study: Study, *, seconds: float | None = 0.5, joules: float | None = None, teacher_priced: bool = True
) -> CostProfile:
    prices = {"no_kd": (0.0, 301.7), "vanilla_kd": (181.3, 300.1), "minilm": (150.9, 249.3), "tinybert": (170.0, 270.7)}
    return CostProfile(
        study=study.name,
        arms=tuple(_cost(name, *prices[name], seconds, joules) for name in study.arms),
        teachers=(_cost("teacher", 0.0, 600.1, seconds, joules),) if teacher_priced else (),
        conventions={},
        environment=ENVIRONMENT,
    )


def _cost(arm: str, teacher: float, student: float, seconds: float | None, joules: float | None) -> ArmCost:
    total, timed = teacher + student, None if seconds is None else seconds * (teacher + student) / 500
    # Of minilm the whole step was timed, its phases were not.
    by_phase = None if timed is None or arm == "minilm" else timed
    phases = {
        name: PhaseCost(
            required_flops_per_token=flops, executed_flops_per_token=1.3 * flops,
            seconds_per_step=None if by_phase is None else by_phase * flops / total,
        )
        for name, flops in (("teacher_forward", teacher), ("student_forward", student))
    }  # fmt: skip
    return ArmCost(
        arm=arm, batch_tokens=128, target_fraction=0.125,
        train_required_flops_per_token=total, train_executed_flops_per_token=1.3 * total,
        required_flops_per_position=total - 40.0, required_flops_per_target_token=320.0,
        executed_flops_per_position=1.3 * total, executed_flops_per_target_token=0.0, phases=phases,
        seconds_per_step=timed, seconds_per_step_interval=None if timed is None else (0.9 * timed, 1.2 * timed),
        joules_per_token=joules, num_params_total=1, num_params_non_embedding=1, dtype="float32", attention="sdpa",
    )  # fmt: skip
