"""study.toml -> Study: presets, expansion of arms, and the audit of what differs between them."""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, model_validator

from budgetlab.errors import CallerError, unknown_name
from budgetlab.strategies import Strategy, build_strategy
from budgetlab.values import (
    Arm,
    CorpusSpec,
    EvaluateSpec,
    ExecutionSpec,
    FitSpec,
    ModelSpec,
    PlanSpec,
    Recipe,
    TuningSpec,
    Value,
    content_hash,
)
from budgetlab.values.scoring import PROTOCOLS
from budgetlab.values.specs import TAPPED_FAMILIES

__all__ = ["PRESETS", "Study", "audit", "compare_recipes", "dump_study", "find_data", "load_study", "profile_key"]

PRESETS = Path(__file__).parent / "presets"


class Study(Value):
    """One study file, resolved: every table, every default, every arm with its own full recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of its folder under the results."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Run seeds, of initialisation, order of the data, masks and dropout; a run of every arm and budget for each."""
    corpus: CorpusSpec = CorpusSpec()
    recipe: Recipe = Recipe()
    execution: ExecutionSpec = ExecutionSpec()
    models: dict[str, ModelSpec]
    arms: dict[str, Arm] = Field(min_length=1)
    tuning: TuningSpec | None = None
    plan: PlanSpec
    evaluate: EvaluateSpec = EvaluateSpec()
    fit: FitSpec = FitSpec()
    data_roots: tuple[Path, ...] = Field(default=(), exclude=True)
    """Where relative paths are looked for; not part of what the study asks."""

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> Study:
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {list(self.seeds)} must be distinct and not negative")
        return self

    def teacher_names(self) -> tuple[str, ...]:
        """Models that serve as teachers, in order of first use."""
        used = [arm.teacher for arm in self.arms.values() if arm.teacher is not None]
        return tuple(dict.fromkeys(used))

    def teacher_of(self, arm: Arm) -> ModelSpec | None:
        """Return the specification of an arm's teacher."""
        return self.models[arm.teacher] if arm.teacher is not None else None


def load_study(path: str | Path, *, data_root: str | Path | None = None) -> Study:
    """Read a study file.

    Parameters
    ----------
    path
        The TOML file, or "presets/NAME.toml" for one that comes with budgetlab.
    data_root
        Where corpus and task paths are looked for first; then $BUDGETLAB_DATA_ROOT, then beside the file.

    Raises
    ------
    CallerError
        For a missing or broken file, an unknown or mistyped key, an unknown model or strategy, arms that cannot work.
    """
    path = _find_study(Path(path), Path.cwd())
    tables = _read(path, seen=())
    roots = [Path(root) for root in (data_root, os.environ.get("BUDGETLAB_DATA_ROOT")) if root]
    models, grids = _expand_models(tables.get("models"))
    found = {"models": models, "arms": _expand_arms(tables, grids), "evaluate": _expand_protocol(tables)}
    study = _validated({**tables, **found}, path)
    study = study.model_copy(
        update={"data_roots": (*roots, path.parent.resolve()), "models": _with_vocabulary(study, roots)}
    )
    for arm in study.arms.values():
        _check_arm(study, arm)
    return study


def dump_study(study: Study) -> str:
    """Write a resolved study as TOML that `load_study` reads back to the same study."""
    return tomli_w.dumps(study.model_dump(mode="json", exclude_none=True))


def find_data(study: Study, path: str) -> Path:
    """Find a file or folder under the study's data roots.

    Raises
    ------
    CallerError
        When none of the roots has it.
    """
    for root in study.data_roots:
        if (root / path).exists():
            return root / path
    tried = ", ".join(str(root) for root in study.data_roots) or "nowhere"
    raise CallerError(f"path {path!r}", f"not found under {tried}", "set --data-root or $BUDGETLAB_DATA_ROOT")


_PRICELESS = {"usd_per_device_hour", "scaling_efficiency", "devices", "workers", "device_memory_bytes", "trackers",
              "keep_checkpoints", "compile"}  # fmt: skip
"""Settings of the execution that do not change what a step costs on one device."""


