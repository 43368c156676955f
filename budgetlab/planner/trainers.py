"""A plan for other trainers: its schedules as arguments of transformers, TRL, DistillKit and Megatron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from budgetlab.errors import CallerError, unknown_name
from budgetlab.values import Arm, ModelSpec, Plan, Recipe, Schedule

_MEGATRON_FAMILIES = ("llama", "qwen2", "qwen3")
"""Those whose blocks Megatron has by arguments alone."""


def run_description(plan: Plan, arm: str, rung: int = -1) -> dict[str, Any]:
    """Return one schedule for any trainer: steps, batch, schedule, optimizer, strategy; plain JSON, units in the names.

    Raises
    ------
    CallerError
        When there is no such arm or budget, or it is infeasible.
    """
    schedule, what = _schedule_of(plan, arm, rung), plan.arms[arm]
    models = {role: None if name is None else plan.models[name].model_dump(mode="json", exclude_none=True)
              for role, name in (("student", what.student), ("teacher", what.teacher))}  # fmt: skip
    planned = ("steps", "tokens", "warmup_steps", "cooldown_steps", "required_flops", "device_seconds")
    return {
        "arm": arm,
        "strategy": what.strategy.model_dump(mode="json"),
        **models,
        "budget": schedule.budget.model_dump(),
        "batch_sequences": what.recipe.batch_sequences,
        **what.recipe.model_dump(mode="json"),
        **{name: getattr(schedule, name) for name in planned},
        "seeds": list(plan.seeds),
    }


def training_arguments(plan: Plan, arm: str, rung: int = -1) -> dict[str, Any]:
    """Return one schedule as keyword arguments of transformers' `TrainingArguments`; plain JSON.

    Parameters
    ----------
    plan, arm
        Whose schedule.
    rung
        Index of the budget, smallest first; -1 is the largest.

    Raises
    ------
    CallerError
        When there is no such arm or budget, it is infeasible, or the schedule has no counterpart there.
    """
    schedule, recipe, execution = _schedule_of(plan, arm, rung), plan.arms[arm].recipe, plan.execution
    scheduler: dict[str, Any] = {"lr_scheduler_type": recipe.schedule}
    if recipe.cools_down:
        scheduler["lr_scheduler_type"] = "warmup_stable_decay"
        scheduler["lr_scheduler_kwargs"] = {
            "num_decay_steps": schedule.cooldown_steps,
            "num_stable_steps": schedule.steps - schedule.warmup_steps - schedule.cooldown_steps,
            "min_lr_ratio": 0.0,
            "decay_type": "1-sqrt" if recipe.schedule == "wsd_sqrt" else "linear",
        }
    on_cpu = "cpu" in (execution.device, execution.device == "auto" and plan.device)
    return {
        "max_steps": schedule.steps,
        "per_device_train_batch_size": _sequences_on_each(recipe, execution.devices),
        "learning_rate": recipe.learning_rate,
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps,
        "max_grad_norm": recipe.clip_norm,
        "bf16": recipe.dtype == "bfloat16",
        **({"use_cpu": True} if on_cpu else {}),
        **scheduler,
    }


def _sequences_on_each(recipe: Recipe, devices: int) -> int:
    if recipe.batch_sequences % devices:
        asked = f"{recipe.batch_sequences} sequences a step on {devices} devices"
        raise CallerError(asked, "not the same number on each", "change batch_tokens or devices")
    return recipe.batch_sequences // devices


def _schedule_of(plan: Plan, arm: str, rung: int) -> Schedule:
    if arm not in plan.arms:
        raise unknown_name("arm", arm, plan.arms)
    found = sorted((s for s in plan.schedules if s.arm == arm), key=lambda schedule: schedule.rung)
    if not -len(found) <= rung < len(found):
        raise CallerError(f"rung {rung} of {arm}", f"it has rungs 0 to {len(found) - 1}", "choose one of them")
    if not found[rung].feasible:
        raise CallerError(f"rung {rung} of {arm}", f"infeasible: {found[rung].reason}", "raise the budget")
    return found[rung]


def trainer_arguments(plan: Plan, arm: str, trainer: str = "transformers", rung: int = -1) -> dict[str, Any]:
    """Return one schedule as the configuration of another trainer; plain JSON, which is YAML too.

    "transformers": keywords of `TrainingArguments`. "trl": keywords of `GKDConfig` (of `SFTConfig` without a teacher),
    off-policy, for packed token ids. "distillkit": a run of DistillKit. "megatron": `arguments` of `pretrain_gpt.py`,
    and with a teacher `distillation`, the file that `--export-kd-cfg` names (NVIDIA Model Optimizer). Models without
    weights, and the corpus, are called by their names in the study: folders for you to fill.

    Raises
    ------
    CallerError
        When there is no such trainer, arm or budget, it is infeasible, or the trainer lacks its strategy, its schedule
        or its model.
    """
    makers: dict[str, Callable[[Plan, str, int], dict[str, Any]]] = {
        "transformers": training_arguments, "trl": _trl, "distillkit": _distillkit, "megatron": _megatron,
    }  # fmt: skip
    if trainer not in makers:
        raise unknown_name("trainer", trainer, makers)
    return makers[trainer](plan, arm, rung)


def _causal(plan: Plan, arm: str, trainer: str) -> Arm:
    """The arm, whose models a trainer of causal models can take."""
    found = plan.arms[arm]
    if not plan.models[found.student].causal:
        raise CallerError(f"{arm} for {trainer}", "it trains causal models alone", "use transformers or --plain")
    return found


def _taught(arm: Arm, trainer: str, known: str, **allowed: Any) -> dict[str, Any]:
    """Settings of the arm's strategy, all of them; refused unless they are among those that the trainer has."""
    name = arm.strategy.name
    settings = {"alpha": 1.0, "temperature": 1.0, "divergence": "forward", "beta": 0.5, "distance": "cosine",
                "logits": True} | arm.strategy.settings  # fmt: skip
    if name not in allowed.pop("names"):
        raise CallerError(f"{arm.name} for {trainer}", f"it has no {name}", f"it has {known}")
    for key, values in allowed.items():
        if settings[key] not in values:
            raise CallerError(f"{arm.name} for {trainer}", f"it has no {key} = {settings[key]!r}", f"it has {known}")
    return settings


