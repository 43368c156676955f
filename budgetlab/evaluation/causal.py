"""What a causal model is worth on held-out text as it stands: losses of its own head, a cloze, and copying.

Nothing is trained for these. The cloze and the copy probe stand beside the loss because they need not move with it:
distilling has been seen to help downstream scores more than the loss (arXiv 2605.23857), and to hurt copying in context
(arXiv 2509.01649).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from budgetlab.batches import Batches, keyed_uniform
from budgetlab.models import Network
from budgetlab.step import LOGITS_AT_ONCE, to_device
from budgetlab.values import Needs

CAUSAL_VERSION = 1
"""Of these measurements: scores of another version are not mixed with these."""
CLOZE_SEQUENCES, COPY_SEQUENCES = 1500, 300
_CALIBRATION_BINS = 15
_AT_ONCE = 2**16  # positions that go through the network together
_SHUFFLE = 77


@dataclass(frozen=True)
class NextTokenLoss:
    """Held-out losses of a causal model's own head, over the same span of text."""

    nats: float
    """A token, over all positions."""
    bits_per_byte: float | None
    """Of UTF-8, over the documents that lie in the span as a whole; None where their bytes are not known."""
    calibration_error: float
    """Mean gap between the probability of the likeliest token and how often it is right, over 15 bins of it."""
    num_targets: int


