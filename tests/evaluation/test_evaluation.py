"""Scores: what the yardsticks are, what a task file must hold, and that nothing is scored twice."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetlab.batches import Batches
from budgetlab.errors import CallerError
from budgetlab.evaluation import GLUE, load_task
from budgetlab.evaluation.finetune import finetune
from budgetlab.evaluation.readout import log_unigram, mlm_loss, readout_loss
from budgetlab.evaluation.tasks import majority_score, score_predictions
from budgetlab.models import build_network
from budgetlab.step import build_step
from budgetlab.strategies import build_strategy
from budgetlab.values import EvaluateSpec, ModelSpec, Recipe, SpecialIds, StrategySpec, TaskSpec

SPEC = ModelSpec(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64, vocab_size=120)
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def stream(seed: int, samples: int) -> np.ndarray:
    """Samples of 14 words each, all of one of ten topics of ten words: ln 100 nats without a topic, ln 10 with it."""
    draw = np.random.default_rng(seed)
    topics = draw.integers(10, size=(samples, 1))
    return (5 + 10 * topics + draw.integers(10, size=(samples, 14))).ravel().astype(np.uint16)


def batches(seed: int, samples: int = 700) -> Batches:
    return Batches(stream(seed, samples), SPECIAL, 120, seq_len=16, masked_per_sequence=2, run_seed=9)


def measure(network: torch.nn.Module) -> float:
    unigram = log_unigram(stream(0, 700), 120)
    return readout_loss(
        network.eval(), batches(0), batches(1, 200), train_sequences=600, heldout_sequences=150, log_unigram=unigram
    )[0]  # type: ignore[arg-type]


def test_readout_tells_a_trained_trunk_from_a_random_one() -> None:
    recipe = Recipe(seq_len=16, batch_tokens=256, dtype="float32", clip_norm=1.0)
    step = build_step("a", build_strategy(StrategySpec(name="no_kd")), SPEC, None, recipe, seed=0, device="cpu")
    random, before = measure(build_network(SPEC, seed=0)), mlm_loss(step.student.eval(), batches(1, 200), sequences=150)
    data = batches(0)
    for i in range(250):
        step.run(data.step(i, 16), 2e-3)
    trained, after = measure(step.student), mlm_loss(step.student.eval(), batches(1, 200), sequences=150)
    assert trained < random - 0.3 and trained < math.log(100) - 1.0
    assert after[0] < before[0] - 0.3 and after[1] == 300
    assert measure(step.student) == trained


def test_unigram_head_start_is_the_entropy_of_the_words() -> None:
    log_p = log_unigram(stream(0, 700), 120)
    assert float(log_p.exp().sum()) == pytest.approx(1.0)
    assert float(-(log_p.exp() * log_p).sum()) == pytest.approx(math.log(100), rel=0.02)


@pytest.mark.parametrize(
    ("metric", "labels", "predictions", "expected"),
    [
        ("accuracy", [0, 1, 1, 0], [0, 1, 0, 0], 0.75),
        ("matthews", [0, 1, 1, 0], [0, 1, 0, 0], 0.5773502691896257),
        ("f1", [0, 1, 1, 0], [0, 1, 0, 0], 2 / 3),
        ("pearson_spearman", [0.0, 1.0, 2.0, 4.0], [1.0, 3.0, 5.0, 9.0], 1.0),
        ("pearson_spearman", [0.0, 1.0, 2.0], [1.0, 1.0, 1.0], 0.0),
        ("f1", [1, 1], [0, 0], 0.0),
    ],
)
def test_metrics(metric: str, labels: list, predictions: list, expected: float) -> None:
    assert score_predictions(metric, np.array(labels), np.array(predictions)) == pytest.approx(expected)


def write_task(folder: Path, name: str, rows: list[dict], split: str) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / name / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


ROWS = [{"sentence": "a b", "label": 1}, {"sentence": "c", "label": 0}, {"sentence": "d", "label": 1}]


def test_a_task_of_glue_from_a_folder(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_task(tmp_path, "cola", ROWS, split)
    task = load_task("cola", EvaluateSpec(), folder=tmp_path, probes={})
    assert (task.metric, task.num_labels, task.train_texts[0]) == ("matthews", 2, ("a b",))
    assert majority_score(task) == 0.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it is empty"),
        ([{"sentence": "a"}], "1 of 1 rows have no 'label'"),
        ([{"text": "a", "label": 1}], "no 'sentence'"),
        ([*ROWS, {"sentence": "x", "label": "maybe"}], "a label is no int64"),
    ],
)
def test_a_broken_task_is_one_line(tmp_path: Path, rows: list[dict], message: str) -> None:
    for split in ("train", "validation"):
        write_task(tmp_path, "cola", rows, split)
    with pytest.raises(CallerError, match=message):
        load_task("cola", EvaluateSpec(), folder=tmp_path, probes={})


def test_missing_and_unknown_tasks(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="no such file"):
        load_task("cola", EvaluateSpec(), folder=tmp_path, probes={})
    with pytest.raises(CallerError, match="no task of that name; did you mean cola"):
        load_task("coal", EvaluateSpec(), folder=tmp_path, probes={})
    own = EvaluateSpec(own={"mine": TaskSpec(train="a.jsonl", validation="b.jsonl", text=("sentence",))})
    with pytest.raises(CallerError, match=r"evaluate\.own\.mine"):
        load_task("mine", own, folder=tmp_path, probes={}, roots=[tmp_path])
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "train.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(CallerError, match="not JSON lines"):
        load_task("cola", EvaluateSpec(), folder=tmp_path, probes={})


@pytest.mark.parametrize("name", sorted(GLUE))
def test_the_real_tasks_load(name: str, data_root: Path) -> None:
    task = load_task(name, EvaluateSpec(), folder=data_root / "glue", probes={})
    assert len(task.train_labels) == len(task.train_texts) > 500
    assert all(len(text) == len(GLUE[name].text) for text in task.validation_texts)
    assert -0.1 <= majority_score(task) < 0.9
    assert task.num_labels == {"mnli": 3, "stsb": 1}.get(name, 2)


def test_finetuning_learns_and_repeats_and_leaves_the_network_alone(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "is", "it"])
    }
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    draw = np.random.default_rng(0)
    for split, count in (("train", 160), ("validation", 60)):
        labels = draw.integers(2, size=count).tolist()
        rows = [
            {"sentence": "it is " + ("red" if y else "blue") + " it" * int(draw.integers(4)), "label": y}
            for y in labels
        ]
        write_task(tmp_path, "sst2", rows, split)
    task = load_task("sst2", EvaluateSpec(), folder=tmp_path, probes={})
    network = build_network(SPEC, seed=0)
    before = [parameter.clone() for parameter in network.parameters()]
    spec = EvaluateSpec(epochs=4, learning_rate=2e-3, batch_size=16, max_train_examples=128)
    one, again, other = (finetune(network, task, tokenizer, spec, seed=seed, max_length=16) for seed in (0, 0, 1))
    assert (one == again).all()
    assert score_predictions("accuracy", task.validation_labels, one) > 0.9
    assert score_predictions("accuracy", task.validation_labels, other) > 0.9
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
