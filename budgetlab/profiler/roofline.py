"""Seconds of a step from its list of operators and the rates of a device, which need not be this one.

A device is calibrated in seconds, on itself: matrix products by shape, copies and the heavier element-wise work by
size, the optimizer by parameters. A step on a device that is not here is then predicted operator by operator, each
at the rate of the calibrated work that is most like it. It is a prediction, and says so wherever it is shown.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from budgetlab.errors import CallerError
from budgetlab.hardware import environment
from budgetlab.profiler.clock import Job, build_job
from budgetlab.step import PHASES
from budgetlab.values import Batch, Calibration, ExecutionSpec, KernelRate

_WIDTHS = ((128, 128), (128, 512), (512, 128), (256, 256), (256, 1024), (1024, 256), (768, 768), (768, 3072),
           (3072, 768))  # fmt: skip
_TOKENS = (512, 4096)
_HEADS = ((320, 256, 16384), (640, 768, 30522))
_SIZES = (2**12, 2**15, 2**18, 2**21, 2**24)
_PARAMETERS = (2**17, 2**22)
_LEAST_SECONDS = 0.02


@dataclass(frozen=True)
class Work:
    """One operator of a step: a "matmul" of shape (problems, rows, inner, columns), or so many bytes of a kind."""

    phase: str
    kind: str
    shape: tuple[int, ...]
    amount: float
    """FLOPs of a matrix product, bytes read and written of anything else, parameters of the optimizer."""
    times: int = 1
    """In a step: once for every micro-batch."""


def calibrate(device: torch.device, dtype: str, execution: ExecutionSpec) -> Calibration:
    """Measure what this device does a second, in about five seconds on a CPU."""
    kind = getattr(torch, dtype)
    rates = [_matmul_rate(shape, kind, dtype, device) for shape in _matmul_shapes(device)]
    for size in _SIZES:
        rates += [_bytes_rate(name, work, size, kind, device) for name, work in _ELEMENTWISE.items()]
    rates += [_adamw_rate(count, device) for count in _PARAMETERS]
    launch = _launch_seconds(device, kind)
    return Calibration(environment=environment(execution), rates=tuple(rates), launch_seconds=launch)


def _launch_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of an operator with next to nothing to do, in the forward and backward pass of a network of eights."""
    parts = [torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.LayerNorm(8)]
    network = torch.nn.Sequential(*parts * 8).to(device)
    numbers = torch.ones((2, 8), device=device)

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = network(numbers)
        found.float().sum().backward()

    with _List() as listed:
        work()
    return _seconds(work, device) / len(listed.work)


def _matmul_shapes(device: torch.device) -> list[tuple[int, int, int, int]]:
    shapes = [(1, rows, inner, columns) for rows in _TOKENS for inner, columns in _WIDTHS]
    shapes += [(1, inner, rows, columns) for rows in _TOKENS for inner, columns in _WIDTHS[1:]]  # weight gradients
    for rows, inner, columns in _HEADS:  # logits, and the gradients of their input and of the table
        shapes += [(1, rows, inner, columns), (1, rows, columns, inner), (1, columns, rows, inner)]
    for length, width in ((32, 64), (64, 32), (128, 64), (512, 64)):  # scores, and values
        shapes += [(64, length, width, length), (64, length, length, width)]
    if device.type == "cuda":
        shapes += [(1, 32768, 768, 3072), (1, 32768, 1024, 4096), (1, 16384, 4096, 4096), (3072, 128, 64, 128)]
    return shapes


