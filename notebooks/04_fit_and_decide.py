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
# # From points to a decision
#
# Runs give points. When may a curve be drawn through them, which of its numbers may be used, and what follows for the
# next run? The points are those of `results/wikipedia_small`: four strategies, three budgets, three run seeds.

# %%
from pathlib import Path

import pandas as pd

import budgetlab

pd.options.display.float_format = "{:,.4g}".format
pd.options.display.max_colwidth = 400
results = Path("results") if Path("results").is_dir() else Path("../results")
store = budgetlab.Store(results, "wikipedia_small")
study, plan = budgetlab.load_study(store.folder / "study.toml"), store.read_plan()
scores = budgetlab.scores_frame(store.scores())
print(f"{study.fit.y} over {study.fit.x}, law {study.fit.law}, margin {study.fit.margin_nats} nats")

# %% [markdown]
# ## Curves, each with a status
#
# The law asked for has a floor, an amplitude and an exponent. Three budgets cannot tell three numbers apart, and the
# status says what was done about it.

# %%
fits = budgetlab.fit_arms(scores, study.fit)
budgetlab.fits_frame(fits)[["arm", "formula", "parameter", "estimate", "low", "high", "status", "usable_for"]]

# %%
for fit in fits:
    print(fit, "\n")

# %% [markdown]
# An arm whose points the smaller law misses is refused: it has no curve, and no number to quote. The figure draws only
# what may be drawn, inside the fitted range, and says why an arm has no line.

# %%
budgetlab.loss_figure(scores, fits, arms=list(plan.arms))

# %% [markdown]
# ## The certificate
#
# A fit that ran through is not yet the fit. Each comes with what was looked at: starts that ended in the same place, a
# second solver, the gap between the two, and the width of the profile likelihood of each parameter.

# %%
certified = next(fit for fit in fits if fit.usable_for != "nothing")
print(certified.arm)
pd.Series(certified.certificate, dtype=object).to_frame("value")

# %% [markdown]
# ## Verdicts
#
# One primary contrast an arm, at the largest budget, each by its own paired t; Holm's correction over the primary ones,
# and over all others. A verdict is one of four words, read off the adjusted interval.

# %%
verdicts = budgetlab.compare_arms(scores, study.fit, tuned=plan.tuned)
answers = budgetlab.verdicts_frame(verdicts)
primary = answers[answers["primary"]]
primary[["a", "b", "difference", "low", "high", "adjusted_low", "adjusted_high", "unit", "verdict"]]

# %% [markdown]
# What the study may conclude, in the words that `budgetlab fit`, `report` and the page print:

# %%
print(budgetlab.conclude_study(plan, scores, verdicts).sentence)

# %%
budgetlab.verdict_figure(verdicts, arms=list(plan.arms))

# %%
answers.groupby(["y", "verdict"], sort=False).size().unstack(fill_value=0)

# %% [markdown]
# ## The same difference in compute
#
# How many times the compute of the first arm does the second need for the same loss? Where the curves cross inside the
# budgets that were run, `crossover_amount` has the compute; None means that they do not.

# %%
multiplier = ["compute_multiplier", "compute_multiplier_low", "compute_multiplier_high", "crossover_amount"]
primary[["a", "b", *multiplier]]

# %% [markdown]
# ## Where the difference comes from
#
# At equal compute a distilled arm reads fewer tokens. The decomposition splits the difference between the curves into
# what one of its tokens gives and what the missing ones cost.

# %%
parts = [f"{name}{end}" for name in ("gain_per_token", "effect_of_tokens") for end in ("", "_low", "_high")]
primary.set_index(["a", "b"])[parts].T

# %%
budgetlab.decomposition_figure(verdicts)

# %% [markdown]
# ## What the answer rests on
#
# Each assumption was tested on these records or on those of the other studies in `results/`, or is named as untested
# with the one thing that is missing. This is the table that `budgetlab report` wrote; `budgetlab.assumptions` makes it
# again from the scores.

