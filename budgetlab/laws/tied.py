"""Loss by parameters and tokens with one exponent: ``L = E + A / N^alpha + B / D^alpha``.

With compute C = 6ND and tokens per parameter M = D/N this is Gadre's ``E + (a M^eta + b M^-eta) C^-eta`` with
eta = alpha / 2, a = A 6^eta and b = B 6^eta: the best M is the same at every budget.
"""

from budgetlab.laws.base import Law, Term

LAW = Law(
    name="tied",
    outcome="loss",
    terms=(Term("E"), Term("A", {"num_params": "alpha"}), Term("B", {"tokens": "alpha"})),
    formula="E + A/num_params^alpha + B/tokens^alpha",
    source="Gadre et al. 2024, arXiv 2403.08540",
)
