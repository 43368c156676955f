"""Plans never exceed their budget, and follow from prices alone."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prices import profile_of
from small import write_small_study

from budgetlab.errors import CallerError
from budgetlab.planner import (
    MATCHES,
    all_in,
    audit,
    cached_teacher,
    checked,
    compute_statement,
    definition_notes,
    effective_tokens,
    latex_table,
    methods_paragraph,
    plan,
    sensitivity,
    step_price,
    training_arguments,
    what_if,
    with_throughput,
    written_text,
)
from budgetlab.profiler import profile
from budgetlab.store import read_value
from budgetlab.studies import Study, load_study
from budgetlab.units import format_amount
from budgetlab.values import CostProfile, Plan, StrategySpec
from budgetlab.values.model_specs import Pretrain
from budgetlab.values.specs import TeacherLayers

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(write_small_study(tmp_path_factory.mktemp("study")))


@given(amount=st.floats(1e7, 1e13), match=st.sampled_from(["required_flops", "executed_flops", "device_seconds"]))
def test_never_over_budget_and_within_one_step(study: Study, amount: float, match: str) -> None:
    made = plan(study, profile_of(study), budgets=(f"{amount!r} {match}",), match=match)
    for schedule in made.schedules:
        price = step_price(study.execution, made.costs[schedule.arm], MATCHES[match])
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


def test_money_is_hours_times_their_price(study: Study) -> None:
    priced = study.model_copy(update={"execution": study.execution.model_copy(update={"usd_per_device_hour": 2.5})})
    made = plan(priced, profile_of(priced), match="usd", budgets=("5 usd",))
    assert [schedule.steps for schedule in made.schedules] == [2 * 3600 * 2] * 4  # two hours of half a second a step


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


@given(amount=st.floats(1e8, 1e12), dearer=st.floats(1.0, 20.0))
def test_a_dearer_teacher_never_gives_more_tokens(study: Study, amount: float, dearer: float) -> None:
    def tokens(factor: float, charge: str) -> dict[str, int]:
        profile = profile_of(study)
        arms = []
        for price in profile.arms:
            teacher, rest = price.phases["teacher_forward"], price.train_required_flops_per_token
            added = (factor - 1) * teacher.required_flops_per_token
            phase = teacher.model_copy(update={"required_flops_per_token": factor * teacher.required_flops_per_token})
            arms.append(price.model_copy(update={
                "phases": {**price.phases, "teacher_forward": phase},
                "train_required_flops_per_token": rest + added,
            }))  # fmt: skip
        teachers = tuple(
            t.model_copy(update={"train_required_flops_per_token": factor * t.train_required_flops_per_token})
            for t in profile.teachers
        )
        changed = profile.model_copy(update={"arms": tuple(arms), "teachers": teachers})
        return {s.arm: s.tokens for s in plan(study, changed, budgets=(amount,), teacher_charge=charge).schedules}

    for charge in ("inference", "pretraining"):
        cheap, dear = tokens(1.0, charge), tokens(dearer, charge)
        assert all(dear[arm] <= cheap[arm] for arm in cheap) and dear["no_kd"] == cheap["no_kd"]
    none, inference, pretraining = (tokens(dearer, charge) for charge in ("none", "inference", "pretraining"))
    assert all(none[arm] >= inference[arm] >= pretraining[arm] for arm in none)


@given(amount=st.floats(1e8, 1e12))
def test_conversions_come_back_within_a_step(study: Study, amount: float) -> None:
    profile = profile_of(study)
    made = {s.arm: s for s in plan(study, profile, budgets=(amount,)).schedules}
    for arm, schedule in made.items():
        by_tokens = plan(study, profile, match=f"tokens:{arm}", budgets=(f"{schedule.tokens} tokens",))
        for back in by_tokens.schedules:
            assert abs(back.steps - made[back.arm].steps) <= 1 + made[back.arm].steps / schedule.steps
        assert next(s for s in by_tokens.schedules if s.arm == arm).steps == schedule.steps
        seconds = plan(study, profile, match="device_seconds", budgets=(f"{schedule.device_seconds} s",))
        assert next(s for s in seconds.schedules if s.arm == arm).steps in (schedule.steps - 1, schedule.steps)


@pytest.mark.parametrize("ladder", ["branched", "separate"])
def test_a_larger_budget_is_feasible_where_the_smallest_is_not(study: Study, ladder: str) -> None:
    """The teacher's pretraining alone exceeds the smallest budget: the arm begins at the next one."""
    own = {  # their own warm-up: a shared one would follow no_kd's smallest budget
        name: arm.model_copy(update={"recipe": arm.recipe.model_copy(update={"warmup_fraction": 0.06})})
        for name, arm in study.arms.items()
    }
    laddered = study.model_copy(update={"arms": own, "plan": study.plan.model_copy(update={"ladder": ladder})})
    both = plan(laddered, profile_of(study), budgets=("2.2e6", "1e9"), teacher_charge="pretraining")
    alone = plan(laddered, profile_of(study), budgets=("1e9",), teacher_charge="pretraining")
    found = {(s.arm, s.rung): s for s in both.schedules}
    for schedule in alone.schedules:
        if schedule.arm != "no_kd":
            assert not found[schedule.arm, 0].feasible
            after = found[schedule.arm, 1]
            assert (after.steps, after.warmup_steps) == (schedule.steps, schedule.warmup_steps)


