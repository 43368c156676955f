"""The plans of published distillations in experiments/ give the numbers that its README prints."""

import math
import re
from pathlib import Path

import pytest

from budgetlab.planner import cached_teacher, plan
from budgetlab.profiler import profile
from budgetlab.store import read_profile
from budgetlab.studies import load_study
from budgetlab.units import format_quantity

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
README = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "published", "matched"),
    # Tokens in billions: the distilled arm's, as published; from scratch at its required FLOPs.
    [("minitron", 100, 224), ("gemma2", 500, 998), ("nemo", 28_000 * 768 * 4096 / 1e9, 131)],
)
def test_what_a_published_budget_buys_from_scratch(name: str, published: float, matched: float) -> None:
    study = load_study(EXPERIMENTS / f"published_{name}.toml")
    made = plan(study, read_profile(EXPERIMENTS / f"published_{name}.profile.json"))
    found = {schedule.arm: schedule for schedule in made.schedules}
    assert found["kd"].tokens == pytest.approx(published * 1e9, rel=1e-4)
    assert round(found["no_kd"].tokens / 1e9) == matched
    assert found["no_kd"].required_flops == pytest.approx(found["kd"].required_flops, rel=1e-4)
    row = next(line for line in README.splitlines() if line.startswith(f"| `published_{name}` |"))
    cells = [cell.strip() for cell in row.split("|")]
    tokens = [format_quantity(found[arm].tokens) for arm in ("kd", "no_kd")]
    prices = [f"{found[arm].required_flops / found[arm].tokens / 1e9:.2f}" for arm in ("no_kd", "kd")]
    assert cells[-3:-1] == tokens and cells[-4] == ", ".join(prices)
    if name == "nemo":
        assert found["kd"].steps == 28_000
        rate = found["kd"].required_flops / (6000 * 3600)
        assert f"{rate / 1e12:.0f} TFLOP/s a GPU" in README


def test_causal_arms_that_all_train_a_head_are_tuned_by_its_loss() -> None:
    study = load_study(EXPERIMENTS / "causal_small.toml")
    made = plan(study, profile(study, count_only=True))
    assert {trial.outcome for trial in made.trials} == {"lm_loss"} and len(made.trials) == 6


def test_the_bytes_of_published_caches() -> None:
    study = load_study(EXPERIMENTS / "published_nemo.toml")
    models = {name: spec.model_copy(update={"vocab_size": 150_000}) for name, spec in study.models.items()}
    budgets = study.plan.model_copy(update={"budgets": ("1e11 tokens",)})
    asked = study.model_copy(update={"models": models, "plan": budgets})
    prices = read_profile(EXPERIMENTS / "published_nemo.profile.json")
    (row,) = cached_teacher(asked, prices).to_dict("records")
    total = row["bytes_per_token"] * 1e11  # the plan's own tokens are whole steps
    assert total / 1e15 == 30.0 and row["total_bytes"] == pytest.approx(total, rel=1e-4)
    assert f"{2 * total / 1024 / 1e12:.1f} PB" == "58.6 PB"  # float32, in units of 1,024 TB
    assert 25 * 6 * 1e11 == 15e12

    def packed(kept: int, exact: int, terms: int, words: int) -> int:
        """DistillKit: values in bfloat16 and float32, then ids as short as the vocabulary allows."""
        return exact * 2 + terms * 4 + math.ceil(kept * math.ceil(math.log2(words)) / 8)

    for kept, exact, terms in ((128, 16, 6), (50, 1, 3)):
        row = next(line for line in README.splitlines() if f"| DistillKit, k = {kept}" in line)
        found = [int(number) for number in re.findall(r"(\d+) B (?:with|for)", row)]
        assert found == [packed(kept, exact, terms, words) for words in (65_536, 128_256)]