def _folder(plan: Plan, model: str | None) -> str:
    """Where a model's weights are; its name in the study where it has none yet."""
    assert model is not None
    return plan.models[model].weights or model


def _trl(plan: Plan, arm: str, rung: int) -> dict[str, Any]:
    found = training_arguments(plan, arm, rung)
    what = _causal(plan, arm, "TRL")
    found |= {"max_length": what.recipe.seq_len, "gradient_checkpointing": False}
    if what.strategy.name == "no_kd":  # documents one after the other, cut at the length
        return found | {"packing": True, "packing_strategy": "wrapped"}
    known = 'no_kd, kd (alpha and temperature 1; "forward" or "reverse") and jsd (alpha and temperature 1)'
    # Its temperature is that of generation; the divergence has none, and there is no term of the words.
    limits = {"alpha": (1,), "temperature": (1,), "divergence": ("forward", "reverse")}
    settings = _taught(what, "TRL", known, names=("kd", "jsd"), **limits)
    ends = {"forward": 0.0, "reverse": 1.0}
    beta = ends[settings["divergence"]] if what.strategy.name == "kd" else settings["beta"]
    return found | {
        "teacher_model_name_or_path": _folder(plan, what.teacher),
        "beta": beta,
        "temperature": 1.0,
        "lmbda": 0.0,  # the student writes nothing itself
        "seq_kd": False,
        "disable_dropout": what.recipe.dropout == 0,
    }


def _distillkit(plan: Plan, arm: str, rung: int) -> dict[str, Any]:
    arguments = training_arguments(plan, arm, rung)
    what = _causal(plan, arm, "DistillKit")
    known = 'kd (divergence = "forward")'
    settings = _taught(what, "DistillKit", known, names=("kd",), divergence=("forward",))
    losses = [
        {"function": "cross_entropy", "weight": 1 - settings["alpha"]},
        {"function": "kl", "weight": settings["alpha"], "temperature": settings["temperature"]},
    ]
    return {
        "model": _folder(plan, what.student),
        "teacher": {"kind": "hf", "path": _folder(plan, what.teacher)},
        "dataset": {"train_dataset": {"disk_path": "corpus"}, "prepacked": True, "seed": plan.seeds[0]},
        "sequence_length": what.recipe.seq_len,
        "output_path": arm,
        "use_flash_attention": False,
        "loss_functions": [loss for loss in losses if loss["weight"]],
        "training_args": arguments | {"gradient_checkpointing": False},
    }


