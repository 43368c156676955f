"""A power law with a floor in one input: ``y = E + A / x^a``."""

from budgetlab.laws.base import Law, Term

LAW = Law(
    name="power",
    outcome="y",
    terms=(Term("E"), Term("A", {"x": "a"})),
    formula="E + A/x^a",
    source="Hestness et al. 2017, arXiv 1712.00409",
)
