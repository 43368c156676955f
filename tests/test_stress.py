"""What takes minutes; `make stress` runs it, `make test` does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import write_small_study

from budgetlab.cli.open_study import OpenStudy
from budgetlab.strategies import strategy_names

stress = pytest.mark.stress


@pytest.mark.parametrize("seeds", [25, pytest.param(834, marks=stress)])
def test_many_workers_lose_nothing_and_do_nothing_twice(seeds: int, tmp_path: Path) -> None:
    """Eight workers on 12 units a seed and a teacher: SIGKILL, leases that nobody renews, clocks off by minutes."""
    script = Path(__file__).with_name("noop_units.py")
    command = [sys.executable, str(script), str(tmp_path), str(seeds), "8", "5" if seeds < 100 else "20"]
    environment = {**os.environ, "BUDGETLAB_DATA_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["units"] == 12 * seeds + 1 and found["kills"] >= 5
    assert found["lost"] == found["leases_left"] == 0 and found["taken_over"] >= found["stale"]
    assert found["twice"] < 0.01 * found["units"] and found["cpu_ms_a_unit"] < 20


@stress
def test_every_strategy_lowers_its_readout_loss_on_real_text_at_the_demos_size(tmp_path: Path) -> None:
    arms = "\n".join(
        f'[arms.{name}]\nstrategy = {{ name = "{name}"{", cosine_weight = 0" if name == "distilbert" else ""} }}\n'
        f'student = "student"\n{"" if name == "no_kd" else "teacher = " + repr("teacher")}\n'
        for name in strategy_names()
    )
    path = tmp_path / "all.toml"
    path.write_text(
        f'extends = "presets/demo.toml"\nname = "all"\nseeds = [0]\n[plan]\nbudgets = ["3.6e12"]\n'
        f"[evaluate]\ntasks = []\n{arms}"
    )
    opened = OpenStudy(str(path), tmp_path, None)
    opened.corpus()
    plan = opened.plan(opened.profile(to_run=True))
    scores = [score for score in opened.evaluate(plan, opened.run(plan)) if score.task == "readout_loss"]
    losses = {score.arm: score.value for score in scores}
    random = losses.pop("random weights")
    print({"random weights": random, **losses})
    assert set(losses) >= set(strategy_names())
    assert {name for name, loss in losses.items() if loss >= random - 0.1} == set()


@stress
def test_sixty_kills_spread_over_run_and_evaluate_change_nothing(tmp_path: Path) -> None:
    write_small_study(tmp_path)
    script = Path(__file__).with_name("kills_everywhere.py")
    environment = {**os.environ, "BUDGETLAB_DATA_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "60"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: found[name] for name in ("kills", "inside", "wrong")})
    assert found["wrong"] == [] and sum(found["kills"].values()) == 60
    assert found["inside"]["run"]["save"] + found["inside"]["evaluate"]["score"] >= 20
    for what in ("hashes", "scores"):
        whole, *killed = found[what]
        assert whole and None not in whole.values() and killed == [whole, whole]
