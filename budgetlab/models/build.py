"""Networks built with random weights, loaded, started from a teacher, or turned into classifiers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.hub import cached_file

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.models.network import FAMILIES, Network
from budgetlab.values import ModelSpec, content_hash

_OTHER_HEADS = ("pooler.", "seq_relationship.", "sop_classifier.", "discriminator_predictions.", "position_ids")
"""Parts of published checkpoints that masked language modelling has no use for."""
_WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")


def build_network(
    spec: ModelSpec,
    *,
    seed: int = 0,
    seq_len: int = 512,
    dropout: float = 0.0,
    attention: str = "sdpa",
    device: str | torch.device = "cpu",
) -> Network:
    """Build a network with random weights, or load those that `spec.weights` names.

    Parameters
    ----------
    spec
        With `vocab_size`.
    seed
        Of the random initialisation; the global generator is left as it was.
    seq_len
        Longest sequence in positions.
    dropout
        Of hidden states and attention, 0 to 1.
    attention
        "sdpa" or "eager".
    device
        "meta" builds the shapes only.

    Raises
    ------
    CallerError
        When the family is unknown, the vocabulary missing, or the weights do not fit the specification.
    """
    model = _build(AutoModelForMaskedLM, spec, seed, seq_len, dropout, attention, device)
    return Network(model, spec)


def build_classifier(
    network: Network, num_labels: int, *, seed: int, dropout: float, regression: bool = False
) -> nn.Module:
    """Build a sequence classifier on a copy of a network's trunk, with a fresh head that reads the first position."""
    family, device = FAMILIES[network.spec.family], next(network.parameters()).device
    # The network's own configuration, so that whatever it was built or loaded with holds for the classifier too.
    config: Any = copy.deepcopy(network.model.config)
    config.num_labels = num_labels
    config.problem_type = "regression" if regression else "single_label_classification"
    for name in family.dropouts:
        setattr(config, name, dropout)
    with torch.random.fork_rng(devices=_cuda(device)), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=family.attentions[0])
    trunk = getattr(model, family.trunk)
    missing, unexpected = trunk.load_state_dict(network.trunk.state_dict(), strict=False)
    wrong = [name for name in missing if not name.startswith("pooler")] + list(unexpected)
    if wrong:
        raise RuntimeError(f"the trunk does not fit the classifier: {wrong[:3]}")
    if network.spec.taps_attention:
        last = trunk.encoder.layer[-1]
        last.attention = _OfFirstPosition(last.attention)
    return model


