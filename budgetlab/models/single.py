"""A single masked or causal language model of transformers, built without weights, to be counted as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from budgetlab.errors import CallerError, unknown_name


@dataclass(frozen=True)
class SingleModel:
    """A configuration of transformers, and which language model it makes."""

    name: str
    config: Any
    kind: Literal["masked", "causal"]

    def build(self) -> nn.Module:
        """Build the model without initialising its weights, wherever tensors are made now; attention is eager.

        Eager attention has no kernel that recomputes: what is counted is what the model requires.
        """
        auto: Any = AutoModelForMaskedLM if self.kind == "masked" else AutoModelForCausalLM
        # Experts as batched products, whose shapes no token decides: the grouped one takes half precision only.
        self.config._experts_implementation = "batched_mm"
        with no_init_weights():
            model = auto.from_config(self.config, attn_implementation="eager", trust_remote_code=False)
        trunk: Any = getattr(model, model.base_model_prefix, None)
        if getattr(trunk, "pooler", None) is not None:
            trunk.pooler = nn.Identity()  # no logit comes from it
        model.tie_weights()
        return model


def read_model(asked: str) -> SingleModel:
    """Read a model's configuration: of a folder, a JSON file, a hub id, or an architecture's default, such as "gpt2".

    A CallerError where nothing of that name can be read, or it is no masked or causal language model.
    """
    config = _read_config(asked)
    masked, causal = type(config) in MODEL_FOR_MASKED_LM_MAPPING, type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not (masked or causal):
        raise CallerError(f"--model {asked}", f"{config.model_type} is no masked or causal language model", "give one")
    # A family that makes both says in its configuration which one this is; BERT and its like are masked.
    named = getattr(config, "is_decoder", False) or any(
        "CausalLM" in name or "LMHeadModel" in name for name in getattr(config, "architectures", None) or []
    )
    return SingleModel(asked, config, "causal" if causal and (named or not masked) else "masked")


def _read_config(asked: str) -> Any:
    path, option, remedy = Path(asked), f"--model {asked}", "give one that loads"
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if path.is_dir():
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise CallerError(option, f"no configuration ({_line(error)})", remedy) from None
    if fields is None and asked not in CONFIG_MAPPING:
        try:
            return AutoConfig.from_pretrained(asked, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = f"no such folder, file, architecture or hub id that can be reached ({_line(error)})"
            raise CallerError(option, reason, "give a folder, a config.json, or a name such as gpt2") from None
    fields = {"model_type": asked} if fields is None else fields
    if not isinstance(fields, dict):
        raise CallerError(option, "no configuration (not a JSON object)", remedy)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise CallerError(option, "it has no model_type", 'add one, such as "bert"')
    if not isinstance(model_type, str):
        raise CallerError(option, f"its model_type is {model_type!r}, not a name", 'write such as "bert"')
    if model_type not in CONFIG_MAPPING:
        raise unknown_name("architecture", model_type, list(CONFIG_MAPPING), option)
    try:
        return CONFIG_MAPPING[model_type](**fields)
    except Exception as error:
        raise CallerError(option, f"no valid configuration ({_line(error)})", "correct it") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def describe_model(config: Any) -> dict[str, int]:
    """Return the sizes that closed forms need, under one set of names; only those that the configuration has."""
    names: dict[str, Callable[[Any], Any]] = {
        "layers": lambda c: c.num_hidden_layers,
        "width": lambda c: c.hidden_size,
        "heads": lambda c: c.num_attention_heads,
        "key_value_heads": lambda c: getattr(c, "num_key_value_heads", None) or c.num_attention_heads,
        "head_width": lambda c: getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "inner": lambda c: getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * c.hidden_size,
        "embedding": lambda c: getattr(c, "embedding_size", None) or c.hidden_size,
        "vocab": lambda c: c.vocab_size,
    }
    found = {}
    for name, read in names.items():
        try:
            found[name] = int(read(config))
        except (AttributeError, TypeError):
            continue
    return found
