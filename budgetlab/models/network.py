"""ModelSpec -> a transformers network that computes only what it is asked for.

`Network` runs a language model block by block: it stops at the deepest block that is needed, cuts the last one after
Q, K, V where nothing else of it is read, computes logits at target positions only, and takes Q, K, V and raw scores
out of the attention itself (never through `output_attentions`, which returns nothing under SDPA).
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from budgetlab.errors import BudgetlabError
from budgetlab.values import ModelSpec, Needs, Signals
from budgetlab.values.model_specs import LIKE_LLAMA


@dataclass(frozen=True)
class Family:
    """Where a family keeps its parts, by attribute; the parts of a head are applied one after the other."""

    trunk: str
    head: tuple[str, ...]
    blocks: str = "encoder.layer"
    embeddings: str = "embeddings"
    last: tuple[str, str, str] = ("input_layernorm", "self_attn", "o_proj")
    """Of a causal block: what is before its attention ("": nothing), the attention, and in it the output projection."""
    attentions: tuple[str, ...] = ("sdpa", "eager")
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    defaults: dict[str, Any] = field(default_factory=dict)
    """Configuration that does not fit every vocabulary as transformers has it."""


_NO_TOKENS: dict[str, Any] = {f"{role}_token_id": None for role in ("bos", "eos", "pad")}
_LLAMA = Family(
    "model", ("lm_head",), "layers", "embed_tokens", dropouts=("attention_dropout",), defaults=_NO_TOKENS
)  # fmt: skip
FAMILIES = {
    "bert": Family("bert", ("cls",)),
    "roberta": Family("roberta", ("lm_head",)),
    "electra": Family("electra", ("generator_predictions", "generator_lm_head")),
    "megatron-bert": Family("bert", ("cls",), attentions=("eager",)),
    "modernbert": Family(
        "model",
        ("head", "decoder"),
        "layers",
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
        defaults={f"{role}_token_id": None for role in ("bos", "eos", "cls", "sep")},
    ),
    "gpt2": Family(
        "transformer",
        ("lm_head",),
        "h",
        "drop",
        ("ln_1", "attn", "c_proj"),
        dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        defaults=_NO_TOKENS,
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo2": replace(_LLAMA, last=("", "self_attn", "o_proj")),
    "gemma3_text": _LLAMA,
    **dict.fromkeys(LIKE_LLAMA, _LLAMA),
}


class Network(nn.Module):
    """A masked or causal language model, of one of the families above, that yields `Signals`."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    @property
    def trunk(self) -> Any:
        """Embeddings and blocks, without the head."""
        return getattr(self.model, FAMILIES[self.spec.family].trunk)

    @property
    def attention(self) -> str:
        """The attention that it was built with: "sdpa" or "eager"."""
        config: Any = self.model.config
        return str(config._attn_implementation).rpartition("_")[2]

    @property
    def word_embeddings(self) -> Tensor:
        """The input embeddings, [V, D] (ELECTRA: [V, embedding_size])."""
        return self.trunk.get_input_embeddings().weight

    def head(self, hidden: Tensor) -> Tensor:
        """The language modelling head: [..., D] -> [..., V]."""
        for part in FAMILIES[self.spec.family].head:
            hidden = getattr(self.model, part)(hidden)
        limit = getattr(self.model.config, "final_logit_softcapping", None)  # Gemma
        return hidden if limit is None else limit * torch.tanh(hidden / limit)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile this network apart from all others; arguments as for `torch.compile`.

        torch keeps at most eight graphs of one code object, over all networks that share it, and runs what comes after
        uncompiled without a word. So each gets a code object of its own, and a call past the limit is a BudgetlabError;
        once `sealed`, any call is that would be compiled again.
        """
        from torch._dynamo.exc import FailOnRecompileLimitHit, RecompileError  # only compiling needs it

        shared = type(self).forward
        own = types.FunctionType(shared.__code__.replace(), shared.__globals__, "forward", shared.__defaults__)
        compiled = torch.compile(types.MethodType(own, self), *args, **kwargs)

        def call(*inputs: object, **named: object) -> Any:
            try:
                with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, error_on_recompile=self.sealed):
                    return compiled(*inputs, **named)
            except FailOnRecompileLimitHit:
                wrong = f"it asks for more than {torch._dynamo.config.recompile_limit} graphs, and would run uncompiled"
                raise BudgetlabError("a compiled network", wrong, "set execution.compile = never") from None
            except RecompileError as error:
                wrong = f"a step would compile it again ({' '.join(str(error).split())[:160]})"
                raise BudgetlabError("a compiled network", wrong, "set execution.compile = never") from None

        self._compiled_call_impl, self.sealed = call, False

    def forward(
        self,
        input_ids_BT: Tensor,
        needs: Needs,
        target_positions_M: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        everything: bool = False,
    ) -> Signals:
        """Run the network as far as `needs` says.

        Token ids are int64 [B, T]; target positions flat ones into B*T, for `needs.logits == "masked"`; the mask is
        true at real tokens, None where nothing is padded; of a causal model it is true at allowed pairs, [B, T, T], and
        None where every position may attend to all that came before it. With `everything` all blocks, attention scores
        and logits are computed, whether needed or not.
        """
        signals, depth = Signals(), self.spec.num_layers
        whole = depth if everything or needs.trunk_depth < 0 else max(needs.trunk_depth, needs.projected_depth - 1)
        if self.spec.causal:
            hidden_BTD = self._run_causal(signals, input_ids_BT, needs, whole, attention_mask_BT, everything)
        elif self.spec.taps_attention:
            hidden_BTD = self._run_tapped(signals, input_ids_BT, needs, whole, attention_mask_BT, everything)
        else:
            hidden_BTD = self._run_own(signals, input_ids_BT, needs, whole, attention_mask_BT)
        if needs.logits == "none" and not everything:
            return signals

        def at_targets(rows: Tensor) -> Tensor:
            if needs.logits != "masked" or target_positions_M is None:
                return rows
            return rows.index_select(0, target_positions_M)  # not rows[...], whose gradient is sorted on a GPU

        flat = hidden_BTD.flatten(0, 1)
        logits = at_targets(self.head(flat)) if everything else self.head(at_targets(flat))
        signals.logits = logits if needs.logits != "none" else None
        return signals

    def _run_tapped(
        self, signals: Signals, ids_BT: Tensor, needs: Needs, whole: int, mask_BT: Tensor | None, everything: bool
    ) -> Tensor:
        """Run the blocks one by one, and take what is needed out of their attention."""
        trunk = self.trunk
        blocks = trunk.encoder.layer
        mask = None if mask_BT is None else mask_BT[:, None, None, :].bool()
        hidden_BTD = trunk.embeddings(input_ids=ids_BT)
        if hasattr(trunk, "embeddings_project"):  # ELECTRA with embeddings of another width
            hidden_BTD = trunk.embeddings_project(hidden_BTD)
        if 0 in needs.hidden:
            signals.hidden[0] = hidden_BTD
        for number, block in enumerate(blocks[:whole], start=1):
            hidden_BTD = block(hidden_BTD, mask, tap=_Tap(signals, number, needs, everything))
            hidden_BTD = hidden_BTD[0] if isinstance(hidden_BTD, tuple) else hidden_BTD
            if number in needs.hidden:
                signals.hidden[number] = hidden_BTD
        if needs.projected_depth > whole:
            own = blocks[whole].attention.self
            shape = (*hidden_BTD.shape[:2], own.num_attention_heads, own.attention_head_size)
            for target, linear in ((signals.queries, own.query), (signals.keys, own.key), (signals.values, own.value)):
                target[whole + 1] = linear(hidden_BTD).view(shape).transpose(1, 2)
        return hidden_BTD

    def _run_own(self, signals: Signals, ids_BT: Tensor, needs: Needs, whole: int, mask_BT: Tensor | None) -> Tensor:
        """Run a masked family's own forward on its first `whole` blocks."""
        mask = None if mask_BT is None else mask_BT.long()
        if mask is None and self.spec.family == "megatron-bert":
            # Its own forward would make a mask, and look at what it holds, which waits for the device.
            mask = torch.zeros((1, 1, 1, 1), device=ids_BT.device)
        return self._run_first(signals, needs, whole, input_ids=ids_BT, attention_mask=mask)

    def _run_causal(
        self, signals: Signals, ids_BT: Tensor, needs: Needs, whole: int, allowed_BTT: Tensor | None, everything: bool
    ) -> Tensor:
        """Run a causal family's own forward, of the last block up to Q, K, V where no more of it is needed."""
        cut = needs.projected_depth > whole
        tap = _Tap(signals, 0, needs, everything, needs.projected_depth if cut else None)
        mask = None if allowed_BTT is None else allowed_BTT[:, None]  # of four dimensions it is handed on as it is
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask, "use_cache": False, "tap": tap}
        return self._run_first(signals, needs, whole, cut=cut, **inputs)

    def _run_first(self, signals: Signals, needs: Needs, whole: int, *, cut: bool = False, **inputs: Any) -> Tensor:
        """Run the family's own forward on its first `whole` blocks; its last state is the one after the final norm."""
        family = FAMILIES[self.spec.family]
        *path, name = family.blocks.split(".")
        holder = functools.reduce(getattr, path, self.trunk)
        blocks, depth = getattr(holder, name), self.spec.num_layers

        def keep(number: int) -> Any:
            def hook(module: nn.Module, inputs: object, output: Any) -> None:
                signals.hidden[number] = output[0] if isinstance(output, tuple) else output

            return hook

        embeddings = getattr(self.trunk, family.embeddings)
        parts = {number: blocks[number - 1] if number else embeddings for number in needs.hidden}
        hooks = [part.register_forward_hook(keep(number)) for number, part in parts.items() if number < depth]
        first = blocks[:whole]
        if cut:
            first.append(_ToProjections(blocks[whole], *family.last))
        setattr(holder, name, first)
        try:
            hidden_BTD = self.trunk(**inputs)[0]
        finally:
            setattr(holder, name, blocks)
            for hook in hooks:
                hook.remove()
        if depth in needs.hidden:
            signals.hidden[depth] = hidden_BTD
        return hidden_BTD


