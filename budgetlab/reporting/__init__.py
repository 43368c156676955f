"""Figures, tables and the page. Nothing here loads torch, and nothing loads matplotlib before a figure is drawn."""

from budgetlab.reporting.assemble import Report, report
from budgetlab.reporting.conclusion import Conclusion, conclude, conclude_study
from budgetlab.reporting.figures import FigureFiles
from budgetlab.reporting.gates import Gate, learning_gates

__all__ = ["Conclusion", "FigureFiles", "Gate", "Report", "conclude", "conclude_study", "learning_gates", "report"]
