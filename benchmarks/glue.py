"""Fine-tuning on MRPC and RTE against Hugging Face's example recipe, side by side in one run.

    pip install -c constraints.txt -e '.[benchmarks]'      # once: Trainer needs accelerate
    BUDGETLAB_DATA_ROOT=... python benchmarks/glue.py --model results/NAME/runs/RUN/model

Both sides start from the same weights, a plain transformers folder with its tokenizer (without --model: a random
4 x 256 BERT), and fine-tune as often on the same examples with equal epochs, batch, learning rate and dropout; then
both predict the validation set. Theirs is the recipe of run_glue.py: `Trainer` with its defaults, every example padded
to 128 positions. Ours: batches of one length padded to their longest, warm-up, weight decay, and the precision that the
probe would choose on this machine (--dtype; float32 leaves the two alike). Seeds alternate between the sides.

Speed is examples (trained and predicted) a second of processor time on a CPU, of wall time on a GPU; the goal is 2 x at
the median over seeds. Scores are equal if Welch's t test over the seeds finds no difference at 5 % and two one-sided
tests at 5 % place the difference within the margin (--margin, points).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from budgetlab.evaluation import Task, load_task, measure
from budgetlab.evaluation.finetune import encode, finetune
from budgetlab.models import build_network
from budgetlab.values import EvaluateSpec, FinetuneRecipe, ModelSpec

LENGTH = 128


class Padded(Dataset):
    """Examples as run_glue.py makes them: every one as long as the longest allowed."""

    def __init__(self, task: Task, split: Any, tokenizer: Any) -> None:
        columns = [[text[i] for text in split.texts] for i in range(len(split.texts[0]))]
        self.rows = tokenizer(*columns, padding="max_length", max_length=LENGTH, truncation=True)
        self.labels = split.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.rows.items()} | {"label": self.labels[index]}


def seconds_now(device: torch.device) -> float:
    """Read the clock: CPU seconds, or wall seconds once the GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def theirs(folder: Path, task: Task, data: tuple[Padded, Padded], recipe: FinetuneRecipe, seed: int,
           device: torch.device) -> tuple[np.ndarray, float]:  # fmt: skip
    """Fine-tune and predict with Trainer: predictions and seconds."""
    transformers.set_seed(seed)
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), recipe.dropout)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=task.num_labels, **dropouts)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=64,
            use_cpu=device.type == "cpu",
            seed=seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=data[0])
        trainer.remove_callback(PrinterCallback)
        started = seconds_now(device)
        trainer.train()
        logits = trainer.predict(data[1]).predictions
    return np.asarray(logits).argmax(-1), seconds_now(device) - started


def compare(name: str, folder: Path, spec: ModelSpec, asked: argparse.Namespace) -> None:
    """Print speed and scores of one task."""
    device = torch.device(asked.device)
    root = Path(os.environ["BUDGETLAB_DATA_ROOT"])
    task = load_task(name, EvaluateSpec(), folder=root / "glue")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shared = ("epochs", "learning_rate", "batch_size", "dropout")
    recipe = FinetuneRecipe(**{name: getattr(asked, name) for name in shared})
    network = build_network(spec, device=device)
    examples = encode(task, tokenizer, max_length=LENGTH, pooling="first")
    data = Padded(task, task.train, tokenizer), Padded(task, task.validation[name], tokenizer)
    labels = task.validation[name].labels
    count = recipe.epochs * len(task.train.labels) + len(labels)
    sides: dict[str, list[tuple[float, float]]] = {"Trainer": [], "budgetlab": []}
    for seed in range(asked.seeds):
        predictions, spent = theirs(folder, task, data, recipe, seed, device)
        sides["Trainer"].append((100 * measure(labels, predictions)[task.metric], count / spent))
        started = seconds_now(device)
        logits = finetune(network, examples, recipe, seed=seed, dtype=asked.dtype)[name]
        spent = seconds_now(device) - started
        sides["budgetlab"].append((100 * measure(labels, logits.argmax(-1))[task.metric], count / spent))
    print(f"\n{name}: {len(task.train.labels):,} train, {len(labels):,} validation, {recipe.words()}, "
          f"{asked.seeds} seeds a side")  # fmt: skip
    for side, found in sides.items():
        scores, speeds = zip(*found, strict=True)
        print(f"  {side:<10} {statistics.median(speeds):7.1f} examples/s; {task.metric} {statistics.mean(scores):.2f}, "
              f"SD {statistics.stdev(scores):.2f}")  # fmt: skip
    ratios = [b[1] / a[1] for a, b in zip(sides["Trainer"], sides["budgetlab"], strict=True)]
    middle = statistics.median(ratios)
    print(f"  speed {middle:.2f} x ({min(ratios):.2f} to {max(ratios):.2f}); goal 2: "
          f"{'met' if middle >= 2 else 'MISSED'}")  # fmt: skip
    a, b = (np.array([score for score, _ in sides[side]]) for side in ("budgetlab", "Trainer"))
    welch = stats.ttest_ind(a, b, equal_var=False)
    low, high = welch.confidence_interval(0.90)  # inside the margin: both one-sided tests reject at 5 %
    # Where neither side varies there is nothing to test but whether they are the same number.
    equal = (np.ptp([*a, *b]) == 0 or welch.pvalue > 0.05) and -asked.margin < low and high < asked.margin
    print(f"  scores, ours minus theirs {a.mean() - b.mean():+.2f}, 90 % interval [{low:+.2f}, {high:+.2f}] points, "
          f"Welch p = {welch.pvalue:.2f}; equal within {asked.margin:g}: {'yes' if equal else 'NO'}")  # fmt: skip


def untrained(folder: Path) -> None:
    """Write a random BERT with the vocabulary of bert-base-uncased."""
    vocabulary = next(Path(os.environ["BUDGETLAB_DATA_ROOT"]).rglob("*vocab*.txt"))
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    AutoModelForMaskedLM.from_config(BertConfig(vocab_size=30_522, **sizes)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "rte"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--margin", type=float, default=3.0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as made:
        folder = asked.model or Path(made)
        if asked.model is None:
            untrained(folder)
        config = AutoConfig.from_pretrained(folder)
        spec = ModelSpec(family=config.model_type, num_layers=config.num_hidden_layers, hidden_size=config.hidden_size,
                         num_heads=config.num_attention_heads, intermediate_size=config.intermediate_size,
                         vocab_size=config.vocab_size, weights=str(folder))  # fmt: skip
        print(f"{asked.model.name if asked.model else 'random weights'}: {spec.num_layers} x {spec.hidden_size}, "
              f"vocabulary {spec.vocab_size:,}; {asked.device}, {torch.get_num_threads()} thread(s), dropout "
              f"{asked.dropout:g}, ours {asked.dtype}, torch {torch.__version__}, transformers "
              f"{transformers.__version__}")  # fmt: skip
        for name in asked.tasks:
            compare(name, folder, spec, asked)


if __name__ == "__main__":
    main()
