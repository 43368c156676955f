"""What is kept of a teacher: bytes a token, seconds to write and to read, and how far it is from the teacher.

    python benchmarks/caches.py [--teacher demo_teacher] [--positions 4096]

The logits are those of a teacher that comes with budgetlab, at masked positions of documentation (or at all, of the
causal one). KL is KL(kept || teacher) in nats a position, finite also where words were cut off; TV is half the sum of
absolute differences of the probabilities, and bias the same of their mean over all positions, which draws leave at
noise. DistillKit's packing is written from its published description (its README: ids in as few bits as they need,
`exact_k` values in bfloat16, a polynomial in the rank for the others with float32 coefficients), at its two
recommended settings and at equal k. Seconds are CPU seconds for a thousand positions, one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from budgetlab.batches import batches_of, keyed_uniform
from budgetlab.corpus import build_corpus
from budgetlab.models import build_network
from budgetlab.step import to_device
from budgetlab.studies import load_study
from budgetlab.values import Kept, Needs, Sampled, TopK, TopP

KINDS: list[Kept] = [
    *(TopK(k=k, tail=tail) for k in (128, 64, 50, 16) for tail in ("renormalise", "uniform")),
    TopK(k=50, values="bf16"), TopP(), *(Sampled(draws=draws) for draws in (4, 12, 50)),
]  # fmt: skip
PACKED = {"recommended": (128, 16, 5, True), "budget": (50, 1, 2, True), "k = 64": (64, 16, 5, True),
          "k = 16": (16, 1, 2, True)}  # fmt: skip
"""k, exact values, polynomial terms 1, x, x^2 ..., and the square root."""


def logits_of(teacher: str, positions: int) -> Tensor:
    """Return logits of a teacher that comes with budgetlab, [positions, V]."""
    study = load_study("presets/causal_demo.toml" if "causal" in teacher else "presets/demo.toml")
    few = study.corpus.model_copy(update={"train": ("matplotlib",)})
    corpus = build_corpus(few, roots=study.data_roots, cache=Path("results/cache"))
    recipe = study.recipe
    made = batches_of(corpus.train, corpus.special, corpus.vocab_size, recipe, run_seed=0)
    network = build_network(study.models["teacher"], seq_len=recipe.seq_len).eval()
    batch = to_device(made.in_order(0, -(-positions // recipe.masked_per_sequence)), torch.device("cpu"))
    with torch.no_grad():
        found = network(batch.input_ids, Needs(logits="masked"), batch.target_positions, batch.attention_mask).logits
    return found[:positions, : corpus.vocab_size].float()


def packed(logits: Tensor, k: int, exact: int, terms: int, root: bool) -> tuple[Tensor, float]:
    """Return what DistillKit's description reconstructs, renormalised, and its bytes a position."""
    values, ids = logits.log_softmax(-1).topk(k, dim=-1)
    ranks = torch.arange(k - exact, dtype=torch.float64) / max(1, k - exact)
    basis = [ranks**n for n in range(terms)] + ([ranks.sqrt()] if root else [])
    design = torch.stack(basis, -1)
    fitted = torch.linalg.lstsq(design.expand(len(logits), -1, -1), values[:, exact:, None].double()).solution.float()
    tail = (design.float() @ fitted)[..., 0]
    again = torch.cat([values[:, :exact].bfloat16().float(), tail], -1).softmax(-1)
    bits = (logits.shape[-1] - 1).bit_length()
    return torch.zeros_like(logits).scatter(1, ids, again), -(-k * bits // 8) + 2 * exact + 4 * len(basis)


def timed(work: Callable[[], object], positions: int) -> float:
    """Return CPU seconds for a thousand positions, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return 1000 * best / positions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="demo_teacher", choices=["demo_teacher", "causal_demo_teacher"])
    parser.add_argument("--positions", type=int, default=4096)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logits = logits_of(asked.teacher, asked.positions)
    true, words, count = logits.softmax(-1), logits.shape[-1], len(logits)
    print(f"{asked.teacher}, {count:,} positions, vocabulary {words:,}; full float16 logits: {2 * words:,} B")
    print(f"{'kept':64} {'bytes':>7} {'KL':>8} {'TV':>7} {'bias':>8} {'write s':>8} {'read s':>8}")

    def show(name: str, size: float, chances: Tensor, *seconds: float) -> None:
        kl = (chances * (chances.clamp_min(1e-30).log() - true.clamp_min(1e-30).log())).sum(-1).mean()
        far = 0.5 * (chances - true).abs().sum(-1).mean()
        bias = 0.5 * (chances - true).mean(0).abs().sum()
        took = " ".join(f"{each:8.4f}" for each in seconds)
        print(f"{name:64} {size:7.1f} {kl:8.4f} {far:7.4f} {bias:8.5f} {took}".rstrip())

    for kind in KINDS:
        uniforms = None
        if kind.uniforms:
            keys = np.arange(count)[:, None], np.arange(kind.uniforms)
            uniforms = torch.from_numpy(keyed_uniform(0, 5, *keys))
        values, ids = (found.numpy() for found in kind.entries(logits, uniforms))
        entries, sizes = kind.encode(values, ids, words)
        read_values, read_ids = kind.decode(entries, sizes)
        read = torch.from_numpy(read_values), torch.from_numpy(read_ids).long()
        size = entries.nbytes / count + (2 if kind.ragged else 0)

        def write(kind: Kept = kind, uniforms: Tensor | None = uniforms) -> None:
            kind.encode(*(found.numpy() for found in kind.entries(logits, uniforms)), words)

        def decode(kind: Kept = kind, given: tuple = (entries, sizes)) -> None:
            kind.decode(*given)

        show(str(kind), size, kind.logits(read, logits).softmax(-1), timed(write, count), timed(decode, count))
    for name, (k, exact, terms, root) in PACKED.items():
        chances, size = packed(logits, k, exact, terms, root)
        show(f"DistillKit's packing, {name}: {k}, {exact} exact", size, chances)


if __name__ == "__main__":
    main()
