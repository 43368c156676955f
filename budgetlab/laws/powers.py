"""Sums of power terms: one input; parameters and tokens, with exponents of their own or one for both."""

from __future__ import annotations

from collections.abc import Mapping

from budgetlab.laws.law import Law
from budgetlab.laws.terms import Array, Term


def _num_params_exponent(params: Mapping[str, Array]) -> Array:
    """Exponent of the optimal number of parameters in compute, N* = G (C/k)^this."""
    return params["beta"] / (params["alpha"] + params["beta"])


def _tokens_exponent(params: Mapping[str, Array]) -> Array:
    """Exponent of the optimal number of tokens in compute, D* = (C/k)^this / G."""
    return params["alpha"] / (params["alpha"] + params["beta"])


POWER = Law(
    name="power",
    outcome="y",
    terms=(Term("E"), Term("A", {"x": "a"})),
    formula="E + A/x^a",
    source="Hestness et al. 2017, arXiv 1712.00409",
)

CHINCHILLA = Law(
    name="chinchilla",
    outcome="loss",
    terms=(Term("E"), Term("A", {"num_params": "alpha"}), Term("B", {"tokens": "beta"})),
    formula="E + A/num_params^alpha + B/tokens^beta",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
    derived={"optimal_num_params_exponent": _num_params_exponent, "optimal_tokens_exponent": _tokens_exponent},
)

# With compute C = 6ND and tokens per parameter M = D/N this is Gadre's E + (a M^eta + b M^-eta) C^-eta with
# eta = alpha / 2, a = A 6^eta and b = B 6^eta: the best M is the same at every budget.
TIED = Law(
    name="tied",
    outcome="loss",
    terms=(Term("E"), Term("A", {"num_params": "alpha"}), Term("B", {"tokens": "alpha"})),
    formula="E + A/num_params^alpha + B/tokens^alpha",
    source="Gadre et al. 2024, arXiv 2403.08540",
)

LAWS = (POWER, CHINCHILLA, TIED)