def _matmul_rate(shape: tuple[int, int, int, int], dtype: torch.dtype, name: str, device: torch.device) -> KernelRate:
    problems, rows, inner, columns = shape
    lead = (problems,) if problems > 1 else ()
    left, right = (torch.randn((*lead, *sides), device=device).to(dtype) for sides in ((rows, inner), (inner, columns)))
    pairs = max(1, min(64, _COLD_BYTES // (left.nbytes + right.nbytes)))
    operands = itertools.cycle([(left.clone(), right.clone()) for _ in range(pairs)])
    seconds = _seconds(lambda: torch.matmul(*next(operands)), device)
    flops = 2.0 * problems * rows * inner * columns
    return KernelRate(kind="matmul", shape=shape, dtype=name, per_second=flops / seconds)


_ATEN = torch.ops.aten
_ELEMENTWISE: dict[str, Callable[[torch.Tensor], Any]] = {
    "copy": torch.clone,
    "cast": lambda x: x.to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32),
    "gelu": functional.gelu,
    "gelu_backward": lambda x: _ATEN.gelu_backward(x, x),
    "softmax": lambda x: functional.softmax(x, -1),
    "softmax_backward": lambda x: _ATEN._softmax_backward_data(x, x, -1, x.dtype),
    "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
    "layer_norm_backward": lambda x: _ATEN.native_layer_norm_backward(
        x, x, x.shape[-1:], x[:, :1], x[:, :1], None, None, [True, False, False]
    ),
}
_COLD_BYTES = 2**26
"""Arrays in turn together take so much, so that they come from where a step's own come from, not from a small cache."""


def _bytes_rate(
    name: str, work: Callable[[torch.Tensor], Any], size: int, dtype: torch.dtype, device: torch.device
) -> KernelRate:
    # Under autocast norms and softmax stay in float32, and what is between products is in the products' precision.
    kind = dtype if name.startswith(("copy", "gelu")) else torch.float32
    numbers = torch.randn((size // 128, 128), device=device).to(kind)
    arrays = itertools.cycle([numbers.clone() for _ in range(max(1, min(256, _COLD_BYTES // numbers.nbytes)))])
    seconds = _seconds(lambda: work(next(arrays)), device)
    found = work(numbers)
    outputs = [found] if isinstance(found, torch.Tensor) else [part for part in found if part is not None]
    # A backward pass reads the gradient as well as what the forward pass kept.
    read = (2 if name.endswith("backward") else 1) * numbers.nbytes
    touched = float(read + sum(output.nbytes for output in outputs))
    return KernelRate(kind=name, shape=(size,), dtype=str(kind).removeprefix("torch."), per_second=touched / seconds)


def _adamw_rate(count: int, device: torch.device) -> KernelRate:
    """Of the whole update, as `TrainingStep.update` does it: norm, clipping, moments and step."""
    parameters = [torch.nn.Parameter(torch.ones(count // 8, device=device)) for _ in range(8)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def update() -> None:
        for parameter in parameters:
            parameter.grad = parameter.data
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return KernelRate(kind="adamw", shape=(count,), dtype="float32", per_second=count / _seconds(update, device))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a piece of work over at least three stretches of some hundredths of a second."""
    work()
    repeats, stretches = 1, []
    while len(stretches) < 3:
        seconds = _stretch(work, repeats, device)
        if seconds < _LEAST_SECONDS / 2 and repeats < 2**20:
            repeats = min(2**20, repeats * max(2, int(_LEAST_SECONDS / max(seconds, 1e-7))))
            continue
        stretches.append(seconds / repeats)
    return statistics.median(stretches)


def _stretch(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            work()
        last.record()
        torch.cuda.synchronize(device)
        return first.elapsed_time(last) / 1e3
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return time.perf_counter() - began


def list_work(job: Job, micro_batch_sequences: int | None = None) -> list[Work]:
    """List the operators of an arm's step, without running it: one micro-batch's, and the update's."""
    recipe = job[4]
    sequences = min(micro_batch_sequences or recipe.batch_sequences, recipe.batch_sequences)
    times = math.ceil(recipe.batch_sequences / sequences)
    share = recipe.batch_sequences / sequences / times  # the last micro-batch may be smaller
    listed: list[Work] = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = build_job(job, "cpu")
        targets = torch.zeros(sequences * recipe.masked_per_sequence, dtype=torch.long)
        ids = torch.zeros((sequences, recipe.seq_len), dtype=torch.long)
        batch = Batch(input_ids=ids, target_positions=targets, target_ids=targets)
        with _List() as found:
            begun = 0

            def on_phase(phase: str) -> None:
                nonlocal begun
                for kind, shape, amount in found.work[begun:]:
                    listed.append(Work(phase, kind, shape, amount * share, times))
                begun = len(found.work)

            step.forward_backward(batch, on_phase=on_phase)
        trained = sum(parameter.numel() for parameter in step.trained.values())
    return [*listed, Work("update", "adamw", (trained,), float(trained))]


_KINDS = {
    "gelu": "gelu", "gelu_backward": "gelu_backward", "tanh": "gelu", "tanh_backward": "gelu_backward",
    "silu": "gelu", "silu_backward": "gelu_backward", "_to_copy": "cast", "exp": "softmax",
    "_softmax": "softmax", "_softmax_backward_data": "softmax_backward", "_log_softmax": "softmax",
    "_log_softmax_backward_data": "softmax_backward", "native_layer_norm": "layer_norm",
    "native_layer_norm_backward": "layer_norm_backward",
}  # fmt: skip
_NO_WORK = frozenset(
    {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}
)
_LOOK_UPS = frozenset({"embedding", "index", "index_select", "gather"})


class _List(TorchDispatchMode):
    """Writes down each operator: its kind, its shape, its FLOPs or bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[tuple[str, tuple[int, ...], float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        # Questions to the fake tensors themselves ("prim") and empty memory are no work.
        if not func.is_view and func.namespace != "prim" and name not in _NO_WORK:
            self._note(name, [*_tensors(args), *_tensors((kwargs or {}).values())], list(_tensors((out,))))
        return out

    def _note(self, name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = inputs[-2:]
            problems = left.shape[0] if left.ndim == 3 else 1
            self._product(problems, left.shape[-2], left.shape[-1], right.shape[-1])
        elif name.startswith("_scaled_dot_product"):
            backward = name.endswith("backward")
            query, key = inputs[1:3] if backward else inputs[:2]
            problems, rows, columns = query.shape[0] * query.shape[1], query.shape[2], key.shape[2]
            for _ in range(3 if backward else 1):  # scores, and their gradients on either side
                self._product(problems, rows, query.shape[3], columns)
            for _ in range(2 if backward else 1):
                self._product(problems, rows, columns, query.shape[3])
            self.work.append(("softmax", (rows * columns * problems,), 8.0 * rows * columns * problems))
        else:
            touched = [*outputs, *outputs] if name in _LOOK_UPS else [*inputs, *outputs]
            size = max((tensor.numel() for tensor in touched), default=0)
            amount = float(sum(tensor.numel() * tensor.element_size() for tensor in touched))
            if amount:
                self.work.append((_KINDS.get(name, "copy"), (size,), amount))

    def _product(self, problems: int, rows: int, inner: int, columns: int) -> None:
        self.work.append(("matmul", (problems, rows, inner, columns), 2.0 * problems * rows * inner * columns))


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def predict_seconds(work: Iterable[Work], calibration: Calibration, dtype: str) -> dict[str, float]:
    """Seconds of each phase on the calibrated device, every operator at the rate of the work that is most like it.

    Launching takes time of its own on a CPU; a GPU works on while the next is launched, so that the longer of the two
    counts there.
    """
    overlaps = calibration.environment.device != "cpu"
    nearest: dict[tuple[str, tuple[int, ...]], float] = {}
    seconds = dict.fromkeys(PHASES, 0.0)
    for item in work:
        key = (item.kind, item.shape)
        if key not in nearest:
            nearest[key] = _rate(calibration, item.kind, item.shape, dtype)
        own, launch = item.amount / nearest[key], calibration.launch_seconds
        seconds[item.phase] += item.times * (max(own, launch) if overlaps else own + launch)
    return seconds


def _rate(calibration: Calibration, kind: str, shape: tuple[int, ...], dtype: str) -> float:
    """Rate of the calibrated work whose sizes are nearest, in logarithms."""
    like = [r for r in calibration.rates if r.kind == kind and (kind != "matmul" or r.dtype == dtype)]
    if not like:
        raise CallerError("a prediction", f"the calibration has no rate of {kind}", "calibrate the device again")
    return min(like, key=lambda rate: _distance(rate.shape, shape)).per_second


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return sum(math.log(a / b) ** 2 for a, b in zip(one, other, strict=True))
