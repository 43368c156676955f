"""A trained network as a plain transformers folder that needs no budgetlab to be loaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging

from budgetlab.models.network import Network


def export_model(network: Network, tokenizer: Any, card: str, folder: Path, *, seq_len: int) -> None:
    """Write config, weights (safetensors), tokenizer and model card, in one step: all of the folder or nothing.

    Parameters
    ----------
    network
        On any device.
    tokenizer
        A transformers tokenizer.
    card
        Of README.md.
    folder
        Replaced if it is there.
    seq_len
        Positions that it was trained on, beyond which its tokenizer cuts.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model: Any = network.model
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