@pytest.mark.parametrize("ladder", ["branched", "separate"])
@given(warmup=st.floats(0, 0.6), cooldown=st.floats(0, 0.4), share=st.floats(0.2, 0.999))
def test_the_smallest_feasible_budget_is_feasible(
    study: Study, ladder: str, warmup: float, cooldown: float, share: float
) -> None:
    recipe = study.arms["minilm"].recipe.model_copy(update={"warmup_fraction": warmup, "cooldown_fraction": cooldown})
    arm = study.arms["minilm"].model_copy(update={"recipe": recipe})
    alone = study.model_copy(
        update={
            "arms": {"no_kd": study.arms["no_kd"], "minilm": arm},
            "plan": study.plan.model_copy(update={"ladder": ladder, "tolerance_fraction": 0.999}),
        }
    )
    made = plan(alone, profile_of(study), budgets=(share * 600 * 4096,), teacher_charge="pretraining")
    reason = next(s.reason for s in made.schedules if s.arm == "minilm") or ""
    least, unit = re.search(r"smallest feasible budget is ([\d.]+) (M)FLOP", reason).groups()  # type: ignore[union-attr]
    rounded = float(least) * 1e6 * 1.005  # printed to three digits
    enough = plan(alone, profile_of(study), budgets=(rounded,), teacher_charge="pretraining")
    assert next(s.feasible for s in enough.schedules if s.arm == "minilm"), (reason, unit)


