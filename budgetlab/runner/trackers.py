"""Who is told of a run while it goes on: trackers by name or of the user's own, none of which can stop it."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from budgetlab.errors import CallerError


class Tracker(Protocol):
    """What a tracker does; one object is made for each training.

    A file named in `execution.trackers` has a class `Tracker` with these methods, made as `Tracker(folder)`, the
    folder being the run's own. It is called at the points of a run, by one process, and may be slow: its time is
    metered with the checkpoints', and charged to no arm.
    """

    def start(self, config: Mapping[str, Any]) -> None:
        """A training begins, or goes on; `config` has `run_id`, `arm`, `run_seed` and what else decides it."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A point: losses by term, `learning_rate`, `tokens`, `required_flops`, `device_seconds` and so on."""
        ...

    def finish(self, status: str) -> None:
        """The training has ended: "complete", "failed", or "running" where it was stopped and will go on."""
        ...


class _TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir results/NAME/runs` shows all runs."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, config: Mapping[str, Any]) -> None:
        self.writer.add_text("config", "\n".join(f"    {name} = {value!r}" for name, value in config.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, status: str) -> None:
        self.writer.add_text("status", status)
        self.writer.close()


class _Wandb:
    """Weights & Biases, or trackio, which has its calls; a training that goes on is one run there too."""

    def __init__(self, folder: Path, module: str) -> None:
        self.there, self.folder, self.resumes = importlib.import_module(module), folder, module == "wandb"

    def start(self, config: Mapping[str, Any]) -> None:
        name, project = config["run_id"], self.folder.parent.parent.name
        more = {"id": name, "resume": "allow", "dir": str(self.folder)} if self.resumes else {"resume": "allow"}
        self.run = self.there.init(project=project, name=name, config=dict(config), **more)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, status: str) -> None:
        self.run.finish()


class _MLflow:
    """MLflow, an experiment a study; the server is the one that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: Path) -> None:
        self.client, self.study = importlib.import_module("mlflow").MlflowClient(), folder.parent.parent.name

    def start(self, config: Mapping[str, Any]) -> None:
        found = self.client.get_experiment_by_name(self.study)
        experiment = self.client.create_experiment(self.study) if found is None else found.experiment_id
        self.run_id = self.client.create_run(experiment, run_name=config["run_id"]).info.run_id
        for name, value in config.items():
            self.client.log_param(self.run_id, name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def finish(self, status: str) -> None:
        ended = {"complete": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")
        self.client.set_terminated(self.run_id, ended)


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": lambda folder: _Wandb(folder, "wandb"),
    "trackio": lambda folder: _Wandb(folder, "trackio"),
    "mlflow": _MLflow,
}
"""By the name of the package and of budgetlab's extra."""


def find_tracker(name: str) -> Callable[[Path], Tracker]:
    """Find a tracker by name, or in a Python file with a class `Tracker`."""
    asked = f"execution.trackers: {name!r}"
    if name in TRACKERS:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise CallerError(asked, "it is not installed", f"pip install 'budgetlab[{name}]'")
        return TRACKERS[name]
    if not name.endswith(".py") or not Path(name).is_file():
        remedy = f"give {', '.join(TRACKERS)}, or the path of a file with a class Tracker"
        raise CallerError(asked, "no such tracker", remedy)
    try:
        return runpy.run_path(name)["Tracker"]
    except Exception as error:
        wrong, remedy = f"cannot be loaded ({_one_line(error)})", "define a class Tracker in it, without errors"
        raise CallerError(asked, wrong, remedy) from error


def tracker_callback(names: Sequence[str], folder: Path, warn: Callable[[str], None]) -> Callable[..., None]:
    """Return one function for all trackers: `track("log", step, values)` calls that method of each.

    One that fails is left out from then on, with one warning.
    """
    live: dict[str, Tracker | None] = dict.fromkeys(names)

    def track(method: str, *values: Any) -> None:
        for name, tracker in list(live.items()):
            try:
                live[name] = tracker = tracker or find_tracker(name)(folder)
                getattr(tracker, method)(*values)
            except Exception as error:
                del live[name]
                warn(f"tracker {name} failed ({_one_line(error)}); the run goes on without it")

    return track


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
