"""study.toml -> Study: every table checked before anything is built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, model_validator

from budgetlab.errors import CallerError, unknown_name
from budgetlab.laws import get_law
from budgetlab.strategies import Strategy, build_strategy
from budgetlab.strategies.caching import check_cache
from budgetlab.study_tables import find_study, given_config, read_tables, vocabulary_size
from budgetlab.units import parse_budget, parse_charge
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
from budgetlab.values.base import Name, Seeds
from budgetlab.values.model_specs import TAPPED_FAMILIES, same_vocabulary
from budgetlab.values.scoring import CAUSAL_PROBES
from budgetlab.values.specs import TokenizerSpec

_MOST_RUNS = 100_000


class Study(Value):
    """One study file, resolved: every table, every default, every arm with its own full recipe."""

    name: Name
    """Of its folder under the results."""
    seeds: Seeds = (0, 1, 2)
    """Run seeds, of initialisation, order of the data, masks and dropout; a run of every arm and budget for each."""
    corpus: CorpusSpec = CorpusSpec()
    recipe: Recipe = Recipe()
    execution: ExecutionSpec = ExecutionSpec()
    models: dict[Name, ModelSpec]
    arms: dict[Name, Arm] = Field(min_length=1)
    tuning: TuningSpec | None = None
    plan: PlanSpec
    evaluate: EvaluateSpec = EvaluateSpec()
    fit: FitSpec = FitSpec()
    data_roots: tuple[Path, ...] = Field(default=(), exclude=True)
    """Where relative paths are looked for; not part of what the study asks."""

    @model_validator(mode="after")
    def _runs_can_be_counted(self) -> Study:
        if (runs := len(self.seeds) * len(self.arms) * len(self.plan.budgets)) > _MOST_RUNS:
            raise ValueError(f"{runs:,} runs of {len(self.arms)} arms, more than {_MOST_RUNS:,}")
        return self

    def asked(
        self,
        *,
        budgets: Sequence[str | float] | None = None,
        match: str | None = None,
        teacher_charge: str | None = None,
    ) -> Study:
        """Return the study with other budgets, another match or charge in the place of its own.

        Raises
        ------
        CallerError
            When one of them cannot be read, or they do not go together.
        """
        charge = None if teacher_charge is None else teacher_charge.replace("amortized", "amortised")
        given = {"budgets": tuple(budgets or ()) or None, "match": match, "teacher_charge": charge}
        plan = self.plan.model_copy(update={name: value for name, value in given.items() if value is not None})
        study = self.model_copy(update={"plan": plan})
        study.amounts()
        return study

    def amounts(self) -> list[float]:
        """Return the budgets, smallest first, in the unit of what is matched; of tokens:ARM in tokens.

        Raises
        ------
        CallerError
            When one of them, the match or the charge cannot be read, or they do not go together.
        """
        match, devices = self.plan.match, self.execution.devices
        parse_charge(self.plan.teacher_charge)
        found = sorted(parse_budget(budget, match, devices=devices) for budget in self.plan.budgets)
        if match.startswith("tokens:") and (arm := match.removeprefix("tokens:")) not in self.arms:
            raise unknown_name("arm", arm, self.arms, f"match = {match!r}, arm")
        return found

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
    path = find_study(Path(path), Path.cwd())
    study = _with_objective(_validated(read_tables(path), path))
    roots = [Path(root) for root in (data_root, os.environ.get("BUDGETLAB_DATA_ROOT")) if root]
    roots.append(path.parent)
    study = study.model_copy(update={"data_roots": tuple(roots), "models": _with_vocabulary(study, roots)})
    for arm in study.arms.values():
        _check_arm(study, arm)
    _check_fit(study)
    study.amounts()
    return study


def dump_study(study: Study) -> str:
    """Write a resolved study as TOML that `load_study` reads back to the same study."""
    return tomli_w.dumps(study.model_dump(mode="json", exclude_none=True))


def find_data(study: Study, path: str) -> Path:
    """Find a file or folder under the study's data roots."""
    for root in study.data_roots:
        if (root / path).exists():
            return root / path
    tried = ", ".join(str(root) for root in study.data_roots) or "nowhere"
    raise CallerError(f"path {path!r}", f"not found under {tried}", "set --data-root or $BUDGETLAB_DATA_ROOT")


_PRICELESS = {"usd_per_device_hour", "scaling_efficiency", "devices", "workers", "device_memory_bytes", "trackers",
              "keep_checkpoints", "compile", "slurm"}  # fmt: skip
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
        *(name for name in study.teacher_names() if name in study.arms),  # of which earlier profiles have one price
    )


def _priced(recipe: Recipe) -> dict[str, Any]:
    """A recipe as profiles have always hashed it: how long the rate rises costs nothing."""
    fraction = 0.06 if recipe.warmup_fraction is None else recipe.warmup_fraction
    return {**recipe.model_dump(mode="json", exclude={"warmup_tokens"}), "warmup_fraction": fraction}


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


