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
# # What does a token cost?
#
# "At the same compute" needs a price. What does one token cost each way of training a student, in FLOPs, which are the
# same everywhere, and in seconds, which are not? And does the one tell the other? First the profile that was recorded
# for `results/wikipedia_small`, then the same step on the machine that you are reading this on.

# %%
from pathlib import Path

import pandas as pd

import budgetlab

pd.options.display.float_format = "{:,.4g}".format
results = Path("results") if Path("results").is_dir() else Path("../results")
store = budgetlab.Store(results, "wikipedia_small")
recorded = store.read_profile()
pd.Series(recorded.environment.model_dump(), dtype=object).to_frame("recorded on")

# %% [markdown]
# How the seconds were taken, and what speaks against them. A profile that was disturbed says so itself.

# %%
print(recorded.conventions["seconds"])
print(f"{recorded.timing.rounds} rounds of every arm")
print(*recorded.timing.warnings, sep="\n")

# %% [markdown]
# ## FLOPs by phase
#
# A step has five phases. FLOPs are two per multiply-add, matrix products only: a loss or an update that is
# element-wise has none and still takes time. `no_kd` has no teacher; MiniLM trains no head, and its teacher stops at
# the last layer that the loss reads.

# %%
phases = budgetlab.phases_frame(recorded)
phases.pivot_table(index="arm", columns="phase", values="required_flops_per_token", sort=False)

# %% [markdown]
# And the seconds of a step. Where there is no teacher, that phase is the batch on its way to the device.

# %%
phases.pivot_table(index="arm", columns="phase", values="seconds_per_step", sort=False)

# %%
budgetlab.cost_figure(recorded)

# %% [markdown]
# ## Is the count right?
#
# torch's count of every phase is held against a closed form, and its forward passes against fvcore. A disagreement
# would have been an error, not a column.

# %%
costs = budgetlab.costs_frame(recorded)
costs[["arm", "required_flops_per_token", "closed form", "fvcore"]]

# %% [markdown]
# ## Two ratios that disagree
#
# How much dearer than `no_kd` is a token of each arm, and of pretraining the teacher (last row)? In FLOPs, and in
# seconds as the median over paired rounds, with its 95 % interval. `flops_ratio_off` is the first over the second, less
# one: where it is above zero, a plan matched in FLOPs gives the arm fewer tokens than one matched in time would.

# %%
costs[["arm", "flops_ratio", "seconds_ratio", "ratio_low", "ratio_high", "flops_ratio_off"]]

# %% [markdown]
# Why? FLOPs do not all run at one rate. Required GFLOP a second of each phase, where it has any:

# %%
rates = phases[phases["required_flops_per_token"] > 0].copy()
rates["rate"] = rates["required_flops_per_token"] * rates["batch_tokens"] / rates["seconds_per_step"] / 1e9
rates.pivot_table(index="arm", columns="phase", values="rate", sort=False)

# %% [markdown]
# ## Your machine
#
# **From here on the numbers are live**: they differ from machine to machine, and other programs disturb them. Two arms
# of the same study are counted, timed in paired rounds, and timed at a few other shapes.
# Precision and attention are the fastest that this device has, which need not be the recorded ones: where a processor
# has no instructions for bfloat16, it is emulated and not tried.

# %%
study = budgetlab.load_study(store.folder / "study.toml")
arms = {name: study.arms[name] for name in ("no_kd", "minilm")}
here = budgetlab.profile(study.model_copy(update={"arms": arms}), depth="full")
pd.Series(here.environment.model_dump(), dtype=object).to_frame("measured on")

# %%
pd.DataFrame(
    {"recorded": (cost.dtype, cost.attention), "here": (here.arms[0].dtype, here.arms[0].attention)}
    for cost in recorded.arms[:1]
)

# %%
print(*(here.timing.warnings or ["nothing speaks against these seconds"]), sep="\n")

# %% [markdown]
# FLOPs are the recorded ones to the unit, whatever the machine. Seconds are not, and neither is their ratio.

# %%
side_by_side = costs.merge(budgetlab.costs_frame(here), on="arm", suffixes=("_recorded", "_here"))
same = side_by_side["required_flops_per_token_recorded"] == side_by_side["required_flops_per_token_here"]
side_by_side[
    ["arm", "flops_ratio_recorded", "seconds_ratio_recorded", "seconds_ratio_here", "tokens_per_second_here"]
].assign(same_flops=same)

# %% [markdown]
# What was not measured is missing, never zero: energy where no counter can be read, the share of a peak that nobody
# states.

# %%
budgetlab.costs_frame(here)[["arm", "seconds_per_step", "seconds_low", "seconds_high", "peak_memory_bytes",
                             "joules_per_token"]]  # fmt: skip

# %% [markdown]
# ## Other shapes, without timing them
#
# A time model of each phase, ``constant + tokens * (a + b * length)``, is fitted to steps of at most half the batch.
# How well does it do at the larger ones that it never saw?

# %%
pd.DataFrame(
    {"arm": cost.arm, **held.model_dump(), "error": held.error}
    for cost in here.arms
    for held in cost.time_model.held_out
)

# %% [markdown]
# So a step of another shape can be priced; the last column says whether the shape lies within what was measured.

# %%
pd.DataFrame(
    {
        "arm": cost.arm, "sequences": sequences, "length": length,
        "predicted seconds": cost.time_model.seconds(sequences, length),
        "within what was measured": cost.time_model.covers(sequences, length),
    }
    for cost in here.arms
    for sequences, length in ((16, 32), (16, 64), (64, 128))
)  # fmt: skip

# %% [markdown]
# ## What may be concluded
#
# - A token's FLOPs are known exactly, agree with two other counts, and are the same on every machine.
# - A ratio of FLOPs does not predict a ratio of seconds. Both are measured, and a plan says in which it was matched
#   (`02_fair_plans`).
#
# What may not: seconds of another machine, precision, thread count or code from these; and nothing from a profile whose
# warnings say that it was disturbed, beyond what its intervals allow. The time model is in processor time on a CPU, so
# that it holds for a machine with nothing else to do.
