"""Learning-rate factors: warm-up, plateau and cooldowns where they should be, for any length."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.runner.training import learning_rate_factor
from budgetlab.values import Recipe


def factors(schedule: str, steps: int, warmup: int, cooldown: int) -> list[float]:
    recipe = Recipe(schedule=schedule)  # type: ignore[arg-type]
    return [learning_rate_factor(recipe, step, steps, warmup, cooldown) for step in range(steps)]


@given(st.sampled_from(["wsd", "wsd_sqrt", "linear", "cosine", "inverse_sqrt"]), st.integers(10, 300), st.data())
def test_rises_to_the_peak_and_never_above_it(schedule: str, steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(1, steps // 3))
    cooldown = data.draw(st.integers(1, steps // 3)) if schedule.startswith("wsd") else 0
    found = factors(schedule, steps, warmup, cooldown)
    assert found[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert all(0 < factor <= 1 for factor in found[:-1]) and 0 <= found[-1] <= 1
    after = found[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))


@given(st.integers(10, 300), st.data())
def test_both_cooldowns_branch_from_the_same_plateau(steps: int, data: st.DataObject) -> None:
    cooldown = data.draw(st.integers(2, steps // 2))
    straight, root = (factors(schedule, steps, 1, cooldown) for schedule in ("wsd", "wsd_sqrt"))
    assert straight[: steps - cooldown] == root[: steps - cooldown] == [1.0] * (steps - cooldown)
    for left, (one, other) in enumerate(zip(straight[::-1], root[::-1], strict=True), start=1):
        if left > cooldown:
            break
        assert one == pytest.approx(left / cooldown)
        assert other == pytest.approx(1 - (1 - left / cooldown) ** 0.5)
