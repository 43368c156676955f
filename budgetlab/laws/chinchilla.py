"""Loss by parameters and tokens: ``L = E + A / N^alpha + B / D^beta``."""

from __future__ import annotations

from collections.abc import Mapping

from budgetlab.laws.base import Array, Law, Term


def _num_params_exponent(params: Mapping[str, Array]) -> Array:
    """Exponent of the optimal number of parameters in compute, N* = G (C/k)^this."""
    return params["beta"] / (params["alpha"] + params["beta"])


def _tokens_exponent(params: Mapping[str, Array]) -> Array:
    """Exponent of the optimal number of tokens in compute, D* = (C/k)^this / G."""
    return params["alpha"] / (params["alpha"] + params["beta"])


LAW = Law(
    name="chinchilla",
    outcome="loss",
    terms=(Term("E"), Term("A", {"num_params": "alpha"}), Term("B", {"tokens": "beta"})),
    formula="E + A/num_params^alpha + B/tokens^beta",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
    derived={"optimal_num_params_exponent": _num_params_exponent, "optimal_tokens_exponent": _tokens_exponent},
)
