"""The training step against transformers' Trainer and against itself with everything computed, side by side in one run.

    pip install -c constraints.txt -e '.[benchmarks]'      # once: Trainer needs accelerate
    python benchmarks/step.py                              # CPU: 4 x 256 and 6 x 768, vocabulary 30,522, one thread
    python benchmarks/step.py --device cuda --students 6x768 12x1024
    python benchmarks/step.py --causal                     # Llama-shaped, vocabulary 32,000, against a plain loop
    python benchmarks/step.py --trl                        # the same against TRL's GKD trainer and against Trainer

(a) no_kd against `transformers.Trainer` on the same model, samples and precision, and against Trainer's defaults with
the fastest precision and attention of ours; (b) every strategy lean against `execute = "everything"`; (c) causal models
against a plain loop of the same model, data, precision and batch, with the largest tensor of each; (d) the same
against TRL's GKD trainer, off-policy, and against Trainer, with what a step adds to the process's memory at its highest
(on a GPU: allocated); both read one position more a sequence. What is compared alternates in rounds
within one process; a ratio is the median over rounds, with the lowest and highest beside it. On a
CPU seconds are CPU seconds, on a GPU they are between synchronised clocks.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import argparse
import contextlib
import importlib
import importlib.util
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, Trainer, TrainerCallback, TrainingArguments

from budgetlab.batches import MaskedBatch
from budgetlab.hardware import has_bfloat16
from budgetlab.models import build_network
from budgetlab.profiler.count import count_flops
from budgetlab.step import TrainingStep, build_step
from budgetlab.strategies import build_strategy, strategy_names
from budgetlab.values import ModelSpec, Recipe, StrategySpec

VOCAB, LENGTH = 30_522, 128
TEACHER_FOLDER = Path(__file__).parents[1] / "budgetlab" / "presets" / "causal_demo_teacher"
STUDENTS = {
    "4x256": (4, 256, 4, 8),
    "6x768": (6, 768, 12, 12),
    "12x1024": (12, 1024, 16, 24),
}
"""layers, width, heads, layers of a teacher of the same width"""


def spec(layers: int, width: int, heads: int) -> ModelSpec:
    """Return a BERT of these sizes."""
    return ModelSpec(
        num_layers=layers, hidden_size=width, num_heads=heads, intermediate_size=4 * width, vocab_size=VOCAB
    )


def recipe(sequences: int, dtype: str, attention: str, execute: str = "lean") -> Recipe:
    """Return the recipe of a measurement."""
    return Recipe.model_validate(
        {
            "seq_len": LENGTH,
            "batch_tokens": sequences * LENGTH,
            "dtype": dtype,
            "attention": attention,
            "execute": execute,
        }
    )


def batch(sequences: int, masked: int) -> MaskedBatch:
    """Return samples with `masked` targets a sequence."""
    draw = np.random.default_rng(0)
    ids = draw.integers(5, VOCAB, size=(sequences, LENGTH))
    columns = np.tile(np.arange(masked), sequences)
    rows = np.repeat(np.arange(sequences), masked)
    return MaskedBatch(ids, rows * LENGTH + columns, draw.integers(5, VOCAB, size=len(rows)))


def seconds_now(device: torch.device) -> float:
    """Read the clock: CPU seconds, or wall seconds once the GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class OurStep:
    """Times steps of ours."""

    def __init__(self, step: TrainingStep, samples: MaskedBatch) -> None:
        self.step, self.samples = step, samples
        self.step.run(samples, 1e-5)

    def __call__(self, steps: int) -> float:
        """Take steps and return seconds a step."""
        started = seconds_now(self.step.device)
        for _ in range(steps):
            self.step.run(self.samples, 1e-5)
        return (seconds_now(self.step.device) - started) / steps