# %%
rests_on = pd.read_csv(store.folder / "assumptions.csv", keep_default_na=False)
rests_on[["name", "outcome", "effect", "missing"]]

# %% [markdown]
# ## Who is ahead when the teacher must be paid for
#
# The verdict map asks the curves at every all-in compute and number of students that share the teacher. A cell that
# they cannot answer says why.

# %%
evidence = budgetlab.Evidence(plan.study, plan, scores)
charted = budgetlab.verdict_map(evidence, study.fit, fits=fits)
budgetlab.map_figure(charted)

# %%
charted.groupby(["arm", "answer", "basis"]).agg(cells=("reason", "size"), such_as=("reason", "first"))

# %%
print(*charted.attrs["notes"], sep="\n")

# %% [markdown]
# What was measured, in all-in compute, by how many students share the teacher. An arm and budget is on the frontier
# (filled) where nothing that costs no more is better:

# %%
frontier = budgetlab.all_in_frontier(evidence, study.fit)
budgetlab.frontier_figure(frontier, arms=list(plan.arms))

# %% [markdown]
# ## The next run
#
# First what is untested and could overturn the verdict; then seeds for primary contrasts that are not resolved, which
# here there are none of.

# %%
tested = budgetlab.assumptions(scores, plan, study.fit, verdicts, simulations=19)
ahead = budgetlab.next_runs(evidence, verdicts, tested)
print(ahead.attrs["sentence"])
ahead[["adds", "kind", "cost_flops"]]

# %% [markdown]
# ## Any table, any law
#
# The same engine fits a law to any CSV. Here `scores.csv` of this study, as if somebody else had made it: TinyBERT's
# read-out loss over the tokens that it read, a run a row.

# %%
table = budgetlab.read_table(store.folder / "scores.csv")
table = table[(table["task"] == "readout_loss") & (table["arm"] == "tinybert")]
over_tokens = budgetlab.fit(table, law="power", columns={"x": "tokens", "y": "value"}, clusters="run_seed")
over_tokens

# %% [markdown]
# A prediction outside the fitted range is marked, and the status above says whether it may be used.

# %%
budgetlab.predict(over_tokens, {"x": [1e6, 1e7]})

# %% [markdown]
# Parameters that somebody else offers can be judged too. Here our own, rounded to two digits, which is
# enough to miss the optimum.

# %%
rounded = {name: float(f"{value:.2g}") for name, value in over_tokens.params.items()}
offered = budgetlab.certify(table, {"E": 0.0, **rounded}, columns={"x": "tokens", "y": "value"})
print(offered.status_text)

# %% [markdown]
# What a table cannot carry is refused in its status, or fitted with a smaller law; what is not in it, or is no law, is
# an error of one line.

# %%
for law in ("power", "bnsl"):
    found = budgetlab.fit(table, law=law, columns={"x": "tokens", "y": "value"}, resamples=0)
    print(f"{law}: {found.status}. {found.status_text}\n")
one_size = table.assign(num_params=plan.costs["tinybert"].num_params_non_embedding)
found = budgetlab.fit(one_size, law="chinchilla", columns={"loss": "value"}, resamples=0)
print(f"chinchilla: {found.status}. {found.status_text}")

# %%
for law, columns in (("powr", {}), ("power", {"x": "token", "y": "value"})):
    try:
        budgetlab.fit(table, law=law, columns=columns)
    except budgetlab.CallerError as error:
        print(error, "\n")

# %% [markdown]
# ## What may be concluded
#
# - The verdicts at the budgets that were run: they rest on runs alone, not on a curve.
# - Multipliers and decompositions between the smallest and the largest budget, where the curves of both arms run
#   through their means; "never crossed" means never in between.
#
# What may not: floors and exponents (three budgets do not identify them), anything beyond the largest budget, and the
# answer under an assumption that is violated or untested in the table above. What the map and the next run say is
# predicted.
