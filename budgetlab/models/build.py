"""Networks with random or given weights, started from a teacher, turned into classifiers, written as plain folders."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging
from transformers.utils.hub import cached_file

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.models.network import FAMILIES, Network
from budgetlab.models.single import describe_model
from budgetlab.values import ModelSpec, Needs, content_hash
from budgetlab.values.model_specs import LIKE_LLAMA

_OTHER_HEADS = ("pooler.", "seq_relationship.", "sop_classifier.", "discriminator_predictions.", "position_ids")
"""Parts of published checkpoints that masked language modelling has no use for."""
_WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_REACHABLE = "give a folder or a hub id that can be reached"


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

    `seed` is of the random initialisation, and the global generator is left as it was; `seq_len` the longest sequence
    in positions; `dropout` of hidden states and attention, 0 to 1; `attention` "sdpa" or "eager"; on the device "meta"
    there are shapes only. A CallerError where the vocabulary is missing, or configuration or weights do not fit.
    """
    family = FAMILIES[spec.family]
    if spec.vocab_size is None:
        raise CallerError(f"a {spec.family} of {spec.num_layers} layers", "no vocab_size", "set it, or a tokenizer")
    dropouts = dict.fromkeys(family.dropouts, dropout)
    attention = attention if attention in family.attentions else family.attentions[0]
    ours = "budgetlab_causal_" if spec.causal else "budgetlab_" if spec.taps_attention else ""
    attention = f"{ours}{attention}"
    if spec.weights is not None and str(device) != "meta":
        return _checked(Network(_load(spec, attention, dropouts).to(device), spec))
    fields = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": max(512, seq_len) + (2 if spec.family == "roberta" else 0),
        # RoBERTa counts positions of tokens that are not padding, so its default of 1 would skip a word.
        "pad_token_id": 0,
        **family.defaults,
        **_causal_fields(spec),
        **spec.config,
        **dropouts,
    }
    config = None
    with torch.random.fork_rng(devices=_cuda(device)), torch.device(device):
        torch.manual_seed(seed)
        # Under a fake-tensor mode, as on meta, there are no values.
        shapes_only = type(torch.empty(0)) is not Tensor or str(device) == "meta"
        try:
            config = CONFIG_MAPPING[spec.family](**fields)
            with no_init_weights() if shapes_only else nullcontext():
                auto: Any = AutoModelForCausalLM if spec.causal else AutoModelForMaskedLM
                model = auto.from_config(config, attn_implementation=attention, trust_remote_code=False)
        except Exception as error:  # what transformers' checks of types and values raise differs by release
            if isinstance(error, BudgetlabError) or (config is not None and not spec.config):
                raise
            wrong = f"no {spec.family} can be built of it ({type(error).__name__}: {error})"
            raise CallerError(f"config = {spec.config}", wrong, "correct it") from None
    model.tie_weights()  # which comes with initialisation otherwise
    network = Network(model, spec)
    return network if shapes_only else _checked(network)


@torch.no_grad()
def _checked(network: Network) -> Network:
    """Hold a network that is built by its likeness to Llama against transformers' own forward pass."""
    if network.spec.family not in LIKE_LLAMA:
        return network
    training, device = network.training, next(network.parameters()).device
    ids_BT = torch.arange(8, device=device)[None] % (network.spec.vocab_size or 1)
    ours = network.eval()(ids_BT, Needs(logits="all")).logits
    theirs = network.model(input_ids=ids_BT, use_cache=False).logits[0]
    if ours is None or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        asked, wrong = f"a {network.spec.family}", "its head is not that of a Llama (a scale of its logits, perhaps)"
        raise CallerError(asked, wrong, f"use one of {', '.join(name for name in FAMILIES if name not in LIKE_LLAMA)}")
    return network.train(training)


