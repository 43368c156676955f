"""Probe tasks from held-out text, in the format of GLUE: what a network of a few million tokens can be told apart by.

They are no GLUE tasks, and a score on them says nothing about GLUE. Word order is not learnable at this size, so both
ask what goes together: words in a sentence (`replaced`), a summary and a body (`belongs`).
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.values import TaskSpec

__all__ = ["PROBES", "build_probes"]

PROBES = {
    "replaced": TaskSpec(train="train", validation="validation", text=("sentence",), metric="matthews"),
    "belongs": TaskSpec(train="train", validation="validation", text=("sentence1", "sentence2"), metric="accuracy"),
}
"""replaced: were half of the words replaced, each by one about as frequent? belongs: is this the body's summary?"""

TRAIN_EXAMPLES, VALIDATION_EXAMPLES = 2000, 1200
SENTENCE_WORDS, SUMMARY_WORDS, BODY_WORDS = (8, 30), (4, 16), (12, 24)
SENTENCES_PER_DOCUMENT = 3
REPLACED_SHARE = 0.5
FREQUENCY_BAND = 1.5
"""A word is replaced by one whose frequency rank is within this factor: frequency alone gives nothing away."""
STEM_LETTERS = 5
"""Words of a body that begin as a word of its summary does are left out: shared words alone give nothing away."""

Row = dict[str, Any]


def build_probes(corpus: Corpus, folder: Path) -> dict[str, TaskSpec]:
    """Write TASK/train.jsonl.gz and TASK/validation.jsonl.gz, unless they are there.

    Parameters
    ----------
    corpus
        Its held-out documents are used; train and validation examples come from different ones.
    folder
        Named by the caller after the corpus; made whole or not at all.

    Returns
    -------
    tasks
        By name, as `evaluation.load_task` takes them.

    Raises
    ------
    CallerError
        When the held-out text is too short for 100 examples of each.
    """
    if folder.is_dir():
        return PROBES
    documents = list(_documents(corpus))
    halves = {"train": [d for i, d in enumerate(documents) if i % 3], "validation": documents[::3]}
    limits = {"train": TRAIN_EXAMPLES, "validation": VALIDATION_EXAMPLES}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, make in (("replaced", _replaced), ("belongs", _belongs)):
            for split, part in halves.items():
                rows = make(part, limits[split], random.Random(f"{name} {split}"))
                if len(rows) < 100:
                    asked = f"probe {name}, {split}, from {len(part):,} held-out documents"
                    raise CallerError(
                        asked, f"they give {len(rows)} examples", "use more held-out text, or other tasks"
                    )
                _write(partial / name / f"{split}.jsonl.gz", rows)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PROBES


def _documents(corpus: Corpus) -> Iterator[list[list[str]]]:
    """Held-out documents as sentences of lower-case words."""
    pieces = corpus.tokenizer().convert_ids_to_tokens(list(range(corpus.vocab_size)))
    ids = np.asarray(corpus.heldout)
    for document in np.split(ids, np.flatnonzero(ids == corpus.special.sep)):
        words: list[str] = []
        for piece in (pieces[i] for i in document):
            if piece.startswith("##") and words:
                words[-1] += piece[2:]
            else:
                words.append(piece)
        sentences: list[list[str]] = [[]]
        for word in words:
            if word in (".", "!", "?"):
                sentences.append([])
            elif word.isalpha() and len(word) > 1:
                sentences[-1].append(word)
        sentences = [sentence for sentence in sentences if sentence]
        if sentences:
            yield sentences


def _replaced(documents: Sequence[list[list[str]]], limit: int, draw: random.Random) -> list[Row]:
    low, high = SENTENCE_WORDS
    chosen = [s for d in documents for s in [s for s in d if low <= len(s) <= high][:SENTENCES_PER_DOCUMENT]]
    draw.shuffle(chosen)
    counts = Counter(word for sentence in chosen for word in sentence)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    rank = {word: i + 8 for i, word in enumerate(ranked)}

    def other(word: str) -> str:
        low, high = int(rank[word] / FREQUENCY_BAND) - 8, int(rank[word] * FREQUENCY_BAND) - 8
        return ranked[draw.randrange(max(0, low), min(len(ranked), high + 1))]

    rows = []
    for index, sentence in enumerate(chosen[:limit]):
        words, label = list(sentence), index % 2
        if label:
            for place in draw.sample(range(len(words)), round(REPLACED_SHARE * len(words))):
                words[place] = other(words[place])
        rows.append({"sentence": " ".join(words), "label": label})
    return _shuffled(rows, draw)


def _belongs(documents: Sequence[list[list[str]]], limit: int, draw: random.Random) -> list[Row]:
    pairs: dict[str, tuple[list[str], list[str]]] = {}
    for first, *others in documents:
        summary, body = first[: SUMMARY_WORDS[1]], [word for sentence in others for word in sentence]
        if len(first) >= SUMMARY_WORDS[0] and len(body) >= BODY_WORDS[0]:
            pairs.setdefault(" ".join(summary), (summary, body))
    chosen = list(pairs.values())
    draw.shuffle(chosen)
    chosen = chosen[:limit]
    rows = []
    for index, (own, body) in enumerate(chosen):
        foreign = chosen[index - 1][0]
        label = index % 2
        shown = own if label else foreign
        # What either summary shares with the body goes, so that the body does not tell which of them was removed.
        stems = {word[:STEM_LETTERS] for word in (*own, *foreign)}
        rest = [word for word in body if word[:STEM_LETTERS] not in stems][: BODY_WORDS[1]]
        rows.append({"sentence1": " ".join(shown), "sentence2": " ".join(rest) or "nothing", "label": label})
    return _shuffled(rows, draw)


def _shuffled(rows: list[Row], draw: random.Random) -> list[Row]:
    draw.shuffle(rows)
    return [{**row, "idx": index} for index, row in enumerate(rows)]


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    # Without a time stamp the same examples are the same bytes.
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
