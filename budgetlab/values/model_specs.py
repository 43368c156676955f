"""What a network is: its family and shape, the weights it is given or the tokens it is trained on."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from budgetlab.units import parse_amount
from budgetlab.values.base import CountOrZero, Seed, Value

TAPPED_FAMILIES = ("bert", "roberta", "electra")
"""Run block by block: every strategy works."""
WHOLE_FAMILIES = ("megatron-bert", "modernbert")
"""Cut after whole blocks only: strategies that read hidden states and logits work."""
LIKE_LLAMA = (
    "arcee", "ernie4_5", "gemma", "glm", "glm4", "granite", "helium", "hunyuan_v1_dense", "hyperclovax", "jais2",
    "ministral", "mistral", "olmo", "phi3", "seed_oss", "smollm3", "starcoder2",
)  # fmt: skip
"""Of transformers' other causal families those with a Llama's parts; each is held against transformers' own forward
pass when it is built."""
CAUSAL_FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "olmo2", "gemma3_text", *LIKE_LLAMA)
"""Next-token models: every strategy works."""
FAMILIES = TAPPED_FAMILIES + WHOLE_FAMILIES + CAUSAL_FAMILIES

CONFIG_FIELDS = {
    "model_type": "family",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "tie_word_embeddings": "tie_embeddings",
}
"""What transformers' configurations call the fields of a `ModelSpec`."""
CAUSAL_FIELDS = ("num_kv_heads", "head_dim", "tie_embeddings")


class Pretrain(Value):
    """How a teacher is made: by its own objective on `tokens` tokens of the study's corpus (0: random weights)."""

    tokens: CountOrZero
    """Positions that it reads; a list in the study file makes a teacher of each."""
    seed: Seed = 0


class ModelSpec(Value):
    """A network one can build."""

    left_out_at_default: ClassVar[frozenset[str]] = frozenset({"num_kv_heads", "head_dim", "tie_embeddings"})

    family: str = "bert"
    """What transformers calls the model type."""
    num_layers: int = Field(gt=0, le=1000)
    """Blocks."""
    hidden_size: int = Field(gt=0, le=2**17)
    """Width, a multiple of `num_heads`."""
    num_heads: int = Field(gt=0, le=2**10)
    """Attention heads of a block."""
    intermediate_size: int = Field(gt=0, le=2**20)
    """Width of the feed-forward layer."""
    vocab_size: int | None = Field(default=None, gt=0, le=2**24)
    """None until the tokenizer is known."""
    num_kv_heads: int | None = Field(default=None, gt=0, le=2**10)
    """Heads of keys and values where several queries share one (causal families); None: `num_heads`."""
    head_dim: int | None = Field(default=None, gt=0, le=2**14)
    """Width of a head where it is not `hidden_size` / `num_heads` (causal families)."""
    tie_embeddings: bool | None = None
    """Whether the head is the embedding table (causal families); None: as transformers has it for the family."""
    config: dict[str, Any] = {}
    """Further fields of the transformers configuration."""
    weights: str | None = None
    """Given weights: a folder, whose config.json says what the table does not of shape, family and vocabulary, an id on
    the hub, or a GGUF file."""
    pretrained_for: str | None = None
    """What making the given weights cost, such as "137B tokens" or "4e20 flops", where a teacher's pretraining is
    charged."""
    pretrain: Pretrain | None = None
    """Trained here; exactly one of `weights` and `pretrain` for a teacher."""

    @model_validator(mode="after")
    def _whole_heads_and_one_origin(self) -> ModelSpec:
        if self.family not in FAMILIES:
            raise ValueError(f"no family {self.family!r}; known: {', '.join(FAMILIES)}")
        self._check_causal_fields()
        for key, field in CONFIG_FIELDS.items():
            if key in self.config and self.config[key] != getattr(self, field):
                wrong = f"config.{key} = {self.config[key]!r} contradicts {field} = {getattr(self, field)!r}"
                raise ValueError(f"{wrong}; say it once, as {field}")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        if self.weights is not None and self.pretrain is not None:
            raise ValueError("both weights and pretrain are set; give exactly one")
        if self.pretrained_for is not None:
            if self.weights is None:
                raise ValueError("pretrained_for says what given weights cost; set weights, or use pretrain")
            if parse_amount(self.pretrained_for, "tokens", "pretrained_for")[1] == "wall_seconds":
                raise ValueError(
                    f'pretrained_for = "{self.pretrained_for}": say how much device time, as "8 gpu-hours"'
                )
        return self

    def _check_causal_fields(self) -> None:
        given = [name for name in CAUSAL_FIELDS if getattr(self, name) is not None]
        takes = () if not self.causal else ("tie_embeddings",) if self.family == "gpt2" else CAUSAL_FIELDS
        takes = takes if self.family not in ("qwen2", "olmo2") else ("num_kv_heads", "tie_embeddings")
        if wrong := [name for name in given if name not in takes]:
            known = f"it takes {', '.join(takes)}" if takes else "it takes none of these"
            raise ValueError(f"{', '.join(wrong)}: a {self.family} has no such choice; {known}")
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")

    @property
    def causal(self) -> bool:
        """Whether it predicts the next token; else words that are masked."""
        return self.family in CAUSAL_FAMILIES

    @property
    def objective(self) -> Literal["masked", "causal"]:
        """What it is trained for."""
        return "causal" if self.causal else "masked"

    @property
    def head_width(self) -> int:
        """Width of a head of queries."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and of values."""
        return self.num_kv_heads or self.num_heads

    @property
    def taps_attention(self) -> bool:
        """Whether queries, keys, values and scores of its blocks can be read."""
        return self.family in TAPPED_FAMILIES or self.causal

    @property
    def pretraining_tokens(self) -> int | None:
        """Tokens that its weights were, or will be, trained on, where they are stated."""
        if self.pretrain is not None:
            return self.pretrain.tokens
        amount, unit = parse_amount(self.pretrained_for, "tokens") if self.pretrained_for is not None else (0.0, "")
        return round(amount) if unit == "tokens" else None

    def identity(self) -> ModelSpec:
        """Return what decides its weights: all but what they cost."""
        return self.model_copy(update={"pretrained_for": None})

    def untrained(self) -> ModelSpec:
        """Return the same network with random weights."""
        return self.model_copy(update={"weights": None, "pretrain": None, "pretrained_for": None})


def same_vocabulary(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether two sizes may be of one vocabulary, padded to multiples of other powers of two or not at all."""
    sizes = sorted(spec.vocab_size or 0 for spec in (one, other))
    return sizes[0] == sizes[1] or (sizes[1] - sizes[0] < 1024 and sizes[1] % 64 == 0 and sizes[0] > 0)
