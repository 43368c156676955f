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
# # A strategy of your own
#
# A strategy is one way to train a student. How is a new one added, what must it answer, and what does budgetlab then do
# with it unasked? One file is written here, priced and planned against two others, and all three are trained for a few
# seconds on text that every Python has. That is enough to see the machinery at work, and far too little to say
# anything about the strategy.
#
# ## Where the budget comes from
#
# In `results/wikipedia_small` a distilled student pays for the teacher's forward pass at each of its tokens. Required
# FLOPs a token by phase, of vanilla distillation and of plain pretraining:

# %%
import pydoc_data.topics
import tempfile
from pathlib import Path

import pandas as pd

import budgetlab

pd.options.display.float_format = "{:,.4g}".format
results = Path("results") if Path("results").is_dir() else Path("../results")
recorded = budgetlab.phases_frame(budgetlab.Store(results, "wikipedia_small").read_profile())
recorded.pivot_table(index="phase", columns="arm", values="required_flops_per_token", sort=False)[
    ["vanilla_kd", "no_kd"]
]

# %% [markdown]
# Vanilla distillation minimises the forward divergence KL(teacher || student): the student must cover all that the
# teacher holds possible. The reverse, KL(student || teacher), forgives what is left out (MiniLLM, Gu et al. 2023, arXiv
# 2306.08543, uses it for causal models). As a strategy for masked words it is a few lines.
#
# ## The file
#
# A strategy is a frozen model: its fields are its settings, checked and hashed like everything else in a study. It
# answers four questions.
#
# | method | question |
# |---|---|
# | `student_needs`, `teacher_needs` | which signals does the loss read? No others are computed and charged |
# | `check` | which pairs of networks cannot work? Asked before anything is built; by default none |
# | `loss` | which named terms, each a float32 scalar? Their sum is minimised |
# | `loss_flops` | which matrix products does the loss itself have? The count is held against it |
#
# torch is imported inside `loss`, so that a plan needs none.

# %%
folder = tempfile.TemporaryDirectory()
here = Path(folder.name)
strategy = here / "reverse_kd.py"
text = '''"""Distillation by the reverse divergence, KL(student || teacher), beside the usual MLM loss."""

from pydantic import Field

from budgetlab import Needs, Strategy


class ReverseKD(Strategy):
    """L = CE(z_S, y) + w KL(softmax(z_S) || softmax(z_T)), means over masked positions, in nats."""

    weight: float = Field(default=1.0, gt=0)

    def student_needs(self, student, teacher):
        """Logits at masked positions."""
        return Needs(logits="masked")

    def teacher_needs(self, student, teacher):
        """The same of the teacher."""
        return Needs(logits="masked")

    def loss_flops(self, student, teacher, seq_len):
        """None: no matrix is multiplied in it."""
        return 0, 0

    def loss(self, batch, student, teacher, projections=None):
        """Return {"mlm", "reverse"}."""
        from torch.nn import functional

        ours, theirs = student.logits.float(), teacher.logits.float()
        reverse = functional.kl_div(
            theirs.log_softmax(-1), ours.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return {"mlm": functional.cross_entropy(ours, batch.target_ids), "reverse": self.weight * reverse}
'''
print(strategy.write_text(text), "characters")

# %% [markdown]
# ## A study that uses it
#
# An arm names the file instead of a built-in strategy. The text is Python's own help topics, a document a line; every
# tenth is held out.

# %%
topics = [" ".join(text.split()) for text in pydoc_data.topics.topics.values()]
(here / "heldout.txt").write_text("\n".join(topics[::10]))
(here / "train.txt").write_text("\n".join(topic for i, topic in enumerate(topics) if i % 10))
(here / "own.toml").write_text(f'''
name = "own"
seeds = [0]

[corpus]
source = "text"
train = ["train.txt"]
heldout = ["heldout.txt"]
tokenizer = {{ train = 1024 }}

[recipe]
seq_len = 32
batch_tokens = 512
learning_rate = 2e-3
dtype = "float32"
attention = "sdpa"

[execution]
device = "cpu"
threads = 1

[models.student]
num_layers = 2
hidden_size = 64
num_heads = 2
intermediate_size = 128

[models.teacher]
num_layers = 3
hidden_size = 128
num_heads = 2
intermediate_size = 256
pretrain = {{ tokens = "60_000", seed = 0 }}

[arms.no_kd]
strategy = "no_kd"
student = "student"

[arms.vanilla_kd]
strategy = "vanilla_kd"
student = "student"
teacher = "teacher"

[arms.reverse_kd]
strategy = {{ name = "{strategy.as_posix()}", weight = 1.0 }}
student = "student"
teacher = "teacher"

[plan]
budgets = ["5e10"]
ladder = "separate"
tolerance_fraction = 0.05

[evaluate]
tasks = []
readout_tokens = 8192
''')
study = budgetlab.load_study(here / "own.toml")
list(study.arms)

