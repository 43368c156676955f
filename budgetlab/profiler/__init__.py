"""What a token costs: FLOPs counted exactly, time measured here, for each arm and each phase of its step.

Required FLOPs are counted on the meta device from the lean step: each matmul once, two per multiply-add, trained
parts forward and backward, the frozen teacher forward only, the loss's own matmuls included; element-wise work,
norms, softmax and the optimizer are not FLOPs by this convention. Executed FLOPs are those of the kernels that
really run, their recomputation of attention scores in the backward pass included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import product

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from budgetlab.hardware import environment, prepare
from budgetlab.models import count_parameters
from budgetlab.profiler.clock import Job, build_job, peak_memory, time_steps
from budgetlab.profiler.count import count_flops, second_opinion
from budgetlab.resampling import median_interval
from budgetlab.step import PHASES
from budgetlab.studies import Study
from budgetlab.values import ArmCost, CostProfile, PhaseCost, Recipe, StrategySpec

__all__ = ["count_flops", "profile", "second_opinion"]

CONVENTIONS = {
    "flops": "two per multiply-add; matmuls only; no norms, softmax, activations, embeddings or optimizer",
    "required": "lean step on the meta device: trained parts forward and backward, frozen teacher forward only",
    "executed": "the kernels that run, with their recomputation of attention scores in the backward pass",
    "logits": "at masked positions only (execute = everything: at all positions)",
    "agreement": "of every forward pass torch's count and fvcore's, doubled, are equal",
    "teacher_depth": "up to the deepest layer that the loss reads",
    "seconds": "median wall time of a whole step, arms interleaved in random order; interval by order statistics",
}


def profile(
    study: Study,
    *,
    count_only: bool = False,
    steps: int = 10,
    progress: Callable[[str], None] | None = None,
) -> CostProfile:
    """Price every arm of a study, and the pretraining of its teachers.

    Parameters
    ----------
    study
        With vocabulary sizes in its models.
    count_only
        Count FLOPs; time nothing.
    steps
        Timed steps of each arm.
    progress
        Told what is being done.

    Returns
    -------
    profile
        Seconds and intervals are None with `count_only`; peak memory is None on a CPU; energy is None.

    Raises
    ------
    BudgetlabError
        When two independent counts disagree.
    CallerError
        When the device is not there.
    """
    say = progress or (lambda text: None)
    device = prepare(study.execution)
    jobs = _jobs(study)
    recipe_dtype, recipe_attention = _resolve(study, jobs, device, count_only, say)
    jobs = [(name, spec, s, t, _set(recipe, recipe_dtype, recipe_attention)) for name, spec, s, t, recipe in jobs]
    asked = study.execution.micro_batch_sequences
    micro = None if asked == "auto" else asked
    timings = {} if count_only else time_steps(jobs, device, steps, say, micro)
    memory = {} if count_only else {job[0]: peak_memory(job, device, micro) for job in jobs}
    costs = [_cost(job, timings.get(job[0]), memory.get(job[0]), device) for job in jobs]
    return CostProfile(
        study=study.name,
        arms=tuple(cost for cost in costs if cost.arm in study.arms),
        teachers=tuple(cost for cost in costs if cost.arm not in study.arms),
        conventions=CONVENTIONS,
        environment=environment(study.execution),
    )


def _jobs(study: Study) -> list[Job]:
    jobs: list[Job] = [
        (arm.name, arm.strategy, study.models[arm.student], study.teacher_of(arm), arm.recipe)
        for arm in study.arms.values()
    ]
    recipe = study.recipe.model_copy(update={"initialisation": "random"})
    for name in study.teacher_names():
        if study.models[name].pretraining_tokens is not None:
            jobs.append((name, StrategySpec(name="no_kd"), study.models[name], None, recipe))
    return jobs


def _set(recipe: Recipe, dtype: str, attention: str) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(), "dtype": dtype, "attention": attention})


def _resolve(
    study: Study, jobs: list[Job], device: torch.device, count_only: bool, say: Callable[[str], None]
) -> tuple[str, str]:
    """Choose precision and attention, the same for all arms: the fastest over one step of each arm."""
    dtypes = ["float32", "bfloat16"] if study.recipe.dtype == "auto" else [study.recipe.dtype]
    attentions = ["sdpa", "eager"] if study.recipe.attention == "auto" else [study.recipe.attention]
    choices = list(product(dtypes, attentions))
    if len(choices) == 1 or count_only:
        return choices[0]
    say("probing precision and attention")
    seconds = {}
    for choice in choices:
        chosen = [(n, spec, s, t, _set(r, *choice)) for n, spec, s, t, r in jobs]
        asked = study.execution.micro_batch_sequences
        measured = time_steps(chosen, device, 3, lambda text: None, None if asked == "auto" else asked)
        seconds[choice] = sum(min(sum(step.values()) for step in steps) for steps in measured.values())
    return min(seconds, key=lambda choice: seconds[choice])


def _cost(job: Job, timing: list[dict[str, float]] | None, memory: int | None, device: torch.device) -> ArmCost:
    name, _, _, _, recipe = job
    lean = build_job((*job[:4], recipe.model_copy(update={"execute": "lean"})), "meta")
    required = count_flops(lean, recipe.seq_len, recipe.masked_per_sequence)
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = build_job(job, device)
        executed = count_flops(real, recipe.seq_len, recipe.masked_per_sequence, executed_on=device)
    second_opinion(lean, required, recipe)
    fraction = recipe.masked_per_sequence / recipe.seq_len
    medians = {} if timing is None else {p: statistics.median(step.get(p, 0.0) for step in timing) for p in PHASES}
    phases = {
        phase: PhaseCost(
            required_flops_per_token=required[phase][0] + fraction * required[phase][1],
            executed_flops_per_token=executed[phase][0] + fraction * executed[phase][1],
            seconds_per_step=medians.get(phase),
        )
        for phase in PHASES
    }
    totals = None if timing is None else [sum(step.values()) for step in timing]
    seconds = None if totals is None else statistics.median(totals)
    total_params, other_params = count_parameters(lean.student)
    return ArmCost(
        arm=name,
        batch_tokens=recipe.batch_tokens,
        target_fraction=fraction,
        train_required_flops_per_token=sum(price.required_flops_per_token for price in phases.values()),
        train_executed_flops_per_token=sum(price.executed_flops_per_token for price in phases.values()),
        required_flops_per_position=sum(price[0] for price in required.values()),
        required_flops_per_target_token=sum(price[1] for price in required.values()),
        executed_flops_per_position=sum(price[0] for price in executed.values()),
        executed_flops_per_target_token=sum(price[1] for price in executed.values()),
        phases=phases,
        seconds_per_step=seconds,
        seconds_per_step_interval=None if totals is None else median_interval(totals),
        tokens_per_second=None if seconds is None else recipe.batch_tokens / seconds,
        steps_timed=0 if totals is None else len(totals),
        peak_memory_bytes=memory,
        num_params_total=total_params,
        num_params_non_embedding=other_params,
        idle_parameters=lean.idle_parameters,
        dtype=recipe.dtype if recipe.dtype != "auto" else "float32",
        attention=recipe.attention if recipe.attention != "auto" else "sdpa",
    )
