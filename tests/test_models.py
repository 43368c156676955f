"""A network yields what transformers' own model yields, and stops where nothing more is needed."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from budgetlab.errors import CallerError
from budgetlab.models import build_classifier, build_network, count_parameters, start_from_teacher
from budgetlab.values import ModelSpec, Needs

SPEC = ModelSpec(num_layers=3, hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=50)
IDS = torch.arange(24).reshape(2, 12) + 5
POSITIONS = torch.tensor([1, 4, 13, 20])
ALL = Needs(logits="all", hidden=(0, 1, 2, 3), qkv=(1, 2, 3), scores=(1, 2, 3))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_signals_equal_the_eager_model(family: str) -> None:
    network = build_network(SPEC.model_copy(update={"family": family}), seed=1).eval()
    kept = network(IDS, ALL)
    peer = AutoModelForMaskedLM.from_config(network.model.config, attn_implementation="eager").eval()
    peer.load_state_dict(network.model.state_dict())
    outputs = []
    for block in getattr(peer, family).encoder.layer:
        block.attention.self.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    found = peer(IDS, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(kept.logits, found.logits.flatten(0, 1), rtol=1e-5, atol=1e-5)
    for layer, hidden in enumerate(found.hidden_states):
        torch.testing.assert_close(kept.hidden[layer], hidden, rtol=1e-5, atol=1e-6)
    for block, attention in enumerate(found.attentions, start=1):
        torch.testing.assert_close(kept.scores[block].softmax(-1), attention, rtol=1e-5, atol=1e-6)
        scores = kept.queries[block] @ kept.keys[block].transpose(2, 3) / 8**0.5
        torch.testing.assert_close(kept.scores[block], scores)
        mixed = (attention @ kept.values[block]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(mixed, outputs[block - 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("everything", [False, True])
def test_masked_logits_are_rows_of_all_logits(everything: bool) -> None:
    network = build_network(SPEC, seed=1).eval()
    rows = network(IDS, Needs(logits="masked"), POSITIONS, everything=everything).logits
    torch.testing.assert_close(rows, network(IDS, Needs(logits="all")).logits[POSITIONS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("needs", "blocks"),
    [
        (Needs(logits="masked"), 3),
        (Needs(hidden=(0, 2)), 2),
        (Needs(scores=(1,)), 1),
        (Needs(qkv=(3,)), 2),
        (Needs(qkv=(2,), hidden=(2,)), 2),
        (Needs(), 0),
    ],
)
def test_no_block_runs_that_is_not_needed(needs: Needs, blocks: int) -> None:
    network = build_network(SPEC, seed=1).eval()
    ran = []
    for number, block in enumerate(network.trunk.encoder.layer, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    kept = network(IDS, needs, POSITIONS)
    assert ran == list(range(1, blocks + 1))
    whole = network(IDS, ALL)
    for name in ("hidden", "queries", "keys", "values", "scores"):
        for layer, value in getattr(kept, name).items():
            torch.testing.assert_close(value, getattr(whole, name)[layer], rtol=1e-5, atol=1e-6)
    assert set(kept.hidden) == set(needs.hidden) and set(kept.queries) == set(needs.qkv)


def test_padding_is_ignored() -> None:
    network = build_network(SPEC, seed=1).eval()
    longer = torch.cat([IDS, torch.full((2, 3), 9)], dim=1)
    mask = torch.arange(15).expand(2, -1) < 12
    for needs in (Needs(hidden=(3,)), Needs(hidden=(3,), scores=(3,))):
        with_pads = network(longer, needs, None, mask).hidden[3][:, :12]
        torch.testing.assert_close(with_pads, network(IDS, needs).hidden[3], rtol=1e-5, atol=1e-6)


def test_the_seed_decides_the_weights_and_nothing_else_moves() -> None:
    state = torch.get_rng_state()
    one, same, other = (build_network(SPEC, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_parameters_are_counted_once() -> None:
    total, other = count_parameters(build_network(SPEC))
    block = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    head = 32 * 32 + 32 + 2 * 32 + 50
    embeddings = (50 + 512 + 2) * 32
    assert (total, other) == (3 * block + head + embeddings + 2 * 32, 3 * block + head + 2 * 32)


def test_saved_weights_load_and_must_fit(tmp_path) -> None:
    network = build_network(SPEC, seed=4)
    network.model.save_pretrained(tmp_path / "teacher")
    spec = SPEC.model_copy(update={"weights": str(tmp_path / "teacher")})
    loaded = build_network(spec).eval()
    torch.testing.assert_close(loaded(IDS, ALL).logits, network.eval()(IDS, ALL).logits)
    with pytest.raises(CallerError, match="the study says"):
        build_network(spec.model_copy(update={"num_layers": 2}))
    with pytest.raises(CallerError, match="cannot be loaded"):
        build_network(spec.model_copy(update={"weights": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize(
    "config", [{"hidden_act": "no such"}, {"layer_norm_eps": "small"}, {"hidden_act": 3}, {"num_labels": [1]}]
)
def test_a_configuration_of_wrong_types_is_one_line(config: dict) -> None:
    with pytest.raises(CallerError, match="no bert can be built of it") as caught:
        build_network(SPEC.model_copy(update={"config": config}))
    assert "\n" not in str(caught.value)


def test_an_unknown_family() -> None:
    with pytest.raises(ValueError, match="no family 'bart'; known: bert, roberta, electra, megatron-bert, modernbert"):
        ModelSpec(**{**SPEC.model_dump(), "family": "bart"})


def test_electra_projects_narrow_embeddings() -> None:
    network = build_network(SPEC.model_copy(update={"family": "electra", "config": {"embedding_size": 16}}), seed=1)
    network.eval()
    assert network.word_embeddings.shape == (50, 16)
    kept = network(IDS, Needs(logits="all", hidden=(0,)))
    peer = network.model(IDS, output_hidden_states=True)
    torch.testing.assert_close(kept.hidden[0], peer.hidden_states[0])
    torch.testing.assert_close(kept.logits, peer.logits.flatten(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["megatron-bert", "modernbert"])
def test_a_pre_norm_family_is_cut_after_whole_blocks(family: str) -> None:
    network = build_network(SPEC.model_copy(update={"family": family}), seed=1).eval()
    names = [name for name, _ in network.named_parameters()]
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 8:] = False
    for attention_mask in (None, mask):
        kept = network(IDS, Needs(logits="masked", hidden=(0, 1, 2, 3)), POSITIONS, attention_mask)
        asked = {} if attention_mask is None else {"attention_mask": attention_mask.long()}
        found = network.model(IDS, output_hidden_states=True, **asked)
        torch.testing.assert_close(kept.logits, found.logits.flatten(0, 1)[POSITIONS], rtol=1e-5, atol=1e-6)
        for layer in (0, 1, 2):
            torch.testing.assert_close(kept.hidden[layer], found.hidden_states[layer], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kept.hidden[3], network.trunk(IDS, **asked)[0])
    ran = []
    blocks = network.trunk.layers if family == "modernbert" else network.trunk.encoder.layer
    for number, block in enumerate(blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    network(IDS, Needs(hidden=(2,)), POSITIONS)
    assert ran == [1, 2]
    assert [name for name, _ in network.named_parameters()] == names


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "megatron-bert", "modernbert"])
def test_a_student_that_starts_from_a_teacher(family: str) -> None:
    teacher = build_network(SPEC.model_copy(update={"family": family}), seed=1).eval()
    student = build_network(SPEC.model_copy(update={"family": family, "num_layers": 2}), seed=2).eval()
    start_from_teacher(student, teacher, (0, 2))
    needs = Needs(hidden=(1,))
    torch.testing.assert_close(student(IDS, needs).hidden[1], teacher(IDS, needs).hidden[1])
    last = [dict(part.trunk.named_parameters()) for part in (student, teacher)]
    copied = {name: name.replace("layer.1.", "layer.2.").replace("layers.1.", "layers.2.") for name in last[0]}
    assert all(torch.equal(last[0][name], last[1][other]) for name, other in copied.items())
    # A whole copy is the teacher.
    whole = build_network(teacher.spec, seed=3).eval()
    start_from_teacher(whole, teacher, (0, 1, 2))
    torch.testing.assert_close(whole(IDS, Needs(logits="all")).logits, teacher(IDS, Needs(logits="all")).logits)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert", "megatron-bert"])
def test_shapes_alone_have_the_parameters_of_the_network(family: str) -> None:
    spec = SPEC.model_copy(update={"family": family})
    here, shapes = build_network(spec), build_network(spec, device="meta")
    assert count_parameters(shapes) == count_parameters(here)
    assert [name for name, _ in shapes.named_parameters()] == [name for name, _ in here.named_parameters()]


def test_parameters_are_those_of_the_published_network() -> None:
    bert = ModelSpec(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, vocab_size=30522)
    # Devlin et al. 2019 give 110M; transformers' BertForMaskedLM has no pooler, and the head's own dense layer.
    assert count_parameters(build_network(bert, device="meta"))[0] == 109_514_298


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_classifier_whose_last_block_is_of_the_first_position_is_the_same_classifier(family: str) -> None:
    network = build_network(SPEC.model_copy(update={"family": family}), seed=1)
    lean = build_classifier(network, 3, seed=2, dropout=0.0)
    peer = AutoModelForSequenceClassification.from_config(lean.config)
    state = {name.replace(".attention.whole.", ".attention."): value for name, value in lean.state_dict().items()}
    peer.load_state_dict(state)
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    shapes, sides = [], []
    lean.get_submodule(f"{family}.encoder.layer.2").register_forward_hook(lambda *parts: shapes.append(parts[2].shape))
    for model in (lean, peer):
        logits = model(input_ids=IDS, attention_mask=mask).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
        gradients = {name.replace(".attention.whole.", ".attention."): p.grad for name, p in model.named_parameters()}
        sides.append((logits, gradients))
    assert shapes == [(2, 1, 32)]
    torch.testing.assert_close(sides[0][0], sides[1][0])
    assert sides[0][1].keys() == sides[1][1].keys()
    for name, gradient in sides[0][1].items():
        torch.testing.assert_close(gradient, sides[1][1][name], rtol=1e-4, atol=1e-7)
