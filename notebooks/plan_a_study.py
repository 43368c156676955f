# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What would this comparison cost?
#
# Price the arms of a study, match them to one budget, and see how much the answer depends on what "the same
# compute" means. FLOPs are counted on shapes alone, so this runs anywhere in seconds.

# %%
from pathlib import Path

import pandas as pd

import budgetlab

experiments = Path("experiments") if Path("experiments").is_dir() else Path("../experiments")
study = budgetlab.load_study(experiments / "paper_6l.toml")
print(*budgetlab.audit(study), sep="\n")

# %% [markdown]
# ## Prices: FLOPs per token of each phase of the step

# %%
prices = budgetlab.profile(study, count_only=True)
by_phase = {
    cost.arm: {phase: price.required_flops_per_token / 1e6 for phase, price in cost.phases.items()}
    for cost in prices.arms
}
table = pd.DataFrame(by_phase).T
table["all"] = table.sum(axis=1)
table["ratio"] = table["all"] / table.loc["no_kd", "all"]
table.round(3).rename_axis("required MFLOP a token")

# %% [markdown]
# ## The plan: the compute with which pretraining from scratch reads 4.6B tokens

# %%
plan = budgetlab.plan(study, prices)
columns = ["arm", "tokens", "steps", "required_flops", "unspent_fraction"]
pd.DataFrame([schedule.model_dump() for schedule in plan.schedules])[columns]

# %% [markdown]
# ## Sensitivity: tokens relative to `no_kd` under every meaning of compute that these prices can answer

# %%
sensitivity = budgetlab.sensitivity(study, prices)
sensitivity.pivot_table(index=["match", "charge"], columns="arm", values="ratio", sort=False).round(3)
