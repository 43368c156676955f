"""Showing a run elsewhere while it goes on: three calls, none of which can stop a run; TensorBoard is built in."""

from __future__ import annotations

import importlib.util
import runpy
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


class Trackers:
    """All trackers of one training; one that fails is left out from then on, with one warning."""

    def __init__(self, made: Mapping[str, Callable[[], Tracker]], warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.live: dict[str, Tracker] = {}
        for name, make in made.items():
            self._guarded(name, lambda name=name, make=make: self.live.update({name: make()}))

    def start(self, config: Mapping[str, Any]) -> None:
        """Tell all of them."""
        for name, tracker in list(self.live.items()):
            self._guarded(name, lambda tracker=tracker: tracker.start(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell all of them."""
        for name, tracker in list(self.live.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, values))

    def finish(self, status: str) -> None:
        """Tell all of them."""
        for name, tracker in list(self.live.items()):
            self._guarded(name, lambda tracker=tracker: tracker.finish(status))

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            self.live.pop(name, None)
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self.warn(f"tracker {name} failed ({said}); the run goes on without it")


def make_trackers(names: Sequence[str], folder: Path) -> dict[str, Callable[[], Tracker]]:
    """Find trackers by name: "tensorboard", or a Python file with a class `Tracker`."""
    return {name: _maker(name, folder) for name in names}


def _maker(name: str, folder: Path) -> Callable[[], Tracker]:
    asked = f"execution.trackers: {name!r}"
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise CallerError(asked, "it is not installed", "pip install 'budgetlab[tensorboard]'")
        return lambda: _TensorBoard(folder)
    if not name.endswith(".py") or not Path(name).is_file():
        raise CallerError(asked, "no such tracker", 'give "tensorboard", or the path of a file with a class Tracker')
    try:
        kind = runpy.run_path(name)["Tracker"]
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CallerError(
            asked, f"cannot be loaded ({said})", "define a class Tracker in it, without errors"
        ) from error
    return lambda: kind(folder)
