"""Threads are set before torch is imported: one a worker, or two workers on two cores are slower than one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real text, tasks and published tables, where it is."""
    root = os.environ.get("BUDGETLAB_DATA_ROOT")
    if not root or not Path(root).is_dir():
        pytest.skip("BUDGETLAB_DATA_ROOT is not set to a folder with the data")
    return Path(root)