@torch.no_grad()
def _rows(network: Network, batches: Batches, sequences: int, dtype: str) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield logits [N, V], targets [N] and the number of the first row, a few rows at a time."""
    device, depth = next(network.parameters()).device, network.spec.num_layers
    at_once = max(1, _AT_ONCE // batches.seq_len)
    rows = max(1, LOGITS_AT_ONCE // (network.spec.vocab_size or 1))
    for first in range(0, sequences, at_once):
        batch = to_device(batches.in_order(first, min(at_once, sequences - first)), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            state = network(batch.input_ids, Needs(hidden=(depth,)), attention_mask_BT=batch.attention_mask)
            states_ND = state.hidden[depth].flatten(0, 1)
            for start in range(0, len(states_ND), rows):
                logits = network.head(states_ND[start : start + rows]).float()
                yield logits, batch.target_ids[start : start + rows], first * batches.seq_len + start


def next_token_loss(
    network: Network,
    heldout: Batches,
    *,
    heldout_sequences: int,
    documents: Sequence[tuple[int, int]] = (),
    dtype: str = "float32",
) -> NextTokenLoss:
    """Measure the own head on the first held-out sequences.

    Parameters
    ----------
    network
        A causal model.
    heldout
        The held-out text as sequences of next tokens.
    heldout_sequences
        How many are read.
    documents
        (tokens with the end-of-text token, UTF-8 bytes) of the first held-out documents, in order.
    dtype
        "float32" or "bfloat16"; losses are summed in float64.
    """
    nats, hits, sure = [], [], []
    for logits, targets, _ in _rows(network, heldout, heldout_sequences, dtype):
        nats.append(functional.cross_entropy(logits, targets, reduction="none").cpu())
        best = logits.softmax(-1).max(-1)
        sure.append(best.values.cpu())
        hits.append((best.indices == targets).cpu())
    loss_N = torch.cat(nats).double().numpy()
    return NextTokenLoss(
        float(loss_N.mean()),
        _bits_per_byte(loss_N, documents),
        _calibration_error(torch.cat(sure).numpy(), torch.cat(hits).numpy()),
        len(loss_N),
    )


def _bits_per_byte(loss_N: np.ndarray, documents: Sequence[tuple[int, int]]) -> float | None:
    """Sum of nats / ln 2 / bytes over whole documents; end-of-text tokens are no bytes, and their loss is left out.

    Number n of the losses is of token n + 1 of the text, so that the very first document is not predicted as a whole.
    """
    ends = np.cumsum([tokens for tokens, _ in documents])
    inside = [number for number, end in enumerate(ends) if number and end <= len(loss_N) + 1]
    num_bytes = sum(documents[number][1] for number in inside)
    if not num_bytes:
        return None
    total = sum(loss_N[ends[number - 1] - 1 : ends[number] - 2].sum() for number in inside)
    return float(total / math.log(2) / num_bytes)


def _calibration_error(sure_N: np.ndarray, hit_N: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3) of the likeliest tokens."""
    bins = np.minimum((sure_N * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=sure_N.astype(np.float64) - hit_N, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(sure_N))


def word_parts(vocabulary: dict[str, int], size: int) -> np.ndarray:
    """Tell what each token is to a word, int8 [V]: 1 begins one, 2 goes on with it, 0 is none (no letter in it).

    By the marks of WordPiece (##), or of byte-level BPE and SentencePiece.
    """
    parts = np.zeros(size, dtype=np.int8)
    inner = any(piece.startswith("##") for piece in vocabulary)
    for piece, number in vocabulary.items():
        begins = not piece.startswith("##") if inner else piece.startswith(("Ġ", "▁"))
        if any(char.isalpha() for char in piece.lstrip("Ġ▁#")):
            parts[number] = 1 if begins else 2
    return parts


def cloze(
    network: Network, heldout: Batches, parts_V: np.ndarray, special: Sequence[int], *, dtype: str = "float32"
) -> np.ndarray:
    """Ask for the last whole word of held-out sequences, given what comes before it: whether all its tokens are right.

    Returns bool [sequences]; a sequence without a whole word after its first half is left out. The greedy answer is the
    word exactly where each of its tokens is the likeliest one given those before it, so one pass is enough.
    """
    sequences, length = min(CLOZE_SEQUENCES, heldout.num_samples), heldout.seq_len
    batch = heldout.in_order(0, sequences)
    tokens = np.concatenate([batch.input_ids, batch.target_ids.reshape(-1, length)[:, -1:]], axis=1)
    parts = np.where(np.isin(tokens, special), 0, parts_V[tokens])
    right = _greedy(network, heldout, sequences, dtype).reshape(sequences, length)
    found = []
    for row in range(sequences):
        edges = np.flatnonzero(parts[row] != 2)
        words = [(a, b) for a, b in pairwise(edges) if a > length // 2 and parts[row, a] == 1]
        if words:
            start, end = words[-1]
            found.append(right[row, start - 1 : end - 1].all())
    return np.array(found, dtype=bool)


def _greedy(network: Network, batches: Batches, sequences: int, dtype: str) -> np.ndarray:
    """Whether the likeliest token is the next one, bool [sequences * T]."""
    found = [(logits.argmax(-1) == targets).cpu() for logits, targets, _ in _rows(network, batches, sequences, dtype)]
    return torch.cat(found).numpy()


@torch.no_grad()
def copying(network: Network, heldout: Batches, *, dtype: str = "float32") -> np.ndarray:
    """Show held-out tokens in a random order twice, and ask for the second copy: whether each of its tokens is right.

    Returns bool [sequences * (T / 2 - 1)]; the first token of a copy cannot be known. Order and text are the same for
    every network, and nothing but the first copy in the context tells them (an induction probe).
    """
    device, half = next(network.parameters()).device, heldout.seq_len // 2
    sequences = min(COPY_SEQUENCES, heldout.num_samples)
    tokens = heldout.in_order(0, sequences).input_ids[:, :half]
    order = np.argsort(keyed_uniform(_SHUFFLE, 0, np.arange(sequences)[:, None], np.arange(half)[None]), axis=1)
    copied = np.take_along_axis(tokens, order, axis=1)
    ids_BT = torch.from_numpy(np.concatenate([copied, copied], axis=1)).to(device)
    found = []
    for first in range(0, sequences, max(1, _AT_ONCE // (2 * half))):
        part = ids_BT[first : first + max(1, _AT_ONCE // (2 * half))]
        at = torch.arange(half, 2 * half - 1, device=device)
        rows = (torch.arange(len(part), device=device)[:, None] * (2 * half) + at).flatten()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = network(part, Needs(logits="masked"), rows).logits
        assert logits is not None
        found.append((logits.argmax(-1) == part[:, half + 1 :].flatten()).cpu())
    return torch.cat(found).numpy()
