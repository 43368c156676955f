"""Plans never exceed their budget, and follow from prices alone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import write_small_study

from budgetlab.errors import CallerError
from budgetlab.planner import MATCHES, plan, price_per_step, sensitivity
from budgetlab.studies import Study, load_study
from budgetlab.values import ArmCost, CostProfile, Environment, PhaseCost

ENVIRONMENT = Environment(
    device="cpu", device_name="made up", threads=1, python="3", torch="2", transformers="5", budgetlab="0"
)


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


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(write_small_study(tmp_path_factory.mktemp("study")))


@given(amount=st.floats(1e7, 1e13), match=st.sampled_from(["required_flops", "executed_flops", "device_seconds"]))
def test_never_over_budget_and_within_one_step(study: Study, amount: float, match: str) -> None:
    made = plan(study, profile_of(study), budgets=(amount,), match=match)
    for schedule in made.schedules:
        price = price_per_step(made.costs[schedule.arm], MATCHES[match])
        assert schedule.steps * price <= amount * (1 + 1e-12)
        assert schedule.tokens == schedule.steps * 128
        if schedule.feasible:
            assert (schedule.steps + 1) * price > amount * (1 - 1e-12)
            assert schedule.unspent_fraction == pytest.approx(1 - schedule.steps * price / amount, abs=1e-9)
            assert schedule.warmup_steps + schedule.cooldown_steps <= schedule.steps


@given(amount=st.floats(1e8, 1e12), factor=st.integers(2, 50))
def test_more_budget_more_tokens(study: Study, amount: float, factor: int) -> None:
    small, large = plan(study, profile_of(study), budgets=(amount, amount * factor)).schedules[::4]
    assert factor * small.tokens <= large.tokens <= factor * (small.tokens + 128)


def test_order_of_arms_does_not_matter(study: Study) -> None:
    turned = study.model_copy(update={"arms": dict(reversed(study.arms.items()))})
    one, other = plan(study, profile_of(study)), plan(turned, profile_of(turned))
    key = lambda schedule: (schedule.arm, schedule.rung)  # noqa: E731
    assert sorted(one.schedules, key=key) == sorted(other.schedules, key=key)


def test_saved_plan_is_the_same_plan(study: Study) -> None:
    made = plan(study, profile_of(study))
    assert type(made).model_validate_json(made.model_dump_json()) == made


def test_tokens_of_an_arm(study: Study) -> None:
    made = plan(study, profile_of(study), match="tokens:no_kd", budgets=("128000 tokens",))
    tokens = {schedule.arm: schedule.tokens for schedule in made.schedules}
    assert tokens["no_kd"] == 128_000
    assert tokens["vanilla_kd"] == int(128_000 * 300 / 480 / 128) * 128
    assert {s.budget.unit for s in made.schedules} == {"required_flops"}


def test_equal_tokens(study: Study) -> None:
    made = plan(study, profile_of(study), match="equal_tokens", budgets=("12800 tokens",))
    assert {schedule.tokens for schedule in made.schedules} == {12_800}


def test_hours_are_wall_time_on_all_devices(study: Study) -> None:
    two = study.model_copy(update={"execution": study.execution.model_copy(update={"devices": 2})})
    wall = plan(two, profile_of(two), match="device_seconds", budgets=("1 h",))
    device = plan(two, profile_of(two), match="device_seconds", budgets=("2 gpu-hours",))
    assert [s.steps for s in wall.schedules] == [s.steps for s in device.schedules] == [14_400] * 4
    lossy = two.model_copy(update={"execution": two.execution.model_copy(update={"scaling_efficiency": 0.5})})
    halved = plan(lossy, profile_of(two), match="device_seconds", budgets=("1 h",))
    assert [s.steps for s in halved.schedules] == [7_200] * 4


def test_the_teacher_is_charged_as_asked(study: Study) -> None:
    profile = profile_of(study)
    steps = {
        charge: {s.arm: s.steps for s in plan(study, profile, budgets=("1e9 flops",), teacher_charge=charge).schedules}
        for charge in ("none", "inference", "pretraining", "amortised:4")
    }
    assert len({found["no_kd"] for found in steps.values()}) == 1
    per_step, teacher = 480 * 128, 600 * 4096
    assert steps["none"]["vanilla_kd"] == int(1e9 // (300 * 128))
    assert steps["inference"]["vanilla_kd"] == int(1e9 // per_step)
    assert steps["pretraining"]["vanilla_kd"] == int((1e9 - teacher) // per_step)
    assert steps["amortised:4"]["vanilla_kd"] == int((1e9 - teacher / 4) // per_step)


def test_an_infeasible_arm_says_the_smallest_budget_and_others_go_on(study: Study) -> None:
    made = plan(study, profile_of(study), budgets=("2.2e6 flops",), teacher_charge="pretraining")
    by_arm = {schedule.arm: schedule for schedule in made.schedules}
    assert by_arm["no_kd"].feasible and not by_arm["vanilla_kd"].feasible
    assert "smallest feasible budget is" in (by_arm["vanilla_kd"].reason or "")
    enough = plan(study, profile_of(study), budgets=(600 * 4096 + 2.01 * 480 * 128,), teacher_charge="pretraining")
    assert {s.arm: s.feasible for s in enough.schedules}["vanilla_kd"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": ("10 flops",)}, "too small for one step of any arm"),
        ({"budgets": ("4 h",)}, "wall_seconds|device_seconds"),
        ({"budgets": ("1e9 joule",), "match": "joules"}, "no energy was measured"),
        ({"budgets": ("5 usd",), "match": "usd"}, "usd_per_device_hour"),
        ({"match": "flops"}, "no match of that name; did you mean"),
        ({"match": "tokens:nokd", "budgets": ("1M tokens",)}, "did you mean no_kd"),
        ({"teacher_charge": "amortised:0"}, "amortised:K"),
    ],
)
def test_impossible_requests(study: Study, changes: dict[str, object], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        plan(study, profile_of(study), **changes)  # type: ignore[arg-type]


def test_a_counted_profile_cannot_match_seconds(study: Study) -> None:
    with pytest.raises(CallerError, match="counted, not timed"):
        plan(study, profile_of(study, seconds=None), match="device_seconds", budgets=("1 h",))


def test_sensitivity_keeps_the_first_arm(study: Study) -> None:
    table = sensitivity(study, profile_of(study))
    assert set(table[table.arm == "no_kd"].ratio) == {1.0}
    equal = table[(table.match == "equal_tokens")]
    assert (equal.ratio == 1.0).all()


def test_branched_needs_a_schedule_that_can_be_cut(tmp_path: Path) -> None:
    path = write_small_study(tmp_path)
    path.write_text(path.read_text().replace("seq_len = 16", 'schedule = "cosine"\nseq_len = 16'))
    found = load_study(path)
    with pytest.raises(CallerError, match='use schedule = "wsd"'):
        plan(found, profile_of(found))
