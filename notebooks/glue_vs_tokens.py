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
# Wikipedia at three matched budgets. Everything here is read from `results/`; nothing is trained.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import budgetlab

results = Path("results") if Path("results").is_dir() else Path("../results")
store = budgetlab.Store(results, "wikipedia_small")
plan = store.read_plan()
scores = budgetlab.scores_frame(store.scores())
print(*plan.audit, sep="\n")
pd.DataFrame([schedule.model_dump() for schedule in plan.schedules])[
    ["arm", "rung", "tokens", "steps", "required_flops"]
]

# %% [markdown]
# ## Planned and spent
#
# FLOPs are spent to the unit; seconds are not, since two runs share the machine.

# %%
runs = pd.DataFrame(
    [
        {
            "arm": record.arm,
            "rung": record.schedule.rung,
            "run_seed": record.run_seed,
            "FLOPs spent / planned": record.required_flops / record.schedule.required_flops,
            "seconds spent / planned": record.device_seconds / record.schedule.device_seconds,
        }
        for record in store.records()
        if record.kind == "rung"
    ]
)
runs.groupby(["arm", "rung"])[["FLOPs spent / planned", "seconds spent / planned"]].agg(["min", "max"]).round(4)

# %% [markdown]
# ## The curves
#
# One small panel a task: small points are single runs, lines join the means over three run seeds. The tasks are small
# validation sets and QNLI's and SST-2's training sets are subsets, so these are not leaderboard numbers.

# %%
tasks = ["stsb", "qnli", "sst2"]
arms = list(plan.arms)
figure, panels = plt.subplots(1, 4, figsize=(11, 2.8), layout="constrained")
for panel, task in zip(panels, [*tasks, "readout_loss"], strict=True):
    unit = 1 if task == "readout_loss" else 100
    own = scores[(scores["task"] == task) & (scores["subject"] == "run")]
    for number, arm in enumerate(arms):
        points = own[own["arm"] == arm]
        means = points.groupby("rung")[["tokens", "value"]].mean()
        panel.plot(means["tokens"], unit * means["value"], f"C{number}o-", label=arm)
        panel.plot(points["tokens"], unit * points["value"], f"C{number}.", markersize=3, alpha=0.6)
    for subject, dash in (("random", ":"), ("teacher", "--"), ("majority", "-.")):
        line = scores.loc[(scores["task"] == task) & (scores["subject"] == subject), "value"]
        if len(line):
            panel.axhline(unit * line.mean(), color="grey", linestyle=dash, linewidth=0.8, label=subject)
    panel.set(xscale="log", title=task, xlabel="tokens read", ylabel="nats" if unit == 1 else "points")
panels[1].legend(fontsize=7)

# %% [markdown]
# ## What may be said
#
# The primary contrast of each distilled arm is its read-out loss at the largest budget against `no_kd`.

# %%
study = budgetlab.load_study(store.folder / "study.toml")
verdicts = budgetlab.compare_arms(scores, study.fit)
for verdict in verdicts:
    if verdict.primary:
        print(verdict.sentence, "\n")
pd.DataFrame(
    [
        {
            "contrast": " - ".join(v.contrast),
            "outcome": v.y,
            "budget": v.at.amount,
            "difference": v.difference,
            "interval": v.interval,
            "verdict": v.verdict,
        }
        for v in verdicts
    ]
).round(4)
