"""The application that every verb joins, the options that they share, and how they print."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetlab.errors import CallerError

if TYPE_CHECKING:
    from budgetlab.cli.workbench import Workbench
    from budgetlab.ranks import Ranks


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Is it better to distil, or to pretrain on more tokens? Profile, plan, run, evaluate, fit, report.",
)

StudyArg = Annotated[str, typer.Argument(help="Study file, or presets/NAME.toml.", metavar="STUDY")]
Results = Annotated[Path, typer.Option("--results", help="Folder for results.", metavar="DIR")]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Where corpus and task paths are looked for first.", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]
RESULTS = Path("results")


def bench_of(study: str, results: Path, data_root: Path | None, *, ranks: Ranks | None = None) -> Workbench:
    """Open the study and its results folder; `ranks`: the processes that do this verb together."""
    from budgetlab.cli.screen import Screen
    from budgetlab.cli.workbench import open_workbench

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and ranks is None:
        raise CallerError("budgetlab under torchrun", "only run takes several processes", "start it without torchrun")
    # Waiting OpenMP threads that spin make a shared machine several times slower; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return open_workbench(study, results, data_root, Screen(quiet=ranks is not None and not ranks.first))


def print_json(found: Any) -> None:
    """Print one JSON object; nothing in it is NaN or infinite."""
    print(json.dumps(found, allow_nan=False))


def show(found: Any, plain: Any, sheet: str, as_json: bool) -> None:
    """Print plain values as JSON, or the named sheet of what was found."""
    if as_json:
        print_json(plain)
        return
    from budgetlab.reporting import tables

    tables.print_sheets([getattr(tables, sheet)(found)])
