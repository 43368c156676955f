"""Fine-tuning of a sequence classifier on one task: one recipe for all arms, last epoch reported."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from budgetlab.batches import keyed_uniform
from budgetlab.evaluation.tasks import Task
from budgetlab.models import Network, build_classifier
from budgetlab.values import EvaluateSpec, Needs

__all__ = ["finetune"]

WARMUP_FRACTION, WEIGHT_DECAY, CLIP_NORM = 0.1, 0.01, 1.0
PAD_TO = 8


def finetune(
    network: Network,
    task: Task,
    tokenizer: Any,
    spec: EvaluateSpec,
    *,
    seed: int,
    max_length: int,
    dtype: str = "float32",
) -> NDArray[Any]:
    """Fine-tune a copy of the network and predict the validation set.

    AdamW with bias correction, linear warm-up over 10 % of the steps and linear decay to zero; the last epoch counts.

    Parameters
    ----------
    network
        Its trunk is copied; it is left as it was.
    task, tokenizer, spec
        What to learn, and the recipe.
    seed
        Of the classifier, the order of examples and dropout.
    max_length
        Longest sequence in positions.
    dtype
        "bfloat16" trains and predicts under autocast.

    Returns
    -------
    predictions
        One a validation example: a class, or a score.
    """
    device = next(network.parameters()).device
    examples = [
        _encode(tokenizer, texts, max_length, spec.pooling) for texts in (task.train_texts, task.validation_texts)
    ]
    chosen = np.arange(len(task.train_labels))
    if spec.max_train_examples is not None and len(chosen) > spec.max_train_examples:
        chosen = np.argsort(keyed_uniform(0, 1, chosen), kind="stable")[: spec.max_train_examples]
    train, labels = [examples[0][i] for i in chosen], task.train_labels[chosen]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    steps = spec.epochs * -(-len(labels) // spec.batch_size)
    warmup = max(1, round(WARMUP_FRACTION * steps))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = _Classifier(network, task, spec, seed, max_length).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        )
        for epoch in range(spec.epochs):
            order = np.argsort(keyed_uniform(seed, 2, epoch, np.arange(len(labels))), kind="stable")
            for rows in _chunks(order, spec.batch_size):
                with autocast:
                    outputs = model([train[row] for row in rows]).float()
                wanted = torch.as_tensor(labels[rows], device=device)
                if task.regression:
                    loss = functional.mse_loss(outputs[:, 0], wanted.float())
                else:
                    loss = functional.cross_entropy(outputs, wanted)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
    with autocast:
        return _predict(model.eval(), task, examples[1])


class _Classifier(nn.Module):
    """A copy of the trunk with a fresh head.

    `pooling = "first"`: BERT's own classifier on [CLS] of the joined texts. `pooling = "mean"`: every text is encoded
    on its own, all layers are averaged over its real positions, and a pair is (u, v, |u - v|, u v) (Conneau et al.
    2017, arXiv 1705.02364; Reimers and Gurevych 2019, arXiv 1908.10084). It works for networks that are too small or
    too briefly trained for [CLS] to have learned to gather anything, and where the last block was not trained.
    """

    def __init__(self, network: Network, task: Task, spec: EvaluateSpec, seed: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.device = next(network.parameters()).device
        if spec.pooling == "first":
            self.whole = build_classifier(
                network, task.num_labels, seed=seed, dropout=spec.dropout, regression=task.regression
            )
            return
        self.whole = None
        self.network = copy.deepcopy(network)
        self.needs = Needs(hidden=tuple(range(network.spec.num_layers + 1)))
        width = network.spec.hidden_size * len(self.needs.hidden)
        texts = len(task.train_texts[0])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(width * (4 if texts == 2 else 1), task.num_labels)

    def forward(self, examples: list[Example]) -> Tensor:
        """Logits, [examples, labels]."""
        # All texts go through the trunk at once, first all first texts, then all second ones.
        encoded = [example[i] for i in range(len(examples[0])) for example in examples]
        inputs = _pad(encoded, self.max_length, self.device)
        if self.whole is not None:
            return self.whole(**inputs).logits
        real_BT1 = inputs["attention_mask"][..., None].float()
        hidden = self.network(inputs["input_ids"], self.needs, None, inputs["attention_mask"]).hidden
        means = [(hidden[layer] * real_BT1).sum(1) / real_BT1.sum(1) for layer in self.needs.hidden]
        pooled = self.norm(torch.cat(means, dim=-1))
        if len(examples[0]) == 2:
            u, v = pooled.chunk(2)
            pooled = torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
        return self.head(self.dropout(pooled))


Encoded = tuple[list[int], list[int]]
"""Token ids and segment ids."""

Example = tuple[Encoded, ...]
"""One sequence of the joined texts, or one for each text."""


def _encode(tokenizer: Any, texts: tuple[tuple[str, ...], ...], max_length: int, pooling: str) -> list[Example]:
    columns = [[text[i] for text in texts] for i in range(len(texts[0]))]
    groups = [columns] if pooling == "first" else [[column] for column in columns]
    parts = []
    for group in groups:
        found = tokenizer(*group, truncation=True, max_length=max_length, return_token_type_ids=True)
        parts.append(list(zip(found["input_ids"], found["token_type_ids"], strict=True)))
    return list(zip(*parts, strict=True))


def _pad(encoded: list[Encoded], max_length: int, device: torch.device) -> dict[str, Tensor]:
    # Few different lengths: kernels are prepared, and kept in memory, for each shape that they meet.
    longest = min(max_length, -(-max(len(ids) for ids, _ in encoded) // PAD_TO) * PAD_TO)
    # What stands at padded positions is masked wherever it could be read, so any id will do.
    ids = np.zeros((len(encoded), longest), dtype=np.int64)
    segments, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, (tokens, kinds) in enumerate(encoded):
        ids[row, : len(tokens)], segments[row, : len(tokens)], mask[row, : len(tokens)] = tokens, kinds, 1
    arrays = {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _chunks(order: NDArray[np.integer], size: int) -> Iterator[NDArray[np.integer]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


@torch.no_grad()
def _predict(model: _Classifier, task: Task, examples: list[Example]) -> NDArray[Any]:
    # By length, so that little is padded.
    order = np.argsort([sum(len(ids) for ids, _ in example) for example in examples], kind="stable")
    found: list[Any] = [None] * len(examples)
    for rows in _chunks(order, 64):
        outputs = model([examples[row] for row in rows]).float().cpu()
        answers = outputs[:, 0] if task.regression else outputs.argmax(-1)
        for row, answer in zip(rows, answers.tolist(), strict=True):
            found[row] = answer
    return np.asarray(found)
