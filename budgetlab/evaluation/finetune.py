"""Fine-tuning of a sequence classifier on one task: one recipe for all arms, last epoch reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from budgetlab.batches import keyed_uniform
from budgetlab.evaluation.tasks import Task
from budgetlab.models import Network, build_classifier
from budgetlab.values import EvaluateSpec

__all__ = ["finetune"]

DROPOUT, WARMUP_FRACTION, WEIGHT_DECAY, CLIP_NORM = 0.1, 0.1, 0.01, 1.0


def finetune(
    network: Network, task: Task, tokenizer: Any, spec: EvaluateSpec, *, seed: int, max_length: int
) -> NDArray[Any]:
    """Fine-tune a copy of the network and predict the validation set.

    AdamW with bias correction, linear warm-up over 10 % of the steps and linear decay to zero, dropout 0.1.

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

    Returns
    -------
    predictions
        One a validation example: a class, or a score.
    """
    device = next(network.parameters()).device
    model = build_classifier(network, task.num_labels, seed=seed, dropout=DROPOUT, regression=task.regression).train()
    train = _encode(tokenizer, task.train_texts, max_length)
    labels = task.train_labels
    if spec.max_train_examples is not None and len(labels) > spec.max_train_examples:
        chosen = np.argsort(keyed_uniform(0, 1, np.arange(len(labels))), kind="stable")[: spec.max_train_examples]
        train, labels = [train[i] for i in chosen], labels[chosen]
    steps = spec.epochs * -(-len(labels) // spec.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    warmup = max(1, round(WARMUP_FRACTION * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for epoch in range(spec.epochs):
            order = np.argsort(keyed_uniform(seed, 2, epoch, np.arange(len(labels))), kind="stable")
            for rows in _chunks(order, spec.batch_size):
                inputs = _pad([train[row] for row in rows], tokenizer.pad_token_id, device)
                wanted = torch.as_tensor(labels[rows], device=device)
                loss = model(**inputs, labels=wanted.float() if task.regression else wanted).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
    return _predict(model.eval(), task, tokenizer, max_length, device)


Example = tuple[list[int], list[int]]
"""Token ids and segment ids."""


def _encode(tokenizer: Any, texts: tuple[tuple[str, ...], ...], max_length: int) -> list[Example]:
    columns = [[text[i] for text in texts] for i in range(len(texts[0]))]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=True)
    return list(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True))


def _pad(examples: list[Example], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    longest = max(len(ids) for ids, _ in examples)
    ids = np.full((len(examples), longest), pad)
    segments, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, (tokens, kinds) in enumerate(examples):
        ids[row, : len(tokens)], segments[row, : len(tokens)], mask[row, : len(tokens)] = tokens, kinds, 1
    arrays = {"input_ids": ids, "token_type_ids": segments, "attention_mask": mask}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _chunks(order: NDArray[np.integer], size: int) -> Iterator[NDArray[np.integer]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


@torch.no_grad()
def _predict(model: Any, task: Task, tokenizer: Any, max_length: int, device: torch.device) -> NDArray[Any]:
    examples = _encode(tokenizer, task.validation_texts, max_length)
    # By length, so that little is padded.
    order = np.argsort([len(ids) for ids, _ in examples], kind="stable")
    outputs: list[Any] = [None] * len(examples)
    for rows in _chunks(order, 64):
        logits = model(**_pad([examples[row] for row in rows], tokenizer.pad_token_id, device)).logits.float().cpu()
        answers = logits[:, 0] if task.regression else logits.argmax(-1)
        for row, answer in zip(rows, answers.tolist(), strict=True):
            outputs[row] = answer
    return np.asarray(outputs)
