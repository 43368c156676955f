"""Where jobs run: processes of this machine, and what starts workers on others.

An engine starts workers, each of which takes from the study's folder what is left to do (`leases`), and has no other
part in what they do: should it end, what they began is gone on from.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from budgetlab.errors import CallerError, unknown_name

ENGINES = {"local": None, "slurm": "submitit", "ray": "ray"}
"""Their names, which those of extras are too, and the package that each needs."""


@dataclass(frozen=True)
class Fleet:
    """Workers that are to be started.

    Attributes
    ----------
    arguments
        Of `budgetlab`, the same for each.
    run_command
        Runs such arguments in this process and returns the exit status.
    workers
        How many.
    gpus, threads
        Of each.
    slurm
        What the study's `[execution.slurm]` says.
    logs
        Folder for what they print.
    """

    name: str
    arguments: tuple[str, ...]
    run_command: Callable[[list[str]], int]
    workers: int
    gpus: int
    threads: int
    slurm: Mapping[str, Any]
    logs: Path


def check_engine(engine: str) -> None:
    """Refuse an engine that is unknown or not installed."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES, "--engine")
    package = ENGINES[engine]
    if package is not None and importlib.util.find_spec(package) is None:
        remedy = f'pip install "budgetlab[{engine}]"'
        raise CallerError(f"--engine {engine}", f"{package} is not installed", remedy)


def start_workers(engine: str, fleet: Fleet, say: Callable[[str], None]) -> list[int] | None:
    """Start workers.

    Returns
    -------
    statuses
        The exit statuses of the workers, where they were waited for; None where they go on by themselves.
    """
    check_engine(engine)
    return import_module(f"budgetlab.engines.{engine}").start(fleet, say)
