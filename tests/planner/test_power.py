"""Seeds that resolve a difference: by the formula, and by simulating that many."""

import numpy as np
import pytest
from prices import profile_of
from scipy import stats
from small import write_small_study

from budgetlab.errors import CallerError
from budgetlab.planner import ladder_costs, ladder_note, plan, power
from budgetlab.studies import Study, load_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(write_small_study(tmp_path_factory.mktemp("study")))


def test_so_many_seeds_do_resolve_it(study: Study) -> None:
    """Simulated with each contrast's own paired t: at least 80 % with the seeds named, to within two seeds.

    The sum of two quantiles of t that stands for the noncentral t asks for a seed or two too many.
    """
    made = plan(study, profile_of(study))
    seeds = int(power(made, run_sd=1.0, differences=[1.0])["seeds"].iloc[0])
    rng = np.random.default_rng(0)

    def resolved(count: int) -> float:
        better, other = rng.standard_normal((2, 20_000, count))
        paired = 1.0 + better - other
        error = paired.std(axis=1, ddof=1) / np.sqrt(count)
        return float((paired.mean(axis=1) > stats.t.ppf(0.975, count - 1) * error).mean())

    assert resolved(seeds) > 0.79 > resolved(seeds - 3)


def test_what_it_costs(study: Study) -> None:
    made = plan(study, profile_of(study))
    found = power(made, run_sd=0.5, differences=[2.0, 0.4, 1e-4])
    assert found["seeds"].isna().tolist() == [False, False, True]
    assert found["seeds"].iloc[0] < found["seeds"].iloc[1]
    spent = ladder_costs(made)["branched"]["required_flops"]
    assert found["required_flops"].iloc[0] == pytest.approx(spent * found["seeds"].iloc[0] / 2)
    for wrong in ({"run_sd": 0.0, "differences": [1.0]}, {"run_sd": 1.0, "differences": [-1.0]}):
        with pytest.raises(CallerError, match="not above zero"):
            power(made, **wrong)


def test_one_trunk_is_cheaper_than_runs_of_their_own(study: Study) -> None:
    made = plan(study, profile_of(study))
    costs = ladder_costs(made)
    separate = 2 * sum(schedule.required_flops for schedule in made.schedules)
    assert costs["separate"]["required_flops"] == pytest.approx(separate)
    assert costs["branched"]["required_flops"] < separate
    assert "separate it would be" in (ladder_note(made) or "")