def test_several_devices_pay_for_what_they_lose_everywhere(study: Study) -> None:
    execution = study.execution.model_copy(update={"devices": 8, "scaling_efficiency": 0.5, "usd_per_device_hour": 2.0})
    eight = study.model_copy(update={"execution": execution})
    made = plan(eight, profile_of(study), match="device_seconds", budgets=("1 h",))
    for schedule in made.schedules:
        assert schedule.device_seconds == pytest.approx(8 * 3600, rel=1e-3)
    table = sensitivity(eight, profile_of(study))
    assert set(table.loc[table["arm"] == "no_kd", "ratio"]) == {1.0}
    assert {"device_seconds", "usd"} <= set(table["match"])
    # All eight together give 1,000 tokens a second: an hour of all is 3.6 million tokens.
    rates = pd.DataFrame({"arm": list(study.arms), "tokens_per_second": 1000.0})
    timed = with_throughput(profile_of(study, None), rates, "t.csv", execution)
    hour = plan(eight, timed, match="device_seconds", budgets=("1 h",))
    assert {s.tokens for s in hour.schedules} == {3_600_000 // 128 * 128}
    assert training_arguments(hour, "minilm")["per_device_train_batch_size"] == 1
    nine = plan(eight.model_copy(update={"execution": execution.model_copy(update={"devices": 9})}), profile_of(study))
    with pytest.raises(CallerError, match="not the same number on each"):
        training_arguments(nine, "minilm")


def test_the_energy_of_a_teacher_cannot_be_taken_out(study: Study) -> None:
    prices = profile_of(study)
    metered = prices.model_copy(
        update={"arms": tuple(cost.model_copy(update={"joules_per_token": 1e-3}) for cost in prices.arms)}
    )
    assert plan(study, metered, match="joules", budgets=("1 kJ",)).schedules[0].feasible
    with pytest.raises(CallerError, match="not measured by phase"):
        plan(study, metered, match="joules", budgets=("1 kJ",), teacher_charge="none")


def test_tokens_of_a_distilled_arm_under_any_charge(study: Study) -> None:
    for charge in ("none", "inference"):
        made = plan(study, profile_of(study), match="tokens:minilm", budgets=("1.28M tokens",), teacher_charge=charge)
        assert next(s.tokens for s in made.schedules if s.arm == "minilm") == 1_280_000


def test_sensitivity_when_arms_are_infeasible_or_unknown(study: Study) -> None:
    turned = study.model_copy(update={"arms": dict(reversed(study.arms.items()))})
    dear = turned.model_copy(
        update={"plan": turned.plan.model_copy(update={"teacher_charge": "pretraining", "budgets": ("2.2e6",)})}
    )
    table = sensitivity(dear, profile_of(study))
    assert set(table.loc[(table["arm"] == "no_kd") & table["ratio"].notna(), "ratio"]) == {1.0}
    given_weights = study.models["teacher"].model_copy(update={"pretrain": None, "weights": "given"})
    unknown = study.model_copy(update={"models": {**study.models, "teacher": given_weights}})
    rows = sensitivity(unknown, profile_of(study)).set_index(["match", "charge", "arm"])["ratio"]
    assert rows["required_flops", "pretraining", "no_kd"] == 1.0
    assert pd.isna(rows["required_flops", "pretraining", "minilm"])
    notes = definition_notes(sensitivity(unknown, profile_of(study)))
    assert all("infeasible or unknown under pretraining" in note for note in notes) and len(notes) == 3


def test_a_cache_below_one_pass_is_the_teacher_as_it_goes_along() -> None:
    row = {"budget": 1e9, "price_per_token": 300.0, "teacher_per_token": 180.0, "batch_tokens": 128.0}
    live, cached = (
        what_if(pd.DataFrame([{**row, "unique_tokens": 1e8, "cached_teacher": how}])).iloc[0] for how in (False, True)
    )
    assert cached["tokens"] == live["tokens"] > 0


def test_the_stated_cost_of_given_weights_is_charged(study: Study) -> None:
    def tokens(stated: str | None, **changes: object) -> int:
        given = study.models["teacher"].model_copy(
            update={"pretrain": None, "weights": "given", "pretrained_for": stated}
        )
        other = study.model_copy(update={"models": {**study.models, "teacher": given}})
        found = plan(other, profile_of(other), budgets=("1e9 flops",), teacher_charge="pretraining", **changes)  # type: ignore[arg-type]
        return next(s.tokens for s in found.schedules if s.arm == "vanilla_kd")

    price = 480 * 128
    assert tokens("4096 tokens") == int((1e9 - 600 * 4096) // price) * 128
    assert tokens("1e8 flops") == int((1e9 - 1e8) // price) * 128
    with pytest.raises(CallerError, match="is stated in joules, the budget is in required_flops"):
        tokens("5 kWh")
    with pytest.raises(CallerError, match="pretraining cost of 'teacher' is unknown"):
        tokens(None)


def test_starting_from_the_teacher_counts_as_a_use(study: Study) -> None:
    first = study.arms["no_kd"]
    recipe = first.recipe.model_copy(update={"initialisation": TeacherLayers(teacher_layers=(0, 2))})
    warm = first.model_copy(update={"teacher": "teacher", "recipe": recipe})
    other = study.model_copy(update={"arms": {**study.arms, "no_kd": warm}})
    found = plan(other, profile_of(other), budgets=("1e9 flops",), teacher_charge="pretraining").schedules[0]
    assert found.tokens == int((1e9 - 600 * 4096) // (300 * 128)) * 128


def test_whose_verdict_could_depend_on_the_definition(study: Study) -> None:
    notes = definition_notes(sensitivity(study, profile_of(study)))
    assert {note.split(":")[0] for note in notes} == {"vanilla_kd", "minilm", "tinybert"}
    assert all("could depend on the definition" in note for note in notes)


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
        ({"budgets": ("3e5 flops",)}, "more than plan.tolerance_fraction = 0.05"),
        ({"corpus_tokens": 1000}, "the corpus has 1,000"),
    ],
)
def test_impossible_requests(study: Study, changes: dict[str, object], message: str) -> None:
    limited = study.model_copy(update={"corpus": study.corpus.model_copy(update={"unique_tokens": 50_000})})
    with pytest.raises(CallerError, match=message):
        plan(limited, profile_of(study), **changes)  # type: ignore[arg-type]


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


def test_the_published_token_counts_from_the_recorded_profiles() -> None:
    def tokens(name: str, hours: float) -> list[float]:
        study = load_study(EXPERIMENTS / f"{name}.toml")
        recorded = read_value(CostProfile, EXPERIMENTS / f"{name}.profile.json")
        assert "derived, not measured" in recorded.conventions["seconds"]
        made = plan(study, recorded, match="device_seconds", budgets=(f"{hours} gpu-hours",))
        assert not made.warnings
        return [round(schedule.tokens / 1e9, 1) for schedule in made.schedules]

    # Bui et al. 2024 (arXiv 2404.19319); the hours are those of the released scripts.
    assert tokens("paper_6l", 4.0) == [4.6, 2.6, 2.6, 2.6]
    assert tokens("paper_12l", 11.3) == [4.6, 2.6, 2.6, 2.6]
    assert tokens("paper_6l_limited", 24.0) == [27.9, 15.4, 15.6, 15.6]
    # Circular within a row, so the 24 h row from the 4 h one alone: 1 % off.
    assert tokens("paper_6l", 24.0) == [27.6, 15.6, 15.6, 15.6]


def test_as_released_the_arms_differ_in_more_than_the_strategy() -> None:
    found = "\n".join(audit(load_study(EXPERIMENTS / "paper_6l_as_released.toml")))
    for said in ("family bert, no_kd has megatron-bert", "learning_rate 0.0005, no_kd has 0.001", "released_code"):
        assert said in found
    assert "strategy alone" not in found


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"arm": ["no_kd"]}, "no column tokens_per_second"),
        ({"arm": ["no_kd"], "tokens_per_second": [1.0]}, "no row for vanilla_kd, minilm, tinybert"),
        (
            {"arm": ["no_kd", "vanilla_kd", "minilm", "tinybert"], "tokens_per_second": [1.0, 0.0, 1.0, 1.0]},
            "no number above zero for vanilla_kd",
        ),
    ],
)
def test_a_throughput_that_cannot_stand_in(study: Study, table: dict[str, list], message: str) -> None:
    with pytest.raises(CallerError, match=message):
        with_throughput(profile_of(study, None), pd.DataFrame(table), "t.csv")


