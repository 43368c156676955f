"""What is said before a plan is run, and plans that a hand has changed."""

import pytest
from prices import profile_of
from small import ENVIRONMENT, write_small_study

from budgetlab.errors import CallerError
from budgetlab.machine import processor_name
from budgetlab.planner import checked, other_machine, plan, rereads
from budgetlab.studies import Study, load_study, profile_key


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(write_small_study(tmp_path_factory.mktemp("study")))


def _edited(made, **changes):
    first = made.schedules[0].model_copy(update=changes)
    return made.model_copy(update={"schedules": (first, *made.schedules[1:])})


def test_a_corpus_below_one_pass_is_said(study: Study) -> None:
    tokens = min(s.tokens for s in plan(study, profile_of(study)).schedules)
    enough, little = (plan(study, profile_of(study), corpus_tokens=n) for n in (10**9, tokens // 4))
    assert rereads(enough) is None
    assert "times at the smallest budget already" in (rereads(little) or "")
    limited = study.corpus.model_copy(update={"unique_tokens": tokens // 4})  # on purpose
    assert rereads(plan(study.model_copy(update={"corpus": limited}), profile_of(study))) is None


def test_a_plan_as_made_passes_unchanged(study: Study) -> None:
    made = plan(study, profile_of(study))
    assert checked(made) == made


def test_fewer_steps_by_hand_are_recomputed(study: Study) -> None:
    made = plan(study, profile_of(study))
    before = made.schedules[0]
    after = checked(_edited(made, steps=before.steps // 2)).schedules[0]
    assert after.tokens == before.steps // 2 * 128
    assert after.required_flops == pytest.approx(before.required_flops * (before.steps // 2) / before.steps)
    assert after.device_seconds == pytest.approx(0.5 * (before.steps // 2))
    assert after.unspent_fraction == pytest.approx(0.5, abs=0.01)


def test_whatever_is_edited_steps_rule(study: Study) -> None:
    made = plan(study, profile_of(study))
    first = made.schedules[0]
    assert checked(_edited(made, tokens=first.tokens // 2, required_flops=1.0)) == made
    twice = first.budget.model_copy(update={"amount": 2 * first.budget.amount})
    more = checked(_edited(made, budget=twice, steps=2 * first.steps - 1)).schedules[0]
    assert more.tokens == (2 * first.steps - 1) * 128 and 0 <= more.unspent_fraction < 0.01
    both = _edited(made, steps=10 * first.steps, tokens=10 * first.tokens)
    with pytest.raises(CallerError, match="more than the budget"):
        checked(both)
    less = first.budget.model_copy(update={"amount": first.budget.amount / 10})
    with pytest.raises(CallerError, match="more than the budget"):
        checked(_edited(made, budget=less))


def test_an_infeasible_schedule_may_be_made_feasible_by_hand(study: Study) -> None:
    made = plan(study, profile_of(study), budgets=("2.2e6", "1e9"), teacher_charge="pretraining")
    place = next(i for i, s in enumerate(made.schedules) if not s.feasible)
    forced = made.schedules[place].model_copy(update={"feasible": True, "steps": 20, "teacher_charge": 0.0})
    edited = (*made.schedules[:place], forced, *made.schedules[place + 1 :])
    with pytest.raises(CallerError, match="share its warm-up"):
        checked(made.model_copy(update={"schedules": edited}))
    separate = made.model_copy(update={"schedules": edited, "ladder": "separate"})
    assert checked(separate).schedules[place].tokens == 20 * 128


def test_a_budget_in_an_unknown_unit_is_named(study: Study) -> None:
    made = plan(study, profile_of(study))
    budget = made.schedules[0].budget.model_copy(update={"unit": "TFLOP"})
    with pytest.raises(CallerError, match="unit"):
        checked(_edited(made, budget=budget))


def test_a_teacher_that_is_not_planned_is_named(study: Study) -> None:
    made = plan(study, profile_of(study))
    arm = made.arms["minilm"].model_copy(update={"teacher": "student"})
    with pytest.raises(CallerError, match="teacher"):
        checked(made.model_copy(update={"arms": {**made.arms, "minilm": arm}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10_000_000}, "more than the budget; at most"),
        ({"steps": 3, "warmup_steps": 2, "cooldown_steps": 2}, "do not fit into it"),
        ({"arm": "nokd"}, "did you mean no_kd"),
    ],
)
def test_edits_that_cannot_be_run(study: Study, changes: dict, message: str) -> None:
    with pytest.raises(CallerError, match=message):
        checked(_edited(plan(study, profile_of(study)), **changes))


def test_a_profile_of_another_study_is_named(study: Study) -> None:
    prices = profile_of(study)
    assert not plan(study, prices.model_copy(update={"study_key": profile_key(study)})).warnings
    other = prices.model_copy(update={"study_key": "0" * 16, "study": "elsewhere"})
    assert "'elsewhere'" in plan(study, other).warnings[0]


def test_what_will_not_fit_is_said(study: Study) -> None:
    prices = profile_of(study)
    large = tuple(cost.model_copy(update={"num_params_total": 10**9}) for cost in prices.arms)
    small = study.model_copy(
        update={"execution": study.execution.model_copy(update={"device_memory_bytes": 8 * 10**9})}
    )
    found = plan(small, prices.model_copy(update={"arms": large})).warnings
    assert len(found) == 4 and "16.0 GB, the device has 8.00 GB" in found[0]
    measured = tuple(cost.model_copy(update={"peak_memory_bytes": 10**9}) for cost in large)
    assert not plan(small, prices.model_copy(update={"arms": measured})).warnings


def test_seconds_of_another_machine_are_said(study: Study) -> None:
    prices = profile_of(study)
    assert other_machine(prices) is None  # none were measured
    timed = tuple(cost.model_copy(update={"steps_timed": 10}) for cost in prices.arms)
    away = prices.model_copy(update={"arms": timed})
    assert "made up" in (other_machine(away) or "")
    here = ENVIRONMENT.model_copy(update={"device_name": processor_name()})
    assert other_machine(away.model_copy(update={"environment": here})) is None
