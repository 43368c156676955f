"""Figures, tables and the page. Nothing here loads torch, and nothing loads matplotlib before a figure is drawn."""

from budgetlab.reporting.assemble import Report, report
from budgetlab.reporting.conclusion import Conclusion, SanityCheck, conclude, conclude_study, sanity_checks
from budgetlab.reporting.figures import FigureFiles

__all__ = [
    "Conclusion", "FigureFiles", "Report", "SanityCheck", "conclude", "conclude_study", "report", "sanity_checks",
]  # fmt: skip
