"""Loss values against independent NumPy arithmetic, and the known values at teacher = student."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from budgetlab.strategies import build_strategy
from budgetlab.strategies.losses import largest
from budgetlab.values import Batch, ModelSpec, Signals, StrategySpec

DRAW = np.random.default_rng(0)
BATCH, LENGTH, HEADS, WIDTH, VOCAB, TARGETS = 3, 7, 2, 6, 11, 5


def batch(mask: bool = False) -> Batch:
    real = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    real[1, 5:] = False
    return Batch(
        input_ids=torch.zeros(BATCH, LENGTH, dtype=torch.long),
        target_positions=torch.arange(TARGETS),
        target_ids=torch.as_tensor(DRAW.integers(VOCAB, size=TARGETS)),
        attention_mask=real if mask else None,
    )


def tensor(*shape: int) -> torch.Tensor:
    return torch.as_tensor(DRAW.normal(size=shape)).float()


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def build(name: str, **settings: object):
    return build_strategy(StrategySpec(name=name, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["soft_cross_entropy", "kl"])
def test_vanilla_kd(temperature: float, divergence: str) -> None:
    asked = batch()
    z_s, z_t = tensor(TARGETS, VOCAB), tensor(TARGETS, VOCAB)
    loss = build("vanilla_kd", temperature=temperature, hard_weight=0.5, soft_weight=3.0, divergence=divergence)
    terms = loss.loss(asked, Signals(logits=z_s), Signals(logits=z_t))
    log_s, log_t = (log_softmax(z.double().numpy() / temperature) for z in (z_s, z_t))
    soft = -(np.exp(log_t) * log_s).sum(-1)
    if divergence == "kl":
        soft = soft + (np.exp(log_t) * log_t).sum(-1)
    assert float(terms["soft"]) == pytest.approx(3.0 * temperature**2 * soft.mean(), rel=1e-5)
    hard = -log_softmax(z_s.double().numpy())[np.arange(TARGETS), asked.target_ids.numpy()].mean()
    assert float(terms["mlm"]) == pytest.approx(0.5 * hard, rel=1e-5)
    assert float(build("no_kd").loss(asked, Signals(logits=z_s), None)["mlm"]) == pytest.approx(hard, rel=1e-5)


def test_vanilla_kd_at_teacher_equals_student() -> None:
    z = tensor(TARGETS, VOCAB)
    log_p = log_softmax(z.double().numpy())
    entropy = -(np.exp(log_p) * log_p).sum(-1).mean()
    soft = build("vanilla_kd").loss(batch(), Signals(logits=z), Signals(logits=z))["soft"]
    assert float(soft) == pytest.approx(entropy, rel=1e-5)
    kl = build("vanilla_kd", divergence="kl").loss(batch(), Signals(logits=z), Signals(logits=z))["soft"]
    assert float(kl) == pytest.approx(0.0, abs=1e-6)


def test_a_padded_vocabulary_changes_nothing_and_released_code_divides_by_it() -> None:
    z_s, z_t = tensor(TARGETS, VOCAB), tensor(TARGETS, VOCAB)
    padded = [torch.cat([z, torch.full((TARGETS, 4), -1e4)], dim=1) for z in (z_s, z_t)]
    asked = batch()
    plain, wide = (
        build("vanilla_kd").loss(asked, Signals(logits=s), Signals(logits=t)) for s, t in ((z_s, z_t), padded)
    )
    assert float(plain["soft"]) == pytest.approx(float(wide["soft"]), rel=1e-6)
    released = build("vanilla_kd", reduction="released_code").loss(asked, Signals(logits=z_s), Signals(logits=z_t))
    assert float(released["soft"]) == pytest.approx(float(plain["soft"]) / VOCAB, rel=1e-6)


def relation(x: NDArray[np.float64], heads: int, real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log relations by loops, [B][R] lists of [T, T], of real positions only."""
    merged = np.concatenate([x[:, h] for h in range(x.shape[1])], axis=-1)
    width = merged.shape[-1] // heads
    found = []
    for b in range(len(x)):
        rows = merged[b][real[b]]
        for r in range(heads):
            part = rows[:, r * width : (r + 1) * width]
            found.append(log_softmax(part @ part.T / np.sqrt(width)))
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("heads", [2, 3, 6])
def test_minilm(mask: bool, heads: int) -> None:
    asked = batch(mask)
    real = np.ones((BATCH, LENGTH), bool) if asked.attention_mask is None else asked.attention_mask.numpy()
    student = {name: {2: tensor(BATCH, HEADS, LENGTH, WIDTH // HEADS)} for name in ("queries", "keys", "values")}
    teacher = {name: {4: tensor(BATCH, 3, LENGTH, 4)} for name in ("queries", "keys", "values")}
    terms = build("minilm", relation_heads=heads).loss(asked, Signals(**student), Signals(**teacher))
    for name in student:
        of_t = relation(teacher[name][4].double().numpy(), heads, real)
        of_s = relation(student[name][2].double().numpy(), heads, real)
        rows = np.concatenate([(np.exp(t) * (t - s)).sum(-1) for t, s in zip(of_t, of_s, strict=True)])
        assert float(terms[name]) == pytest.approx(rows.mean(), rel=1e-5)


def test_minilm_is_zero_at_teacher_equals_student_and_regroups_through_merged_heads() -> None:
    x = {name: {1: tensor(BATCH, HEADS, LENGTH, 3)} for name in ("queries", "keys", "values")}
    terms = build("minilm", relation_heads=3).loss(batch(), Signals(**x), Signals(**x))
    assert all(float(term) == pytest.approx(0.0, abs=1e-6) for term in terms.values())
    naive = {name: {1: layers[1].reshape(BATCH, 3, LENGTH, 2)} for name, layers in x.items()}
    differs = build("minilm", relation_heads=3).loss(batch(), Signals(**naive), Signals(**x))
    assert all(float(term) > 1e-3 for term in differs.values())


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("projection", ["shared", "per_layer", "none"])
def test_tinybert(mask: bool, projection: str) -> None:
    asked = batch(mask)
    real = np.ones((BATCH, LENGTH), bool) if asked.attention_mask is None else asked.attention_mask.numpy()
    width_t = WIDTH if projection == "none" else 8
    student = Signals(
        hidden={layer: tensor(BATCH, LENGTH, WIDTH) for layer in (0, 1, 2)},
        scores={layer: tensor(BATCH, HEADS, LENGTH, LENGTH) for layer in (1, 2)},
    )
    teacher = Signals(
        hidden={layer: tensor(BATCH, LENGTH, width_t) for layer in (0, 2, 4)},
        scores={layer: tensor(BATCH, HEADS, LENGTH, LENGTH) for layer in (2, 4)},
    )
    names = {"shared": ["shared"], "per_layer": ["state_0", "state_1", "state_2"], "none": []}[projection]
    maps = torch.nn.ModuleDict({name: torch.nn.Linear(WIDTH, width_t, bias=False) for name in names})
    with torch.no_grad():
        terms = build("tinybert", projection=projection).loss(asked, student, teacher, maps)

    def error(layer: int, target: int) -> float:
        state = student.hidden[layer].double().numpy()
        if projection != "none":
            linear = maps["shared" if projection == "shared" else f"state_{layer}"]
            state = state @ linear.weight.detach().double().numpy().T
        return float(((state - teacher.hidden[target].double().numpy()) ** 2)[real].mean())

    assert float(terms["embeddings"]) == pytest.approx(error(0, 0), rel=1e-5)
    assert float(terms["hidden"]) == pytest.approx(error(1, 2) + error(2, 4), rel=1e-5)
    pairs = np.broadcast_to((real[:, :, None] & real[:, None, :])[:, None], (BATCH, HEADS, LENGTH, LENGTH))
    attention = sum(
        ((student.scores[one].double().numpy() - teacher.scores[other].double().numpy()) ** 2)[pairs].mean()
        for one, other in ((1, 2), (2, 4))
    )
    assert float(terms["attention"]) == pytest.approx(attention, rel=1e-5)


def rows(x: torch.Tensor, real: NDArray[np.bool_]) -> NDArray[np.float64]:
    return x.double().numpy()[real]


@pytest.mark.parametrize("mask", [False, True])
def test_soft_targets_at_all_positions(mask: bool) -> None:
    asked = batch(mask)
    real = np.ones((BATCH, LENGTH), bool) if asked.attention_mask is None else asked.attention_mask.numpy()
    z_s, z_t = tensor(BATCH, LENGTH, VOCAB), tensor(BATCH, LENGTH, VOCAB)
    signals = [Signals(logits=z.flatten(0, 1)) for z in (z_s, z_t)]
    terms = build("vanilla_kd", positions="all", temperature=2.0).loss(asked, *signals)
    log_s, log_t = (log_softmax(rows(z, real) / 2.0) for z in (z_s, z_t))
    assert float(terms["soft"]) == pytest.approx(-4.0 * (np.exp(log_t) * log_s).sum(-1).mean(), rel=1e-5)
    at_targets = log_softmax(z_s.double().flatten(0, 1).numpy()[:TARGETS])
    hard = -at_targets[np.arange(TARGETS), asked.target_ids.numpy()].mean()
    assert float(terms["mlm"]) == pytest.approx(hard, rel=1e-5)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("positions", ["masked", "all"])
def test_distilbert(mask: bool, positions: str) -> None:
    asked = batch(mask)
    real = np.ones((BATCH, LENGTH), bool) if asked.attention_mask is None else asked.attention_mask.numpy()
    z_s, z_t = tensor(BATCH, LENGTH, VOCAB), tensor(BATCH, LENGTH, VOCAB)
    h_s, h_t = tensor(BATCH, LENGTH, WIDTH), tensor(BATCH, LENGTH, WIDTH)
    first = slice(None) if positions == "all" else slice(TARGETS)
    student, teacher = (
        Signals(logits=z.flatten(0, 1)[first], hidden={layer: h}) for z, h, layer in ((z_s, h_s, 2), (z_t, h_t, 4))
    )
    terms = build("distilbert", positions=positions).loss(asked, student, teacher)
    flat_s, flat_t = ((rows(z, real) if positions == "all" else z.double().flatten(0, 1).numpy()[:TARGETS])
                      for z in (z_s, z_t))  # fmt: skip
    log_s, log_t = log_softmax(flat_s / 2.0), log_softmax(flat_t / 2.0)
    soft = (np.exp(log_t) * (log_t - log_s)).sum(-1).mean() * 4.0
    assert float(terms["soft"]) == pytest.approx(5.0 * soft, rel=1e-5)
    at_targets = log_softmax(z_s.double().flatten(0, 1).numpy()[:TARGETS])
    hard = -at_targets[np.arange(TARGETS), asked.target_ids.numpy()].mean()
    assert float(terms["mlm"]) == pytest.approx(2.0 * hard, rel=1e-5)
    a, b = rows(h_s, real), rows(h_t, real)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert float(terms["cosine"]) == pytest.approx((1 - cosine).mean(), rel=1e-5)
    same = build("distilbert").loss(asked, Signals(logits=z_t.flatten(0, 1), hidden={2: h_t}),
                                    Signals(logits=z_t.flatten(0, 1), hidden={4: h_t}))  # fmt: skip
    assert float(same["soft"]) == pytest.approx(0.0, abs=1e-5)
    assert float(same["cosine"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("mask", [False, True])
def test_minilm_v1(mask: bool) -> None:
    asked = batch(mask)
    real = np.ones((BATCH, LENGTH), bool) if asked.attention_mask is None else asked.attention_mask.numpy()
    names = ("queries", "keys", "values")
    student = {name: tensor(BATCH, HEADS, LENGTH, 3) for name in names}
    teacher = {name: tensor(BATCH, HEADS, LENGTH, 5) for name in names}
    signals = [Signals(**{name: {1: x} for name, x in parts.items()}) for parts in (student, teacher)]
    terms = build("minilm_v1").loss(asked, *signals)

    def log_relation(first: torch.Tensor, second: torch.Tensor) -> list[NDArray[np.float64]]:
        found = []
        for b in range(BATCH):
            for h in range(HEADS):
                x, y = (part.double().numpy()[b, h][real[b]] for part in (first, second))
                found.append(log_softmax(x @ y.T / np.sqrt(x.shape[-1])))
        return found

    for term, first, second in (("attention", "queries", "keys"), ("values", "values", "values")):
        of_t, of_s = (log_relation(parts[first], parts[second]) for parts in (teacher, student))
        expected = np.concatenate([(np.exp(t) * (t - s)).sum(-1) for t, s in zip(of_t, of_s, strict=True)]).mean()
        assert float(terms[term]) == pytest.approx(expected, rel=1e-5)


def test_tinybert_layer_maps_and_the_released_code() -> None:
    asked = batch()
    student = Signals(
        hidden={layer: tensor(BATCH, LENGTH, WIDTH) for layer in (0, 1, 2)},
        scores={layer: tensor(BATCH, HEADS, LENGTH, LENGTH) for layer in (1, 2)},
    )
    teacher = Signals(
        hidden={layer: tensor(BATCH, LENGTH, WIDTH) for layer in range(5)},
        scores={layer: tensor(BATCH, HEADS, LENGTH, LENGTH) for layer in range(1, 5)},
    )

    def chosen(signals: Signals, hidden: tuple[int, ...], scores: tuple[int, ...]) -> Signals:
        return Signals(hidden={i: signals.hidden[i] for i in hidden}, scores={i: signals.scores[i] for i in scores})

    def error(kind: str, ours: int, theirs: int) -> float:
        pair = (getattr(student, kind)[ours], getattr(teacher, kind)[theirs])
        return float(((pair[0].double() - pair[1].double()) ** 2).mean())

    crossed = build("tinybert", projection="none", layer_map=(3, 1))
    terms = crossed.loss(asked, student, chosen(teacher, (0, 1, 3), (1, 3)))
    assert float(terms["hidden"]) == pytest.approx(error("hidden", 1, 3) + error("hidden", 2, 1), rel=1e-5)
    assert float(terms["attention"]) == pytest.approx(error("scores", 1, 3) + error("scores", 2, 1), rel=1e-5)
    last = build("tinybert", projection="none", layer_map="last")
    terms = last.loss(asked, chosen(student, (0, 2), (2,)), chosen(teacher, (0, 4), (4,)))
    assert float(terms["embeddings"]) == pytest.approx(error("hidden", 0, 0), rel=1e-5)
    assert float(terms["hidden"]) == pytest.approx(error("hidden", 2, 4), rel=1e-5)
    assert float(terms["attention"]) == pytest.approx(error("scores", 2, 4), rel=1e-5)
    released = build("tinybert", variant="released_code")
    terms = released.loss(asked, chosen(student, (2,), (1, 2)), chosen(teacher, (4,), (1, 4)))
    assert float(terms["embeddings"]) == pytest.approx(error("scores", 1, 1), rel=1e-5)
    assert float(terms["hidden"]) == pytest.approx(error("hidden", 2, 4), rel=1e-5)
    assert float(terms["attention"]) == pytest.approx(error("scores", 2, 4), rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs", "layers"), [(2, 4, (0, 2, 4)), (3, 12, (0, 4, 8, 12)), (2, 5, (0, 2, 4))])
def test_tinybert_learns_from_every_so_manyth_layer(ours: int, theirs: int, layers: tuple[int, ...]) -> None:
    """Jiao et al. 2020, section 4: g(m) = m * teacher layers / student layers."""
    student, teacher = (
        ModelSpec(num_layers=n, hidden_size=WIDTH, num_heads=HEADS, intermediate_size=8) for n in (ours, theirs)
    )
    needs = build("tinybert").teacher_needs(student, teacher)
    assert needs.hidden == layers and needs.scores == layers[1:]


def test_the_soft_gradient_vanishes_in_the_released_reduction() -> None:
    asked = batch()
    z_t, z_s = tensor(TARGETS, VOCAB), tensor(TARGETS, VOCAB).requires_grad_()
    norms = {}
    for reduction in ("per_token", "released_code"):
        terms = build("vanilla_kd", reduction=reduction).loss(asked, Signals(logits=z_s), Signals(logits=z_t))
        norms[reduction] = float(torch.autograd.grad(terms["soft"], z_s)[0].norm())
    assert norms["released_code"] == pytest.approx(norms["per_token"] / VOCAB, rel=1e-5)


def test_feature_losses_are_zero_at_teacher_equals_student() -> None:
    layers = {layer: tensor(BATCH, LENGTH, WIDTH) for layer in (0, 1, 2)}
    maps = {layer: tensor(BATCH, HEADS, LENGTH, LENGTH) for layer in (1, 2)}
    parts = {name: {2: tensor(BATCH, HEADS, LENGTH, 3)} for name in ("queries", "keys", "values")}
    for name, signals in (
        ("tinybert", Signals(hidden=layers, scores=maps)),
        ("minilm_v1", Signals(**parts)),
        ("minilm", Signals(**parts)),
    ):
        settings = {"projection": "none"} if name == "tinybert" else {}
        for term in build(name, **settings).loss(batch(mask=True), signals, signals).values():
            assert float(term) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["soft_cross_entropy", "kl"])
@pytest.mark.parametrize("positions", ["masked", "all"])
def test_a_teacher_cut_off_after_its_largest_logits(temperature: float, divergence: str, positions: str) -> None:
    asked = batch(mask=True)
    rows = TARGETS if positions == "masked" else BATCH * LENGTH
    z_s, z_t = tensor(rows, VOCAB), tensor(rows, VOCAB) + 20  # float16 alone would be coarse there
    settings = {"temperature": temperature, "divergence": divergence, "positions": positions}
    cut = z_t.double().numpy()
    cut[cut < np.sort(cut, axis=-1)[:, -4:-3]] = -np.inf
    log_s, log_t = log_softmax(z_s.double().numpy() / temperature), log_softmax(cut / temperature)
    soft = -(np.exp(log_t) * log_s).sum(-1)
    if divergence == "kl":
        soft = soft + (np.exp(log_t) * np.where(np.isinf(log_t), 0.0, log_t)).sum(-1)
    if positions == "all":
        assert asked.attention_mask is not None
        soft = soft[asked.attention_mask.flatten().numpy()]
    found = build("vanilla_kd", top_k=4, **settings).loss(asked, Signals(logits=z_s), Signals(largest=largest(z_t, 4)))
    assert float(found["soft"]) == pytest.approx(temperature**2 * soft.mean(), rel=1e-3, abs=1e-3)
    whole, every = (
        build("vanilla_kd", **settings).loss(asked, Signals(logits=z_s), signals)["soft"]
        for signals in (Signals(logits=z_t), Signals(largest=largest(z_t, VOCAB)))
    )
    assert float(every) == pytest.approx(float(whole), rel=1e-3, abs=1e-3)