def test_a_throughput_has_no_phases_so_the_teacher_cannot_be_taken_out(study: Study) -> None:
    table = pd.DataFrame({"arm": list(study.arms), "tokens_per_second": 100.0, "low": 90.0, "high": 110.0})
    timed = with_throughput(profile_of(study, None), table, "t.csv")
    made = plan(study, timed, match="device_seconds", budgets=("1 h",))
    for schedule in made.schedules:
        low, high = schedule.tokens_interval
        assert 0.89 * schedule.tokens < low < schedule.tokens < high < 1.11 * schedule.tokens
    with pytest.raises(CallerError, match="not timed by phase"):
        plan(study, timed, match="device_seconds", budgets=("1 h",), teacher_charge="none")


@given(amount=st.floats(1e7, 1e13), charge=st.sampled_from(["none", "inference", "pretraining"]))
def test_what_if_is_the_planners_own_arithmetic(study: Study, amount: float, charge: str) -> None:
    made = plan(study, profile_of(study), match="required_flops", budgets=(amount,), teacher_charge=charge)
    rows = []
    for schedule in made.schedules:
        cost = made.costs[schedule.arm]
        teacher = cost.phases["teacher_forward"].required_flops_per_token
        has_teacher = study.arms[schedule.arm].teacher is not None
        rows.append({
            "budget": amount, "charge": charge, "batch_tokens": cost.batch_tokens, "teacher_per_token": teacher,
            "price_per_token": cost.train_required_flops_per_token - teacher,
            "teacher_pretraining": made.teachers[0].required_flops if has_teacher else 0.0,
        })  # fmt: skip
    found = what_if(pd.DataFrame(rows))
    for schedule, row in zip(made.schedules, found.to_dict("records"), strict=True):
        if schedule.feasible:
            assert row["tokens"] == pytest.approx(schedule.tokens, abs=schedule.tokens / max(1, schedule.steps))
            assert 0.0 <= row["unspent_fraction"] <= 1.0


