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
# loss can: a fresh head on frozen layers, trained for every arm on the same few tokens, outside the budget. This study
# is older than the second yardstick (the adapted loss), and rests on the read-out alone.

# %%
fits, verdicts = store.read_fits()
budgetlab.loss_figure(scores, fits, arms=arms)

# %%
print(budgetlab.conclude_study(plan, scores, verdicts).sentence)

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
# Secondary outcomes at the largest budget, against `no_kd`, in points. The verdict is read off the interval that is
# adjusted for the number of all secondary contrasts; `low` and `high` are of each by itself.

# %%
answers = budgetlab.verdicts_frame(verdicts)
tasks = answers[(answers["b"] == "no_kd") & (answers["unit"] == "points")]
tasks[["a", "b", "y", "difference", "low", "high", "adjusted_low", "adjusted_high", "verdict"]].sort_values(["y", "a"])

# %% [markdown]
# ## The mean without each task
#
# The mean is over the informative tasks: those on which the teacher is at least 5 points and three standard errors
# above random weights.

# %%
print(budgetlab.average_words(scores))

# %% [markdown]
# A mean may lean on one task. Its difference between MiniLM and `no_kd`, with each task left out in turn:

# %%
study = budgetlab.load_study(store.folder / "study.toml")
left_out = {
    task: budgetlab.compare(scores[scores["task"] != task], a="minilm", b="no_kd", task="score", curves=False)
    for task in study.evaluate.tasks
}
without = budgetlab.verdicts_frame(left_out.values()).assign(without=left_out.keys())
without[["without", "a", "b", "difference", "low", "high", "verdict"]]

# %% [markdown]
# Without STS-B little is left of the difference. (Each row is by itself: no correction for their number.)
#
# ## What may be concluded
#
# - On the read-out loss at the largest budget, as decided beforehand: the sentence above.
# - On GLUE nothing is resolved once the number of secondary contrasts is accounted for. By itself the mean of the
#   informative tasks is ahead for `no_kd` over MiniLM, and leans on STS-B.
#
# What may not: that distillation is better or worse in general. This is one teacher, one size of student, one
# schedule, few tokens, and a fine-tuning that only just gets above random weights on several tasks. The teacher's
# pretraining is not charged (`02_fair_plans`). What else the answer rests on is in `04_fit_and_decide`.
