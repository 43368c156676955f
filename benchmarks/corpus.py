"""Text to tokens: `build_corpus` against `datasets.map` with the same tokenizer, side by side in one run.

    BUDGETLAB_DATA_ROOT=... python benchmarks/corpus.py [--megabytes 40] [--rounds 2] [--only budgetlab]

Ours hashes the file, orders documents by a hash of their text, drops copies and what is held out, tokenises, writes one
file of tokens, hashes it and opens it; `datasets` loads the text and maps the tokenizer over it in batches. Beyond the
400 MB that there are the text comes again, each document with a number before it. Seconds of processor time count all
threads and children; memory is the largest resident set of a fresh process for each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from budgetlab.corpus import build_corpus
from budgetlab.corpus.sources import read_documents
from budgetlab.values import CorpusSpec


def ours(folder: Path, vocabulary: Path, processes: int) -> int:
    spec = CorpusSpec(source="text", train=("train.txt",), heldout=("heldout.txt",), tokenizer=str(vocabulary))
    return len(build_corpus(spec, roots=[folder], cache=folder / "cache").train)


def theirs(folder: Path, vocabulary: Path, processes: int) -> int:
    import datasets
    from transformers import BertTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = BertTokenizerFast(str(vocabulary))
    data = datasets.load_dataset("text", data_files=str(folder / "train.txt"), cache_dir=str(folder / "hub"))["train"]

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": tokenizer(rows["text"], add_special_tokens=False)["input_ids"]}

    mapped = data.map(encode, batched=True, num_proc=processes or None, remove_columns=["text"])
    return sum(len(ids) for batch in mapped.iter(10_000) for ids in batch["ids"])


WAYS = {"budgetlab": (ours, 0), "datasets.map, 1 process": (theirs, 0), "datasets.map, 2 processes": (theirs, 2)}


def measure(name: str, folder: Path, vocabulary: Path) -> None:
    way, processes = WAYS[name]
    began = time.perf_counter()
    tokens = way(folder, vocabulary, processes)
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in use)
    print(json.dumps({"tokens": tokens, "wall": time.perf_counter() - began, "cpu": cpu,
                      "megabytes": max(one.ru_maxrss for one in use) / 1024}))  # fmt: skip


def documents(root: Path) -> Iterator[str]:
    for time_over in itertools.count():
        for path in sorted((root / "corpus").glob("wikipedia_en.train-*.txt.xz")):
            for text in read_documents(path, "text", "corpus"):
                yield f"{time_over} {text}" if time_over else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--way", nargs=3)
    asked = parser.parse_args()
    if asked.way:
        measure(asked.way[0], Path(asked.way[1]), Path(asked.way[2]))
        return
    root = Path(os.environ["BUDGETLAB_DATA_ROOT"])
    vocabulary = next(root.rglob("*vocab*.txt"))
    with tempfile.TemporaryDirectory() as made:
        size = 0
        with open(Path(made) / "train.txt", "w", encoding="utf-8") as file:
            for text in documents(root):
                size += file.write(text if text.endswith("\n") else text + "\n")
                if size > asked.megabytes * 1e6:
                    break
        (Path(made) / "heldout.txt").write_text("something else\n")
        print(f"{size / 1e6:.0f} MB of English Wikipedia, {vocabulary.name}")
        for number in range(asked.rounds):
            for name in [asked.only] if asked.only else WAYS:
                folder = Path(made) / f"{number}-{name.replace(' ', '')}"
                folder.mkdir()
                for part in ("train.txt", "heldout.txt"):
                    (folder / part).hardlink_to(Path(made) / part)
                command = [sys.executable, __file__, "--way", name, str(folder), str(vocabulary)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                rate = size / 1e6 / found["cpu"]
                print(f"  {name:<26} {found['tokens']:>12,} tokens  {found['wall']:6.1f} s  {found['cpu']:6.1f} CPU s  "
                      f"{rate:5.2f} MB a CPU second  {found['megabytes']:6.0f} MB resident")  # fmt: skip


if __name__ == "__main__":
    main()
