"""The parts of `gpu.py`: what each measures, and where it runs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from budgetlab.corpus import build_corpus
from budgetlab.hardware import environment, find_energy_counter, find_peak, has_bfloat16, prepare
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.profiler.arms import Job, jobs_of
from budgetlab.profiler.clock import QUICK, time_compiled, time_steps
from budgetlab.profiler.time_model import measure_time_model
from budgetlab.runner import run, training
from budgetlab.step import TrainingStep
from budgetlab.store import Store
from budgetlab.strategies import strategy_names
from budgetlab.studies import Study, load_study
from budgetlab.transfer import stage
from budgetlab.values import ExecutionSpec, Plan

PART_SECONDS = 420.0
SIZES = {"6x768": (6, 768, 12, 12, 768), "12x1024": (12, 1024, 16, 24, 1024), "causal 12x768": (12, 768, 12, 24, 1024)}
ARMS = ("no_kd", "vanilla_kd", "minilm", "tinybert")
STUDY = """
name = "gpu"
seeds = [0]
[corpus]
source = "text"
train = ["train.txt"]
heldout = ["heldout.txt"]
tokenizer = "vocab.txt"
[recipe]
seq_len = {length}
batch_tokens = {tokens}
dtype = "{dtype}"
[execution]
device = "{device}"
threads = 1
{execution}
[models.student]
{family}num_layers = {layers}
hidden_size = {width}
num_heads = {heads}
intermediate_size = {inner}
[models.teacher]
{family}num_layers = {teacher_layers}
hidden_size = {teacher_width}
num_heads = {teacher_heads}
intermediate_size = {teacher_inner}
pretrain = {{ tokens = 0, seed = 0 }}
[plan]
match = "equal_tokens"
budgets = ["{budget} tokens"]
tolerance_fraction = 0.9
ladder = "separate"
"""
Row = dict[str, Any]


class Bench:
    """Where the parts run, at which size, and until when."""

    def __init__(self, device: str, tiny: bool, folder: Path) -> None:
        self.tiny, self.folder = tiny, folder
        self.execution = ExecutionSpec(device=device, threads=1)
        self.device = prepare(self.execution)
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.until = 0.0
        self.words = 120 if tiny else 30_517
        self.steps = 6 if tiny else 200
        draw = random.Random(0)
        names = [f"w{number}" for number in range(self.words)]
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *names]))
        for name, lines in (("train", 400 if tiny else 40_000), ("heldout", 100 if tiny else 2_000)):
            text = (" ".join(draw.choices(names, k=24)) for _ in range(lines))
            (folder / f"{name}.txt").write_text("\n".join(text) + "\n")

    def study(
        self, size: str = "6x768", *, length: int = 128, tokens: int = 32_768, arms: tuple[str, ...] = ARMS,
        execution: str = "", dtype: str | None = None,
    ) -> Study:  # fmt: skip
        """Write and read a study of one size of student, its teacher and these arms."""
        layers, width, heads, teacher_layers, teacher_width = SIZES[size]
        if self.tiny:
            layers, width, heads, teacher_layers, teacher_width, length, tokens = 2, 32, 2, 4, 32, 16, 128
        dtype = dtype or ("bfloat16" if has_bfloat16(self.device) and not self.tiny else "float32")
        text = STUDY.format(
            length=length, tokens=tokens, dtype=dtype, device=self.execution.device, layers=layers, width=width,
            heads=heads, inner=4 * width, teacher_layers=teacher_layers, teacher_width=teacher_width,
            teacher_heads=heads if teacher_width == width else teacher_width // 64, teacher_inner=4 * teacher_width,
            family='family = "llama"\n' if size.startswith("causal") else "", budget=self.steps * tokens,
            execution=execution,
        )  # fmt: skip
        for name in arms:
            text += f'[arms.{name}]\nstrategy = "{name}"\nstudent = "student"\n'
            text += "" if name == "no_kd" else 'teacher = "teacher"\n'
        path = self.folder / "gpu.toml"
        path.write_text(text)
        return load_study(path)

    def trained(self, study: Study, name: str, made: Plan | None = None, **update: Any) -> tuple[Plan, list[Any]]:
        """Profile, plan and run a study in a folder of its own."""
        corpus = build_corpus(study.corpus, roots=study.data_roots, cache=self.folder / "cache")
        made = made or plan(study, profile(study, depth="quick"))
        made = made.model_copy(update=update)
        return made, run(made, corpus, Store(self.folder / name, "gpu"))

    def add(self, what: str, **found: Any) -> None:
        """Add a row to the record of the part."""
        self.rows.append({"what": what, **found})

    def attempt(self, what: str, take: Callable[[], None]) -> None:
        """Take some measurement, or say why it is left out."""
        if time.monotonic() > self.until:
            self.left_out.append(f"{what}: no time left in this part")
            return
        try:
            take()
        except Exception as error:  # whatever a machine lacks, the rest can be measured
            self.left_out.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, take: Callable[[], object], times: int) -> float:
        """Return wall seconds of one call, of so many without a wait between them."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        take()
        wait()
        began = time.perf_counter()
        for _ in range(times):
            take()
        wait()
        return (time.perf_counter() - began) / times


