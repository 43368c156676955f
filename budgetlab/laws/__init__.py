"""Scaling laws, one file each; a file that defines ``LAW`` is found by its name."""

from __future__ import annotations

import importlib
import pkgutil

from budgetlab.errors import unknown_name
from budgetlab.laws.base import Law, Term
from budgetlab.laws.form import Form, Instance, Parameter

__all__ = ["AnyLaw", "Form", "Instance", "Law", "Parameter", "Term", "get_law", "law_names"]

AnyLaw = Law | Form
"""What the fitting engine takes."""
_NO_LAWS = {"base", "form", "jets"}


def law_names() -> tuple[str, ...]:
    """Names of the laws in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_LAWS))


def get_law(name: str) -> AnyLaw:
    """Return a law by name.

    Raises
    ------
    CallerError
        When there is no law of that name; the message lists the near ones.

    Examples
    --------
    >>> get_law("power").formula
    'E + A/x^a'
    """
    if name not in law_names():
        raise unknown_name("law", name, law_names())
    return importlib.import_module(f"budgetlab.laws.{name}").LAW