def profile_key(study: Study) -> str:
    """Hash of what decides the prices of a study: a profile with the same key may stand for it."""
    arms = [{**arm.model_dump(mode="json"), "recipe": _priced(arm.recipe)} for arm in study.arms.values()]
    return content_hash(
        [study.models[name].untrained().model_dump(mode="json") for name in sorted(study.models)],
        [name for name in sorted(study.teacher_names()) if study.models[name].pretraining_tokens is not None],
        arms,
        _priced(study.recipe),
        study.execution.model_dump(mode="json", exclude=_PRICELESS),
    )


def audit(study: Study) -> tuple[str, ...]:
    """Say what differs between the arms of a study, as `compare_recipes` does."""
    return compare_recipes(study.arms, study.models)


def _priced(recipe: Recipe) -> dict[str, Any]:
    """A recipe as profiles have always hashed it: how long the rate rises costs nothing."""
    fraction = 0.06 if recipe.warmup_fraction is None else recipe.warmup_fraction
    return {**recipe.model_dump(mode="json", exclude={"warmup_tokens"}), "warmup_fraction": fraction}


def compare_recipes(
    arms: Mapping[str, Arm], models: Mapping[str, ModelSpec], warmups: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """Say what differs between the arms, one line each, the strategy first; then what holds for all of them.

    Parameters
    ----------
    arms, models
        As in the study, or as they are planned.
    warmups
        Tokens of the warm-up by arm, where they are planned.
    """
    lines = [f"{arm.name}: strategy {arm.strategy.name} {_settings(arm)}".rstrip() for arm in arms.values()]
    first = next(iter(arms.values()))
    taught = next((arm for arm in arms.values() if arm.teacher is not None), first)
    for arm in arms.values():
        for role, mine, other in (("student", arm.student, first), ("teacher", arm.teacher, taught)):
            theirs = getattr(other, role)
            if mine is None or mine == theirs:
                continue
            pairs = _differences(models[mine], models[theirs])
            shown = "; ".join(f"{field} {one}, {other.name} has {two}" for field, one, two in pairs)
            lines.append(f"{arm.name}: {role} {mine}: {shown or 'equal to that of ' + other.name}")
        for field, mine, theirs in _differences(arm.recipe, first.recipe):
            lines.append(f"{arm.name}: recipe.{field} {mine}, {first.name} has {theirs}")
    if warmups is None and any(arm.recipe.warmup_fraction for arm in arms.values()):
        lines.append(
            "Warm-up is a share of each arm's own steps (recipe.warmup_fraction), so its tokens differ with them."
        )
    warmups = warmups or {}
    for name, tokens in warmups.items():
        if tokens != (theirs := next(iter(warmups.values()))):
            lines.append(f"{name}: warm-up of {tokens:,} tokens, {next(iter(warmups))} has {theirs:,}")
    if len(lines) == len(arms):
        lines.append(
            "All arms share the student, the recipe, the order of samples and the masks; they differ in strategy alone."
        )
    else:
        lines.append("All arms share run seeds, order of samples, masks and the fine-tuning recipe.")
    if len(set(warmups.values())) == 1:
        lines.append(f"Every arm warms up for {next(iter(warmups.values())):,} tokens.")
    for teacher in dict.fromkeys(arm.teacher for arm in arms.values() if arm.teacher is not None):
        lines.append(f"Of {teacher} there is one, with one seed: what is found holds for it.")
    return tuple(lines)


def _differences(one: Value, other: Value) -> list[tuple[str, Any, Any]]:
    pairs = [(field, getattr(one, field), getattr(other, field)) for field in type(one).model_fields]
    return [(field, mine, theirs) for field, mine, theirs in pairs if mine != theirs]


def _settings(arm: Arm) -> str:
    pairs = [f"{key} = {value}" for key, value in arm.strategy.settings.items()]
    pairs += [f"teacher {arm.teacher}"] if arm.teacher else []
    return f"({', '.join(pairs)})" if pairs else ""


def _find_study(path: Path, beside: Path) -> Path:
    candidates = [beside / path, path]
    if path.parts[:1] == ("presets",):
        candidates.append(PRESETS / Path(*path.parts[1:]))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    presets = ", ".join(sorted(f"presets/{preset.name}" for preset in PRESETS.glob("*.toml")))
    raise CallerError(f"study {str(path)!r}", "no such file", f"give the path of a study file; presets: {presets}")


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise CallerError(f"study {path}", "it extends itself", "break the circle of extends")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CallerError(f"study {path}", f"not valid TOML ({error})", "correct the file") from None
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    return _merge(_read(_find_study(Path(str(parent)), path.parent), (*seen, path)), tables)


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
    return _merge(PROTOCOLS[preset], written) if written and preset in PROTOCOLS else written


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
        grids[name] = [f"{name}-{amount}" for amount in amounts]
        for full_name, amount in zip(grids[name], amounts, strict=True):
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
        strategy = arm.get("strategy")
        over = arm.get("recipe", {})
        filled = {
            **arm,
            "strategy": {"name": strategy} if isinstance(strategy, str) else strategy,
            "recipe": _merge(shared, over) if isinstance(over, dict) and isinstance(shared, dict) else over,
        }
        for role in ("student", "teacher"):
            if arm.get(role) == []:
                raise CallerError(f"arms.{name}.{role} = []", "an empty list", "name one model, or several")
        choices = {role: _choices(arm.get(role), grids) for role in ("student", "teacher")}
        for student, teacher in itertools.product(*choices.values()):
            picked = {"student": student, "teacher": teacher}
            marks = {"student": "@", "teacher": "+"}
            several = [role for role, found in choices.items() if len(found) > 1 or _listed(arm, role)]
            full_name = name + "".join(f"{marks[role]}{picked[role]}" for role in several)
            expanded[full_name] = {**filled, **picked, "name": full_name}
    return {name: {key: value for key, value in arm.items() if value is not None} for name, arm in expanded.items()}


def _listed(arm: dict[str, Any], role: str) -> bool:
    return isinstance(arm.get(role), list)


def _choices(asked: Any, grids: dict[str, list[str]]) -> list[Any]:
    names = asked if isinstance(asked, list) else [asked]
    return [choice for name in names for choice in (grids.get(name, [name]) if isinstance(name, str) else [name])]


def _validated(tables: dict[str, Any], path: Path) -> Study:
    try:
        return Study.model_validate({key: value for key, value in tables.items() if value is not None})
    except ValidationError as error:
        # An unknown key is usually the cause of whatever else is missing.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        words = [str(part) for part in first["loc"]]
        where = f"{path.name}: {'.'.join(words) or 'study'}"
        if first["type"] == "extra_forbidden":
            known = _known_keys(words[:-1])
            raise unknown_name(f"key in [{'.'.join(words[:-1]) or 'study'}]", words[-1], known, path.name) from None
        if first["type"] == "missing":
            raise CallerError(where, "missing", "add it") from None
        message = first["msg"].removeprefix("Value error, ")
        given = first["input"]
        shown = f" (given {given!r})" if isinstance(given, str | int | float | bool | list) else ""
        raise CallerError(where, f"{message}{shown}", "correct it") from None


def _known_keys(words: list[str]) -> list[str]:
    model: Any = Study
    for word in words:
        field = getattr(model, "model_fields", {}).get(word)
        if field is None:  # the name of a model, an arm or a task
            continue
        model = next((part for part in _parts(field.annotation) if hasattr(part, "model_fields")), model)
    return [field.alias or name for name, field in model.model_fields.items() if not field.exclude]


def _parts(annotation: Any) -> list[Any]:
    inner = [part for arg in getattr(annotation, "__args__", ()) for part in _parts(arg)]
    return [annotation, *inner]


def _with_vocabulary(study: Study, roots: list[Path]) -> dict[str, ModelSpec]:
    """Give every model the tokenizer's vocabulary size, where the study does not say it."""
    tokenizer = study.corpus.tokenizer
    if not isinstance(tokenizer, str):
        size: int | None = tokenizer.train
    else:
        files = [root / tokenizer for root in roots if (root / tokenizer).is_file()]
        size = len(files[0].read_text(encoding="utf-8").splitlines()) if files else None
    return {
        name: spec if spec.vocab_size is not None else spec.model_copy(update={"vocab_size": size})
        for name, spec in study.models.items()
    }


def _check_arm(study: Study, arm: Arm) -> None:
    where = f"arms.{arm.name}"
    strategy = build_strategy(arm.strategy, arm.name)
    for role, name in (("student", arm.student), ("teacher", arm.teacher)):
        if name is not None and name not in study.models:
            raise unknown_name("model", name, study.models, f"{where}.{role}")
    if strategy.uses_teacher and arm.teacher is None:
        raise CallerError(f"{where}.strategy = {arm.strategy.name!r}", "it needs a teacher", 'add teacher = "MODEL"')
    student, teacher = study.models[arm.student], study.teacher_of(arm)
    starts_from_teacher = arm.recipe.initialisation != "random"
    if starts_from_teacher:
        _check_initialisation(where, arm, student, teacher)
    if teacher is not None and not strategy.uses_teacher and not starts_from_teacher:
        raise CallerError(f"{where}.teacher = {arm.teacher!r}", f"{arm.strategy.name} uses no teacher", "remove it")
    if teacher is not None:
        if teacher.vocab_size != student.vocab_size:
            raise CallerError(
                f"{where}.teacher = {arm.teacher!r}",
                f"its vocabulary has {teacher.vocab_size} entries, the student's {student.vocab_size}",
                "use one tokenizer for both",
            )
        if teacher.weights is None and teacher.pretrain is None:
            raise CallerError(
                f"{where}.teacher = {arm.teacher!r}",
                "it has neither weights nor pretrain, and nobody asked to train it",
                f"add one of them to [models.{arm.teacher}]",
            )
    if strategy.keeps_teacher:
        _check_kept_teacher(where, study, arm)
    if arm.recipe.batch_tokens < arm.recipe.seq_len:
        raise CallerError(f"{where}.recipe.batch_tokens", "holds no whole sequence", "make it a multiple of seq_len")
    try:
        strategy.check(student, teacher)
        _check_families(strategy, student, teacher)
    except CallerError as error:
        raise CallerError(f"{where}: {error.asked}", error.wrong, error.remedy) from None


def _check_kept_teacher(where: str, study: Study, arm: Arm) -> None:
    asked = f"{where}.strategy.cached = true"
    if study.corpus.masking != "static":
        wrong = "masks are drawn anew in every pass, so that no answer is read twice"
        raise CallerError(asked, wrong, 'set corpus.masking = "static"')
    if arm.recipe.execute == "everything":
        raise CallerError(asked, 'recipe.execute = "everything" asks the teacher at every step', "choose one of them")


def _check_initialisation(where: str, arm: Arm, student: ModelSpec, teacher: ModelSpec | None) -> None:
    assert arm.recipe.initialisation != "random"
    layers = arm.recipe.initialisation.teacher_layers
    asked = f"{where}.recipe.initialisation.teacher_layers = {list(layers)}"
    if teacher is None:
        raise CallerError(asked, "the arm has no teacher", 'add teacher = "MODEL"')
    if len(layers) != student.num_layers or max(layers) >= teacher.num_layers:
        known = f"the student has {student.num_layers} layers, the teacher's are 0 to {teacher.num_layers - 1}"
        raise CallerError(asked, known, "give one teacher layer for each student layer")
    shape = ("family", "hidden_size", "num_heads", "intermediate_size")
    for field in shape:
        ours, theirs = getattr(student, field), getattr(teacher, field)
        if ours != theirs:
            raise CallerError(asked, f"{field} differs: student {ours}, teacher {theirs}", "give both the same")


def _check_families(strategy: Strategy, student: ModelSpec, teacher: ModelSpec | None) -> None:
    needs = {"student": (student, strategy.student_needs(student, teacher))}
    if teacher is not None:
        needs["teacher"] = teacher, strategy.teacher_needs(student, teacher)
    for role, (spec, read) in needs.items():
        if (read.qkv or read.scores) and not spec.taps_attention:
            raise CallerError(
                f"a {role} of family {spec.family!r}",
                f"the loss reads its attention, which can be taken only from {', '.join(TAPPED_FAMILIES)}",
                "choose one of those, or a strategy that reads hidden states or logits",
            )