def device(bench: Bench) -> None:
    """What the data sheet says and what large products reach."""
    where = environment(bench.execution)
    peak, counter = find_peak(where.device_name), find_energy_counter(bench.device)
    bench.add(where.device_name, torch=where.torch, memory_bytes=where.device_memory_bytes,
              energy_counter=counter.source if counter else None)  # fmt: skip
    for dtype, tf32 in (("float32", False), ("float32", True), ("bfloat16", False)):

        def product(dtype: str = dtype, tf32: bool = tf32) -> None:
            size = 128 if bench.tiny else 8192
            one = torch.randn(size, size, device=bench.device, dtype=getattr(torch, dtype))
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            rate = 2 * size**3 / bench.seconds(lambda: one @ one, 3 if bench.tiny else 50)
            most = peak.flops_per_second(dtype, tf32) if peak else None
            bench.add(f"product in {'TF32' if tf32 else dtype}", flops_per_second=rate, peak_flops_per_second=most)

        bench.attempt(f"product in {dtype}", product)
        torch.set_float32_matmul_precision("highest")


def probe(bench: Bench) -> None:
    """Precision and attention, torch.compile, and deterministic kernels, by arm."""
    for dtype in ("float32", "bfloat16"):
        for kind in ("sdpa", "eager"):
            for job in jobs_of(bench.study(dtype=dtype))[: len(ARMS)]:
                _probed(bench, job.settled(dtype, kind), f"{job.name} {dtype} {kind}")
    for job in jobs_of(bench.study())[: len(ARMS)]:
        settled = job.settled("float32", "sdpa")

        def compiled(job: Job = settled) -> None:
            assert bench.device.type == "cuda", "on a GPU alone"
            found = time_compiled(job, bench.device, QUICK, None)
            bench.add(job.name, compiled_over_not=found.seconds_ratio.value, compile_seconds=found.compile_seconds)

        bench.attempt(f"{job.name} compiled", compiled)
        prepare(bench.execution.model_copy(update={"deterministic": True}))
        _probed(bench, settled, f"{job.name} {settled.recipe.dtype} sdpa deterministic")
        prepare(bench.execution)
    bench.left_out.append("the step as a CUDA graph: there is none yet")


