"""Single language models: three counts agree, for architectures chosen before and after the code was written."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from budgetlab.cli import run_command
from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.models import read_model
from budgetlab.profiler.count import CLOSED_FORMS, FURTHER
from budgetlab.profiler.single_model import count_model

SMALL = {
    "bert": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160},
    "roberta": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160},
    "electra": {"hidden_size": 64, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "modernbert": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96, "pad_token_id": 0,
    },
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4},
    "llama": {
        "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 160,
    },
}  # fmt: skip
CHOSEN_LATER = {
    "opt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 160,
            "word_embed_proj_dim": 64},
    "deberta-v2": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160},
    "layoutlm": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160},
    "mixtral": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "intermediate_size": 128, "num_local_experts": 4},
}  # fmt: skip


def written(folder: Path, model_type: str, fields: dict) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"model_type": model_type, "vocab_size": 1000, **fields}))
    return str(path)


@pytest.mark.parametrize("model_type", SMALL)
def test_three_counts_agree(model_type: str, tmp_path: Path) -> None:
    model = read_model(written(tmp_path, model_type, SMALL[model_type]))
    found = count_model(model, seq_len=48)
    assert found.verdict == {"closed form": "equal", "fvcore": "equal"}
    assert found.kind == ("causal" if model_type in ("gpt2", "llama") else "masked")
    forward = found.body_forward_flops_per_token + found.head_forward_flops_per_position
    assert found.backward_flops_per_token == 2 * forward
    lean = found.body_forward_flops_per_token + found.target_fraction * found.head_forward_flops_per_position
    assert found.train_required_flops_per_token == pytest.approx(3 * lean)


@pytest.mark.parametrize("model_type", CHOSEN_LATER)
def test_two_counts_agree_for_architectures_without_a_closed_form(model_type: str, tmp_path: Path) -> None:
    found = count_model(read_model(written(tmp_path, model_type, CHOSEN_LATER[model_type])), seq_len=32)
    assert found.verdict == {"closed form": "n/a for this architecture", "fvcore": "equal"}
    assert found.body_forward_flops_per_token > 0 and found.head_forward_flops_per_position > 0


def test_experts_are_counted_where_they_are_used(tmp_path: Path) -> None:
    found = count_model(read_model(written(tmp_path, "mixtral", CHOSEN_LATER["mixtral"])), seq_len=32)
    attention = 2 * 64 * (64 + 2 * 32) + 2 * 64 * 64 + 4 * 32 * 64
    two_gated_experts, router = 2 * 6 * 64 * 128, 2 * 64 * 4
    assert found.body_forward_flops_per_token == 2 * (attention + two_gated_experts + router)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": 3}, "its model_type is 3"),
        ({"model_type": ["bert"]}, "not a name"),
        ({"model_type": "bert", "num_hidden_layers": -3}, "its layers is below 1"),
        ({"model_type": "bert", "num_hidden_layers": 10**6}, "its layers (1,000,000) is more than can be built"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_line(
    fields: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert run_command(["profile", "--model", str(tmp_path / "config.json")]) == 2
    assert said in capsys.readouterr().err


def test_bert_base_is_the_published_count() -> None:
    """12 layers of 768: 174.6 and 48.1 MFLOP a position at 128 positions."""
    found = count_model(read_model("bert"))
    assert (found.body_forward_flops_per_token, found.head_forward_flops_per_position) == (
        12 * (24 * 768**2 + 4 * 128 * 768),
        2 * 768**2 + 2 * 768 * 30522,
    )
    assert found.num_params_total == 109_514_298


def test_a_count_that_is_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(written(tmp_path, "bert", SMALL["bert"]))
    body, head = CLOSED_FORMS["bert"]
    monkeypatch.setitem(CLOSED_FORMS, "bert", (lambda sizes, length: body(sizes, length) + 1, head))
    with pytest.raises(BudgetlabError, match="the closed form says"):
        count_model(model, seq_len=16)
    monkeypatch.undo()
    # Torch's counter forgets a product: fvcore still sees it.
    monkeypatch.delitem(CLOSED_FORMS, "bert")
    monkeypatch.setitem(FURTHER, torch.ops.aten.bmm, lambda *shapes, out_shape=None, **_: 0)
    with pytest.raises(BudgetlabError, match="fvcore says"):
        count_model(model, seq_len=16)
    # It does not know the product at all: the operator is named.
    monkeypatch.delitem(flop_registry, torch.ops.aten.bmm)
    monkeypatch.delitem(FURTHER, torch.ops.aten.bmm)
    with pytest.raises(BudgetlabError, match=r"nobody counts aten\.bmm"):
        count_model(model, seq_len=16)


def test_counting_leaves_no_state_behind(tmp_path: Path) -> None:
    before = (torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention, len(flop_registry))
    with pytest.raises(CallerError, match="positions for 512"):
        count_model(read_model(written(tmp_path, "bert", SMALL["bert"])), seq_len=4096)
    assert count_model(read_model(str(tmp_path)), seq_len=16).verdict["fvcore"] == "equal"
    after = (torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention, len(flop_registry))
    assert before == after


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "brt"}', "did you mean bert"),
        ('{"hidden_size": 64}', "no model_type"),
        ("{", "no configuration"),
        ('{"model_type": "bert", "hidden_size": 65, "num_attention_heads": 4}', "65"),
        ('{"model_type": "vit"}', "no masked or causal language model"),
        ("[]", "not a JSON object"),
        ('{"model_type": "roberta", "max_position_embeddings": 100}', "positions for 98"),
    ],
)
def test_what_cannot_be_counted_is_one_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert run_command(["profile", "--model", str(tmp_path / "config.json")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("budgetlab: ") and message in said and said.count("\n") == 1


def test_a_decoder_of_a_masked_family_is_causal(tmp_path: Path) -> None:
    fields = {**SMALL["bert"], "architectures": ["BertLMHeadModel"], "is_decoder": True}
    found = count_model(read_model(written(tmp_path, "bert", fields)), seq_len=16)
    assert found.kind == "causal" and found.target_fraction == 1.0


def test_the_command_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = written(tmp_path, "gpt2", SMALL["gpt2"])
    assert run_command(["profile", "--model", path, "--seq-len", "64"]) == 0
    out = capsys.readouterr().out
    assert "causal language model (gpt2), sequences of 64" in out and "closed form: equal; fvcore: equal" in out
    assert run_command(["profile", "--model", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "gpt2"
