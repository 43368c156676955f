"""Losses on held-out text: by a fresh head that every arm gets alike, and by the own head of arms that train one."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from budgetlab.batches import Batches
from budgetlab.models import Network
from budgetlab.step import to_device
from budgetlab.values import Needs

__all__ = ["log_unigram", "mlm_loss", "readout_loss"]

SEQUENCES_AT_ONCE = 64
HEAD_BATCH, HEAD_LEARNING_RATE, HEAD_WARMUP_STEPS, HEAD_MIN_STEPS = 128, 3e-3, 20, 200


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


def readout_loss(
    network: Network,
    train: Batches,
    heldout: Batches,
    *,
    train_sequences: int,
    heldout_sequences: int,
    log_unigram: Tensor,
    dtype: str = "float32",
) -> tuple[float, int]:
    """Train a fresh head on the frozen trunk and measure its held-out loss.

    The head, the tokens it is trained on, their order, masks and seed are the same for every network of a width.

    Parameters
    ----------
    network
        Its trunk is frozen; all hidden states are read.
    train, heldout
        Masked samples, with a seed that is the same for all networks.
    train_sequences, heldout_sequences
        How many are read, from the first.
    log_unigram
        Log frequencies of the training text, [V].
    dtype
        "bfloat16" runs the trunk and trains the head under autocast; the loss is measured in float32.

    Returns
    -------
    loss, num_targets
        Nats per target token, and how many targets it is a mean of.
    """
    device = next(network.parameters()).device
    embeddings = network.word_embeddings.detach()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    with autocast:
        states_MLD, targets_M = _states(network, train, train_sequences)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, num_states, width = states_MLD.shape
        head = _Readout(num_states, width, embeddings, log_unigram.to(device)).to(device)
        generator = torch.Generator().manual_seed(0)
        # Once through the targets, or as often as a head needs where they are few.
        epochs = math.ceil(HEAD_MIN_STEPS * HEAD_BATCH / len(targets_M))
        order = torch.cat([torch.randperm(len(targets_M), generator=generator) for _ in range(epochs)])
    steps = math.ceil(len(order) / HEAD_BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_LEARNING_RATE, weight_decay=0.01, fused=True)
    warmup = min(HEAD_WARMUP_STEPS, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 1 - step / steps))
    for rows in order.to(device).split(HEAD_BATCH):
        with autocast:
            logits = head(states_MLD[rows])
        functional.cross_entropy(logits.float(), targets_M[rows]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    with autocast:
        states_MLD, targets_M = _states(network, heldout, heldout_sequences)
    with torch.no_grad():
        parts = zip(states_MLD.split(1024), targets_M.split(1024), strict=True)
        total = sum(float(functional.cross_entropy(head(s), t, reduction="sum")) for s, t in parts)
    return total / len(targets_M), len(targets_M)


@torch.no_grad()
def _states(network: Network, batches: Batches, sequences: int) -> tuple[Tensor, Tensor]:
    """All hidden states at the masked positions, [M, layers + 1, D], and their targets [M]."""
    device = next(network.parameters()).device
    needs = Needs(hidden=tuple(range(network.spec.num_layers + 1)))
    found, targets = [], []
    for first in range(0, sequences, SEQUENCES_AT_ONCE):
        batch = to_device(batches.in_order(first, min(SEQUENCES_AT_ONCE, sequences - first)), device)
        hidden = network(batch.input_ids, needs).hidden
        rows = [hidden[layer].flatten(0, 1)[batch.target_positions] for layer in sorted(hidden)]
        found.append(torch.stack(rows, dim=1))
        targets.append(batch.target_ids)
    return torch.cat(found), torch.cat(targets)


@torch.no_grad()
def mlm_loss(network: Network, heldout: Batches, *, sequences: int, dtype: str = "float32") -> tuple[float, int]:
    """Held-out loss of the network's own head: (nats per target token, number of targets)."""
    device = next(network.parameters()).device
    total, count = 0.0, 0
    for first in range(0, sequences, SEQUENCES_AT_ONCE):
        batch = to_device(heldout.in_order(first, min(SEQUENCES_AT_ONCE, sequences - first)), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = network(batch.input_ids, Needs(logits="masked"), batch.target_positions).logits
        total += float(functional.cross_entropy(logits.float(), batch.target_ids, reduction="sum"))
        count += len(batch.target_ids)
    return total / count, count


def log_unigram(stream: np.ndarray, vocab_size: int) -> Tensor:
    """Add-one smoothed log frequencies of a token stream, [V], where V may exceed the tokenizer's entries."""
    counts = np.bincount(stream[: 1 << 24], minlength=vocab_size) + 1.0
    return torch.from_numpy(np.log(counts / counts.sum())).float()