class TrainerStep:
    """Times steps of transformers' Trainer, from the end of its second step, so that its set-up is not charged."""

    def __init__(
        self, student: ModelSpec, samples: MaskedBatch, device: torch.device, *, bf16: bool, **further: Any
    ) -> None:
        config = build_network(student, device="meta").model.config
        self.model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
        self.device, self.bf16, self.further = device, bf16, further
        labels = np.full(samples.input_ids.size, -100)
        labels[samples.target_positions] = samples.target_ids
        labels = labels.reshape(samples.input_ids.shape)
        self.rows = [
            {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": label}
            for ids, label in zip(samples.input_ids, labels, strict=True)
        ]

    def __call__(self, steps: int) -> float:
        """Take steps and return seconds a step."""
        marks: list[float] = []
        device = self.device

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                marks.append(seconds_now(device))

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            arguments = {
                "output_dir": folder,
                "max_steps": steps + 2,
                "per_device_train_batch_size": len(self.rows),
                "use_cpu": device.type == "cpu",
                "bf16": self.bf16,
                "report_to": [],
                "save_strategy": "no",
                "logging_strategy": "no",
                "disable_tqdm": True,
                "learning_rate": 1e-5,
                **self.further,
            }
            self.trainer(arguments, Clock(), steps).train()
        return (marks[-1] - marks[1]) / steps

    def trainer(self, arguments: dict[str, Any], clock: TrainerCallback, steps: int) -> Trainer:
        """Build it."""
        rows: Any = self.rows * (steps + 2)
        return Trainer(self.model, TrainingArguments(**arguments), train_dataset=rows, callbacks=[clock])


def alternate(sides: dict[str, Callable[[int], float]], rounds: int, target_seconds: float) -> dict[str, list[float]]:
    """Measure the sides in turn, each for about `target_seconds` a round."""
    steps = {name: max(1, round(target_seconds / side(1))) for name, side in sides.items()}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side(steps[name]))
    return found


def ratio(slow: list[float], fast: list[float]) -> tuple[float, str]:
    """Median over rounds, and the line that prints it."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    middle = statistics.median(ratios)
    return middle, f"{middle:5.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"


def required(step: TrainingStep, masked: int) -> float:
    """Return the FLOPs of a token of a step that was built on the meta device."""
    prices = count_flops(step, LENGTH, masked).values()
    return sum(position + target * masked / LENGTH for position, target in prices)


def built(name: str, sizes: str, how: Recipe, device: str | torch.device, **settings: Any) -> TrainingStep:
    """Build a strategy's step."""
    layers, width, heads, teacher_layers = STUDENTS[sizes]
    strategy = build_strategy(StrategySpec(name=name, **settings))
    teacher = spec(teacher_layers, width, heads) if strategy.uses_teacher else None
    return build_step(name, strategy, spec(layers, width, heads), teacher, how, seed=0, device=device)


def against_trainer(sizes: str, sequences: int, device: torch.device, rounds: int, seconds: float) -> tuple[str, str]:
    """Print (a), and return the fastest precision and attention."""
    layers, width, heads, _ = STUDENTS[sizes]
    plain = recipe(sequences, "float32", "sdpa")
    masked = plain.masked_per_sequence
    samples = batch(sequences, masked)
    tokens = sequences * LENGTH
    step = built("no_kd", sizes, plain, "meta")
    lean = required(step, masked)
    head = 3 * (2 * width**2 + 2 * width * VOCAB)
    flops_ratio = (lean + head * (1 - masked / LENGTH)) / lean
    emulated = has_bfloat16(device) is False
    if emulated:
        print("  bfloat16 is left out: this device has no instructions for it")
    choices = list(product(["float32"] if emulated else ["float32", "bfloat16"], ["sdpa", "eager"]))
    ours = {
        f"{dtype} {kind}": OurStep(built("no_kd", sizes, recipe(sequences, dtype, kind), device), samples)
        for dtype, kind in choices
    }
    first = {name: side(1) for name, side in ours.items()}
    best = min(first, key=lambda name: first[name])
    sides: dict[str, Callable[[int], float]] = {
        "trainer": TrainerStep(spec(layers, width, heads), samples, device, bf16=False),
        "ours": ours["float32 sdpa"],
        "ours, probed": ours[best],
    }
    if device.type == "cuda" and not emulated:
        sides["trainer bf16"] = TrainerStep(spec(layers, width, heads), samples, device, bf16=True)
        sides["ours bf16"] = ours["bfloat16 sdpa"]
    found = alternate(sides, rounds, seconds)
    for name, times in found.items():
        print(f"  {name:<14} {tokens / statistics.median(times):9,.0f} tokens/s")
    middle, line = ratio(found["trainer"], found["ours"])
    goal = 0.95 * flops_ratio
    print(f"  (a) over Trainer, float32 both: {line}; required FLOPs {flops_ratio:.2f} x; goal {goal:.2f}: "
          f"{'met' if middle >= goal else 'MISSED'}")  # fmt: skip
    print(f"  (a) over Trainer's defaults, ours {best}: {ratio(found['trainer'], found['ours, probed'])[1]}")
    if "ours bf16" in sides:
        print(f"  (a) over Trainer, bfloat16 both: {ratio(found['trainer bf16'], found['ours bf16'])[1]}")
    dtype, kind = best.split()
    return dtype, kind


