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
# # What is a fair plan?
#
# Bui et al. (2024, arXiv 2404.19319) compare a six-layer student that is pretrained from scratch with three that are
# distilled from BERT-base. In the same hours the first read 4.6B tokens and the others 2.6B. Is that the same compute,
# and what else could "the same compute" have meant? Nothing is trained here and nothing is measured: a plan is
# arithmetic on recorded prices, so all of this takes seconds on any machine.

# %%
from pathlib import Path

import pandas as pd

import budgetlab

pd.options.display.float_format = "{:,.4g}".format
pd.options.display.max_colwidth = 120
home = Path(".") if Path("experiments").is_dir() else Path("..")
study = budgetlab.load_study(home / "experiments" / "paper_6l.toml")
prices = budgetlab.read_profile(home / "experiments" / "paper_6l.profile.json")
print(*budgetlab.audit(study), sep="\n")

# %% [markdown]
# The audit comes first: arms that differ in more than their strategy are not matched by any budget.
#
# ## Prices
#
# FLOPs of a step are counted on shapes alone, the teacher's forward pass included. Seconds here were not measured: they
# come from the token counts and hours that were published, which the profile itself says.

# %%
costs = budgetlab.costs_frame(prices)
costs[["arm", "required_flops_per_token", "flops_ratio", "seconds_ratio", "flops_ratio_off"]]

# %%
print(prices.conventions["seconds"])

# %% [markdown]
# `flops_ratio_off` is the FLOPs ratio over the ratio of seconds, less one. Below zero, a distilled arm takes more of
# the clock than of the FLOPs: the published runs also paid for what is no matrix product, and computed more than the
# losses need.
#
# ## Matched in FLOPs
#
# The budget is the compute with which pretraining from scratch reads 4.6B tokens. Every arm takes as many whole steps
# as it pays for and never one more; what is left over is the unspent fraction.

# %%
in_flops = budgetlab.plan(study, prices)
columns = ["arm", "steps", "tokens", "required_flops", "device_seconds", "unspent_fraction"]
budgetlab.plan_frame(in_flops)[columns]

# %% [markdown]
# ## Matched in seconds
#
# Four hours of the same device give back the published counts. That is no finding: the seconds were derived from these
# very counts. It shows that 4.6B and 2.6B are a plan in seconds, on that hardware and with that code.

# %%
in_hours = budgetlab.plan(study, prices, match="device_seconds", budgets=("4 h",))
budgetlab.plan_frame(in_hours)[columns]

# %% [markdown]
# ## Every meaning of compute
#
# Tokens relative to `no_kd`, in each currency that these prices have and for each way to charge the teacher. A blank
# (NaN) is not a zero: the price is unknown.

# %%
sensitivity = budgetlab.sensitivity(study, prices)
sensitivity.pivot_table(index=["match", "charge"], columns="arm", values="ratio", sort=False)

# %%
budgetlab.plan_figure(sensitivity)

# %%
print(*budgetlab.definition_notes(sensitivity), sep="\n")

# %% [markdown]
# ## Who pays for the teacher?
#
# The teacher's weights were given, and what they cost is not in the study, so that nobody can charge it:

# %%
try:
    budgetlab.plan(study, prices, teacher_charge="pretraining")
except budgetlab.CallerError as error:
    print(error)

# %% [markdown]
# In `results/wikipedia_small` the teacher was pretrained by budgetlab itself, so that its cost is known. There, at the
# largest budget, the same arms under four charges: nothing, the teacher's forward passes, and these with a hundredth
# or with all of its pretraining.

# %%
store = budgetlab.Store(home / "results", "wikipedia_small")
small, measured = budgetlab.load_study(store.folder / "study.toml"), store.read_profile()
charges = {
    charge: budgetlab.plan_frame(budgetlab.plan(small, measured, teacher_charge=charge))
    for charge in ("none", "inference", "amortised:100", "pretraining")
}
charged = pd.concat(charges, names=["charge", None]).reset_index("charge")
charged[charged["rung"] == 2].pivot_table(index="charge", columns="arm", values="tokens", sort=False).astype(int)

# %% [markdown]
# A zero is an infeasible arm: the budget does not pay for the teacher. The plan says what would be enough.

# %%
print(*charges["pretraining"].query("rung == 2 and not feasible")["reason"], sep="\n")

# %% [markdown]
# Turned around: what a distilled arm costs all in, and what pretraining from scratch would read for that.

# %%
all_in = budgetlab.all_in(small, measured)
all_in[all_in["rung"] == 2][["arm", "tokens", "spent_flops", "teacher_flops", "reference", "reference_tokens"]]

# %% [markdown]
# ## When text runs out
#
# With 2.6B tokens of text, a plan in compute is also a plan in passes, and they differ between arms: who reads more
# tokens repeats the text more often. `effective_tokens` is what repeated text is worth in fresh text by a law of causal
# models, an indication that is never planned with.

# %%
limited = budgetlab.load_study(home / "experiments" / "paper_6l_limited.toml")
limited_prices = budgetlab.read_profile(home / "experiments" / "paper_6l_limited.profile.json")
budgetlab.plan_frame(budgetlab.plan(limited, limited_prices))[["arm", "tokens", "passes", "effective_tokens"]]

# %% [markdown]
# Repetition is also where a teacher whose answers are kept pays off: it reads the text once. Only a strategy that reads
# nothing but logits can have that. Here with the 64 largest logits at a target:

# %%
cached = budgetlab.cached_teacher(limited, limited_prices, top_k=64)
cached[["arm", "possible", "passes", "tokens_live", "tokens_cached", "total_bytes", "why_not"]]

# %% [markdown]
# ## What if?
#
# The planner's arithmetic also takes a table of scenarios, a row each. How many tokens does `minilm` of
# `wikipedia_small` get for an all-in budget, by the number of students that share its teacher?

# %%
plan = store.read_plan()
price = plan.costs["minilm"]
forward = price.phases["teacher_forward"].required_flops_per_token
scenarios = pd.MultiIndex.from_product([[16e12, 64e12, 256e12], [1, 10, 100]], names=["budget", "students_per_teacher"])
scenarios = scenarios.to_frame(index=False).assign(
    charge="pretraining",
    price_per_token=price.train_required_flops_per_token - forward,
    teacher_per_token=forward,
    teacher_pretraining=plan.teachers[0].required_flops,
    batch_tokens=price.batch_tokens,
)
budgetlab.what_if(scenarios).pivot_table(index="budget", columns="students_per_teacher", values="tokens").astype(int)

# %% [markdown]
# ## What may be concluded
#
# - Matched in required FLOPs, the distilled arms read more than they did in the published hours, and each another
#   number; matched in seconds they read the published number. Both plans are fair, to different currencies.
# - Which currency, and who pays for the teacher, decides how many tokens an arm gets. It must be said before the runs.
#
# What may not: which arm is better. A plan gives tokens and says nothing of what is learned from them
# (`03_glue_vs_tokens`). The seconds of the paper's profile are circular within its own row, and a ratio of seconds
# holds for one device and one code (`01_profile_hardware`).