def _probed(bench: Bench, job: Job, what: str) -> None:
    def timed() -> None:
        (found,) = time_steps([job], bench.device, QUICK, lambda line: None, None).steps.values()
        bench.add(what, seconds_per_step=sorted(step.seconds for step in found)[len(found) // 2])

    bench.attempt(what, timed)


def waits(bench: Bench) -> None:
    """Nothing in fifty steps of any strategy waits for the device."""
    for name in strategy_names():

        def taken(name: str = name) -> None:
            job = jobs_of(bench.study(arms=(name,), tokens=4096))[0].settled("float32", "sdpa")
            step, batch = job.build(bench.device), job.batch()
            step.run(batch, 1e-5)
            staged = stage(batch, None, bench.device)
            if bench.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(3 if bench.tiny else 50):
                    step.run(staged, 1e-5)
            finally:
                if bench.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            bench.add(name, waits=0)

        bench.attempt(name, taken)


def trainer(bench: Bench) -> None:
    """`no_kd` against transformers' Trainer and against a plain loop, as they come and compiled."""
    from step import OurStep, TrainerStep

    for size in ("6x768", "12x1024"):
        for length in (128, 512):

            def compared(size: str = size, length: int = length) -> None:
                job = jobs_of(bench.study(size, length=length, arms=("no_kd",)))[0].settled("float32", "sdpa")
                batch, bf16, steps = job.batch(), job.recipe.dtype == "bfloat16", 2 if bench.tiny else 20
                ours = OurStep(job.build(bench.device), batch)(steps)
                bench.add(f"{size} at {length}", tokens_per_second=job.recipe.batch_tokens / ours)
                further: dict[str, dict[str, bool]] = {"as it comes": {}}
                if bench.device.type == "cuda":
                    further |= {"compiled": {"torch_compile": True}, "with Liger": {"use_liger_kernel": True}}
                for name, how in further.items():

                    def theirs(name: str = name, how: dict[str, bool] = how) -> None:
                        seconds = TrainerStep(job.student, batch, bench.device, bf16=bf16, **how)(steps)
                        bench.add(f"{size} at {length}, Trainer {name}", times_trainer=seconds / ours)

                    bench.attempt(f"{size} at {length}, Trainer {name}", theirs)

            bench.attempt(f"{size} at {length}", compared)


def causal(bench: Bench) -> None:
    """A causal student distilled, against a plain loop, compiled where that is quick."""
    from step import OurStep, PlainStep

    def compared() -> None:
        job = jobs_of(bench.study("causal 12x768", length=512, arms=("kd",)))[0].settled("float32", "sdpa")
        batch, steps = job.batch(), 2 if bench.tiny else 10
        ours = OurStep(job.build(bench.device), batch)(steps)
        plain = PlainStep(job.student, job.teacher, batch, bench.device)
        if bench.device.type == "cuda":
            plain.student, plain.teacher = torch.compile(plain.student), torch.compile(plain.teacher)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=job.recipe.dtype == "bfloat16"):
            plain(2)
            theirs = plain(steps)
        bench.add(
            "causal 12x768 of 24x1024", tokens_per_second=job.recipe.batch_tokens / ours, times_loop=theirs / ours
        )

    bench.attempt("causal 12x768", compared)


def arms(bench: Bench) -> None:
    """Tokens a second, utilisation, joules and memory of every arm, with 32k and 64k tokens a step."""
    for tokens in (128,) if bench.tiny else (32_768, 65_536):

        def priced(tokens: int = tokens) -> None:
            found = profile(bench.study(tokens=tokens), depth="quick" if bench.tiny else "timed")
            for cost in found.arms:
                rate, most = cost.required_flops_per_second, found.peak_flops_per_second
                bench.add(f"{cost.arm}, {tokens} tokens a step", tokens_per_second=cost.tokens_per_second,
                          utilisation=rate / most if rate and most else None, joules_per_token=cost.joules_per_token,
                          peak_memory_bytes=cost.peak_memory_bytes)  # fmt: skip

        bench.attempt(f"{tokens} tokens a step", priced)


def planned(bench: Bench) -> None:
    """Planned against measured seconds of every arm, joules of the run, and what the runner takes beside steps."""

    def compared() -> None:
        made, records = bench.trained(bench.study(), "planned")
        for record in records:
            if record.kind == "rung":
                wanted = made.costs[record.arm].seconds_per_step or 0.0
                wall = record.device_seconds + sum(
                    record.overhead_seconds[name] for name in ("data_wait", "evaluation")
                )
                bench.add(record.arm, measured_over_planned=record.device_seconds / (record.steps * wanted),
                          runner_over_steps=wall / record.device_seconds, joules=record.joules,
                          overhead_joules=record.overhead_joules)  # fmt: skip

    bench.attempt("planned against measured", compared)


def time_model(bench: Bench) -> None:
    """Seconds that the time model predicts for shapes that it was not fitted to."""

    def fitted() -> None:
        job = jobs_of(bench.study(arms=("no_kd",)))[0].settled("float32", "sdpa")
        found = measure_time_model(job, bench.device, None)
        for held in found.held_out:
            bench.add(f"{held.sequences} x {held.seq_len}", error=held.error)

    bench.attempt("time model", fitted)


def resume(bench: Bench) -> None:
    """A run that was stopped ends with the bits of one that was not, with deterministic kernels."""

    def stopped() -> None:
        study = bench.study(arms=("minilm",), execution="deterministic = true\ncompile = 'never'")
        made, whole = bench.trained(study, "whole")
        take, left = TrainingStep.run, iter(range(bench.steps // 2))

        def some_steps(self: TrainingStep, *given: Any, **named: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return take(self, *given, **named)

        every, training.CHECKPOINT_EVERY_SECONDS, TrainingStep.run = training.CHECKPOINT_EVERY_SECONDS, 0.0, some_steps
        try:
            bench.trained(study, "stopped", made)
        except KeyboardInterrupt:
            pass
        finally:
            training.CHECKPOINT_EVERY_SECONDS, TrainingStep.run = every, take
        _, again = bench.trained(study, "stopped", made)
        bench.add("minilm", same_bits=again[-1].state_hash == whole[-1].state_hash is not None)

    bench.attempt("resume", stopped)
    prepare(bench.execution)


def side_by_side(bench: Bench) -> None:
    """Two runs at once on the device against one after the other."""

    def paired() -> None:
        made, seconds = None, {}
        for workers in (1, 2):
            study = bench.study(arms=("no_kd",), execution=f"workers = {workers}\ncompile = 'never'")
            made = made or plan(study, profile(study, depth="quick"))
            began = time.perf_counter()
            bench.trained(study, f"workers-{workers}", made, execution=study.execution, seeds=(0, 1))
            seconds[workers] = time.perf_counter() - began
        bench.add(
            "two runs of no_kd", times_faster_together=seconds[1] / seconds[2], note="start of processes included"
        )

    bench.attempt("two runs", paired)


def glue(bench: Bench) -> None:
    """MRPC fine-tuned as `evaluate` does it and by Trainer."""

    def compared() -> None:
        if bench.tiny or "BUDGETLAB_DATA_ROOT" not in os.environ:
            raise RuntimeError("at full size alone, and with MRPC under BUDGETLAB_DATA_ROOT/glue")
        script = Path(__file__).with_name("glue.py")
        command = [sys.executable, str(script), "--tasks", "mrpc", "--device", bench.execution.device]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PART_SECONDS)
        bench.add("mrpc", said=(done.stdout or done.stderr)[-1500:])

    bench.attempt("mrpc", compared)


def paper(bench: Bench) -> None:
    """The published 4 hours, 4.6B and 2.6B tokens of a 6-layer student, as planned from this device's prices."""

    def tabled() -> None:
        study = load_study(Path(__file__).parents[1] / "experiments" / "paper_6l.toml")
        execution = study.execution.model_copy(update={"device": bench.execution.device, "threads": 1})
        update: dict[str, Any] = {"execution": execution}
        if bench.tiny:
            small = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "vocab_size": 120}
            models = {name: spec.model_copy(update=small) for name, spec in study.models.items()}
            recipe = study.recipe.model_copy(update={"batch_tokens": 128, "seq_len": 16, "dtype": "float32"})
            arms = {name: arm.model_copy(update={"recipe": recipe}) for name, arm in study.arms.items()}
            update |= {"models": models, "recipe": recipe, "arms": arms}
        study = study.model_copy(update=update)
        found = profile(study, depth="quick")
        for match, budget in (
            ("device_seconds", "4 h"),
            ("tokens:no_kd", "4.6B tokens"),
            ("tokens:no_kd", "2.6B tokens"),
        ):
            settings = study.plan.model_copy(update={"match": match, "budgets": (budget,)})
            for schedule in plan(study.model_copy(update={"plan": settings}), found).schedules:
                bench.add(f"{budget}: {schedule.arm}", tokens=schedule.tokens, steps=schedule.steps)

    bench.attempt("the paper's table", tabled)


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part
    for part in (device, probe, waits, trainer, causal, arms, planned, time_model, resume, side_by_side, glue, paper)
}
