"""The read-out yardstick, and fine-tuning: it learns, repeats to the bit, and sees every example once an epoch."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.batches import Batches
from budgetlab.evaluation import load_task
from budgetlab.evaluation.finetune import _batches, encode, finetune
from budgetlab.evaluation.metrics import measure as metrics_of
from budgetlab.evaluation.yardsticks import Yardstick, adaptation, adapted_loss, log_unigram, mlm_loss, readout_loss
from budgetlab.models import build_network
from budgetlab.step import build_step
from budgetlab.strategies import build_strategy
from budgetlab.values import EvaluateSpec, FinetuneRecipe, ModelSpec, Recipe, SpecialIds, StrategySpec

SPEC = ModelSpec(num_layers=2, hidden_size=32, num_heads=2, intermediate_size=64, vocab_size=120)
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)


def stream(seed: int, samples: int) -> np.ndarray:
    """Samples of 14 words each, all of one of ten topics of ten words: ln 100 nats without a topic, ln 10 with it."""
    draw = np.random.default_rng(seed)
    topics = draw.integers(10, size=(samples, 1))
    return (5 + 10 * topics + draw.integers(10, size=(samples, 14))).ravel().astype(np.uint16)


def batches(seed: int, samples: int = 700) -> Batches:
    return Batches(stream(seed, samples), SPECIAL, 120, seq_len=16, masked_per_sequence=2, run_seed=9)


RECIPE = Recipe(seq_len=16, batch_tokens=256, mask_fraction=0.125, dtype="float32", clip_norm=1.0)
ADAPTED = adaptation(RECIPE)


def readout(network: torch.nn.Module) -> Yardstick:
    unigram = log_unigram(stream(0, 700), 120)
    how = {"tokens": 9600, "heldout_sequences": 150, "log_unigram": unigram}
    return readout_loss(network.eval(), batches(0), batches(1, 200), **how)  # type: ignore[arg-type]


def adapted(network: torch.nn.Module) -> float:
    how = {"tokens": 40_000, "heldout_sequences": 150}
    return adapted_loss(network.eval(), batches(0), batches(1, 200), ADAPTED, **how).value  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ladder() -> dict[tuple[str, int], dict[str, float]]:
    """Both yardsticks and the own head's loss of two students, from scratch, after so many steps."""
    data, found = batches(0), {}
    narrow = SPEC.model_copy(update={"hidden_size": 8, "intermediate_size": 16, "num_layers": 1})
    for name, spec, ends in (("wide", SPEC, (0, 80, 400)), ("narrow", narrow, (400,))):
        step = build_step(name, build_strategy(StrategySpec(name="no_kd")), spec, None, RECIPE, seed=0, device="cpu")
        done = 0
        for end in ends:
            for number in range(done, end):
                step.run(data.step(number, 16), 2e-3)
            done = end
            step.student.eval()
            own = mlm_loss(step.student, batches(1, 200), heldout_sequences=150).value
            read = readout(step.student)
            assert read.half_value is not None
            found[name, end] = {
                "own": own, "readout": read.value, "half": read.half_value, "adapted": adapted(step.student)
            }  # fmt: skip
            step.student.train()
    return found


def test_the_yardsticks_fall_with_training_and_order_two_sizes_as_the_own_head_does(ladder) -> None:
    for name in ("own", "readout", "adapted"):
        levels = [ladder["wide", end][name] for end in (0, 80, 400)]
        assert levels == sorted(levels, reverse=True) and levels[0] - levels[-1] > 0.3, (name, levels)
        assert ladder["wide", 400][name] < ladder["narrow", 400][name] - 0.2
    # A fresh head with enough tokens is no worse than the one that was trained along.
    assert ladder["wide", 400]["readout"] <= ladder["wide", 400]["own"] + 0.02
    assert ladder["wide", 400]["readout"] < math.log(100) - 1.0


def test_a_yardstick_says_what_its_last_doubling_was_worth(ladder) -> None:
    assert all(level["half"] != level["readout"] for level in ladder.values())
    assert abs(ladder["wide", 400]["half"] - ladder["wide", 400]["readout"]) < 0.2


def test_yardsticks_repeat_and_leave_the_network_as_it_is() -> None:
    network = build_network(SPEC, seed=0)
    before = [parameter.clone() for parameter in network.parameters()]
    torch.manual_seed(1)
    first = (readout(network), adapted(network))
    torch.manual_seed(2)
    assert (readout(network), adapted(network)) == first
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert first[0].num_targets == 300 and "780 steps at 0.01" in first[0].words


def test_unigram_head_start_is_the_entropy_of_the_words() -> None:
    log_p = log_unigram(stream(0, 700), 120)
    assert float(log_p.exp().sum()) == pytest.approx(1.0)
    assert float(-(log_p.exp() * log_p).sum()) == pytest.approx(math.log(100), rel=0.02)


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
        (tmp_path / "sst2").mkdir(exist_ok=True)
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / "sst2" / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    task = load_task("sst2", EvaluateSpec(), folder=tmp_path)
    network = build_network(SPEC, seed=0)
    before = [parameter.clone() for parameter in network.parameters()]
    recipe = FinetuneRecipe(epochs=4, learning_rate=2e-3, batch_size=16, max_train_examples=128)
    examples = encode(task, tokenizer, max_length=16, pooling="first")
    one, again, other = (finetune(network, examples, recipe, seed=seed)["sst2"] for seed in (0, 0, 1))
    assert (one == again).all() and one.shape == (60, 2)
    for logits in (one, other):
        assert metrics_of(task.validation["sst2"].labels, logits.argmax(-1))["accuracy"] > 0.9
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@given(st.lists(st.integers(3, 128), min_size=1, max_size=400), st.integers(1, 32), st.integers(0, 3))
def test_an_epoch_has_every_example_once_in_batches_of_one_length(lengths: list[int], size: int, epoch: int) -> None:
    batches = _batches(np.array(lengths), size, 5, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size) and max(map(len, batches)) <= size
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    if len(lengths) <= 50 * size:  # all of them are sorted together: no other cut pads less
        best = sorted(lengths)
        assert padded == sum(best[i : i + size][-1] * len(best[i : i + size]) for i in range(0, len(best), size))
