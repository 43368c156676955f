"""Losses on held-out text: two yardsticks that every arm gets alike, and the own head of arms that train one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from budgetlab.batches import Batches, MaskedBatch
from budgetlab.models import Network, build_network
from budgetlab.step import TrainingStep, to_device
from budgetlab.strategies import build_strategy
from budgetlab.values import Needs, Recipe, StrategySpec
from budgetlab.values.scoring import READOUT_STEPS

SEQUENCES_AT_ONCE = 64
SEQUENCES_IN_MEMORY = 2048
"""Whose hidden states are held at once: of a 12 x 768 trunk 0.8 GB in float32."""
WARMUP_STEPS = 20
HEAD_BATCH, HEAD_LEARNING_RATE = 128, 1e-2
"""Of the read-out. Of 3e-3, 1e-2 and 3e-2 the rate in the middle is the best (docs/statistics.md)."""
ADAPTED_BATCH_TOKENS, ADAPTED_LEARNING_RATE = 1024, 1e-3
YARDSTICK_SEED = 20_240_430
"""Of the samples, masks and fresh heads that every network is measured with."""
READOUT_VERSION, ADAPTED_VERSION = 2, 1
"""Of the measurements themselves: scores of another version are not mixed with these."""


class _Readout(nn.Module):
    """A scalar mix of all layers (Peters et al. 2018, arXiv 1802.05365), then a fresh MLM head.

    As in BERT the decoder is tied to the word embeddings, which are frozen with the trunk: what is fresh is the
    mix, the transform and the bias. A decoder of its own (V x D weights) would overfit the few tokens.
    """

    def __init__(self, num_states: int, width: int, embeddings_VD: Tensor, log_unigram_V: Tensor) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(num_states))
        self.scale = nn.Parameter(torch.ones(()))
        self.dense = nn.Linear(width, embeddings_VD.shape[1])
        self.norm = nn.LayerNorm(embeddings_VD.shape[1])
        # It starts at the word frequencies, so that the few tokens are spent on what the trunk knows.
        self.bias = nn.Parameter(log_unigram_V.clone())
        self.embeddings_VD = embeddings_VD

    def forward(self, states_MLD: Tensor) -> Tensor:
        mixed_MD = self.scale * torch.einsum("mld,l->md", states_MLD.float(), self.mix.softmax(0))
        return functional.linear(self.norm(functional.gelu(self.dense(mixed_MD))), self.embeddings_VD, self.bias)


@dataclass(frozen=True)
class Yardstick:
    """A held-out loss in nats per target token, and how it was measured."""

    value: float
    num_targets: int
    half_value: float | None = None
    """The same with half the tokens and steps, and a decay of its own."""
    words: str = ""


def readout_loss(
    network: Network,
    train: Batches,
    heldout: Batches,
    *,
    tokens: int,
    least_steps: int = READOUT_STEPS,
    heldout_sequences: int,
    log_unigram: Tensor,
    dtype: str = "float32",
) -> Yardstick:
    """Train a fresh head on the frozen trunk and measure its held-out loss.

    The head, its rate, the tokens it is trained on, their order, masks and seed are the same for every network of a
    width. A text with fewer tokens is read again, with other masks.
    """
    device = next(network.parameters()).device
    embeddings = network.word_embeddings.detach()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    masked = heldout.masked_per_sequence
    sequences = max(math.ceil(tokens / train.seq_len), math.ceil(least_steps * HEAD_BATCH / masked))
    # Where every position is a target, the same tokens have many more of them: they make the batch larger.
    batch = sequences * masked // least_steps if train.causal else HEAD_BATCH
    steps = sequences * masked // batch
    in_memory = max(1, SEQUENCES_IN_MEMORY * 8 // masked) if train.causal else SEQUENCES_IN_MEMORY
    heads = []
    for length in (steps, steps // 2):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            head = _Readout(network.spec.num_layers + 1, network.spec.hidden_size, embeddings, log_unigram.to(device))
        heads.append(_Head(head.to(device), length))
    generator = torch.Generator().manual_seed(0)
    left_MLD, left_M = torch.empty(0, device=device), torch.empty(0, dtype=torch.long, device=device)
    for first in range(0, sequences, in_memory):
        count = min(in_memory, sequences - first)
        with autocast:
            states_MLD, targets_M = _states(network, train.shuffled, first, count)
        order = torch.randperm(len(targets_M), generator=generator).to(device)
        states_MLD, targets_M = states_MLD[order], targets_M[order]
        if len(left_M):
            states_MLD, targets_M = torch.cat([left_MLD, states_MLD]), torch.cat([left_M, targets_M])
        whole = len(targets_M) // batch * batch
        for rows in range(0, whole, batch):
            for head in heads:
                head.step(states_MLD[rows : rows + batch], targets_M[rows : rows + batch], autocast)
        left_MLD, left_M = states_MLD[whole:], targets_M[whole:]
    totals, count = [0.0] * len(heads), 0
    for first in range(0, heldout_sequences, SEQUENCES_AT_ONCE):
        with autocast:
            size = min(SEQUENCES_AT_ONCE, heldout_sequences - first)
            states_MLD, targets_M = _states(network, heldout.in_order, first, size)
        count += len(targets_M)
        with torch.no_grad():
            for number, head in enumerate(heads):
                logits = head.module(states_MLD)
                totals[number] += float(functional.cross_entropy(logits, targets_M, reduction="sum"))
    words = f"{sequences * train.seq_len:,} tokens, {steps:,} steps at {HEAD_LEARNING_RATE:g}"
    return Yardstick(totals[0] / count, count, totals[1] / count, words)


class _Head:
    """A head in training; it stops after its own number of steps."""

    def __init__(self, module: _Readout, steps: int) -> None:
        self.module, self.steps, self.done = module, steps, 0
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=HEAD_LEARNING_RATE, weight_decay=0.01, fused=True)

    def step(self, states_MLD: Tensor, targets_M: Tensor, autocast: torch.autocast) -> None:
        if self.done == self.steps:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = HEAD_LEARNING_RATE * _decay(self.done, self.steps)
        with autocast:
            logits = self.module(states_MLD)
        functional.cross_entropy(logits.float(), targets_M).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1


def _decay(step: int, steps: int) -> float:
    """Warm-up, then linear to zero: every yardstick has its own decay."""
    return min((step + 1) / min(WARMUP_STEPS, steps), 1 - step / steps)


@torch.no_grad()
def _states(
    network: Network, samples: Callable[[int, int], MaskedBatch], first: int, sequences: int
) -> tuple[Tensor, Tensor]:
    """All hidden states at the masked positions, [M, layers + 1, D], and their targets [M]."""
    device = next(network.parameters()).device
    needs = Needs(hidden=tuple(range(network.spec.num_layers + 1)))
    found, targets = [], []
    for start in range(first, first + sequences, SEQUENCES_AT_ONCE):
        batch = to_device(samples(start, min(SEQUENCES_AT_ONCE, first + sequences - start)), device)
        hidden = network(batch.input_ids, needs, attention_mask_BT=batch.attention_mask).hidden
        rows = [hidden[layer].flatten(0, 1)[batch.target_positions] for layer in sorted(hidden)]
        found.append(torch.stack(rows, dim=1))
        targets.append(batch.target_ids)
    return torch.cat(found), torch.cat(targets)


def adaptation(recipe: Recipe) -> Recipe:
    """The recipe of the adapted loss: the study's batches of words, one rate, one size and one schedule for all."""
    batch = max(1, ADAPTED_BATCH_TOKENS // recipe.seq_len) * recipe.seq_len
    fixed = {"learning_rate": ADAPTED_LEARNING_RATE, "batch_tokens": batch, "dropout": 0.0, "clip_norm": 1.0,
             "weight_decay": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "schedule": "linear",
             "initialisation": "random", "execute": "lean"}  # fmt: skip
    return recipe.model_copy(update=fixed)


def adapted_loss(
    network: Network, train: Batches, heldout: Batches, recipe: Recipe, *, tokens: int, heldout_sequences: int
) -> Yardstick:
    """Train the whole network a little on words, with a fresh head, and measure its held-out loss.

    The second yardstick: it asks what a checkpoint is worth to somebody who goes on from it, where the read-out asks
    what its frozen layers tell. Head, optimiser, rate, tokens, masks and their order are the same for every network. A
    fixed small adaptation, no claim of convergence.
    """
    device = next(network.parameters()).device
    fresh = build_network(
        network.spec.untrained(),
        seed=YARDSTICK_SEED,
        seq_len=recipe.seq_len,
        attention=network.attention,
        device=device,
    )
    fresh.trunk.load_state_dict(network.trunk.state_dict())
    step = TrainingStep("adapted loss", build_strategy(StrategySpec(name="no_kd")), fresh, None, recipe)
    steps = max(1, tokens // recipe.batch_tokens)
    fresh.train()
    for number in range(steps):
        batch = train.step(number, recipe.batch_sequences)
        step.run(batch, recipe.learning_rate * _decay(number, steps))
    found = mlm_loss(fresh.eval(), heldout, heldout_sequences=heldout_sequences, dtype=recipe.dtype)
    words = f"{steps * recipe.batch_tokens:,} tokens, {steps:,} steps at {recipe.learning_rate:g}, whole network"
    return replace(found, words=words)


@torch.no_grad()
def mlm_loss(network: Network, heldout: Batches, *, heldout_sequences: int, dtype: str = "float32") -> Yardstick:
    """Held-out loss of the network's own head, in nats per target token."""
    device = next(network.parameters()).device
    total, count = 0.0, 0
    for first in range(0, heldout_sequences, SEQUENCES_AT_ONCE):
        batch = to_device(heldout.in_order(first, min(SEQUENCES_AT_ONCE, heldout_sequences - first)), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = network(batch.input_ids, Needs(logits="masked"), batch.target_positions).logits
        total += float(functional.cross_entropy(logits.float(), batch.target_ids, reduction="sum"))
        count += len(batch.target_ids)
    return Yardstick(total / count, count)


def log_unigram(stream: np.ndarray, vocab_size: int) -> Tensor:
    """Add-one smoothed log frequencies of a token stream, [V], where V may exceed the tokenizer's entries."""
    counts = np.bincount(stream[: 1 << 24], minlength=vocab_size) + 1.0
    return torch.from_numpy(np.log(counts / counts.sum())).float()