def _with_objective(study: Study) -> Study:
    """Fill in what follows from causal students: every position is a target, and their own head is the yardstick."""
    students = {arm.student: study.models[arm.student] for arm in study.arms.values() if arm.student in study.models}
    causal = {name: spec.causal for name, spec in students.items()}
    if len(set(causal.values())) != 1:
        if causal:
            wrong = f"{', '.join(n for n, c in causal.items() if c)} predict the next token, the others masked words"
            raise CallerError("students of two objectives", wrong, "make a study of each: their losses do not compare")
        return study
    recipes = {"recipe": study.recipe, **{f"arms.{name}.recipe": arm.recipe for name, arm in study.arms.items()}}
    if not all(causal.values()):
        if study.evaluate.lm_eval:
            wrong = "the harness asks causal models alone, and the students are masked ones"
            raise CallerError(f"evaluate.lm_eval = {list(study.evaluate.lm_eval)}", wrong, "leave it out")
        for where, recipe in recipes.items():
            if recipe.causal:
                asked = f"{where}.mask_fraction = 1"
                raise CallerError(asked, "nothing is left to tell masked words from", "mask a part of the positions")
            if recipe.documents != "joined" or recipe.causal_attention != "full":
                asked = f'{where}.documents = "{recipe.documents}", causal_attention = "{recipe.causal_attention}"'
                raise CallerError(
                    asked, "they are of causal models, and the students are masked ones", "leave them out"
                )
        return study
    default = Recipe.model_fields["mask_fraction"].default
    for where, recipe in recipes.items():
        if recipe.mask_fraction not in (default, 1):
            asked = f"{where}.mask_fraction = {recipe.mask_fraction:g}"
            raise CallerError(asked, "causal models have a target at every position", "leave it out")
    update: dict[str, Any] = {"recipe": study.recipe.model_copy(update={"mask_fraction": 1.0})}
    update["arms"] = {
        name: arm.model_copy(update={"recipe": arm.recipe.model_copy(update={"mask_fraction": 1.0})})
        for name, arm in study.arms.items()
    }
    if "y" not in study.fit.model_fields_set and _all_train_heads(study):
        update["fit"] = study.fit.model_copy(update={"y": "lm_loss"})
    _check_tasks(study)
    return study.model_copy(update=update)


def _all_train_heads(study: Study) -> bool:
    return all(build_strategy(arm.strategy, arm.name).trains_head for arm in study.arms.values())


def _check_tasks(study: Study) -> None:
    """Refuse tasks that are fine-tuned on the first position, which of a causal model has read nothing."""
    if wrong := [task for task in study.evaluate.tasks if task not in CAUSAL_PROBES]:
        asked, have = f"evaluate.tasks = {wrong}", ", ".join(CAUSAL_PROBES)
        remedy = f'use {have} with source = "probes", or lm_eval for those of lm-evaluation-harness'
        raise CallerError(asked, "they are fine-tuned, which is there for masked models alone", remedy)


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
    size = _tokenizer_size(study, roots)
    return {
        name: spec if spec.vocab_size is not None else spec.model_copy(update={"vocab_size": size})
        for name, spec in study.models.items()
    }


def _tokenizer_size(study: Study, roots: Sequence[Path]) -> int | None:
    """Entries of the tokenizer, where they are known without the hub."""
    tokenizer = study.corpus.tokenizer
    if isinstance(tokenizer, TokenizerSpec):
        return tokenizer.train
    sizes = (vocabulary_size(root / tokenizer) for root in roots)
    return next((found for found in sizes if found is not None), None)


def _check_fit(study: Study) -> None:
    """Refuse before anything is trained what could not be fitted after it."""
    spec, law = study.fit, get_law(study.fit.law)
    if law.inputs != ("x",):
        wrong = f"its inputs are {', '.join(law.inputs)}, and an arm's curve is over compute alone"
        raise CallerError(f"fit.law = {spec.law!r}", wrong, "choose power or bnsl, or fit a table with --table")
    if spec.y not in study.evaluate.outcomes():
        raise unknown_name("outcome", spec.y, study.evaluate.outcomes(), "fit.y")
    for text, pair in zip(spec.primary, spec.primary_pairs, strict=True):
        for name in pair:
            if name not in study.arms:
                raise unknown_name("arm", name, study.arms, f"fit.primary = {text!r}")
    for key, names in (("pinned", spec.pinned), ("shared", spec.shared)):
        for name in names:
            if name not in law.params:
                raise unknown_name(f"parameter of {spec.law}", name, law.params, f"fit.{key}")


