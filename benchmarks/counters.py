"""FLOP counters against the closed form, side by side in one run: what each says of the same language model.

    python benchmarks/counters.py                                  # with what budgetlab depends on
    pip install --target peers --no-deps ptflops calflops thop    # further counters, where they can be had
    PYTHONPATH=peers python benchmarks/counters.py

Every model is built as transformers does by default (attention "sdpa") and again with "eager"; sequences of 128, on the
CPU, forward pass with logits at every position. Counters of multiply-adds are doubled. CPU seconds, one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import importlib.util
import io
import logging
import time
import warnings
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, GPT2Config

from budgetlab.models import SingleModel, describe_model
from budgetlab.profiler.count import CLOSED_FORMS
from budgetlab.profiler.single_model import count_model

LENGTH = 128
MODELS = {
    "BERT 4 x 256": BertConfig(
        num_hidden_layers=4, hidden_size=256, num_attention_heads=4, intermediate_size=1024, use_cache=False
    ),
    "BERT 12 x 768": BertConfig(use_cache=False),
    "GPT-2 12 x 768": GPT2Config(use_cache=False),
}


class Logits(torch.nn.Module):
    """Only the logits, as tracers want it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        return self.model(input_ids=input_ids).logits


def ours(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Count without the weights: what `budgetlab profile --model` does, with its three counts."""
    kind = "causal" if model.config.model_type == "gpt2" else "masked"
    found = count_model(SingleModel("it", model.config, kind), seq_len=LENGTH)
    return found.body_forward_flops_per_token + found.head_forward_flops_per_position


def torch_counter(model: torch.nn.Module, ids: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    return counter.get_total_flops() / LENGTH


def fvcore(model: torch.nn.Module, ids: torch.Tensor) -> float:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(Logits(model), (ids,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return 2 * analysis.total() / LENGTH


def trainer_rule(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """What the Trainer of transformers records as `total_flos`: 6 N T, N without embeddings; a third of it, forward."""
    return 6 * model.num_parameters(exclude_embeddings=True) / 3


def ptflops(model: torch.nn.Module, ids: torch.Tensor) -> float:
    from ptflops import get_model_complexity_info

    multiply_adds, _ = get_model_complexity_info(
        model, (LENGTH,), as_strings=False, print_per_layer_stat=False, backend="pytorch",
        input_constructor=lambda shape: {"input_ids": ids},
    )  # fmt: skip
    return 2 * multiply_adds / LENGTH


def calflops(model: torch.nn.Module, ids: torch.Tensor) -> float:
    from calflops import calculate_flops

    flops, _, _ = calculate_flops(
        model, kwargs={"input_ids": ids}, print_results=False, print_detailed=False, output_as_string=False
    )
    return flops / LENGTH


def thop(model: torch.nn.Module, ids: torch.Tensor) -> float:
    from thop import profile

    multiply_adds, _ = profile(Logits(model), (ids,), verbose=False)
    return 2 * multiply_adds / LENGTH


COUNTERS: dict[str, tuple[Callable[[torch.nn.Module, torch.Tensor], float], str]] = {
    "budgetlab": (ours, "budgetlab"),
    "torch FlopCounterMode": (torch_counter, "torch"),
    "fvcore, doubled": (fvcore, "fvcore"),
    "Trainer's 6 N T": (trainer_rule, "transformers"),
    "ptflops, doubled": (ptflops, "ptflops"),
    "calflops": (calflops, "calflops"),
    "thop, doubled": (thop, "thop"),
}


def main() -> None:
    """Print each counter's ratio to the closed form, and its CPU seconds on the largest model."""
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    present = {name: found for name, (found, package) in COUNTERS.items() if importlib.util.find_spec(package)}
    heads = [f"{name}, {attention}" for name in MODELS for attention in ("sdpa", "eager")]
    print(f"forward FLOPs a position over the closed form; sequences of {LENGTH}; torch {torch.__version__}")
    print(f"{'':24}" + "".join(f"{head:>23}" for head in heads) + f"{'CPU s':>9}")
    for name, counter in present.items():
        cells, seconds = [], 0.0
        for config in MODELS.values():
            body, head = CLOSED_FORMS[config.model_type]
            sizes = describe_model(config)
            expected = body(sizes, LENGTH) + head(sizes)
            auto = AutoModelForCausalLM if config.model_type == "gpt2" else AutoModelForMaskedLM
            for attention in ("sdpa", "eager"):
                model = auto.from_config(config, attn_implementation=attention).eval()
                ids = torch.zeros((1, LENGTH), dtype=torch.long)
                began = time.process_time()
                with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                    warnings.simplefilter("ignore")
                    try:
                        found = counter(model, ids) if name != "budgetlab" else torch.enable_grad()(counter)(model, ids)
                        cells.append(f"{found / expected:.4f}")
                    except Exception as error:
                        cells.append(f"fails ({type(error).__name__})")
                seconds = max(seconds, time.process_time() - began)
        print(f"{name:24}" + "".join(f"{cell:>23}" for cell in cells) + f"{seconds:9.2f}")
    absent = [name for name in COUNTERS if name not in present]
    print(f"not installed: {', '.join(absent) or 'none'}")


if __name__ == "__main__":
    main()
