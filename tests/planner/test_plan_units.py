"""What is trained once: each unit after what it needs, and all of them together what the plan costs."""

import json
from pathlib import Path

import pytest
from prices import profile_of
from small import write_small_study

from budgetlab.planner import plan
from budgetlab.store import Store
from budgetlab.studies import Study, load_study
from budgetlab.values import Plan

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    tuning = "\n[tuning]\nlearning_rate = [5e-4, 1e-3]\nseeds = [3, 5]\n"
    return load_study(write_small_study(tmp_path_factory.mktemp("study"), tuning))


def laddered(study: Study, ladder: str) -> Plan:
    return plan(study.model_copy(update={"plan": study.plan.model_copy(update={"ladder": ladder})}), profile_of(study))


@pytest.mark.parametrize("ladder", ["branched", "separate"])
def test_every_training_is_listed_once_and_after_what_it_needs(study: Study, ladder: str) -> None:
    made = laddered(study, ladder)
    units = made.units()
    assert len({unit.id for unit in units}) == len(units)
    counts = {kind: sum(unit.kind == kind for unit in units) for kind in ("teacher", "trial", "trunk", "branch", "run")}
    arms, rungs = len(made.arms) * len(made.seeds), len(made.schedules) * len(made.seeds)
    trained = (
        {"trunk": arms, "branch": rungs, "run": 0} if ladder == "branched" else {"trunk": 0, "branch": 0, "run": rungs}
    )
    assert counts == {"teacher": 1, "trial": len(made.trials) * 2, **trained}
    before: set[str] = set()
    for unit in units:
        assert set(unit.needs) <= before and unit.steps > 0
        before.add(unit.id)
    taught = [unit for unit in units if unit.arm.split("~")[0] not in ("no_kd", "teacher")]
    assert all("teacher-s0" in unit.needs for unit in taught)


def test_trunk_and_branches_are_the_steps_of_the_schedules(study: Study) -> None:
    made = laddered(study, "branched")
    for arm in made.arms:
        trunk, *branches = (u for u in made.units() if u.arm == arm and u.seed == 0 and u.kind != "trial")
        own = [s for s in made.schedules if s.arm == arm]
        assert trunk.branch_steps == tuple(s.steps - s.cooldown_steps for s in own) and trunk.cooldown_steps == 0
        assert [(u.first_step, u.last_step, u.schedule) for u in branches] == [
            (s.steps - s.cooldown_steps, s.steps, s) for s in own
        ]
        longest = own[-1]
        assert trunk.required_flops + branches[-1].required_flops == pytest.approx(longest.required_flops)
    separate = {unit.id: unit for unit in made.units("separate")}
    for schedule in made.schedules:
        assert separate[f"{schedule.arm}-{schedule.steps}-s0"].required_flops == schedule.required_flops


def test_the_units_of_recorded_studies_are_their_runs() -> None:
    for folder in ("wikipedia_small", "teacher_top_k", "linear_vs_branched"):
        store = Store(RESULTS, folder)
        made = store.read_plan()
        assert made is not None
        runs = {record.run_id.rsplit("-", 1)[0]: record for record in store.records()}
        units = {unit.id: unit for unit in made.units()}
        assert set(runs) <= set(units)
        for name, record in runs.items():
            if record.kind == "rung":
                assert units[name].last_step == record.steps and units[name].schedule is not None
                whole = units[name].required_flops if units[name].kind == "run" else None
                assert whole in (None, pytest.approx(record.required_flops))


def test_units_are_part_of_what_plan_says_and_are_passed_over_when_it_is_read(study: Study) -> None:
    made = laddered(study, "branched")
    said = json.loads(json.dumps(made.model_dump(mode="json") | {"units": [unit.as_json() for unit in made.units()]}))
    assert set(said["units"][0]) == {"id", "kind", "needs", "steps", "required_flops"}
    assert Plan.model_validate(said) == made
