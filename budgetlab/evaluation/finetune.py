"""Fine-tuning of a sequence classifier on one task: one recipe for all arms, last epoch reported."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from budgetlab.batches import keyed_uniform
from budgetlab.evaluation.tasks import Task
from budgetlab.models import Network, build_classifier
from budgetlab.values import FinetuneRecipe, Needs

WARMUP_FRACTION, WEIGHT_DECAY, CLIP_NORM = 0.1, 0.01, 1.0
PAD_TO = 8
BATCHES_SORTED_TOGETHER = 50
PREDICTED_AT_ONCE = 64

TokenIds = tuple[list[int], list[int]]
"""Token ids and segment ids."""

Example = tuple[TokenIds, ...]
"""One sequence of the joined texts, or one for each text."""


@dataclass(frozen=True)
class Encoded:
    """A task as token ids: made once, used for every checkpoint of the same vocabulary."""

    task: Task
    max_length: int
    pooling: str
    train: list[Example]
    validation: dict[str, list[Example]]


def encode(task: Task, tokenizer: Any, *, max_length: int, pooling: str) -> Encoded:
    """Tokenise a task."""

    def parts(texts: tuple[tuple[str, ...], ...]) -> list[Example]:
        columns = [[text[i] for text in texts] for i in range(len(texts[0]))]
        found = []
        for group in [columns] if pooling == "first" else [[column] for column in columns]:
            ids = tokenizer(*group, truncation=True, max_length=max_length, return_token_type_ids=True)
            found.append(list(zip(ids["input_ids"], ids["token_type_ids"], strict=True)))
        return list(zip(*found, strict=True))

    validation = {name: parts(split.texts) for name, split in task.validation.items()}
    return Encoded(task, max_length, pooling, parts(task.train.texts), validation)


def finetune(
    network: Network, examples: Encoded, recipe: FinetuneRecipe, *, seed: int, dtype: str = "float32"
) -> dict[str, NDArray[np.float32]]:
    """Fine-tune a copy of the network and predict the validation sets.

    AdamW with bias correction, linear warm-up over 10 % of the steps and linear decay to zero; the last epoch counts.
    Batches are drawn at random and then made of examples of about one length, in random order.
    """
    task, device = examples.task, next(network.parameters()).device
    chosen = np.arange(len(examples.train))
    if recipe.max_train_examples is not None and recipe.max_train_examples < len(chosen):
        # The same for every network, others for another seed; a higher limit adds.
        chosen = np.argsort(keyed_uniform(seed, 1, chosen), kind="stable")[: recipe.max_train_examples]
    train, labels = [examples.train[i] for i in chosen], torch.as_tensor(task.train.labels[chosen]).to(device)
    lengths = _lengths(train)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    steps = recipe.epochs * -(-len(train) // recipe.batch_size)
    warmup = max(1, round(WARMUP_FRACTION * steps))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = _Classifier(network, examples, recipe, seed).to(device).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        )
        for epoch in range(recipe.epochs):
            for rows in _batches(lengths, recipe.batch_size, seed, epoch):
                with autocast:
                    outputs = model([train[row] for row in rows]).float()
                wanted = labels[torch.as_tensor(rows, device=device)]
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
        return {name: _predict(model.eval(), found) for name, found in examples.validation.items()}


class _Classifier(nn.Module):
    """A copy of the trunk with a fresh head.

    `pooling = "first"`: BERT's own classifier on [CLS] of the joined texts. `pooling = "mean"`: every text is encoded
    on its own, all layers are averaged over its real positions, and a pair is (u, v, |u - v|, u v) (Conneau et al.
    2017, arXiv 1705.02364; Reimers and Gurevych 2019, arXiv 1908.10084). It works for networks that are too small or
    too briefly trained for [CLS] to have learned to gather anything, and where the last block was not trained.
    """

    def __init__(self, network: Network, examples: Encoded, recipe: FinetuneRecipe, seed: int) -> None:
        super().__init__()
        task, self.max_length = examples.task, examples.max_length
        self.device = next(network.parameters()).device
        if examples.pooling == "first":
            self.whole = build_classifier(
                network, task.num_labels, seed=seed, dropout=recipe.dropout, regression=task.regression
            )
            return
        self.whole = None
        self.network = copy.deepcopy(network)
        self.needs = Needs(hidden=tuple(range(network.spec.num_layers + 1)))
        width = network.spec.hidden_size * len(self.needs.hidden)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.dropout = nn.Dropout(recipe.dropout)
        self.head = nn.Linear(width * (4 if len(examples.train[0]) == 2 else 1), task.num_labels)

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


def _pad(encoded: list[TokenIds], max_length: int, device: torch.device) -> dict[str, Tensor]:
    # Few different lengths: kernels are prepared, and kept in memory, for each shape that they meet.
    longest = min(max_length, -(-max(len(ids) for ids, _ in encoded) // PAD_TO) * PAD_TO)
    # What stands at padded positions is masked wherever it could be read, so any id will do.
    arrays = np.zeros((3, len(encoded), longest), dtype=np.int64)
    for row, (tokens, kinds) in enumerate(encoded):
        arrays[0, row, : len(tokens)], arrays[1, row, : len(tokens)], arrays[2, row, : len(tokens)] = tokens, kinds, 1
    ids, segments, mask = torch.from_numpy(arrays).to(device)
    return {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask}


def _lengths(examples: list[Example]) -> NDArray[np.integer]:
    """Longest sequence of each example: what its batch is padded for."""
    return np.array([max(len(ids) for ids, _ in example) for example in examples])


def _batches(lengths: NDArray[np.integer], size: int, seed: int, epoch: int) -> list[NDArray[np.integer]]:
    """Return the batches of an epoch: every example once, neighbours of about one length, in random order."""
    order = np.argsort(keyed_uniform(seed, 2, epoch, np.arange(len(lengths))), kind="stable")
    batches = []
    for pool in _chunks(order, size * BATCHES_SORTED_TOGETHER):
        batches += _chunks(pool[np.argsort(lengths[pool], kind="stable")], size)
    drawn = np.argsort(keyed_uniform(seed, 4, epoch, np.arange(len(batches))), kind="stable")
    return [batches[i] for i in drawn]


def _chunks(order: NDArray[np.integer], size: int) -> Iterator[NDArray[np.integer]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


@torch.no_grad()
def _predict(model: _Classifier, examples: list[Example]) -> NDArray[np.float32]:
    order = np.argsort(_lengths(examples), kind="stable")
    parts = [model([examples[row] for row in rows]).float().cpu() for rows in _chunks(order, PREDICTED_AT_ONCE)]
    return torch.cat(parts).numpy()[np.argsort(order)]