def _megatron(plan: Plan, arm: str, rung: int) -> dict[str, Any]:
    schedule = _schedule_of(plan, arm, rung)
    what = _causal(plan, arm, "Megatron")
    recipe, student = what.recipe, plan.models[what.student]
    for model in (student, *([plan.models[what.teacher]] if what.teacher else [])):
        if model.family not in _MEGATRON_FAMILIES:
            remedy = f"it has {', '.join(_MEGATRON_FAMILIES)}"
            raise CallerError(f"{arm} for Megatron", f"it has no {model.family} by arguments alone", remedy)
    found: dict[str, Any] = {"arguments": _megatron_model(student) | _megatron_recipe(schedule, recipe, plan)}
    if what.strategy.name == "no_kd":
        return found
    known = "no_kd, kd (forward, temperature 1) and hidden (one width, temperature 1)"
    names = ("kd", "hidden")
    limits = {"divergence": ("forward",), "temperature": (1,), "logits": (True,)}
    settings = _taught(what, "Megatron", known, names=names, **limits)
    pairs = []
    if what.strategy.name == "hidden":
        assert what.teacher is not None
        if student.hidden_size != plan.models[what.teacher].hidden_size:
            wrong = "its map between two widths has a bias, and is shared"
            raise CallerError(f"{arm} for Megatron", wrong, f"it has {known}")
        last = "decoder.final_layernorm"
        pairs = [[last, last, {"cosine": "cosine", "squared": "mse"}[settings["distance"]]]]
    found["arguments"] |= {"export-kd-teacher-load": _folder(plan, what.teacher), "export-te-mcore-model": True}
    found["distillation"] = {
        "logit_layers": ["output_layer", "output_layer"],
        "intermediate_layer_pairs": pairs,
        "kd_loss_alpha": settings["alpha"],
        "logit_kl_temperature": 1.0,
    }
    return found


def _megatron_model(spec: ModelSpec) -> dict[str, Any]:
    """Arguments that describe a network; true where they take no value."""
    tied = spec.tie_embeddings  # None: as transformers has it, untied in all three families
    shared = {"group-query-attention": True, "num-query-groups": spec.key_value_heads}
    return {
        "num-layers": spec.num_layers,
        "hidden-size": spec.hidden_size,
        "ffn-hidden-size": spec.intermediate_size,
        "num-attention-heads": spec.num_heads,
        "kv-channels": spec.head_width,
        **(shared if spec.key_value_heads != spec.num_heads else {}),
        **({"add-qkv-bias": True} if spec.family == "qwen2" else {}),
        **({"qk-layernorm": True} if spec.family == "qwen3" else {}),
        **({} if tied else {"untie-embeddings-and-output-weights": True}),
        "swiglu": True,
        "normalization": "RMSNorm",
        "position-embedding-type": "rope",
        "disable-bias-linear": True,
    }


def _megatron_recipe(schedule: Schedule, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Arguments of a schedule, counted in steps ("iters")."""
    decay: dict[str, Any] = {"lr-decay-style": recipe.schedule.replace("inverse_sqrt", "inverse-square-root")}
    if recipe.cools_down:
        style = "minus_sqrt" if recipe.schedule == "wsd_sqrt" else "linear"
        decay = {"lr-decay-style": "WSD", "lr-wsd-decay-style": style, "lr-wsd-decay-iters": schedule.cooldown_steps}
    return {
        "seq-length": recipe.seq_len,
        "max-position-embeddings": recipe.seq_len,
        "micro-batch-size": _sequences_on_each(recipe, plan.execution.devices),
        "global-batch-size": recipe.batch_sequences,
        "train-iters": schedule.steps,
        "lr": recipe.learning_rate,
        "min-lr": 0.0,
        "lr-warmup-iters": schedule.warmup_steps,
        "lr-decay-iters": schedule.steps,
        **decay,
        "weight-decay": recipe.weight_decay,
        "adam-beta1": recipe.betas[0],
        "adam-beta2": recipe.betas[1],
        "adam-eps": recipe.eps,
        "clip-grad": recipe.clip_norm,
        "attention-dropout": recipe.dropout,
        "hidden-dropout": recipe.dropout,
        **({"bf16": True} if recipe.dtype == "bfloat16" else {}),
    }
