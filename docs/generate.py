"""Parts of the reference that are made of the program itself when the pages are built, as a Sphinx extension.

A page says where: `<!-- generated: NAME -->` on a line of its own stands for the Markdown that a function here returns.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import budgetlab
from budgetlab.cli import app
from budgetlab.strategies import build_strategy, strategy_names
from budgetlab.studies import Study
from budgetlab.values import StrategySpec, TaskSpec
from budgetlab.values.kept import KINDS
from budgetlab.values.model_specs import Pretrain
from budgetlab.values.specs import TeacherLayers, TokenizerSpec

FLOW = ("studies", "profiler", "planner", "corpus", "runner", "evaluation", "store", "frames", "fitting", "decisions",
        "reporting", "reporting.figures", "intake", "strategies", "errors", "values")  # fmt: skip
"""Rooms of the public names, in the order in which data flows."""
VALUES = ("CostProfile", "Plan", "Schedule", "RunRecord", "Score", "CurveFit", "Verdict", "Assumption")
"""What the public functions take and return, of `budgetlab.values`."""
TABLES = ("corpus", "recipe", "execution", "models", "arms", "tuning", "plan", "evaluate", "fit")
VALUES_INTRO = "What the functions above take and return: frozen, as JSON by `model_dump_json()`."
INNER = {"corpus.tokenizer": TokenizerSpec, "models.NAME.pretrain": Pretrain, "recipe.initialisation": TeacherLayers,
         "evaluate.own.NAME": TaskSpec,
         **{f"arms.NAME.cache, {kind}": kept for kind, kept in KINDS.items()}}  # fmt: skip
"""Tables inside tables."""


def setup(sphinx: Sphinx) -> dict[str, bool]:
    """Have Sphinx fill in the marked parts of each page as it reads it."""
    sphinx.connect("source-read", _fill)
    sphinx.connect("autodoc-process-signature", _without_fields)
    return {"parallel_read_safe": True}


def _fill(_: Sphinx, __: str, source: list[str]) -> None:
    for name, make in PARTS.items():
        mark = f"<!-- generated: {name} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, make())


def _without_fields(_: Sphinx, __: str, ___: str, found: Any, *____: Any) -> tuple[str, str] | None:
    """Leave the signature of a value out: its fields are listed below it."""
    return ("", "") if inspect.isclass(found) and issubclass(found, BaseModel) else None


def command_line() -> str:
    """Every verb with its arguments and options."""
    return "\n\n".join(_verb(name, verb) for name, verb in typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]


def _verb(name: str, verb: Any) -> str:
    rows, usage = [], ["budgetlab", name]
    for option in verb.params:
        if option.param_type_name == "argument":
            shown = option.name.upper()
            usage.append(shown if option.required else f"[{shown}]")
        else:
            shown = " ".join([*option.opts, option.metavar or ("" if option.is_flag else option.name.upper())]).strip()
        rows.append([f"`{shown}`", "required" if option.required else _shown(option.default), option.help])
    table = _table(["option", "default", "meaning"], rows)
    return "\n\n".join([f"## budgetlab {name}", f"`{' '.join(usage)} [OPTIONS]`", verb.help, table])


def study_file() -> str:
    """Every table and key of a study file, with type, default and meaning."""
    parts = [_model("The top level", Study, skip=(*TABLES, "data_roots"))]
    for name in TABLES:
        model = next(part for part in _parts(Study.model_fields[name].annotation) if _is_model(part))
        several = f"{name}.NAME" if name in ("models", "arms") else name
        parts.append(_model(f"[{several}]", model, skip=("name", "recipe") if name == "arms" else ()))
        parts += [_model(f"[{key}]", inner, level=3) for key, inner in INNER.items() if key.split(".")[0] == name]
    return "\n\n".join(parts)


def strategies() -> str:
    """Every strategy's loss and settings."""
    found = {name: type(build_strategy(StrategySpec(name=name))) for name in strategy_names()}
    return "\n\n".join(_model(f"`{name}`", strategy, level=3) for name, strategy in found.items())


def _model(title: str, model: type[BaseModel], skip: tuple[str, ...] = (), level: int = 2) -> str:
    fields = {name: field for name, field in model.model_fields.items() if name not in skip}
    rows = [[f"`{field.alias or name}`", _type_words(field.annotation, field), _default(field), _meaning(model, name)]
            for name, field in fields.items()]  # fmt: skip
    intro = inspect.cleandoc(model.__doc__ or "").replace("*", "\\*")
    return "\n\n".join([f"{'#' * level} {title}", intro, _table(["key", "type", "default", "meaning"], rows)])


def _meaning(model: type[BaseModel], name: str) -> str:
    """Return the docstring under a field, from the class that defines it."""
    home = next(home for home in model.__mro__ if name in inspect.get_annotations(home))
    found = ModuleAnalyzer.for_module(home.__module__).find_attr_docs().get((home.__name__, name), [])
    return " ".join(" ".join(found).split()).replace("*", "\\*")


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        written = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{{ {', '.join(f'{key} = {_toml(item)}' for key, item in written.items())} }}`" if written else ""
    return "" if value is None or value is False or value in ((), {}, []) else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "anything"}
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _type_words(annotation: Any, field: FieldInfo | None = None) -> str:
    """Say an annotation in a few words, such as `integer > 0 or "auto"`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    extras: list[Any] = list(field.metadata) if field else []
    if origin is typing.Annotated:
        annotation, *extras = arguments
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is int and any(isinstance(extra, BeforeValidator) for extra in extras):
        return "count"
    if origin is typing.Literal:
        words = ", ".join(f"`{_toml(value)}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        words = " or ".join(dict.fromkeys(_type_words(part) for part in arguments if part is not type(None)))
    elif origin is tuple:
        words = f"list of {_type_words(arguments[0])}" if arguments[-1] is Ellipsis else f"{len(arguments)} numbers"
    elif origin is dict:
        words = f"table of {_type_words(arguments[1])}"
    else:
        words = "table" if _is_model(annotation) else NAMES.get(annotation, "text")
    extras = [part for extra in extras for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    limits = [
        f"{sign} {getattr(extra, key):,}" for extra in extras for key, sign in SIGNS.items() if hasattr(extra, key)
    ]
    return " ".join([words, ", ".join(limits)]).strip()


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _parts(inner)


def _is_model(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, BaseModel)


def python() -> str:
    """Every public name, by the room that it lives in; last the values that they pass on."""
    homes: dict[str, list[str]] = {room: [] for room in FLOW}
    stub = Path(budgetlab.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            homes[node.module].extend(alias.name for alias in node.names)
    values = [_model(name, getattr(budgetlab.values, name), level=3) for name in VALUES]
    return "\n\n".join([*(_room(room, names) for room, names in homes.items()), VALUES_INTRO, *values])


def _room(room: str, names: list[str]) -> str:
    importlib.import_module(f"budgetlab.{room}")
    lines = [f".. automodule:: budgetlab.{room}", "   :no-members:", ""]
    for name in names:
        found = getattr(budgetlab, name)
        lines += [f".. auto{'function' if inspect.isfunction(found) else 'class'}:: budgetlab.{name}"]
        lines += ["   :members:", "   :exclude-members: model_config"] if inspect.isclass(found) else []
        lines += [""]
    return "\n".join([f"## budgetlab.{room}", "", "```{eval-rst}", *lines, "```"])


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table; one without rows is a word."""
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "No settings."


PARTS = {"command line": command_line, "study file": study_file, "strategies": strategies, "python": python}
