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
# # GLUE against tokens
#
# What `budgetlab study experiments/wikipedia_small.toml` found: four ways to train a 2 x 128 student on English
# Wikipedia, at three budgets of required FLOPs that pay for the teacher's forward pass too. Question, primary
# contrasts, margin and decision rule were written down before (`experiments/README.md`). Everything here is read from
# `results/`; nothing is trained, and it takes seconds.

# %%
from pathlib import Path

import pandas as pd

import budgetlab

pd.set_option("display.width", 120)
results = Path("results") if Path("results").is_dir() else Path("../results")
store = budgetlab.Store(results, "wikipedia_small")
plan, profile = store.read_plan(), store.read_profile()
scores = budgetlab.scores_frame(store.scores())
print(
    f"{profile.environment.device_name}, {profile.environment.threads} thread a run, torch {profile.environment.torch}"
)
print(*plan.audit, sep="\n")

# %% [markdown]
# ## The plan
#
# A dearer step buys fewer tokens: at the same compute the distilled arms read a third to two thirds of what `no_kd`
# reads.

# %%
schedules = pd.DataFrame([schedule.model_dump() for schedule in plan.schedules])
schedules.pivot_table(index="arm", columns="rung", values="tokens", sort=False)

# %% [markdown]
# ## Planned and spent
#
# FLOPs are spent to the unit. Seconds are not: the profile timed a worker that had the machine to itself, and here
# two workers share it.

# %%
spent = pd.DataFrame(
    [
        {
            "arm": record.arm,
            "rung": record.schedule.rung,
            "FLOPs spent / planned": record.required_flops / record.schedule.required_flops,
            "seconds spent / planned": record.device_seconds / record.schedule.device_seconds,
        }
        for record in store.records()
        if record.kind == "rung"
    ]
)
spent.groupby(["arm", "rung"], sort=False).agg(["min", "max"]).round(3)

# %% [markdown]
# ## Scores against tokens
#
# A panel a task: small open markers are single runs, filled ones their means over three run seeds, with 95 %
# intervals. QNLI's training set is a subset (10,475 of 104,743), SST-2's is cut to 16,000 examples; CoLA was scored
# at the largest budget only. These are validation sets, one fine-tuning seed, one recipe for all arms: not
# leaderboard numbers.

# %%
budgetlab.score_figure(scores, arms=list(plan.arms))

# %% [markdown]
# ## The yardstick of the primary contrast
#
# MiniLM and TinyBERT train no language-model head, so all arms are compared by the read-out loss: a fresh head on
# frozen layers.

# %%
fits, verdicts = store.read_fits()
budgetlab.loss_figure(scores, fits, arms=list(plan.arms))

# %% [markdown]
# ## What may be said

# %%
for verdict in verdicts:
    if verdict.primary:
        print(verdict.sentence, "\n")

# %% [markdown]
# Everything else is secondary, under Holm's correction: other budgets, tasks at the largest budget, pairs of
# distilled arms.

# %%
secondary = pd.DataFrame(
    [
        {
            "contrast": " - ".join(verdict.contrast),
            "outcome": verdict.y,
            "TFLOP": verdict.at.amount / 1e12,
            "difference": verdict.difference,
            "low": (verdict.interval or (None, None))[0],
            "high": (verdict.interval or (None, None))[1],
            "unit": verdict.unit,
            "Holm p": verdict.p_value_adjusted,
            "verdict": verdict.verdict,
        }
        for verdict in verdicts
        if not verdict.primary
    ]
)
secondary.round(3)
