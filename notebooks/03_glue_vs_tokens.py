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
# Is a student of two layers better distilled from a teacher, or pretrained from scratch on more tokens, at the same
# compute? This is what `budgetlab study experiments/wikipedia_small.toml` found on English Wikipedia: four strategies,
# three budgets of required FLOPs that pay for the teacher's forward pass too, three run seeds. Question, primary
# contrasts, margins and decision rule were written down before (`experiments/README.md`). Everything here is read from
# `results/`; nothing is trained.

# %%
from pathlib import Path

import pandas as pd

import budgetlab

pd.options.display.float_format = "{:,.4g}".format
results = Path("results") if Path("results").is_dir() else Path("../results")
store = budgetlab.Store(results, "wikipedia_small")
plan, records = store.read_plan(), store.records()
scores = budgetlab.scores_frame(store.scores())
arms = list(plan.arms)
print(*plan.audit, sep="\n")

# %% [markdown]
# ## Planned
#
# A dearer step buys fewer tokens: at equal compute each distilled arm reads fewer than `no_kd`.

# %%
planned = budgetlab.plan_frame(plan)
planned.pivot_table(index="arm", columns="budget_amount", values="tokens", sort=False).astype(int)

# %% [markdown]
# ## Spent
#
# Did the runs do what the plan said? FLOPs are spent to the unit. Seconds are not: the profile timed one worker, and
# then two shared the machine, with other work beside them. So the comparison is matched in FLOPs and not in hours.

# %%
spent = budgetlab.records_frame(records).query("kind == 'rung'")
spent["FLOPs spent / planned"] = spent["required_flops"] / spent["planned_required_flops"]
spent["seconds spent / planned"] = spent["device_seconds"] / spent["planned_device_seconds"]
spent.groupby(["arm", "rung"], sort=False)[["FLOPs spent / planned", "seconds spent / planned"]].agg(["min", "max"])

# %%
budgetlab.spent_figure(plan, records)

# %% [markdown]
# ## Scores against tokens
#
# A panel a task: faint open markers are single runs, filled ones their means, bands 95 % intervals whose variance is
# pooled over the arms at a budget. What of a task was used stands above its panel. These are validation sets, one
# fine-tuning seed and one recipe for all arms: not leaderboard numbers.

# %%
budgetlab.score_figure(scores, arms=arms)

# %% [markdown]
# The same scores against required FLOPs: the arms now stand above one another, since FLOPs are what was matched.

# %%
budgetlab.score_figure(scores, arms=arms, x="required_flops")

# %% [markdown]
# And against device hours as they were metered, with all that shared the machine.

# %%
budgetlab.score_figure(scores, arms=arms, x="device_hours")

# %% [markdown]
# ## CoLA apart
#
# Whether a sentence is grammatical is beyond students of this size: Matthews correlations scatter about zero, as those
# of random weights and of the majority class do. CoLA stays in the mean, since the mean was defined before; its
# differences between arms are noise.

# %%
budgetlab.score_figure(scores[scores["task"] == "cola"], arms=arms)

# %% [markdown]
# ## The yardstick of the primary contrasts
#
# MiniLM and TinyBERT train no language-model head, so their own losses cannot be compared with anybody's. The read-out
# loss can: a fresh head on frozen layers, trained for every arm on the same few tokens, outside the budget.

# %%
fits, verdicts = store.read_fits()
budgetlab.loss_figure(scores, fits, arms=arms)

# %%
for verdict in verdicts:
    if verdict.primary:
        print(verdict.sentence, "\n")

# %% [markdown]
# Over the budget, from the same runs: above, by how much each arm is better than `no_kd`; below, how many times its own
# compute `no_kd` would need for the same loss, where both curves reach it.

# %%
budgetlab.verdict_figure(verdicts, arms=arms)

# %% [markdown]
# ## With little text
#
# `results/wikipedia_small_limited` is the largest budget again, on a small part of the text, read over and over. The
# same contrasts, side by side:

# %%
limited = budgetlab.Store(results, "wikipedia_small_limited")
by_text = {
    "all of the text": verdicts,
    f"{limited.read_plan().corpus.unique_tokens:,} unique tokens": limited.read_fits()[1],
}
budgetlab.verdict_figure(by_text, arms=arms)

# %% [markdown]
# ## The other yardstick: GLUE, task by task
#
# Secondary outcomes at the largest budget, against `no_kd`, in points, under Holm's correction for their number. The
# verdict follows the corrected p-value, the interval is each by itself.

# %%
answers = budgetlab.verdicts_frame(verdicts)
tasks = answers[(answers["b"] == "no_kd") & (answers["unit"] == "points")]
tasks[["a", "b", "y", "difference", "low", "high", "adjusted_p_value", "verdict"]].sort_values(["y", "a"])

# %% [markdown]
# ## The mean without each task
#
# A mean of eight tasks may lean on one. Its difference between MiniLM and `no_kd`, with each task left out in turn:

# %%
study = budgetlab.load_study(store.folder / "study.toml")
left_out = {
    task: budgetlab.compare(scores[scores["task"] != task], a="minilm", b="no_kd", task="score", curves=False)
    for task in study.evaluate.tasks
}
without = budgetlab.verdicts_frame(left_out.values()).assign(without=left_out.keys())
without[["without", "a", "b", "difference", "low", "high", "verdict"]]

# %% [markdown]
# Without STS-B the sign is another one, and nothing is resolved. (Each row is by itself: no correction for their
# number.)
#
# ## What may be concluded
#
# - On the read-out loss at the largest budget, as decided beforehand: the three sentences above.
# - On GLUE the two yardsticks disagree for MiniLM, and the mean leans on STS-B. The frozen layers of its student
#   tell more of a masked word; the averages of its states tell less of whether two sentences mean the same.
#
# What may not: that distillation is better or worse in general. This is one teacher, one size of student, one
# schedule, few tokens, and a fine-tuning that only just gets above random weights on several tasks. The teacher's
# pretraining is not charged (`02_fair_plans`). What else the answer rests on is in `04_fit_and_decide`.
