"""Scaling laws, one file each; a file that defines ``LAW`` is found by its name, or given by path."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

from budgetlab.errors import CallerError, unknown_name
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
    """Return a law by name, or by the path of a file that defines one; from then on its name is enough.

    Raises
    ------
    CallerError
        When there is no law of that name (the message lists the near ones), or the file defines none.

    Examples
    --------
    >>> get_law("power").formula
    'E + A/x^a'
    """
    if name.endswith(".py"):
        return _load_file(Path(name))
    if (own := sys.modules.get(_own(name))) is not None:
        return own.LAW
    if name not in law_names():
        raise unknown_name("law", name, law_names())
    return importlib.import_module(f"budgetlab.laws.{name}").LAW


def _own(name: str) -> str:
    """Name under which the module of a user's own law is kept."""
    return f"user_law_{name}"


def _load_file(path: Path) -> AnyLaw:
    asked = f"law {str(path)!r}"
    if not path.is_file():
        raise CallerError(asked, "no such file", "give the path of a law's file")
    if path.stem in law_names():
        raise CallerError(asked, f"{path.stem} is a law of budgetlab", "give the file another name")
    spec = importlib.util.spec_from_file_location(_own(path.stem), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    law = getattr(module, "LAW", None)
    if not isinstance(law, AnyLaw) or law.name != path.stem:
        raise CallerError(asked, f"it defines no LAW of the name {path.stem}", "define LAW, named as its file is")
    sys.modules[_own(path.stem)] = module
    return law