@dataclass
class _Tap:
    """Rides through a block's keyword arguments into the attention and keeps what is needed there."""

    signals: Signals
    number: int
    """Of the block; 0 where the attention itself knows it."""
    needs: Needs
    everything: bool
    last: int | None = None
    """The block of which only queries, keys and values are needed."""


class _ToProjections(nn.Module):
    """A causal block that ends at its queries, keys and values; its own output is its input."""

    def __init__(self, block: Any, norm: str, attention: str, output: str) -> None:
        super().__init__()
        self.norm = getattr(block, norm) if norm else nn.Identity()
        self.attention, self.output = getattr(block, attention), output

    def forward(self, hidden_BTD: Tensor, *_: object, **named: Any) -> Tensor:
        projection = getattr(self.attention, self.output)
        setattr(self.attention, self.output, nn.Identity())
        positions = {name: named[name] for name in ("position_embeddings",) if name in named}
        try:
            self.attention(self.norm(hidden_BTD), attention_mask=None, tap=named["tap"], **positions)
        finally:
            setattr(self.attention, self.output, projection)
        return hidden_BTD


def allowed_pairs(length: int, device: torch.device, window: int | None = None) -> Tensor:
    """Which key each query may attend to in a causal model, [T, T]: itself, and those before it (in its window)."""
    allowed_TT = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    return allowed_TT if window is None or window >= length else allowed_TT.triu(1 - window)


