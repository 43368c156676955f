"""study.toml -> plain tables: what it extends, what its lists stand for, where its own files lie."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError
from budgetlab.values.model_specs import CAUSAL_FAMILIES, CAUSAL_FIELDS, CONFIG_FIELDS
from budgetlab.values.scoring import PROTOCOLS

PRESETS = Path(__file__).parent / "presets"

_MOST_BYTES, _DEEPEST, _LONGEST_CHAIN, _MOST_ARMS = 1 << 20, 20, 20, 500
_DEEP_KEY = re.compile(rf"""(?:^|[\[{{,])[ \t]*(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{_DEEPEST}}}""", re.M)


def read_tables(path: Path) -> dict[str, Any]:
    """Read a study file: its tables on those that it extends, with every list of students and teachers expanded."""
    tables = _read(path, seen=())
    models, grids = _expand_models(tables.get("models"))
    if isinstance(models, dict):
        models = {name: _with_given_shape(name, model) for name, model in models.items()}
    found = {"models": models, "arms": _expand_arms(tables, grids), "evaluate": _expand_protocol(tables)}
    return {**tables, **found}


def is_file(path: Path) -> bool:
    """Whether a file is there; of a path that no file can have, no."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_study(path: Path, beside: Path) -> Path:
    """Find a study file, a preset, or from any folder a study of the checkout that the program runs from."""
    candidates = [beside / path, path]
    if path.parts[:1] == ("experiments",):
        candidates.append(PRESETS.parents[1] / path)
    if path.parts[:1] == ("presets",):
        candidates.append(PRESETS / Path(*path.parts[1:]))
    for candidate in candidates:
        if is_file(candidate):
            return candidate.resolve()
    presets = ", ".join(sorted(f"presets/{preset.name}" for preset in PRESETS.glob("*.toml")))
    raise CallerError(f"study {str(path)!r}", "no such file", f"give the path of a study file; presets: {presets}")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise CallerError(f"study {path}", "it extends itself", "break the circle of extends")
    if len(seen) == _LONGEST_CHAIN:
        raise CallerError(f"study {seen[0]}", f"it extends more than {_LONGEST_CHAIN} files in a row", "merge some")
    tables = _parsed(path)
    _anchor(tables, path.parent)
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    if not isinstance(parent, str):
        raise CallerError(f"extends = {parent!r}", "not the path of a study file", "name one file")
    return _merge(_read(find_study(Path(parent), path.parent), (*seen, path)), tables)


def _parsed(path: Path) -> dict[str, Any]:
    asked, too_deep = f"study {path}", f"nested more than {_DEEPEST} deep"
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("utf-8")
        if len(text) > _MOST_BYTES:
            raise CallerError(asked, f"larger than {_MOST_BYTES:,} bytes", "give a study file")
        if _DEEP_KEY.search(text):  # it would be read in the square of its depth
            raise CallerError(asked, too_deep, "correct the file")
        tables = tomllib.loads(text)
    except OSError as error:
        raise CallerError(asked, f"cannot be read ({error.strerror or error})", "make it readable") from None
    except RecursionError:
        raise CallerError(asked, too_deep, "correct the file") from None
    except CallerError:
        raise
    except ValueError as error:  # also of bytes that are no text, and of integers of thousands of digits
        raise CallerError(asked, f"not valid TOML ({error})", "correct the file") from None
    level: list[Any] = [tables]
    for _ in range(_DEEPEST):
        level = [part for item in level for part in _parts(item)]
    if level:
        raise CallerError(asked, too_deep, "correct the file")
    return tables


def _parts(item: Any) -> Iterator[Any]:
    yield from item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def _anchor(tables: dict[str, Any], folder: Path) -> None:
    """Have strategy files and folders of weights that lie beside the study file found from wherever it is read."""
    for arm in _tables_of(tables, "arms"):
        strategy = arm.get("strategy")
        if isinstance(strategy, str):
            arm["strategy"] = strategy = {"name": strategy}
        if isinstance(strategy, dict) and str(strategy.get("name")).endswith(".py"):
            strategy["name"] = _from_here(strategy["name"], folder)
    for model in _tables_of(tables, "models"):
        if isinstance(model.get("weights"), str):
            model["weights"] = _from_here(model["weights"], folder)
    corpus = tables.get("corpus")
    tokenizer = corpus.get("tokenizer") if isinstance(corpus, dict) else None
    if isinstance(corpus, dict) and isinstance(tokenizer, str) and _is_folder(folder / tokenizer):
        corpus["tokenizer"] = str((folder / tokenizer).resolve())


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # what is no name of a file
        return False


def _tables_of(tables: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = tables.get(name)
    return [item for item in found.values() if isinstance(item, dict)] if isinstance(found, dict) else []


def _from_here(name: str, folder: Path) -> str:
    """A path relative to the working folder where it lies in it, since it is part of what identifies a run."""
    try:
        beside = (folder / name).resolve()
        if not name or Path(name).is_absolute() or not beside.exists():
            return name
        here = Path.cwd()
        return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
    except (OSError, ValueError):
        return name


def given_config(weights: str, fetch: bool = False) -> dict[str, Any] | None:
    """Return the config.json of given weights; None of an id on the hub that is not in its cache, unless to fetch."""
    file = Path(weights) / "config.json" if _is_folder(Path(weights)) else _hub_config(weights, fetch)
    if file is None:
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        wrong = f"no config.json that can be read ({error})"
        raise CallerError(f"weights = {weights!r}", wrong, "give a folder that transformers can load") from None
    if not isinstance(config, dict):
        raise CallerError(f"weights = {weights!r}", "config.json is no JSON object", "give a folder of a model")
    return config


def _hub_config(name: str, fetch: bool) -> Path | None:
    """Where the hub's cache has the config.json of an id; with `fetch` it is brought there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        kept = try_to_load_from_cache(name, "config.json")
        if not isinstance(kept, str):
            kept = hf_hub_download(name, "config.json") if fetch else None
        return None if kept is None else Path(kept)
    except HFValidationError:
        return None  # no id at all: whoever loads the weights says so
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        wrong = f"no folder, and its config.json cannot be had from the hub ({' '.join(str(error).split())[:120]})"
        remedy = "correct the name, go online, or write its shape (num_layers, hidden_size, ...)"
        raise CallerError(f"weights = {name!r}", wrong, remedy) from None


def vocabulary_size(path: Path) -> int | None:
    """Return how many entries a vocab.txt, a tokenizer.json or a folder with one has; None where there is none."""
    file = next((file for file in (path, path / "tokenizer.json", path / "vocab.txt") if is_file(file)), None)
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix != ".json":
            return len(text.splitlines())
        tokenizer = json.loads(text)
        added = (token["id"] + 1 for token in tokenizer.get("added_tokens", ()))
        return max(len(tokenizer["model"]["vocab"]), *added, 1)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        wrong = f"no vocabulary can be read from it ({type(error).__name__}: {error})"
        raise CallerError(f"corpus.tokenizer = {str(file)!r}", wrong, "give a vocab.txt or a tokenizer.json") from None


def _with_given_shape(name: str, model: Any) -> Any:
    """Fill in from the weights' own config.json what the table does not say."""
    weights = model.get("weights") if isinstance(model, dict) else None
    fetch = "num_layers" not in model if isinstance(model, dict) else False
    config = given_config(weights, fetch) if isinstance(weights, str) else None
    if config is None:
        return model
    names = {**CONFIG_FIELDS, **(_GPT2_FIELDS if config.get("model_type") == "gpt2" else {})}
    causal = config.get("model_type") in CAUSAL_FAMILIES
    given = {
        field: config[key]
        for key, field in names.items()
        if config.get(key) is not None and (causal or field not in CAUSAL_FIELDS)
    }
    if config.get("model_type") == "gpt2":
        given.setdefault("intermediate_size", 4 * given.get("hidden_size", 0))
    for field, value in given.items():
        if field in model and model[field] != value:
            asked, wrong = f"models.{name}.{field} = {model[field]!r}", f"{field} of {weights!r} is {value!r}"
            raise CallerError(asked, wrong, "leave it out: the weights' config.json says it")
    return {**given, **model}


_GPT2_FIELDS = {"n_layer": "num_layers", "n_embd": "hidden_size", "n_head": "num_heads", "n_inner": "intermediate_size"}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _expand_protocol(tables: dict[str, Any]) -> Any:
    """Fill in what `evaluate.preset` stands for, below what is written out."""
    written = tables.get("evaluate")
    preset = written.get("preset") if isinstance(written, dict) else None
    if not isinstance(written, dict) or not isinstance(preset, str) or preset not in PROTOCOLS:
        return written
    return _merge(PROTOCOLS[preset], written)


def _expand_models(models: Any) -> tuple[Any, dict[str, list[str]]]:
    """One model for each of several teacher budgets (`pretrain.tokens` a list), and which names stand for which."""
    if not isinstance(models, dict):
        return models, {}
    expanded: dict[str, Any] = {}
    grids: dict[str, list[str]] = {}
    for name, model in models.items():
        pretrain = model.get("pretrain") if isinstance(model, dict) else None
        amounts = pretrain.get("tokens") if isinstance(pretrain, dict) else None
        if pretrain is None or not isinstance(amounts, list):
            expanded[name] = model
            continue
        if not amounts:
            raise CallerError(f"models.{name}.pretrain.tokens = []", "an empty list", "give one amount, or several")
        grids[name] = [f"{name}-{''.join(str(amount).split())}" for amount in amounts]
        for full_name, amount in zip(grids[name], amounts, strict=True):
            if full_name in expanded or full_name in models:
                raise CallerError(f"models.{full_name}", "two models have this name", "rename one, or list it once")
            expanded[full_name] = {**model, "pretrain": {**pretrain, "tokens": amount}}
    return expanded, grids


def _expand_arms(tables: dict[str, Any], grids: dict[str, list[str]]) -> Any:
    """Fill in the shared recipe, and make an arm of every student and teacher asked for, such as `ARM@STUDENT+TEACHER`.

    A name has a part only for what was a list.
    """
    arms = tables.get("arms")
    if not isinstance(arms, dict):
        return arms
    shared = tables.get("recipe", {})
    expanded: dict[str, Any] = {}
    for name, arm in arms.items():
        if not isinstance(arm, dict):
            raise CallerError(f"arms.{name} = {arm!r}", "not a table", f"write [arms.{name}] with strategy and student")
        over = arm.get("recipe", {})
        filled = {
            **arm,
            "recipe": _merge(shared, over) if isinstance(over, dict) and isinstance(shared, dict) else over,
        }
        choices = {"student": _choices(name, "student", arm, grids), "teacher": _choices(name, "teacher", arm, grids)}
        marks = {"student": "@", "teacher": "+"}
        several = [role for role, found in choices.items() if len(found) > 1 or isinstance(arm.get(role), list)]
        for picked in (dict(zip(choices, pair, strict=True)) for pair in itertools.product(*choices.values())):
            full_name = name + "".join(f"{marks[role]}{picked[role]}" for role in several)
            if full_name in expanded or (full_name != name and full_name in arms):
                raise CallerError(f"arms.{full_name}", "two arms have this name", "rename one, or list a model once")
            if len(expanded) == _MOST_ARMS:
                raise CallerError(f"arms.{name}", f"more than {_MOST_ARMS} arms in all", "compare fewer at a time")
            expanded[full_name] = {**filled, **picked, "name": full_name}
    return {name: {key: value for key, value in arm.items() if value is not None} for name, arm in expanded.items()}


def _choices(name: str, role: str, arm: dict[str, Any], grids: dict[str, list[str]]) -> list[Any]:
    asked = arm.get(role)
    if asked == []:
        raise CallerError(f"arms.{name}.{role} = []", "an empty list", "name one model, or several")
    models = asked if isinstance(asked, list) else [asked]
    return [choice for model in models for choice in (grids.get(model, [model]) if isinstance(model, str) else [model])]