def _causal_fields(spec: ModelSpec) -> dict[str, Any]:
    """What only causal families' configurations have."""
    if spec.family == "gpt2":
        tied = {} if spec.tie_embeddings is None else {"tie_word_embeddings": spec.tie_embeddings}
        return {"n_inner": spec.intermediate_size, **tied}
    if not spec.causal:
        return {}
    fields = {"num_key_value_heads": spec.key_value_heads, "tie_word_embeddings": spec.tie_embeddings}
    # Qwen 3 and Gemma have heads of a fixed width of their own otherwise.
    if spec.family in ("llama", "qwen3", "gemma3_text") or hasattr(CONFIG_MAPPING[spec.family](), "head_dim"):
        fields["head_dim"] = spec.head_width
    elif spec.head_dim not in (None, spec.hidden_size // spec.num_heads):
        remedy = f"leave it out: heads are {spec.hidden_size // spec.num_heads} wide"
        raise CallerError(f"head_dim = {spec.head_dim}", f"a {spec.family} has no such choice", remedy)
    # Gemma scales queries by a number of its own, which is the width of a head in the small models.
    fields |= {"query_pre_attn_scalar": spec.head_width} if spec.family == "gemma3_text" else {}
    return {name: value for name, value in fields.items() if value is not None}


def _cuda(device: str | torch.device) -> list[int]:
    """The device whose random numbers are to be left as they were."""
    return [torch.device(device).index or 0] if torch.device(device).type == "cuda" else []


def _load(spec: ModelSpec, attention: str, dropouts: dict[str, float]) -> nn.Module:
    weights, asked = spec.weights or "", f"weights = {spec.weights!r}"
    options: dict[str, Any] = {
        "attn_implementation": attention,
        "dtype": torch.float32,
        "trust_remote_code": False,
        **dropouts,
    }
    logging.disable_progress_bar()
    try:
        auto: Any = AutoModelForCausalLM if spec.causal else AutoModelForMaskedLM
        if weights.endswith(".gguf"):  # which transformers reads through the package gguf
            if importlib.util.find_spec("gguf") is None:
                raise CallerError(asked, "the package gguf is not installed", 'pip install "budgetlab[gguf]"')
            weights, options["gguf_file"] = str(Path(weights).parent), Path(weights).name
        model, info = auto.from_pretrained(weights, output_loading_info=True, **options)
    except BudgetlabError:
        raise
    except Exception as error:  # a folder of a stranger's: pickles that are none, other types, other shapes
        raise CallerError(asked, f"cannot be loaded ({_one_line(error)})", _REACHABLE) from None
    if "gguf_file" in options:  # the weights are plain numbers by now, and can be written as such
        model.hf_quantizer = None
        del model.config.quantization_config
    names = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size")
    sizes = describe_model(model.config)
    found = (model.config.model_type, *(sizes[name] for name in ("layers", "width", "heads", "inner", "vocab")))
    wanted = (spec.family, *(getattr(spec, name) for name in names))
    if found != wanted:
        wrong = f"(family, {', '.join(names)}) are {found}, the study says {wanted}"
        raise CallerError(asked, wrong, "correct the study")
    if info["missing_keys"]:
        raise CallerError(asked, f"weights are missing: {sorted(info['missing_keys'])[:3]}", "give complete weights")
    foreign = sorted(name for name in info["unexpected_keys"] if not any(part in name for part in _OTHER_HEADS))
    if foreign:
        wrong = f"it has weights that a {spec.family} {spec.objective} language model lacks: {foreign[:3]}"
        raise CallerError(asked, wrong, "give weights of this architecture")
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def given_key(spec: ModelSpec) -> str:
    """Hash a network whose weights are given: its shape, and the files (of the hub, their revision)."""
    weights = spec.weights or ""
    try:
        if Path(weights).is_file():
            return content_hash("weights", spec.untrained(), hashlib.sha256(Path(weights).read_bytes()).hexdigest())
        if not Path(weights).is_dir():
            config = cached_file(weights, "config.json")
            return content_hash("weights", spec.untrained(), Path(str(config)).parent.name)
        found = {path for pattern in _WEIGHT_FILES for path in Path(weights).glob(pattern)}
        hashes = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(found)]
    except (OSError, ValueError) as error:
        raise CallerError(f"weights = {weights!r}", f"cannot be loaded ({_one_line(error)})", _REACHABLE) from None
    return content_hash("weights", spec.untrained(), hashes)


def start_from_teacher(student: Network, teacher: Network, layers: Sequence[int]) -> None:
    """Copy the teacher's embeddings, head and chosen blocks into the student (Sanh et al. 2019, arXiv 1910.01108).

    Both are of one family and width; `layers` has a block of the teacher for each of the student, counted from 0.
    """
    family = FAMILIES[student.spec.family]
    blocks, given = f"model.{family.trunk}.{family.blocks}.", dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.startswith(blocks):
                number, _, rest = name.removeprefix(blocks).partition(".")
                name = f"{blocks}{layers[int(number)]}.{rest}"
            parameter.copy_(given[name])


def count_parameters(network: Network) -> tuple[int, int]:
    """Count parameters: (total with tied ones once, without the embedding tables)."""
    total = sum(parameter.numel() for parameter in network.parameters())
    blocks = FAMILIES[network.spec.family].blocks
    tables = [part for name, part in network.trunk.named_modules() if not name.startswith(blocks)]
    return total, total - sum(table.weight.numel() for table in tables if isinstance(table, nn.Embedding))


def load_parameters(network: Network, state: dict[str, Tensor]) -> None:
    """Copy a checkpoint's student into a network; a BudgetlabError where names or shapes differ."""
    saved = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    own = dict(network.named_parameters())
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise BudgetlabError(
            "a checkpoint's student", "it has other tensors than the network", "delete its run's folder and run again"
        )
    for name, parameter in own.items():
        parameter.data.copy_(saved[name])


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


def export_model(network: Network, tokenizer: Any, card: str, folder: Path, *, seq_len: int) -> None:
    """Write a plain transformers folder that needs no budgetlab to be loaded, in one step: all of it or nothing.

    It holds the network's config and weights (safetensors), a transformers tokenizer, which cuts beyond the `seq_len`
    positions that were trained on, and the model card; it replaces what was there.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model: Any = network.model
        if network.spec.causal:  # what generation stops at
            for config in (model.config, model.generation_config):
                config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        logging.disable_progress_bar()  # of one file
        model.save_pretrained(partial)
        tokenizer.model_max_length = seq_len
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except SafetensorError as error:  # safetensors reports a full disk as its own error
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