def against_everything(
    sizes: str, sequences: int, device: torch.device, how: tuple[str, str], rounds: int, seconds: float
) -> None:
    """Print (b) for every strategy."""
    for name in strategy_names():
        ways = {execute: recipe(sequences, *how, execute) for execute in ("lean", "everything")}
        masked = ways["lean"].masked_per_sequence
        counted = {e: required(built(name, sizes, way, "meta"), masked) for e, way in ways.items()}
        samples = batch(sequences, masked)
        sides: dict[str, Callable[[int], float]] = {
            e: OurStep(built(name, sizes, way, device), samples) for e, way in ways.items()
        }
        found = alternate(sides, rounds, seconds)
        flops_ratio = counted["everything"] / counted["lean"]
        middle, line = ratio(found["everything"], found["lean"])
        speed = sequences * LENGTH / statistics.median(found["lean"])
        print(f"  (b) {name:<10} {speed:8,.0f} tokens/s lean; over everything {line}; FLOPs {flops_ratio:.2f} x; "
              f"{middle / flops_ratio:.0%} of it: {'met' if middle >= 0.95 * flops_ratio else 'MISSED'}")  # fmt: skip


class PlainStep:
    """Times a plain loop: the model's own forward pass and loss, AdamW and clipping as ours."""

    def __init__(
        self, student: ModelSpec, teacher: ModelSpec | None, samples: MaskedBatch, device: torch.device
    ) -> None:
        def plain(spec: ModelSpec) -> Any:
            config = build_network(spec, device="meta").model.config
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(device)

        self.student, self.teacher = plain(student).train(), None if teacher is None else plain(teacher).eval()
        self.ids, self.targets = (torch.from_numpy(a).to(device) for a in (samples.input_ids, samples.target_ids))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5, fused=True)
        self.device = device
        self.step()

    def step(self) -> None:
        """Take one step."""
        logits = self.student(input_ids=self.ids, use_cache=False).logits.flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, self.targets)
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self.teacher(input_ids=self.ids, use_cache=False).logits.flatten(0, 1).float()
            logs = logits.log_softmax(-1), theirs.log_softmax(-1)
            loss = (loss + torch.nn.functional.kl_div(*logs, reduction="batchmean", log_target=True)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, steps: int) -> float:
        """Take steps and return seconds a step."""
        started = seconds_now(self.device)
        for _ in range(steps):
            self.step()
        return (seconds_now(self.device) - started) / steps


class _Largest(TorchDispatchMode):
    """The most numbers in one tensor."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            self.most = max(self.most, value.numel() if isinstance(value, torch.Tensor) else 0)
        return found


def against_a_plain_loop(device: torch.device, rounds: int, seconds: float) -> None:
    """Print (c): from scratch, and distilled with half the weight on the words."""
    student, teacher, samples, way = causal_models()
    sequences, length = samples.input_ids.shape
    print(f"  llama 4x256 of 8x256, vocabulary 32,000, {sequences} x {length} tokens a step, float32")
    for name, settings in (("no_kd", {}), ("kd", {"alpha": 0.5})):
        strategy = build_strategy(StrategySpec(name=name, **settings))
        taught = teacher if strategy.uses_teacher else None
        step = build_step(name, strategy, student, taught, way, seed=0, device=device)
        ours, plain = OurStep(step, samples), PlainStep(student, taught, samples, device)
        largest = []
        for side in (ours, plain):
            with _Largest() as watched:
                side(1)
            largest.append(4e-6 * watched.most)
        found = alternate({"ours": ours, "plain": plain}, rounds, seconds)
        speed = sequences * length / statistics.median(found["ours"])
        print(f"  (c) {name:<10} {speed:8,.0f} tokens/s; over a plain loop {ratio(found['plain'], found['ours'])[1]}; "
              f"largest tensor {largest[0]:.0f} MB, {largest[1]:.0f} MB in the loop")  # fmt: skip


def causal_models() -> tuple[ModelSpec, ModelSpec, MaskedBatch, Recipe]:
    """Return student and teacher of (c) and (d), their samples, and the recipe."""
    shape: dict[str, Any] = {"hidden_size": 256, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 688}
    shape |= {"family": "llama", "vocab_size": 32_000, "tie_embeddings": True}
    student, teacher = (ModelSpec(num_layers=layers, **shape) for layers in (4, 8))
    length, sequences = 256, 8
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 32_000, size=(sequences, length + 1))
    samples = MaskedBatch(tokens[:, :-1].copy(), np.arange(sequences * length), tokens[:, 1:].ravel(), causal=True)
    how = {"seq_len": length, "batch_tokens": sequences * length, "dtype": "float32", "attention": "sdpa"}
    way = Recipe.model_validate({**how, "mask_fraction": 1})
    return student, teacher, samples, way


class GkdStep(TrainerStep):
    """Times steps of TRL's GKD trainer, or without a teacher of transformers' Trainer, of the plain loop's networks."""

    def __init__(self, plain: PlainStep, samples: MaskedBatch) -> None:
        self.plain, self.device, self.bf16 = plain, plain.device, False
        ids = np.concatenate([samples.input_ids, samples.target_ids.reshape(samples.input_ids.shape)[:, -1:]], axis=1)
        self.rows = [{"input_ids": row} for row in ids.tolist()]

    def trainer(self, arguments: dict[str, Any], clock: TrainerCallback, steps: int) -> Trainer:
        """Build it: the same samples at every step, each position but the first a target."""

        def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            ids = torch.tensor([row["input_ids"] for row in rows])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

        rows = datasets.Dataset.from_list(self.rows * (steps + 2))
        shared: dict[str, Any] = {"data_collator": collate, "train_dataset": rows, "callbacks": [clock]}
        if self.plain.teacher is None:
            return Trainer(self.plain.student, TrainingArguments(**arguments), **shared)
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        gkd = importlib.import_module("trl.experimental.gkd")
        config = gkd.GKDConfig(**arguments, lmbda=0.0, beta=0.0, gradient_checkpointing=False, max_length=None)
        spelled = transformers.AutoTokenizer.from_pretrained(TEACHER_FOLDER)  # it asks for one, and reads no text
        return gkd.GKDTrainer(self.plain.student, self.plain.teacher, config, processing_class=spelled, **shared)