@given(tokens=st.floats(1.0, 1e13), unique=st.floats(1.0, 1e12))
def test_repeated_text_is_worth_less_than_fresh_text(tokens: float, unique: float) -> None:
    worth = float(effective_tokens(tokens, unique))
    assert 0 < worth <= tokens * (1 + 1e-9)
    assert worth >= min(tokens, unique) * (1 - 1e-9)
    if tokens <= unique:
        assert worth == pytest.approx(tokens)


def test_effective_tokens_give_the_published_losses() -> None:
    # Muennighoff et al. 2023 (arXiv 2305.16264), "Parametric Fit" in huggingface/datablations.
    a, b, e, exponent, r_n = np.exp(6.255414), np.exp(7.3049974), np.exp(0.6254804), 0.3526596, 5.309743

    def loss(params: float, tokens: float, unique: float) -> float:
        g = (a / b) ** (1 / (2 * exponent))
        best = g * unique  # N_opt(U_D) with equal exponents: (D G)^(b/a) G is D G G
        kept = min(params, best * g)
        repeats = max(params / kept - 1, 0)
        worth = kept + kept * r_n * (1 - np.exp(-repeats / r_n))
        return e + a / worth**exponent + b / float(effective_tokens(tokens, unique)) ** exponent

    assert loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-6)
    assert loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-6)


def test_a_million_scenarios_are_planned_at_once() -> None:
    draw = np.random.default_rng(0)
    table = pd.DataFrame({
        "budget": draw.uniform(1e18, 1e20, 1_000_000), "price_per_token": 3e8, "teacher_per_token": 1.8e8,
        "teacher_pretraining": 1e19, "students_per_teacher": draw.integers(1, 50, 1_000_000).astype(float),
        "charge": draw.choice(["none", "inference", "pretraining"], 1_000_000), "batch_tokens": 131072.0,
        "unique_tokens": 2.6e9, "cached_teacher": draw.random(1_000_000) < 0.5,
    })  # fmt: skip
    found = what_if(table)
    assert len(found) == 1_000_000 and found["feasible"].any() and not found["feasible"].all()
    live, cached = (found[(found["charge"] == "inference") & (found["cached_teacher"] == is_)] for is_ in (False, True))
    assert cached["passes"].mean() > live["passes"].mean()
    for wrong, message in (
        ({"charge": "some"}, "unknown"),
        ({"price_per_token": 0.0}, "not above zero"),
        ({"unique_tokens": np.inf, "cached_teacher": True}, "give unique_tokens"),
    ):
        with pytest.raises(CallerError, match=message):
            what_if(table.head(3).assign(**wrong))
    with pytest.raises(CallerError, match="no column price_per_token"):
        what_if(table[["budget"]])


