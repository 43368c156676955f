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
    """Simulated with the same pooling: power is 80 % with the seeds named, and less with one fewer."""
    made = plan(study, profile_of(study))
    seeds = int(power(made, run_sd=1.0, differences=[1.0])["seeds"].iloc[0])
    rng = np.random.default_rng(0)

    def resolved(count: int) -> float:
        values = rng.standard_normal((20_000, 4, count))
        values[:, 0] += 1.0
        means = values.mean(axis=2)
        residuals = values - means[:, :, None] - values.mean(axis=1)[:, None] + values.mean(axis=(1, 2))[:, None, None]
        freedom = 3 * (count - 1)
        error = np.sqrt((residuals**2).sum(axis=(1, 2)) / freedom * 2 / count)
        return float(((means[:, 0] - means[:, 1]) > stats.t.ppf(0.975, freedom) * error).mean())

    assert resolved(seeds) > 0.79 > resolved(seeds - 1)


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
