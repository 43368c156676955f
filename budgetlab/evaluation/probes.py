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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from budgetlab.corpus import Corpus
from budgetlab.errors import CallerError
from budgetlab.values import TaskSpec

PROBES = {
    "replaced": TaskSpec(train="train", validation="validation", text=("sentence",), metric="matthews"),
    "belongs": TaskSpec(train="train", validation="validation", text=("sentence1", "sentence2"), metric="accuracy"),
}
"""replaced: is every seventh word or so a random word? belongs: is this the summary of this body?"""

TRAIN_EXAMPLES, VALIDATION_EXAMPLES = 2000, 1200
SENTENCE_WORDS, SUMMARY_WORDS, BODY_WORDS = (8, 30), (4, 16), (12, 24)
SENTENCES_PER_DOCUMENT = 3
REPLACED_SHARE = 0.15
MOST_FREQUENT_WORDS = 300
"""Never drawn as random words. The others are drawn alike, so that hardly any occurs twice: a network that has read no
other text cannot learn them one by one."""
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
    pieces = corpus.tokenizer().convert_ids_to_tokens(list(range(corpus.vocab_size)))
    documents, words = list(_documents(corpus, pieces)), _count_words(corpus, pieces)
    halves = {"train": [d for i, d in enumerate(documents) if i % 3], "validation": documents[::3]}
    limits = {"train": TRAIN_EXAMPLES, "validation": VALIDATION_EXAMPLES}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, make in (("replaced", _replaced), ("belongs", _belongs)):
            (partial / name).mkdir(parents=True)
            for split, part in halves.items():
                draw = random.Random(f"{name} {split}")
                rows = make(part, words, limits[split], draw)
                if len(rows) < 100:
                    asked = f"probe {name}, {split}, from {len(part):,} held-out documents"
                    wrong = f"they give {len(rows)} examples"
                    raise CallerError(asked, wrong, "use more held-out text, or other tasks")
                draw.shuffle(rows)
                text = "".join(json.dumps({**row, "idx": index}) + "\n" for index, row in enumerate(rows))
                # Without a time stamp the same examples are the same bytes.
                (partial / name / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return PROBES


def _documents(corpus: Corpus, pieces: list[str]) -> Iterator[list[list[str]]]:
    """Held-out documents as sentences of lower-case words."""
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
        if any(sentences):
            yield [sentence for sentence in sentences if sentence]


def _count_words(corpus: Corpus, pieces: list[str]) -> dict[str, int]:
    """Words that are one entry of the vocabulary and occur in the train text, with their counts there."""
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    for start in range(0, len(corpus.train), 1 << 24):  # bincount works on int64 copies
        counts += np.bincount(corpus.train[start : start + (1 << 24)], minlength=corpus.vocab_size)
    return {piece: int(n) for piece, n in zip(pieces, counts, strict=True) if n and piece.isalpha() and len(piece) > 1}


def _replaced(
    documents: Sequence[list[list[str]]], words: dict[str, int], limit: int, draw: random.Random
) -> list[Row]:
    low, high = SENTENCE_WORDS
    chosen = []
    for sentences in documents:
        known = [s for s in sentences if low <= len(s) <= high and all(word in words for word in s)]
        chosen += known[:SENTENCES_PER_DOCUMENT]
    draw.shuffle(chosen)
    ranked = sorted(words, key=lambda word: (-words[word], word))
    drawn = ranked[min(MOST_FREQUENT_WORDS, len(ranked) // 2) :]
    rows = []
    for index, sentence in enumerate(chosen[:limit]):
        shown, label = list(sentence), index % 2
        if label:
            for place in draw.sample(range(len(shown)), max(1, round(REPLACED_SHARE * len(shown)))):
                shown[place] = draw.choice(drawn)
        rows.append({"sentence": " ".join(shown), "label": label})
    return rows


def _belongs(documents: Sequence[list[list[str]]], words: dict[str, int], limit: int, draw: random.Random) -> list[Row]:
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
    return rows
