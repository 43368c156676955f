"""Fitting: certified scaling curves, intervals, and the comparison of arms."""

from budgetlab.fitting.arm_curves import fit_arms
from budgetlab.fitting.compare import compare, compare_arms
from budgetlab.fitting.curves import certify, fit
from budgetlab.fitting.isoflop import IsoFlop, PowerLine, isoflop, power_line
from budgetlab.fitting.scores import average_words
from budgetlab.fitting.status import FitStatus
from budgetlab.fitting.use import TwoStep, frontier, optimum, predict, two_step

__all__ = [
    "FitStatus",
    "IsoFlop",
    "PowerLine",
    "TwoStep",
    "average_words",
    "certify",
    "compare",
    "compare_arms",
    "fit",
    "fit_arms",
    "frontier",
    "isoflop",
    "optimum",
    "power_line",
    "predict",
    "two_step",
]
