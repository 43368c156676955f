"""What takes minutes; `make stress` runs it, `make test` does not."""

from pathlib import Path

import pytest

from budgetlab.cli.screen import Screen
from budgetlab.cli.workbench import Workbench
from budgetlab.store import Store
from budgetlab.strategies import strategy_names
from budgetlab.studies import load_study

pytestmark = pytest.mark.stress


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
    bench = Workbench(load_study(path), Store(tmp_path, "all"), Screen())
    bench.corpus()
    plan = bench.plan(profile=bench.profile(to_run=True))
    scores = [score for score in bench.evaluate(plan, bench.run(plan)) if score.task == "readout_loss"]
    losses = {score.arm: score.value for score in scores}
    random = losses.pop("random weights")
    print({"random weights": random, **losses})
    assert set(losses) >= set(strategy_names())
    assert {name for name, loss in losses.items() if loss >= random - 0.1} == set()
