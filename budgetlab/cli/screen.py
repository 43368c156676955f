"""What a person sees while it works: one live line on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from budgetlab.units import format_quantity, format_seconds

if TYPE_CHECKING:
    from budgetlab.runner import Progress as RunProgress

PLAIN_LINE_EVERY_SECONDS = 15.0


class Screen:
    """A stage at a time: `with screen.stage("profile") as stage: stage(text, fraction, seconds_left)`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(escape(line), soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print one line of warning."""
        self.say(f"warning   {line}")

    def stage(self, name: str) -> Stage:
        """Begin a stage."""
        return Stage(self, name)


class Stage:
    """A stage in progress; its `note` stands behind "done"."""

    def __init__(self, screen: Screen, name: str) -> None:
        self.screen, self.name, self.note = screen, name, ""
        self.live = screen.console.is_terminal
        self.said_at = 0.0
        columns = (
            SpinnerColumn(),
            TextColumn(f"{name:<9}"),
            BarColumn(bar_width=10),
            TimeElapsedColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
        )
        self.progress = Progress(
            *columns, console=screen.console, transient=True, disable=not self.live, expand=True
        )  # fmt: skip
        self.task = self.progress.add_task("", total=1.0)

    def __enter__(self) -> Stage:
        self.began = time.monotonic()
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if kind is None:
            took = format_seconds(time.monotonic() - self.began)
            self.screen.say(f"{self.name:<9} done in {took}{f': {self.note}' if self.note else ''}")

    def __call__(self, text: str, fraction: float | None = None, seconds_left: float | None = None) -> None:
        """Show where the stage stands."""
        left = "" if seconds_left is None else f"{format_seconds(seconds_left)} left, "
        if self.live:  # what matters first: a narrow terminal cuts the end off
            completed = None if fraction is None else min(1.0, max(0.0, fraction))
            self.progress.update(self.task, description=escape(f"{left}{text}"), completed=completed)
        elif time.monotonic() - self.said_at >= PLAIN_LINE_EVERY_SECONDS:
            self.said_at = time.monotonic()
            share = "" if fraction is None else f" {100 * fraction:.0f} %"
            self.screen.say(f"{self.name:<9}{share} {left}{text}")


def show_run(stage: Stage) -> Callable[[RunProgress], None]:
    """Return what shows the progress of runs on a stage."""

    def show(where: RunProgress) -> None:
        said = [f"{100 * where.spent_fraction:.0f} % of the FLOPs spent"]
        said += [f"{where.run_id} step {where.step:,}/{where.steps:,}"]
        said += [f"{name} {value:.3g}" for name, value in where.losses.items()]
        if where.tokens_per_second is not None:
            used = "n/a" if where.utilisation is None else f"{100 * where.utilisation:.0f} %"
            said += [f"{format_quantity(where.tokens_per_second)} tokens/s", f"utilisation {used}"]
        stage(", ".join(said), where.done_fraction, where.seconds_left)

    return show
