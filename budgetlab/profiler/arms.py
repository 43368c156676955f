"""What is priced in a study, and its FLOPs: arm by arm, without a clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from budgetlab.hardware import has_bfloat16
from budgetlab.models import count_parameters
from budgetlab.profiler.clock import Job, build_job
from budgetlab.profiler.count import agree, count_flops, count_head
from budgetlab.step import PHASES
from budgetlab.studies import Study
from budgetlab.values import ArmCost, PhaseCost, Recipe, StrategySpec

CONVENTIONS = {
    "flops": "two per multiply-add; matmuls only; no norms, softmax, activations, embeddings or optimizer",
    "required": "lean step on the meta device: trained parts forward and backward, frozen teacher forward only",
    "executed": "the kernels that run, with their recomputation of attention scores in the backward pass",
    "attention": "full, every position with every other; no causal half is taken off",
    "padding": "none: sequences are filled",
    "batch": "splitting it and moving it to the device is in the seconds of the teacher's forward pass",
    "logits": "at masked positions only (execute = everything: at all positions)",
    "frozen": "the teacher, forward only; tied input and output embeddings are multiplied once each way, as the head",
    "teacher_depth": "up to the deepest layer that the loss reads",
    "seconds": "median over paired rounds, arms in a random order in each, the first round not counted; interval by "
    "order statistics; wall time on a CPU, time between device events on a GPU",
    "cpu_seconds": "processor time of this process, summed over threads",
    "ratios": "median over rounds of an arm's seconds a token over the first arm's in the same round",
    "memory": "the arm alone: networks, optimizer state, two steps",
}

_PRETRAINING = " (pretraining)"


def jobs_of(study: Study) -> list[Job]:
    """List what is priced: the arms, then the pretraining of each teacher, `MODEL (pretraining)`.

    A teacher may be named like an arm.
    """
    jobs: list[Job] = [
        (arm.name, arm.strategy, study.models[arm.student], study.teacher_of(arm), arm.recipe)
        for arm in study.arms.values()
    ]
    recipe = study.recipe.model_copy(update={"initialisation": "random"})
    for name in study.teacher_names():
        if study.models[name].pretraining_tokens is not None:
            jobs.append((f"{name}{_PRETRAINING}", StrategySpec(name="no_kd"), study.models[name], None, recipe))
    return jobs


def arms_and_teachers(study: Study, costs: Sequence[ArmCost]) -> tuple[tuple[ArmCost, ...], tuple[ArmCost, ...]]:
    """Part what was priced: the arms, and the pretraining of teachers."""
    arms = tuple(cost for cost in costs if cost.arm in study.arms)
    teachers = (cost for cost in costs if cost.arm not in study.arms)
    return arms, tuple(cost.model_copy(update={"arm": cost.arm.removesuffix(_PRETRAINING)}) for cost in teachers)


def settled(job: Job, dtype: str, attention: str) -> Job:
    """Fill in what was left to the probe; what an arm's own recipe says stays."""
    own = job[4]
    chosen = {
        "dtype": dtype if own.dtype == "auto" else own.dtype,
        "attention": attention if own.attention == "auto" else own.attention,
    }
    return (*job[:4], Recipe.model_validate({**own.model_dump(), **chosen}))


def choices_of(study: Study, device: torch.device) -> list[tuple[str, str]]:
    """List the precisions and attentions that a study leaves open on a device, or its one choice."""
    open_to_it = ["float32"] if has_bfloat16(device) is False else ["float32", "bfloat16"]
    dtypes = open_to_it if study.recipe.dtype == "auto" else [study.recipe.dtype]
    attentions = ["sdpa", "eager"] if study.recipe.attention == "auto" else [study.recipe.attention]
    return list(product(dtypes, attentions))


def count_arm(job: Job, device: torch.device) -> ArmCost:
    """Count an arm; nothing is timed."""
    name, _, _, _, recipe = job
    lean = build_job((*job[:4], recipe.model_copy(update={"execute": "lean"})), "meta")
    required = count_flops(lean, recipe.seq_len, recipe.masked_per_sequence)
    # A lean step's head is the same products on any device, so what a target token costs is known by now.
    known = {phase: price[1] for phase, price in required.items()} if recipe.execute == "lean" else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = build_job(job, device, trained=lean.trained)
        executed = count_flops(real, recipe.seq_len, recipe.masked_per_sequence, executed_on=device, per_target=known)
    agreement = agree(lean, required, recipe)
    fraction = recipe.masked_per_sequence / recipe.seq_len
    head = count_head(lean.student, lean.student_needs)
    phases = {
        phase: PhaseCost(
            required_flops_per_token=required[phase][0] + fraction * required[phase][1],
            executed_flops_per_token=executed[phase][0] + fraction * executed[phase][1],
        )
        for phase in PHASES
    }
    total_params, other_params = count_parameters(lean.student)
    return ArmCost(
        arm=name,
        batch_tokens=recipe.batch_tokens,
        seq_len=recipe.seq_len,
        target_fraction=fraction,
        train_required_flops_per_token=sum(price.required_flops_per_token for price in phases.values()),
        train_executed_flops_per_token=sum(price.executed_flops_per_token for price in phases.values()),
        required_flops_per_position=sum(price[0] for price in required.values()),
        required_flops_per_target_token=sum(price[1] for price in required.values()),
        executed_flops_per_position=sum(price[0] for price in executed.values()),
        executed_flops_per_target_token=sum(price[1] for price in executed.values()),
        head_required_flops_per_token=head[0] + fraction * head[1],
        phases=phases,
        agreement=agreement,
        num_params_total=total_params,
        num_params_non_embedding=other_params,
        idle_parameters=lean.idle_parameters,
        dtype=recipe.dtype if recipe.dtype != "auto" else "float32",
        attention=real.student.attention,
    )
