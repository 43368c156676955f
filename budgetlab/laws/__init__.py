"""Scaling laws. Each file here lists its ``LAWS``; a user's own file defines one ``LAW`` and is given by its path."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path

from budgetlab.errors import CallerError, unknown_name
from budgetlab.laws.law import Instance, Law, Parameter
from budgetlab.laws.terms import Term

__all__ = ["Form", "Instance", "Law", "Parameter", "Term", "get_law", "law_names"]

Form = Law
"""Name in users' files of a law that is no sum of terms."""
_users: dict[str, Law] = {}


@cache
def _own_laws() -> dict[str, Law]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {law.name: law for module in modules for law in getattr(module, "LAWS", ())}


def law_names() -> tuple[str, ...]:
    """Names of the laws in this folder."""
    return tuple(sorted(_own_laws()))


def get_law(name: str) -> Law:
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
    known = _own_laws() | _users
    if name not in known:
        raise unknown_name("law", name, law_names())
    return known[name]


def _load_file(path: Path) -> Law:
    asked = f"law {str(path)!r}"
    if not path.is_file():
        raise CallerError(asked, "no such file", "give the path of a law's file")
    if path.stem in _own_laws():
        raise CallerError(asked, f"{path.stem} is a law of budgetlab", "give the file another name")
    spec = importlib.util.spec_from_file_location(f"user_law_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    law = getattr(module, "LAW", None)
    if law is None or getattr(law, "name", None) != path.stem:
        raise CallerError(asked, f"it defines no LAW of the name {path.stem}", "define LAW, named as its file is")
    _users[path.stem] = law
    return law
