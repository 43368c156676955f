"""Workers as an array of Slurm jobs, by submitit: one job is one worker, queued again when its time is over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from budgetlab.engines import Fleet

WARNING_SECONDS = 120
"""Before the time limit; what a worker is at is saved and given back meanwhile."""
_TIMES_AGAIN = 1000
_STATUSES_KEPT = (0, 75)


class Job:
    """What one job does: a worker in a process of its own, which is asked to stop and queued again in time."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self.arguments = arguments

    def __call__(self) -> int:
        """Work until nothing is left, and return the exit status."""
        # Slurm sends its warning to every process of the job; here the first one passes it on.
        process = self.process = subprocess.Popen(
            [sys.executable, "-m", "budgetlab", *self.arguments],
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        while (status := process.poll()) is None:
            time.sleep(0.5)
        if status not in _STATUSES_KEPT:
            raise RuntimeError(f"budgetlab {' '.join(self.arguments)} ended with status {status}")
        return status

    def checkpoint(self) -> Any:
        """Have the worker save and give back what it is at, and be begun again."""
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        self.process.send_signal(signal.SIGUSR1)
        self.process.wait(timeout=WARNING_SECONDS)
        return DelayedSubmission(Job(self.arguments))


def start(fleet: Fleet, say: Callable[[str], None]) -> None:
    """Submit the workers and return; they need nobody."""
    import submitit  # pyright: ignore[reportMissingImports]

    executor = submitit.AutoExecutor(folder=fleet.logs / "%j", cluster="slurm", slurm_max_num_timeout=_TIMES_AGAIN)
    executor.update_parameters(**parameters(fleet))
    with executor.batch():
        jobs = [executor.submit(Job(fleet.arguments)) for _ in range(fleet.workers)]
    say(f"slurm: submitted {jobs[0].job_id} to {jobs[-1].job_id}; logs in {fleet.logs}")


def parameters(fleet: Fleet) -> dict[str, Any]:
    """Return submitit's parameters: `minutes` and `gpus` by their own names, all others as options of sbatch."""
    asked = dict(fleet.slurm)
    found: dict[str, Any] = {"name": f"budgetlab-{fleet.name}", "cpus_per_task": fleet.threads}
    if "minutes" in asked:
        found["timeout_min"] = asked.pop("minutes")
    gpus = asked.pop("gpus", fleet.gpus)
    if gpus:
        found["gpus_per_node"] = gpus
    further = {"open-mode": "append", **asked}
    return {**found, "slurm_signal_delay_s": WARNING_SECONDS, "slurm_additional_parameters": further}
