"""What a token costs: FLOPs counted exactly, time measured here, for each arm and each phase of its step.

Required FLOPs are counted on the meta device from the lean step: each matmul once, two per multiply-add, trained
parts forward and backward, the frozen teacher forward only, the loss's own matmuls included; element-wise work,
norms, softmax and the optimizer are not FLOPs by this convention. Executed FLOPs are those of the kernels that
really run, their recomputation of attention scores in the backward pass included.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from budgetlab.batches import MaskedBatch
from budgetlab.errors import BudgetlabError
from budgetlab.hardware import device_clock, environment, peak_memory_bytes, prepare
from budgetlab.models import Network, count_parameters
from budgetlab.step import PHASES, TrainingStep, build_step
from budgetlab.strategies import build_strategy
from budgetlab.studies import Study
from budgetlab.values import ArmCost, Batch, CostProfile, ModelSpec, Needs, PhaseCost, Recipe, StrategySpec

__all__ = ["count_flops", "median_interval", "profile", "second_opinion"]

CONVENTIONS = {
    "flops": "two per multiply-add; matmuls only; no norms, softmax, activations, embeddings or optimizer",
    "required": "lean step on the meta device: trained parts forward and backward, frozen teacher forward only",
    "executed": "the kernels that run, with their recomputation of attention scores in the backward pass",
    "logits": "at masked positions only (execute = everything: at all positions)",
    "teacher_depth": "up to the deepest layer that the loss reads",
    "seconds": "median wall time of a whole step, arms interleaved in random order; interval by order statistics",
}

Price = tuple[float, float]
"""FLOPs of one phase: (a position, a target token)."""


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
    timings = {} if count_only else _time(jobs, device, steps, say, micro)
    memory = {} if count_only else {job[0]: _peak_memory(job, device, micro) for job in jobs}
    costs = [_cost(job, timings.get(job[0]), memory.get(job[0]), device) for job in jobs]
    return CostProfile(
        study=study.name,
        arms=tuple(cost for cost in costs if cost.arm in study.arms),
        teachers=tuple(cost for cost in costs if cost.arm not in study.arms),
        conventions=CONVENTIONS,
        environment=environment(study.execution),
    )


Job = tuple[str, StrategySpec, ModelSpec, ModelSpec | None, Recipe]


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


def _build(job: Job, device: str | torch.device) -> TrainingStep:
    name, strategy, student, teacher, recipe = job
    # Random weights cost what given ones do.
    teacher = None if teacher is None else teacher.untrained()
    return build_step(name, build_strategy(strategy, name), student, teacher, recipe, seed=0, device=device)


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
        measured = _time(chosen, device, 3, lambda text: None, None if asked == "auto" else asked)
        seconds[choice] = sum(min(sum(step.values()) for step in steps) for steps in measured.values())
    return min(seconds, key=lambda choice: seconds[choice])


def count_flops(
    step: TrainingStep, seq_len: int, masked: int, *, executed_on: torch.device | None = None
) -> dict[str, Price]:
    """Count the FLOPs of each phase of a step on the meta device.

    Parameters
    ----------
    step
        Built on the meta device, or, with `executed_on`, anywhere within a fake-tensor mode.
    seq_len, masked
        Positions and masked positions of a sequence.
    executed_on
        The device whose kernels are counted, as it would choose them; None for the meta device.

    Returns
    -------
    prices
        By phase, per position and per target token: the count is linear in both, so two counts give the two prices.
    """
    few, many = masked, min(2 * masked, seq_len)
    counts = [_count_once(step, seq_len, targets, executed_on or torch.device("meta")) for targets in (few, many)]
    prices = {}
    for phase in PHASES:
        per_target = (counts[1][phase] - counts[0][phase]) / (many - few)
        prices[phase] = ((counts[0][phase] - per_target * few) / seq_len, per_target)
    return prices


def _count_once(step: TrainingStep, seq_len: int, targets: int, device: torch.device) -> dict[str, int]:
    zeros = torch.zeros(targets, dtype=torch.long, device=device)
    ids = torch.zeros((1, seq_len), dtype=torch.long, device=device)
    found: dict[str, int] = dict.fromkeys(PHASES, 0)
    # torch's counter knows the CUDA kernels of attention but silently counts the CPU one as nothing.
    aten = torch.ops.aten
    cpu_attention: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=cpu_attention) as counter:
        so_far = 0

        def on_phase(phase: str) -> None:
            nonlocal so_far
            found[phase] = counter.get_total_flops() - so_far
            so_far = counter.get_total_flops()

        step.forward_backward(Batch(input_ids=ids, target_positions=zeros, target_ids=zeros), on_phase=on_phase)
    return found


def _cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _cpu_attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _cost(job: Job, timing: list[dict[str, float]] | None, memory: int | None, device: torch.device) -> ArmCost:
    name, _, _, _, recipe = job
    lean = _build((*job[:4], recipe.model_copy(update={"execute": "lean"})), "meta")
    required = count_flops(lean, recipe.seq_len, recipe.masked_per_sequence)
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = _build(job, device)
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


def _peak_memory(job: Job, device: torch.device, micro_batch_sequences: int | None) -> int | None:
    """Of the arm alone on the device; None on a CPU."""
    if device.type != "cuda":
        return None
    peak_memory_bytes(device)
    step, batch = _build(job, device), _random_batch(job)
    for _ in range(2):  # the first makes optimizer state
        step.run(batch, 1e-6, micro_batch_sequences=micro_batch_sequences)
    return peak_memory_bytes(device)


def _time(
    jobs: list[Job],
    device: torch.device,
    steps: int,
    say: Callable[[str], None],
    micro_batch_sequences: int | None,
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each phase of each timed step, arms interleaved so that drift of the machine hits all alike."""
    built = {job[0]: (_build(job, device), _random_batch(job)) for job in jobs}
    clock = device_clock(device)
    shuffle = random.Random(0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in built}
    for round_index in range(steps + 1):
        for name in shuffle.sample(sorted(built), len(built)):
            step, batch = built[name]
            seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
            mark = clock()

            def on_phase(phase: str, seconds: dict[str, float] = seconds) -> None:
                nonlocal mark
                now = clock()
                seconds[phase] += now - mark
                mark = now

            step.run(batch, 1e-6, micro_batch_sequences=micro_batch_sequences, on_phase=on_phase)
            if round_index:  # the first round makes optimizer state and warms the kernels up
                found[name].append(seconds)
        if round_index % 5 == 0:
            say(f"timing steps {round_index}/{steps}")
    return found