def against_trl(device: torch.device, rounds: int, seconds: float) -> None:
    """Print (d): from scratch over Trainer, and with the teacher's distribution alone over TRL's GKD trainer."""
    student, teacher, samples, way = causal_models()
    for name in ("no_kd", "kd"):
        if name == "kd" and importlib.util.find_spec("trl") is None:
            print("  (d) kd: TRL is not installed here (pip install trl)")
            continue
        strategy = build_strategy(StrategySpec(name=name))
        taught = teacher if strategy.uses_teacher else None
        step = build_step(name, strategy, student, taught, way, seed=0, device=device)
        sides: dict[str, Callable[[int], float]] = {"ours": OurStep(step, samples)}
        sides["theirs"] = GkdStep(PlainStep(student, taught, samples, device), samples)
        memory = {side: peak_mb(take, device) for side, take in sides.items()}
        found = alternate(sides, rounds, seconds)
        speed = samples.tokens / statistics.median(found["ours"])
        whose = "Trainer" if taught is None else "TRL's GKD trainer"
        print(f"  (d) {name:<10} {speed:8,.0f} tokens/s; over {whose} {ratio(found['theirs'], found['ours'])[1]}; "
              f"{memory['ours']:.0f} MB above rest in a step, {memory['theirs']:.0f} MB in theirs")  # fmt: skip


def peak_mb(take: Callable[[int], float], device: torch.device) -> float:
    """Return how much memory a step takes at its highest above what is held between steps, in MB."""
    take(1)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        take(1)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is what it is now
    before = resident_mb("VmRSS")
    take(1)
    return resident_mb("VmHWM") - before


def resident_mb(which: str) -> float:
    """Read a size of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) * 1024 / 1e6


def main() -> None:
    """Run what was asked and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--students", nargs="+", default=["4x256", "6x768"], choices=list(STUDENTS))
    parser.add_argument("--sequences", type=int, default=8, help="of 128 tokens in a batch")
    parser.add_argument("--causal", action="store_true", help="(c) alone")
    parser.add_argument("--trl", action="store_true", help="(d) alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each side in a round")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    device = torch.device(asked.device)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()}"
    print(f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, transformers "
          f"{transformers.__version__}, {asked.sequences} x {LENGTH} tokens a step, vocabulary {VOCAB:,}, "
          f"{asked.rounds} rounds")  # fmt: skip
    if asked.causal:
        against_a_plain_loop(device, asked.rounds, asked.seconds)
        return
    if asked.trl:
        against_trl(device, asked.rounds, asked.seconds)
        return
    for sizes in asked.students:
        print(sizes)
        fastest = against_trainer(sizes, asked.sequences, device, asked.rounds, asked.seconds)
        for how in dict.fromkeys((("float32", "sdpa"), fastest)):
            print(f"  strategies in {' '.join(how)}; teacher {STUDENTS[sizes][3]} layers of the same width")
            against_everything(sizes, asked.sequences, device, how, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
