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
# # Next-token models
#
# Is a small Llama-shaped model better distilled, or pretrained on more tokens, at the same compute? The question that
# the other notebooks ask of masked models, asked in a small way of a causal one: a student of 2 layers, the teacher of
# 8 that comes with budgetlab, one budget. `budgetlab demo --causal` asks it of four strategies at three budgets.
#
# ## The study
#
# `family = "llama"` makes every position a target, of the next token, and the loss of
# the own head the yardstick.

# %%
import tempfile
from pathlib import Path

import pandas as pd

import budgetlab

pd.options.display.float_format = "{:,.4g}".format
folder = tempfile.TemporaryDirectory()
here = Path(folder.name)
teacher = Path(budgetlab.load_study("presets/causal_demo.toml").models["teacher"].weights).resolve().as_posix()
(here / "small.toml").write_text(f"""
name = "small"
seeds = [0, 1, 2]

[corpus]
source = "docs"
train = ["stdlib"]
heldout = ["pandas"]       # which the teacher has not read either
tokenizer = "{teacher}"

[recipe]
seq_len = 64
batch_tokens = 512
learning_rate = 3e-3
warmup_tokens = 2048
dtype = "float32"
attention = "sdpa"

[execution]
device = "cpu"
threads = 1

[models.student]
family = "llama"
num_layers = 2
hidden_size = 64
num_heads = 4
num_kv_heads = 2
intermediate_size = 172
tie_embeddings = true

[models.teacher]
weights = "{teacher}"
pretrained_for = "8.192M tokens"

[arms.no_kd]
strategy = "no_kd"
student = "student"

[arms.kd]
strategy = {{ name = "kd", alpha = 0.5 }}
student = "student"
teacher = "teacher"

[plan]
budgets = ["3e10"]
ladder = "separate"

[evaluate]
source = "probes"
tasks = ["cloze", "copy"]
""")
study = budgetlab.load_study(here / "small.toml")
list(study.arms)

# %% [markdown]
# ## What a token costs
#
# The vocabulary's head is a large part of a student this small, and no cache of the teacher's answers would save it.
# Attention is counted in full, as the kernels do it.

# %%
prices = budgetlab.profile(study, count_only=True)
budgetlab.costs_frame(prices)[["arm", "required_flops_per_token", "flops_ratio", "closed form", "fvcore"]]

# %% [markdown]
# ## What a budget buys

# %%
plan = budgetlab.plan(study, prices)
planned = budgetlab.plan_frame(plan)
planned.pivot_table(index="arm", columns="budget_amount", values="tokens", sort=False).astype(int)

# %% [markdown]
# What the whole comparison costs if the teacher has to be trained for it: as many tokens as the reference would read
# for both.

# %%
budgetlab.all_in(study, prices)[["arm", "rung", "tokens", "teacher_flops", "all_in_flops", "reference_tokens"]]

# %% [markdown]
# ## Trained
#
# **These numbers are live**: another machine has other last digits, and other versions of the documentation.

# %%
corpus = budgetlab.build_corpus(study.corpus, roots=study.data_roots, cache=here / "results" / "cache")
store = budgetlab.Store(here / "results", study.name)
records = budgetlab.run(plan, corpus, store)
spent = budgetlab.records_frame(records).query("kind == 'rung'")
(spent["required_flops"] / spent["planned_required_flops"]).agg(["min", "max"])

# %% [markdown]
# ## Scored
#
# Nats a token and bits a byte of held-out text, the last word of it (cloze), and copying what stands in the context.
# Beside them: the teacher, random weights, and what the frequencies of the words alone would give.

# %%
scores = budgetlab.scores_frame(budgetlab.evaluate(plan, records, study.evaluate, corpus, store, []))
scores.pivot_table(index=["subject", "arm", "rung"], columns="task", values="value", sort=False, dropna=False).dropna(
    how="all"
)

# %% [markdown]
# ## Compared
#
# The distilled arm against pretraining from scratch, paired by seed.

# %%
for task in ("lm_loss", "bits_per_byte", "copy"):
    print(budgetlab.compare(scores, a="kd", b="no_kd", task=task, curves=False).sentence)

# %%
folder.cleanup()

# %% [markdown]
# ## What may be concluded
#
# - A causal study is written, counted, planned, trained and scored by the same commands as a masked one, and spends
#   what was planned.
# - At this budget the students have hardly begun: their loss is near that of the word frequencies. What distilling
#   does to a student that has learned more is another question, and `experiments/causal_small.toml` asks it at budgets
#   a hundred times as large, with a learning rate of its own for each arm.
#
# What may not: that distilling pays, or does not, for models that anybody uses. One teacher, a student of 2 x 64, and
# text of one kind.