def _causal_attention(math_attention: bool) -> Any:
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        tap: _Tap | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        number, length = module.layer_idx + 1, query.shape[2]
        if tap is not None and number in tap.needs.qkv:
            signals = tap.signals
            signals.queries[number], signals.keys[number], signals.values[number] = query, key, value
        if tap is not None and tap.last == number:
            return query.transpose(1, 2), None
        if (shared := query.shape[1] // key.shape[1]) > 1:  # several heads of queries for one of keys and values
            key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        allowed = attention_mask
        if sliding_window is not None and sliding_window < length:
            near_TT = allowed_pairs(length, query.device, sliding_window)
            allowed = near_TT if allowed is None else allowed & near_TT
        keeps_scores = tap is not None and number in tap.needs.scores
        if math_attention or keeps_scores or (tap is not None and tap.everything):
            scores_BHTT = torch.matmul(query, key.transpose(2, 3)) * scale
            if tap is not None and keeps_scores:
                tap.signals.scores[number] = scores_BHTT
            allowed = allowed_pairs(length, query.device) if allowed is None else allowed
            weights_BHTT = scores_BHTT.masked_fill(~allowed, torch.finfo(scores_BHTT.dtype).min).softmax(-1)
            output_BHTE = torch.matmul(functional.dropout(weights_BHTT, dropout, module.training), value)
        else:
            output_BHTE = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=allowed, dropout_p=dropout, is_causal=allowed is None, scale=scale
            )
        return output_BHTE.transpose(1, 2).contiguous(), None

    return attention


def _tapped_attention(math_attention: bool) -> Any:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        tap: _Tap | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        keeps_scores = tap is not None and tap.number in tap.needs.scores
        if tap is not None and tap.number in tap.needs.qkv:
            signals, number = tap.signals, tap.number
            signals.queries[number], signals.keys[number], signals.values[number] = query, key, value
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if math_attention or keeps_scores or (tap is not None and tap.everything):
            scores_BHTT = torch.matmul(query, key.transpose(2, 3)) * scale
            if tap is not None and keeps_scores:
                tap.signals.scores[tap.number] = scores_BHTT
            if attention_mask is not None:
                scores_BHTT = scores_BHTT.masked_fill(~attention_mask, torch.finfo(scores_BHTT.dtype).min)
            weights_BHTT = functional.dropout(scores_BHTT.softmax(-1), dropout, module.training)
            output_BHTE = torch.matmul(weights_BHTT, value)
        else:
            output_BHTE = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scale
            )
        return output_BHTE.transpose(1, 2).contiguous(), None

    return attention


AttentionInterface.register("budgetlab_sdpa", _tapped_attention(math_attention=False))
AttentionInterface.register("budgetlab_eager", _tapped_attention(math_attention=True))
AttentionInterface.register("budgetlab_causal_sdpa", _causal_attention(math_attention=False))
AttentionInterface.register("budgetlab_causal_eager", _causal_attention(math_attention=True))