# %% [markdown]
# The file was loaded, and its settings and networks were checked. A setting that it does not have is refused, with the
# nearest name:

# %%
wrong = (here / "own.toml").read_text().replace("weight = 1.0", "wieght = 1.0")
(here / "wrong.toml").write_text(wrong)
try:
    budgetlab.load_study(here / "wrong.toml")
except budgetlab.CallerError as error:
    print(str(error).replace(str(here), "..."))

# %% [markdown]
# ## Its price
#
# Nobody told budgetlab what the new loss costs. Its step is counted as that of every other strategy, and held against
# the closed form of each phase and against fvcore.

# %%
prices = budgetlab.profile(study, count_only=True)
budgetlab.costs_frame(prices)[["arm", "required_flops_per_token", "flops_ratio", "closed form", "fvcore"]]

# %% [markdown]
# It reads what vanilla distillation reads, so it costs what that costs. Seconds may differ; they would be measured
# without `count_only` (`01_profile_hardware`).
#
# ## Its plan
#
# The same compute for all three, in whole steps:

# %%
corpus = budgetlab.build_corpus(study.corpus, roots=study.data_roots, cache=here / "results" / "cache")
plan = budgetlab.plan(study, prices)
budgetlab.plan_frame(plan)[["arm", "steps", "tokens", "required_flops", "unspent_fraction"]]

# %% [markdown]
# ## Its runs
#
# The teacher is pretrained first, then the three arms. **These numbers are live**: another Python has other help
# topics, and another machine other last digits.

# %%
store = budgetlab.Store(here / "results", study.name)
records = budgetlab.run(plan, corpus, store)
spent = budgetlab.records_frame(records)
spent[["kind", "arm", "status", "tokens", "required_flops", "planned_required_flops", "device_seconds"]]

# %% [markdown]
# The ledger of the new strategy has what every record has. Each named term is in the points on the way:

# %%
points = budgetlab.points_frame(records)
points[points["arm"] == "reverse_kd"][
    ["step", "tokens", "required_flops", "learning_rate", "mlm", "reverse", "gradient_norm"]
].tail(6)

# %% [markdown]
# A record knows the file that made it: change a line of the strategy, and its runs are others. Without a change the
# same command trains nothing again:

# %%
again = budgetlab.run(plan, corpus, store)
print("the same runs:", [record.state_hash for record in again] == [record.state_hash for record in records])

# %% [markdown]
# ## Its score
#
# All arms are compared by the read-out loss, a fresh head on frozen layers, beside networks of random weights and the
# entropy of the word frequencies alone, which a model has to get below before anything is worth comparing.

# %%
scores = budgetlab.scores_frame(budgetlab.evaluate(plan, records, study.evaluate, corpus, store, []))
scores[["subject", "arm", "tokens", "task", "value"]].sort_values(["task", "value"])

# %%
folder.cleanup()

# %% [markdown]
# ## What may be concluded
#
# - The new strategy meets the contract: it was checked, counted, planned, trained and scored like the others, at the
#   same compute, by the same program.
# - To keep it, put the file into `budgetlab/strategies/`. The contract tests (`tests/strategies/test_contract.py`) find
#   it there: among others that its lean step has the gradient of the full one, that padding changes nothing, that
#   micro-batches add up, and that it lowers its own loss.
#
# What may not: whether the reverse divergence is any good. One run of networks this small, trained for seconds, has no
# interval and passed no sanity check, without which `budgetlab report` gives no verdict. That takes a study such as
# `experiments/wikipedia_small.toml`, with its question written down first.
