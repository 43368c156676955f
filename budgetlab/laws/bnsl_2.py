"""A power law in one input with two breaks; see `bnsl`."""

from budgetlab.laws.bnsl import broken

LAW = broken(2)
