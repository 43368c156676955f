"""What it takes to see a difference: seeds, and the compute of all arms and budgets with so many seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from budgetlab.errors import CallerError
from budgetlab.planner.words import ladder_costs
from budgetlab.resampling import detectable_difference, seeds_to_resolve
from budgetlab.values import Plan


def power(plan: Plan, *, run_sd: float, differences: Sequence[float], level: float = 0.95) -> pd.DataFrame:
    """Say how many run seeds a plan needs to resolve differences between two arms, and what those runs cost.

    Parameters
    ----------
    plan
        Each contrast takes its own paired t: ``seeds - 1`` degrees of freedom, however many arms there are.
    run_sd
        Standard deviation of one run at the largest budget, pairing by seed removed (`Verdict.run_sd`).
    differences
        In the unit of `run_sd`.
    level
        Of the interval that must exclude zero, four times in five.

    Returns
    -------
    DataFrame
        A row a difference: `difference`, `seeds` per arm (missing above 100,000), `required_flops` and `device_seconds`
        of all arms and budgets with so many seeds (missing where unknown), `resolved_now` with the plan's own seeds.

    Raises
    ------
    CallerError
        When the spread or a difference is not above zero, or there is one arm only.
    """
    arms, seeds = len({s.arm for s in plan.schedules if s.feasible}), len(plan.seeds)
    if arms < 2:
        raise CallerError("power", f"the plan has {arms} feasible arm", "a difference needs two")
    if not run_sd > 0 or not all(difference > 0 for difference in differences):
        raise CallerError(f"power of {list(differences)} at a spread of {run_sd}", "not above zero", "correct it")
    spent = ladder_costs(plan)[plan.ladder]
    now = detectable_difference(run_sd * float(np.sqrt(2 / seeds)), seeds - 1, level) if seeds > 1 else np.inf
    rows = []
    for difference in differences:
        needed = seeds_to_resolve(difference, run_sd, level)
        scale = None if needed is None else needed / seeds
        cost = {key: None if value is None or scale is None else value * scale for key, value in spent.items()}
        rows.append({"difference": difference, "seeds": needed, **cost, "resolved_now": now <= difference})
    return pd.DataFrame(rows).astype({"seeds": "Int64"})