def test_all_in_is_what_pretraining_alone_would_get(study: Study) -> None:
    found = all_in(study, profile_of(study)).set_index(["arm", "rung"])
    made = plan(study, profile_of(study))
    teacher = made.teachers[0].required_flops
    for schedule in made.schedules:
        if schedule.arm == "no_kd":
            assert (schedule.arm, schedule.rung) not in found.index
            continue
        row = found.loc[(schedule.arm, schedule.rung)]
        assert row["all_in_flops"] == pytest.approx(schedule.required_flops + teacher)
        assert row["reference_tokens"] == int((schedule.required_flops + teacher) / 300.0)


def test_a_cached_teacher_pays_from_the_second_pass(study: Study) -> None:
    static = study.model_copy(
        update={"corpus": study.corpus.model_copy(update={"masking": "static", "unique_tokens": 100_000})}
    )
    prices = profile_of(static)
    few = cached_teacher(static, prices, top_k=8).set_index("arm")
    assert few.loc["vanilla_kd", "possible"] and not few.loc["minilm", "possible"]
    row = few.loc["vanilla_kd"]
    assert row["passes"] > 1 and row["tokens_cached"] > row["tokens_live"]
    assert row["bytes_per_token"] == pytest.approx(8 * 4 * 0.125)
    assert row["total_bytes"] == pytest.approx(row["bytes_per_token"] * 100_000) and not row["absurd"]
    dynamic = cached_teacher(study, profile_of(study)).set_index("arm")
    assert "dynamic" in dynamic.loc["vanilla_kd", "why_not"] and pd.isna(dynamic.loc["vanilla_kd", "tokens_cached"])


def kept(study: Study, unique_tokens: int | None = 100_000) -> Study:
    arm = study.arms["vanilla_kd"]
    arm = arm.model_copy(update={"strategy": StrategySpec(name="vanilla_kd", top_k=8, cached=True)})
    corpus = study.corpus.model_copy(update={"masking": "static", "unique_tokens": unique_tokens})
    return study.model_copy(update={"arms": {"no_kd": study.arms["no_kd"], "vanilla_kd": arm}, "corpus": corpus})


@given(
    amount=st.floats(1e7, 1e12),
    unit=st.sampled_from(["required_flops", "executed_flops", "device_seconds"]),
    charge=st.sampled_from(["none", "inference", "pretraining"]),
    unique=st.integers(16, 10_000_000),
)
def test_a_teacher_whose_answers_are_kept_is_paid_once_for_each_sample(
    study: Study, amount: float, unit: str, charge: str, unique: int
) -> None:
    asked = kept(study, unique)
    amount = amount * 1e-9 if unit == "device_seconds" else amount
    try:
        made = plan(asked, profile_of(asked), budgets=(f"{amount!r} {unit}",), match=unit, teacher_charge=charge)
    except CallerError as error:
        assert "too small for one step of any arm" in str(error) or "whole steps leave" in str(error)
        return
    schedule = next(s for s in made.schedules if s.arm == "vanilla_kd")
    if not schedule.feasible:
        return
    # 180 FLOPs a token of the teacher's and 300 of the student's, executed twice that; half a second, of it 0.2 s.
    teacher, student = {"required_flops": (180, 300), "executed_flops": (360, 600)}.get(unit, (0.2 / 128, 0.3 / 128))
    samples = unique // 16 * 16

    def price(steps: int) -> float:
        return (
            schedule.teacher_charge + 128 * steps * student + min(128 * steps, samples) * teacher * (charge != "none")
        )

    assert price(schedule.steps) <= amount * (1 + 1e-9) and price(schedule.steps + 1) > amount * (1 - 1e-9)
    assert schedule.unspent_fraction == pytest.approx(1 - price(schedule.steps) / amount, abs=1e-9)
    assert schedule.taught_tokens == min(schedule.tokens, samples)
    assert schedule.required_flops == pytest.approx(300 * schedule.tokens + 180 * schedule.taught_tokens)
    assert schedule.device_seconds == pytest.approx(0.3 * schedule.steps + 0.2 / 128 * schedule.taught_tokens)
    assert checked(made) == made


