"""What is priced in a study, arm by arm: its step, a batch for it, and its FLOPs, without a clock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from budgetlab.batches import MaskedBatch
from budgetlab.hardware import has_bfloat16
from budgetlab.models import count_parameters
from budgetlab.profiler.count import agree, count_flops, count_head, half_attention
from budgetlab.step import TrainingStep, build_step
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study
from budgetlab.values import PHASES, ArmCost, ModelSpec, PhaseCost, Recipe, StrategySpec

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


class Job(NamedTuple):
    """An arm to be priced, or the pretraining of a teacher."""

    name: str
    strategy: StrategySpec
    student: ModelSpec
    teacher: ModelSpec | None
    recipe: Recipe

    def build(
        self, device: str | torch.device, trained: Collection[str] | None = None, *, compiled: bool = False
    ) -> TrainingStep:
        """Build its step, with random weights: they cost what given ones do; the rest as in `TrainingStep`."""
        teacher = None if self.teacher is None else self.teacher.untrained()
        strategy = build_strategy(self.strategy, self.name)
        networks = (self.student.untrained(), teacher, self.recipe)
        return build_step(self.name, strategy, *networks, seed=0, device=device, trained=trained, compiled=compiled)

    def batch(self, sequences: int | None = None, seq_len: int | None = None) -> MaskedBatch:
        """Draw a batch of the recipe's shape, or of another, with its share of masked positions."""
        count, length = sequences or self.recipe.batch_sequences, seq_len or self.recipe.seq_len
        masked, words = max(1, round(self.recipe.mask_fraction * length)), self.student.vocab_size or 0
        draw = np.random.default_rng(0)
        ids = draw.integers(words, size=(count, length))
        positions = np.add.outer(np.arange(count) * length, np.arange(masked)).ravel()
        return MaskedBatch(ids, positions, draw.integers(words, size=len(positions)), causal=self.recipe.causal)

    def settled(self, dtype: str, attention: str) -> Job:
        """Fill in what was left to the probe; what an arm's own recipe says stays."""
        chosen = {"dtype": dtype, "attention": attention}
        left_open = {name: value for name, value in chosen.items() if getattr(self.recipe, name) == "auto"}
        return self._replace(recipe=Recipe.model_validate({**self.recipe.model_dump(), **left_open}))


def jobs_of(study: Study) -> list[Job]:
    """List what is priced: the arms, then the pretraining of each teacher, `MODEL (pretraining)`.

    A teacher may be named like an arm.
    """
    jobs = [
        Job(arm.name, arm.strategy, study.models[arm.student], study.teacher_of(arm), arm.recipe)
        for arm in study.arms.values()
    ]
    recipe = study.recipe.model_copy(update={"initialisation": "random"})
    for name in study.teacher_names():
        if study.models[name].pretraining_tokens is not None:
            jobs.append(Job(f"{name}{_PRETRAINING}", StrategySpec(name="no_kd"), study.models[name], None, recipe))
    return jobs


def arms_and_teachers(study: Study, costs: Sequence[ArmCost]) -> tuple[tuple[ArmCost, ...], tuple[ArmCost, ...]]:
    """Part what was priced: the arms, and the pretraining of teachers."""
    arms = tuple(cost for cost in costs if cost.arm in study.arms)
    teachers = (cost for cost in costs if cost.arm not in study.arms)
    return arms, tuple(cost.model_copy(update={"arm": cost.arm.removesuffix(_PRETRAINING)}) for cost in teachers)


def choices_of(study: Study, device: torch.device) -> list[tuple[str, str]]:
    """List the precisions and attentions that a study leaves open on a device, or its one choice."""
    dtypes, attentions = [study.recipe.dtype], [study.recipe.attention]
    if study.recipe.dtype == "auto":
        dtypes = ["float32"] if has_bfloat16(device) is False else ["float32", "bfloat16"]
    if study.recipe.attention == "auto":
        attentions = ["sdpa", "eager"]
    return list(product(dtypes, attentions))


def count_arm(job: Job, device: torch.device) -> ArmCost:
    """Count an arm; nothing is timed."""
    recipe = job.recipe
    shape = recipe.seq_len, recipe.masked_per_sequence
    lean = job._replace(recipe=recipe.model_copy(update={"execute": "lean"})).build("meta")
    required = count_flops(lean, *shape)
    # A lean step's head is the same products on any device, so what a target token costs is known by now.
    known = {phase: price[1] for phase, price in required.items()} if recipe.execute == "lean" else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = job.build(device, trained=lean.trained)
        executed = count_flops(real, *shape, executed_on=device, per_target=known)
    agreement = agree(lean, required, recipe)
    if recipe.causal_attention == "half":
        required, executed = half_attention(lean, required), half_attention(lean, executed)
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
        arm=job.name,
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