def _check_positions(study: Study, arm: Arm) -> None:
    for role, name in (("student", arm.student), ("teacher", arm.teacher)):
        if name is None:
            continue
        spec = study.models[name]
        config = spec.config | ((given_config(spec.weights) or {}) if spec.weights is not None else {})
        longest = config.get("max_position_embeddings")
        # RoBERTa counts from past its padding token.
        reserved = 2 if spec.family == "roberta" else 0
        if isinstance(longest, int) and longest - reserved < arm.recipe.seq_len:
            wrong = f"{role} {name} has positions for {longest - reserved} tokens"
            asked = f"arms.{arm.name}.recipe.seq_len = {arm.recipe.seq_len}"
            raise CallerError(asked, wrong, "shorten the sequences, or choose another model")


def _check_arm(study: Study, arm: Arm) -> None:
    where = f"arms.{arm.name}"
    strategy = build_strategy(arm.strategy, arm.name)
    for role, name in (("student", arm.student), ("teacher", arm.teacher)):
        if name is not None and name not in study.models:
            raise unknown_name("model", name, study.models, f"{where}.{role}")
    if strategy.uses_teacher and arm.teacher is None:
        raise CallerError(f"{where}.strategy = {arm.strategy.name!r}", "it needs a teacher", 'add teacher = "MODEL"')
    _check_positions(study, arm)
    student, teacher = study.models[arm.student], study.teacher_of(arm)
    if student.pretrain is not None and arm.student not in study.teacher_names():
        wrong = f"[models.{arm.student}] has pretrain, which is a teacher's; a student's training is the arm's"
        raise CallerError(f"{where}.student = {arm.student!r}", wrong, "give the student a model without it")
    starts_from_teacher = arm.recipe.initialisation != "random"
    if starts_from_teacher:
        _check_initialisation(where, arm, student, teacher)
    if teacher is not None and not strategy.uses_teacher and not starts_from_teacher:
        raise CallerError(f"{where}.teacher = {arm.teacher!r}", f"{arm.strategy.name} uses no teacher", "remove it")
    if teacher is not None:
        if teacher.causal != student.causal:
            wrong = f"it is a {teacher.objective} model, and the student a {student.objective} one"
            raise CallerError(f"{where}.teacher = {arm.teacher!r}", wrong, "give both one objective")
        _check_vocabularies(where, study, arm, student, teacher)
        if teacher.weights is None and teacher.pretrain is None:
            raise CallerError(
                f"{where}.teacher = {arm.teacher!r}",
                "it has neither weights nor pretrain, and nobody asked to train it",
                f"add one of them to [models.{arm.teacher}]",
            )
    if arm.recipe.batch_tokens < arm.recipe.seq_len:
        raise CallerError(f"{where}.recipe.batch_tokens", "holds no whole sequence", "make it a multiple of seq_len")
    check_cache(arm, strategy, student, teacher, study.corpus.masking)
    try:
        strategy.check(student, teacher)
        _check_families(strategy, student, teacher)
    except CallerError as error:
        raise CallerError(f"{where}: {error.asked}", error.wrong, error.remedy) from None


def _check_vocabularies(where: str, study: Study, arm: Arm, student: ModelSpec, teacher: ModelSpec) -> None:
    """Refuse unequal vocabularies, unless the entries that one has more than the tokenizer are padding."""
    padded = student.causal and same_vocabulary(student, teacher)
    tokenizer = _tokenizer_size(study, study.data_roots) or 0
    if student.vocab_size != teacher.vocab_size and not (
        padded and tokenizer <= min(student.vocab_size or 0, teacher.vocab_size or 0)
    ):
        wrong = f"its vocabulary has {teacher.vocab_size} entries, the student's {student.vocab_size}"
        remedy = "use one tokenizer for both; with two, only the teacher's text can be learned (sequence-level)"
        raise CallerError(f"{where}.teacher = {arm.teacher!r}", wrong, remedy)


def _check_initialisation(where: str, arm: Arm, student: ModelSpec, teacher: ModelSpec | None) -> None:
    assert arm.recipe.initialisation != "random"
    layers = arm.recipe.initialisation.teacher_layers
    asked = f"{where}.recipe.initialisation.teacher_layers = {list(layers)}"
    if student.weights is not None:
        raise CallerError(asked, f"its student starts from weights = {student.weights!r}", "remove one of them")
    if teacher is None:
        raise CallerError(asked, "the arm has no teacher", 'add teacher = "MODEL"')
    if len(layers) != student.num_layers or max(layers) >= teacher.num_layers:
        known = f"the student has {student.num_layers} layers, the teacher's are 0 to {teacher.num_layers - 1}"
        raise CallerError(asked, known, "give one teacher layer for each student layer")
    shape = ("family", "hidden_size", "num_heads", "intermediate_size", "num_kv_heads", "head_dim", "tie_embeddings")
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
