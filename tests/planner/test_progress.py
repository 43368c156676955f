"""How far runs are: nothing, a trunk under way, a failed arm, everything."""

from pathlib import Path

import pytest
from prices import profile_of
from small import ENVIRONMENT, write_small_study

from budgetlab.planner import plan, standing
from budgetlab.studies import load_study
from budgetlab.values import Plan, Point, RunRecord, StrategySpec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    study = load_study(write_small_study(tmp_path_factory.mktemp("study")))
    return plan(study, profile_of(study), budgets=(2e9, 6e9))


def record(
    made: Plan, kind: str, name: str, step: int, status: str, seconds: float = 0.0, **further: object
) -> RunRecord:
    point = Point(
        step=step, tokens=128 * step, target_tokens=16 * step, required_flops=1.0, executed_flops=1.0,
        device_seconds=seconds, learning_rate=0.0, losses={"loss": 5.0},
    )  # fmt: skip
    return RunRecord(
        run_id=f"{name}-{kind}-{step}", key="k", kind=kind, arm=name, student=name, run_seed=0, status=status,
        points=(point,) if step else (), steps=step, environment=ENVIRONMENT, **further,
    )  # fmt: skip


def everything(made: Plan) -> list[RunRecord]:
    found = [record(made, "teacher", t.model, t.steps, "complete") for t in made.teachers]
    for seed in made.seeds:
        for s in made.schedules:
            done = record(made, "rung", s.arm, s.steps, "complete", schedule=s)
            found.append(done.model_copy(update={"run_seed": seed}))
    return found


def test_nothing_yet(made: Plan) -> None:
    found = standing(made, [])
    assert found.done_fraction == 0.0 and found.spent_required_flops == 0.0 and found.running == ()
    assert found.pace is None and found.seconds_left > 0
    steps = 0.0
    for arm in made.arms:
        own = [s for s in made.schedules if s.arm == arm]
        taken = max(s.steps - s.cooldown_steps for s in own) + sum(s.cooldown_steps for s in own)
        steps += taken * own[0].required_flops / own[0].steps * len(made.seeds)
    assert found.planned_required_flops == pytest.approx(steps + sum(t.required_flops for t in made.teachers))


def test_all_done_is_all_spent_and_nothing_left(made: Plan) -> None:
    found = standing(made, everything(made))
    assert found.done_fraction == pytest.approx(1.0) and found.seconds_left == pytest.approx(0.0)
    assert found.spent_required_flops == pytest.approx(found.planned_required_flops)


def test_a_teacher_whose_answers_are_kept_is_spent_in_the_first_pass(tmp_path: Path) -> None:
    study = load_study(write_small_study(tmp_path))
    arm = study.arms["vanilla_kd"]
    arm = arm.model_copy(update={"strategy": StrategySpec(name="vanilla_kd", top_k=8, cached=True)})
    corpus = study.corpus.model_copy(update={"masking": "static", "unique_tokens": 1_000_000})
    laddered = study.plan.model_copy(update={"ladder": "separate"})
    study = study.model_copy(update={"arms": {"vanilla_kd": arm}, "corpus": corpus, "plan": laddered, "seeds": (0,)})
    made = plan(study, profile_of(study), budgets=(2e9, 6e9))
    teacher = sum(t.required_flops for t in made.teachers)
    found = standing(made, everything(made))
    planned = sum(schedule.required_flops for schedule in made.schedules) + teacher
    assert found.planned_required_flops == pytest.approx(planned) == found.spent_required_flops
    largest = made.schedules[-1]
    first_pass = record(made, "rung", "vanilla_kd", 7812, "running", schedule=largest)  # of 7812.5 steps
    assert largest.steps > 2 * 7812
    assert standing(made, [first_pass]).spent_required_flops == pytest.approx(480 * 128 * 7812)
    assert standing(made, [first_pass]).done_fraction > 7812 * 480 * 128 / planned


def test_a_trunk_under_way_sets_the_pace(made: Plan) -> None:
    price = made.costs["no_kd"].seconds_per_step
    trunk = record(made, "trunk", "no_kd", 10, "running", seconds=30 * price)
    found = standing(made, [trunk])
    assert found.pace == pytest.approx(3.0)
    last = max(s.steps - s.cooldown_steps for s in made.schedules if s.arm == "no_kd")
    assert found.running == (("no_kd-trunk-10", 10, last, 5.0),)
    nothing = standing(made, [])
    assert found.seconds_left == pytest.approx(3 * (nothing.seconds_left * made.execution.workers - 10 * price))
    assert 0 < found.done_fraction < 1


def test_what_failed_is_neither_done_nor_waited_for(made: Plan) -> None:
    top = max((s for s in made.schedules if s.arm == "minilm"), key=lambda s: s.rung)
    failed = record(made, "rung", "minilm", top.steps - top.cooldown_steps + 1, "failed", schedule=top)
    without = [r for r in everything(made) if (r.arm, r.steps, r.run_seed) != ("minilm", top.steps, 0)]
    found = standing(made, [*without, failed])
    assert found.seconds_left == pytest.approx(0.0) and found.running == () and found.done_fraction < 1
    assert found.spent_required_flops < found.planned_required_flops


def test_nothing_waits_for_a_trunk_or_a_teacher_that_failed(made: Plan) -> None:
    trunks = [
        record(made, "trunk", arm, 2, "failed").model_copy(update={"run_seed": seed})
        for arm in made.arms
        for seed in made.seeds
    ]
    teacher = record(made, "teacher", "teacher", 1, "failed", seconds=made.teacher_costs["teacher"].seconds_per_step)
    found = standing(made, [*trunks, teacher])
    assert found.seconds_left == 0.0 and found.done_fraction < 0.1
    alone = standing(made, [teacher])
    of_no_kd = standing(made.model_copy(update={"arms": {"no_kd": made.arms["no_kd"]}, "teachers": ()}), [])
    assert alone.seconds_left == pytest.approx(of_no_kd.seconds_left)


def test_what_a_smaller_plan_completed_is_not_all_of_a_larger_one(made: Plan) -> None:
    found = standing(made, [record(made, "trunk", "no_kd", 5, "complete")])
    assert 0 < found.done_fraction < 0.1


def test_without_all_seconds_shares_are_of_flops(made: Plan) -> None:
    counted = {"teacher": made.teacher_costs["teacher"].model_copy(update={"seconds_per_step": None})}
    teacher = made.teachers[0]
    found = standing(
        made.model_copy(update={"teacher_costs": counted}),
        [record(made, "teacher", "teacher", teacher.steps, "complete")],
    )
    assert found.seconds_left is None
    assert found.done_fraction == pytest.approx(teacher.required_flops / found.planned_required_flops)


def test_the_screen_says_so(made: Plan, tmp_path: Path) -> None:
    from budgetlab.reporting.tables import status_sheet

    trunk = record(made, "trunk", "no_kd", 10, "running", seconds=1.0)
    notes = status_sheet(made, [trunk]).notes
    assert "% done; " in notes[0] and "spent " in notes[0]
    assert notes[1].startswith("running, or stopped on the way: no_kd-trunk-10, step 10 of")
