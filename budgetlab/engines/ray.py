"""Workers as tasks of Ray, on a cluster that is there or on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from budgetlab.engines import Fleet
from budgetlab.errors import BudgetlabError

_TIMES_AGAIN = 10


def start(fleet: Fleet, say: Callable[[str], None]) -> list[int]:
    """Start the workers and wait for them; a worker that is lost is started again."""
    ray: Any = import_module("ray")
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address=address, log_to_driver=True, include_dashboard=None if address else False)
    gpus = fleet.gpus if ray.cluster_resources().get("GPU", 0) else 0

    # What has ended is not done again: a worker that is retried finds what is left.
    @ray.remote(num_cpus=fleet.threads, num_gpus=gpus, max_retries=_TIMES_AGAIN)
    def worker(arguments: list[str], folder: str) -> int:
        os.chdir(folder)
        return fleet.run_command(arguments)

    say(f"ray: {fleet.workers} workers on {len(ray.nodes())} nodes, {fleet.threads} cores and {gpus} GPUs each")
    try:
        return ray.get([worker.remote(list(fleet.arguments), os.getcwd()) for _ in range(fleet.workers)])
    except ray.exceptions.RayError as error:
        wrong = " ".join(str(error).split())[:200]
        raise BudgetlabError("--engine ray", wrong, "give the same command again; nothing is lost") from error
    finally:
        ray.shutdown()