def _random_batch(job: Job) -> MaskedBatch:
    recipe, vocab_size = job[4], job[2].vocab_size or 0
    draw = np.random.default_rng(0)
    ids = draw.integers(vocab_size, size=(recipe.batch_sequences, recipe.seq_len))
    columns = np.tile(np.arange(recipe.masked_per_sequence), recipe.batch_sequences)
    rows = np.repeat(np.arange(recipe.batch_sequences), recipe.masked_per_sequence)
    return MaskedBatch(ids, rows * recipe.seq_len + columns, draw.integers(vocab_size, size=len(rows)))


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Distribution-free interval of the median from order statistics; None where too few values carry one."""
    ordered, n = sorted(values), len(values)
    tail, below = (1 - level) / 2, 0.0
    rank = 0
    while rank < n // 2:
        below += math.comb(n, rank) * 0.5**n
        if below > tail:
            break
        rank += 1
    return (ordered[rank - 1], ordered[n - rank]) if rank else None


_LIGHT = (
    "add", "embedding", "expand", "eq", "gelu", "gather", "index", "mul", "dropout", "softmax", "tanh", "div", "sub",
    "clone", "ones", "zeros", "where", "masked_fill", "rsub", "unsqueeze", "contiguous", "to", "view", "slice",
    "arange", "ne", "cumsum", "cos", "sin", "neg",
)  # fmt: skip
"""Operators that fvcore does not count and that are element-wise or a look-up."""


def second_opinion(step: TrainingStep, required: dict[str, Price], recipe: Recipe) -> None:
    """Compare the forward counts with fvcore's, an independent counter of multiply-adds.

    Raises
    ------
    BudgetlabError
        When they differ, or fvcore meets an operator that it does not know and that may be heavy.
    """
    for phase, network, needs in (
        ("student_forward", step.student, step.student_needs),
        ("teacher_forward", step.teacher, step.teacher_needs),
    ):
        if network is None:
            continue
        counted = required[phase][0] * recipe.seq_len + required[phase][1] * recipe.masked_per_sequence
        other, unknown = _fvcore_flops(network, needs, recipe)
        if unknown:
            raise BudgetlabError(f"counting {step.arm}, {phase}", f"fvcore does not know {unknown}", "report this")
        if abs(other - counted) > 1e-9 * counted:
            raise BudgetlabError(
                f"counting {step.arm}, {phase}", f"torch counts {counted:.0f} FLOPs, fvcore {other:.0f}", "report this"
            )


def _fvcore_flops(network: Network, needs: Needs, recipe: Recipe) -> tuple[float, list[str]]:
    import logging
    import warnings

    from fvcore.nn import FlopCountAnalysis

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
            kept = self.network(ids, needs, positions)
            found = [*kept.hidden.values(), *kept.queries.values(), *kept.keys.values(), *kept.values.values()]
            found += kept.scores.values()
            return found if kept.logits is None else [*found, kept.logits]

    def attention(inputs: list[Any], outputs: list[Any]) -> float:
        batch, heads, length, width = inputs[0].type().sizes()
        return 2 * batch * heads * length * inputs[1].type().sizes()[2] * width

    ids = torch.zeros((1, recipe.seq_len), dtype=torch.long, device="meta")
    positions = torch.zeros(recipe.masked_per_sequence, dtype=torch.long, device="meta")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it traces with TorchScript, which torch deprecates
        analysis = FlopCountAnalysis(Traced(), (ids, positions))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        # A handle of None leaves the built-in one in place, so layer norm is given one that counts nothing.
        analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
        multiply_adds = analysis.total()
        unknown = [op for op in analysis.unsupported_ops() if op.removeprefix("aten::").rstrip("_") not in _LIGHT]
    return 2.0 * multiply_adds, unknown
