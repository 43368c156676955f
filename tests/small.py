"""A study of two-layer networks on a few hundred lines of text, small enough to run whole in seconds."""

import random
from pathlib import Path

from budgetlab.values import Environment

ENVIRONMENT = Environment(
    device="cpu", device_name="made up", threads=1, python="3", torch="2", transformers="5", budgetlab="0"
)

STUDY = """
name = "small"
seeds = [0, 1]

[corpus]
source = "text"
train = ["train.txt"]
heldout = ["heldout.txt"]
tokenizer = { train = 200 }

[recipe]
seq_len = 16
batch_tokens = 128
learning_rate = 2e-3
dtype = "float32"
attention = "sdpa"

[execution]
device = "cpu"
threads = 1

[models.student]
num_layers = 2
hidden_size = 32
num_heads = 2
intermediate_size = 64

[models.teacher]
num_layers = 4
hidden_size = 64
num_heads = 2
intermediate_size = 128
pretrain = { tokens = 4096, seed = 0 }

[arms.no_kd]
strategy = "no_kd"
student = "student"

[arms.vanilla_kd]
strategy = "vanilla_kd"
student = "student"
teacher = "teacher"

[arms.minilm]
strategy = "minilm"
student = "student"
teacher = "teacher"

[arms.tinybert]
strategy = "tinybert"
student = "student"
teacher = "teacher"

[plan]
budgets = ["1.5e9", "3e9"]
tolerance_fraction = 0.05

[evaluate]
source = "glue"
folder = "tasks"
seeds = [0, 1]
epochs = 1
readout_tokens = 2048
adapted_tokens = 2048

[evaluate.own.colour]
train = "colour.train.jsonl"
validation = "colour.validation.jsonl"
text = ["sentence"]
"""


def write_small_study(folder: Path, extra: str = "", *, arms: tuple[str, ...] = ()) -> Path:
    """Write the study, or these arms of it, with its text and task into a folder and return its path."""
    draw = random.Random(0)
    colours, things, verbs = ["red", "green", "blue", "grey"], ["house", "tree", "boat", "stone"], ["stands", "falls"]

    def sentence() -> str:
        words = [draw.choice(colours), draw.choice(things), draw.choice(verbs), "near", "the", draw.choice(things)]
        return " ".join(["the", *words, "of", "number", str(draw.randrange(40))])

    for name, lines in (("train.txt", 1200), ("heldout.txt", 200)):
        (folder / name).write_text("\n".join(sentence() + "." for _ in range(lines)) + "\n")
    for split, rows in (("train", 64), ("validation", 32)):
        examples = []
        for i in range(rows):
            text = sentence()
            examples.append(f'{{"sentence": "{text}", "label": {int("red" in text)}, "idx": {i}}}')
        (folder / f"colour.{split}.jsonl").write_text("\n".join(examples) + "\n")
    path = folder / "small.toml"
    tables = STUDY.replace('folder = "tasks"\n', 'tasks = ["colour"]\n')
    for name in ("no_kd", "vanilla_kd", "minilm", "tinybert") if arms else ():
        if name not in arms:
            start = tables.index(f"[arms.{name}]")
            tables = tables[:start] + tables[tables.index("\n[", start) + 1 :]
    path.write_text(tables + extra)
    return path
