"""One file here is one way to train a student; a strategy is found by its file name, or given by path.

A strategy is a frozen model whose fields are its settings. It says what it needs from each network, refuses what
cannot work from the `ModelSpec`s alone, and turns the two networks' signals into named loss terms. Importing
this package never loads torch, so that `plan` can refuse an impossible arm.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from budgetlab.errors import BudgetlabError, CallerError, place_in_own_code, unknown_name
from budgetlab.strategies.base import Strategy
from budgetlab.values import StrategySpec

__all__ = ["Strategy", "build_strategy", "strategy_names"]

_NOT_STRATEGIES = {"base", "caching", "losses"}


def strategy_names() -> tuple[str, ...]:
    """Names of the strategies that come with budgetlab, one per file."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name not in _NOT_STRATEGIES))


def build_strategy(spec: StrategySpec, arm: str = "") -> Strategy:
    """Make the strategy that a study names for an arm: one of `strategy_names`, or of the file of that path.

    A CallerError where there is no such strategy, its file cannot be imported, or a setting is unknown or of the wrong
    type. A file that never returns cannot be told from a slow one.
    """
    where = f"arms.{arm}.strategy" if arm else "strategy"
    if spec.name.endswith(".py"):
        module = _load_file(Path(spec.name), where)
    elif spec.name in strategy_names():
        module = importlib.import_module(f"{__name__}.{spec.name}")
    else:
        raise unknown_name("strategy", spec.name, strategy_names(), where)
    classes = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    found = [item for item in classes if issubclass(item, Strategy)]
    if len(found) != 1:
        wrong = f"the file defines {len(found)} strategies"
        raise CallerError(f"{where} = {spec.name!r}", wrong, "define exactly one in a file")
    try:
        return found[0](**spec.settings)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            known = [field.alias or name for name, field in found[0].model_fields.items()]
            raise unknown_name(f"setting of {spec.name}", setting, known, where) from None
        message = f"{first['msg']} (given {first['input']!r})"
        raise CallerError(f"{where}.{setting}", message, "correct the setting") from None


def _load_file(path: Path, where: str) -> ModuleType:
    asked, do, name = f"{where} = {str(path)!r}", "give the path of a strategy file", f"user_strategy_{path.stem}"
    try:
        if not path.is_file():
            raise CallerError(asked, "no such file", do)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # its name ends in .py
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except OSError as error:
        raise CallerError(asked, error.strerror or str(error), do) from None
    except BudgetlabError:
        raise
    except (Exception, SystemExit) as error:
        place = place_in_own_code(error) or path.name
        wrong = f"cannot be imported ({place}: {type(error).__name__}: {error})"
        raise CallerError(asked, wrong, "correct the file") from error
    return module