class _OfFirstPosition(nn.Module):
    """A block's attention whose output is of the first position alone, and so is what the block makes of it.

    Nothing else of the last block is read by a classifier; keys and values, a sixth of the block's matmuls, are still
    of all positions.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.whole = attention

    def forward(self, hidden_BTD: Tensor, attention_mask: Tensor | None = None, **_: object) -> tuple[Tensor, None]:
        own, first_B1D = self.whole.self, hidden_BTD[:, :1]
        query, key, value = (
            linear(states).view(*states.shape[:2], -1, own.attention_head_size).transpose(1, 2)
            for linear, states in ((own.query, first_B1D), (own.key, hidden_BTD), (own.value, hidden_BTD))
        )
        mask = None if attention_mask is None else attention_mask[..., :1, :]
        dropout = own.dropout.p if self.training else 0.0
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=own.scaling
        )
        return self.whole.output(output.transpose(1, 2).reshape(first_B1D.shape), first_B1D), None


def _build(
    auto: Any,
    spec: ModelSpec,
    seed: int,
    seq_len: int,
    dropout: float,
    attention: str,
    device: str | torch.device,
) -> nn.Module:
    family = FAMILIES[spec.family]
    if spec.vocab_size is None:
        raise CallerError(f"a {spec.family} of {spec.num_layers} layers", "no vocab_size", "set it, or a tokenizer")
    dropouts = dict.fromkeys(family.dropouts, dropout)
    if attention not in family.attentions:
        attention = family.attentions[0]
    if spec.taps_attention:
        attention = f"budgetlab_{attention}"
    if spec.weights is not None and str(device) != "meta":
        return _load_pretrained(auto, spec, attention, dropouts).to(device)
    fields = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": max(512, seq_len) + (2 if spec.family == "roberta" else 0),
        # RoBERTa counts positions of tokens that are not padding, so its default of 1 would skip a word.
        "pad_token_id": 0,
        **dict(family.defaults),
    }
    try:
        config = CONFIG_MAPPING[spec.family](**{**fields, **spec.config, **dropouts})
    except Exception as error:  # what transformers' checks of types and values raise differs by release
        raise _of_config(spec, error) from None
    with torch.random.fork_rng(devices=_cuda(device)), torch.device(device):
        torch.manual_seed(seed)
        # Under a fake-tensor mode, as on meta, there are no values.
        shapes_only = type(torch.empty(0)) is not Tensor or str(device) == "meta"
        with no_init_weights() if shapes_only else nullcontext():
            try:
                model = auto.from_config(config, attn_implementation=attention, trust_remote_code=False)
            except Exception as error:
                if not spec.config or isinstance(error, BudgetlabError):
                    raise
                raise _of_config(spec, error) from None
    model.tie_weights()  # which comes with initialisation otherwise
    return model


def _of_config(spec: ModelSpec, error: Exception) -> CallerError:
    reason = f"{type(error).__name__}: {error}"
    return CallerError(f"config = {spec.config}", f"no {spec.family} can be built of it ({reason})", "correct it")


def _cuda(device: str | torch.device) -> list[int]:
    """The device whose random numbers are to be left as they were."""
    return [torch.device(device).index or 0] if torch.device(device).type == "cuda" else []


def _load_pretrained(auto: Any, spec: ModelSpec, attention: str, dropouts: dict[str, float]) -> nn.Module:
    asked = f"weights = {spec.weights!r}"
    try:
        model, info = auto.from_pretrained(
            spec.weights, attn_implementation=attention, output_loading_info=True, dtype=torch.float32,
            trust_remote_code=False, **dropouts,
        )  # fmt: skip
    except BudgetlabError:
        raise
    except Exception as error:  # a folder of a stranger's: pickles that are none, other types, other shapes
        reason = " ".join(str(error).split())[:160]
        raise CallerError(
            asked, f"cannot be loaded ({reason})", "give a folder or a hub id that can be reached"
        ) from None
    config = model.config
    found = (config.model_type, config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
             config.intermediate_size, config.vocab_size)  # fmt: skip
    wanted = (spec.family, spec.num_layers, spec.hidden_size, spec.num_heads, spec.intermediate_size, spec.vocab_size)
    if found != wanted:
        named = "(family, num_layers, hidden_size, num_heads, intermediate_size, vocab_size)"
        raise CallerError(asked, f"{named} are {found}, the study says {wanted}", "correct the study")
    if info["missing_keys"]:
        raise CallerError(asked, f"weights are missing: {sorted(info['missing_keys'])[:3]}", "give complete weights")
    foreign = sorted(name for name in info["unexpected_keys"] if not any(part in name for part in _OTHER_HEADS))
    if foreign:
        wrong = f"it has weights that a {spec.family} masked language model lacks: {foreign[:3]}"
        raise CallerError(asked, wrong, "give weights of this architecture")
    return model


def given_key(spec: ModelSpec) -> str:
    """Hash a network whose weights are given: its shape, and the files (of the hub, their revision).

    Raises
    ------
    CallerError
        When they cannot be read.
    """
    weights = spec.weights or ""
    asked, remedy = f"weights = {weights!r}", "give a folder or a hub id that can be reached"
    try:
        if not Path(weights).is_dir():
            config = cached_file(weights, "config.json")
            return content_hash("weights", spec.untrained(), Path(str(config)).parent.name)
        found = {path for pattern in _WEIGHT_FILES for path in Path(weights).glob(pattern)}
        hashes = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(found)]
    except (OSError, ValueError) as error:
        raise CallerError(asked, f"cannot be loaded ({' '.join(str(error).split())[:160]})", remedy) from None
    return content_hash("weights", spec.untrained(), hashes)


def start_from_teacher(student: Network, teacher: Network, layers: Sequence[int]) -> None:
    """Copy the teacher's embeddings, head and chosen blocks into the student (Sanh et al. 2019, arXiv 1910.01108).

    Parameters
    ----------
    student, teacher
        Of one family and one width.
    layers
        A block of the teacher for each block of the student, counted from 0.
    """
    blocks = f"model.{FAMILIES[student.spec.family].trunk}.{FAMILIES[student.spec.family].blocks}."
    given = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.startswith(blocks):
                number, _, rest = name.removeprefix(blocks).partition(".")
                name = f"{blocks}{layers[int(number)]}.{rest}"
            parameter.copy_(given[name])


def count_parameters(network: Network) -> tuple[int, int]:
    """Count parameters: (total with tied ones once, without the embedding tables)."""
    total = sum(parameter.numel() for parameter in network.parameters())
    tables = network.trunk.embeddings.modules()
    embedding = sum(module.weight.numel() for module in tables if isinstance(module, nn.Embedding))
    return total, total - embedding


def load_parameters(network: Network, state: dict[str, Tensor]) -> None:
    """Copy a checkpoint's student into a network.

    Raises
    ------
    BudgetlabError
        When the names or shapes differ.
    """
    saved = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    own = dict(network.named_parameters())
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise BudgetlabError(
            "a checkpoint's student", "it has other tensors than the network", "delete its run's folder and run again"
        )
    for name, parameter in own.items():
        parameter.data.copy_(saved[name])
