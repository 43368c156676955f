"""How a plan uses the device: torch.compile where that saves more than it takes, side by side where that is faster."""

from pathlib import Path

import pytest
from prices import profile_of
from small import write_small_study

from budgetlab.planner import plan
from budgetlab.studies import Study, load_study
from budgetlab.values import CompiledCost, CostProfile, Packing, Ratio


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(write_small_study(tmp_path_factory.mktemp("study")))


def measured(study: Study, ratio: float, high: float, seconds: float) -> CostProfile:
    found = CompiledCost(seconds_ratio=Ratio(value=ratio, interval=(ratio - 0.1, high)), compile_seconds=seconds)
    prices = profile_of(study)
    arms, teachers = (
        tuple(cost.model_copy(update={"compiled": found}) for cost in costs) for costs in (prices.arms, prices.teachers)
    )
    return prices.model_copy(update={"arms": arms, "teachers": teachers})


def asked(study: Study, how: str) -> Study:
    return study.model_copy(update={"execution": study.execution.model_copy(update={"compile": how})})


def test_it_pays_for_its_time_or_is_not_used(study: Study) -> None:
    # Two seeds of four arms with a trunk and two rungs each, and a teacher: 25 trainings.
    made = plan(study, measured(study, 0.8, 0.9, 1.0))
    plain = plan(study, profile_of(study))
    steps = sum(t.steps for t in made.teachers)
    for arm in made.arms:
        own = [s for s in made.schedules if s.arm == arm]
        steps += 2 * (max(s.steps - s.cooldown_steps for s in own) + sum(s.cooldown_steps for s in own))
    saves = 0.5 * 0.1 * steps  # half a second a step, a tenth of it at the worst end
    assert made.compiled and "faster steps save" in made.compile_reason
    assert made.schedules[0].steps == plain.schedules[0].steps
    assert made.schedules[0].device_seconds == pytest.approx(0.8 * plain.schedules[0].device_seconds)
    assert made.costs["minilm"].phases["teacher_forward"].seconds_per_step == pytest.approx(0.8 * 0.2)
    assert plan(study, measured(study, 0.8, 0.9, saves / 25 - 0.01)).compiled
    assert not plan(study, measured(study, 0.8, 0.9, saves / 25 + 0.01)).compiled
    assert not plan(study, measured(study, 0.95, 1.01, 0.0)).compiled  # not resolved
    assert not plain.compiled and "not measured" in plain.compile_reason


def test_a_faster_step_buys_more_tokens_where_time_is_matched(study: Study) -> None:
    budget, prices = ("1 h",), measured(study, 0.5, 0.6, 1.0)
    fast, slow = (
        plan(asked(study, how), prices, budgets=budget, match="device_seconds") for how in ("always", "never")
    )
    assert (fast.compiled, slow.compiled) == (True, False)
    assert fast.schedules[0].steps == 2 * slow.schedules[0].steps == 14400
    assert fast.compile_reason == "as asked: execution.compile = always"


def test_recorded_profiles_hold_whether_or_not_it_is_asked_for(study: Study, tmp_path: Path) -> None:
    from budgetlab.studies import profile_key

    assert profile_key(asked(study, "always")) == profile_key(study)


@pytest.mark.parametrize(
    ("packing", "workers", "why"),
    [
        (None, 1, "not measured"),
        ((), 1, "it has no room for more"),
        ((Packing(processes=2, speed_ratio=1.05),), 1, "2 take 1.05 times the steps a second of one"),
        ((Packing(processes=2, speed_ratio=1.9), Packing(processes=4, speed_ratio=2.0)), 4, "4 take 2.00 times"),
        ((Packing(processes=2, speed_ratio=1.9), Packing(processes=4, speed_ratio=1.7)), 2, "2 take 1.90 times"),
    ],
)
def test_as_many_side_by_side_as_are_fastest_together(
    study: Study, packing: tuple[Packing, ...] | None, workers: int, why: str
) -> None:
    prices = profile_of(study).model_copy(update={"packing": packing})
    open_one = study.model_copy(update={"execution": study.execution.model_copy(update={"workers": "auto"})})
    made = plan(open_one, prices)
    assert made.execution.workers == made.execution.side_by_side == workers
    assert made.packing_reason.startswith(why)
    asked_for = plan(study, prices)
    assert (asked_for.execution.workers, asked_for.packing_reason) == (study.execution.workers, "")
    several = open_one.execution.model_copy(update={"devices": 2})
    made = plan(open_one.model_copy(update={"execution": several}), prices)
    assert (made.execution.workers, made.packing_reason) == (1, "each training has several")