def test_the_forecast_of_a_cache_is_the_plan_with_one(study: Study) -> None:
    asked = kept(study)
    row = cached_teacher(asked, profile_of(asked)).set_index("arm").loc["vanilla_kd"]
    live, made = (
        max((s for s in p.schedules if s.arm == "vanilla_kd"), key=lambda s: s.rung).tokens
        for p in (plan(study, profile_of(study)), plan(asked, profile_of(asked)))
    )
    assert (row["tokens_live"], row["tokens_cached"]) == (live, pytest.approx(made, abs=128))
    assert live < made
    with pytest.raises(CallerError, match="its energy was not measured by phase"):
        prices = profile_of(asked)
        arms = tuple(cost.model_copy(update={"joules_per_token": 1.0}) for cost in prices.arms)
        plan(asked, prices.model_copy(update={"arms": arms}), budgets=("1e6 J",), match="joules")


def test_text_that_a_model_writes_is_priced_beside_the_arms() -> None:
    from budgetlab.profiler import profile

    study = load_study("presets/causal_demo.toml")
    prices = profile(study, count_only=True)
    costs = {cost.arm: cost for cost in prices.arms}
    student = costs["no_kd"].train_required_flops_per_token / 3  # a forward pass
    teacher = costs["kd"].phases["teacher_forward"].required_flops_per_token
    found = written_text(study, prices).set_index("method")
    assert list(found["arm"]) == ["kd", "kd"]  # of one student and teacher, once; arms that read hidden states are none
    top = max((s for s in plan(study, prices).schedules if s.arm == "kd"), key=lambda s: s.rung)
    for method, price in (("sequence_level", 3 * student + teacher), ("on_policy", 4 * student + teacher)):
        row = found.loc[method]
        assert row["flops_per_token"] == pytest.approx(price, rel=1e-12)
        assert top.required_flops - price * 1024 < row["tokens"] * price <= top.required_flops * (1 + 1e-9)
        assert row["ratio"] == row["tokens"] / top.tokens
    # The teacher's text is read again for nothing; the student's is new at every step.
    limited = study.model_copy(update={"corpus": study.corpus.model_copy(update={"unique_tokens": top.tokens // 4})})
    again = written_text(limited, prices).set_index("method")
    paid, new = top.tokens * (3 * student + teacher), top.tokens // 4
    assert again.loc["sequence_level", "tokens"] == pytest.approx((paid - new * teacher) / (3 * student), abs=1024)
    assert again.loc["on_policy", "tokens"] == found.loc["on_policy", "tokens"]
    masked = load_study("presets/demo.toml")
    assert written_text(masked, profile(masked, count_only=True)).empty


def test_an_infeasible_arm_says_how_many_must_share_its_teacher(study: Study) -> None:
    poor = study.model_copy(
        update={"models": {**study.models, "teacher": study.models["teacher"].model_copy(
            update={"pretrain": Pretrain(tokens=10_000_000)})}}
    )  # fmt: skip
    made = plan(poor, profile_of(poor), match="required_flops", budgets=(1.5e9,), teacher_charge="pretraining")
    reason = next(schedule.reason for schedule in made.schedules if schedule.arm == "minilm")
    shared = int(re.search(r"amortised:(\d+)", reason).group(1))
    for students, feasible in ((shared, True), (shared - 1, False)):
        again = plan(poor, profile_of(poor), match="required_flops", budgets=(1.5e9,),
                     teacher_charge=f"amortised:{students}")  # fmt: skip
        found = next(schedule for schedule in again.schedules if schedule.arm == "minilm")
        assert found.feasible == feasible


def test_a_plan_in_words_and_for_other_trainers(study: Study) -> None:
    made = plan(study, profile_of(study))
    words = methods_paragraph(made)
    assert "no_kd, vanilla_kd, minilm, tinybert at equal required FLOPs" in words and "2 run seeds" in words
    table = latex_table(made)
    assert table.count(r" \\") == 1 + len(made.schedules) and r"no\_kd" in table
    # Trunk once, cooldowns each: what the statement adds up.
    total = 0.0
    for arm in made.arms:
        own = [schedule for schedule in made.schedules if schedule.arm == arm]
        steps = max(s.steps - s.cooldown_steps for s in own) + sum(s.cooldown_steps for s in own)
        total += 2 * steps * own[0].required_flops / own[0].steps
    assert format_amount(total, "required_flops") in compute_statement(made)
    arguments = training_arguments(made, "minilm")
    top = max((s for s in made.schedules if s.arm == "minilm"), key=lambda s: s.rung)
    assert (arguments["max_steps"], arguments["warmup_steps"]) == (top.steps, top.warmup_steps)
    assert arguments["use_cpu"] is True  # as the study says
    left_open = made.model_copy(update={"execution": made.execution.model_copy(update={"device": "auto"})})
    assert training_arguments(left_open, "minilm")["use_cpu"] is True  # where it was timed
    unknown = left_open.model_copy(update={"device": None})
    assert "use_cpu" not in training_arguments(unknown, "minilm")
    kinds = arguments["lr_scheduler_kwargs"]
    assert kinds["num_stable_steps"] + kinds["num_decay_steps"] + arguments["warmup_steps"] == top.steps
    with pytest.raises(CallerError, match="rungs 0 to 1"):
        training_arguments(made, "minilm", 2)
    with pytest.raises(CallerError, match="did you mean minilm"):
        training_arguments(made, "minlm")


@pytest.mark.parametrize("preset", ["demo", "demo_quick", "demo_teacher", "causal_demo", "causal_demo_teacher"])
def test_the_presets_can_be_planned_at_their_tolerance(preset: str) -> None:
    from budgetlab.profiler import profile

    study = load_study(f"presets/{preset}.toml")
    made = plan(study, profile(study, count_only=True))
    assert all(schedule.feasible for schedule in made.schedules)


def test_an_arm_named_like_a_teacher_keeps_its_own_price(tmp_path: Path) -> None:
    extra = '[arms.teacher]\nstrategy = "no_kd"\nstudent = "student"\n'
    study = load_study(write_small_study(tmp_path, extra))
    counted = profile(study, count_only=True)
    prices = {cost.arm: cost.train_required_flops_per_token for cost in counted.arms}
    assert list(prices) == list(study.arms) and prices["teacher"] == prices["no_kd"]
    assert [cost.arm for cost in counted.teachers] == ["teacher"]
    assert counted.teachers[0].train_required_flops_per_token > 2 * prices["no_kd"]
    made = plan(study, counted, teacher_charge="amortised:100")
    tokens = {(schedule.arm, schedule.rung): schedule.tokens for schedule in made.schedules}
    assert [tokens["teacher", rung] for rung in (0, 1)] == [tokens["no_kd", rung] for rung in (0, 1)]
    priced = made.teacher_costs["teacher"].train_required_flops_per_token
    assert made.teachers[0].required_flops == priced * made.teachers[0].tokens
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_a_plan_that_keeps_all_prices_in_one_table_is_read(study: Study) -> None:
    made = plan(study, profile_of(study))
    fields = made.model_dump(mode="json")
    fields["costs"] |= fields.pop("teacher_costs")
    assert Plan.model_validate(fields) == made
    with pytest.raises(ValueError, match="plan again"):
        Plan.model_validate({**fields, "arms": {**fields["arms"], "teacher": fields["arms"]["no_kd"]}})
