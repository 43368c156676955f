"""The options that every verb shares, declared once, and what verbs do with them: open a study, and print."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetlab.errors import CallerError

if TYPE_CHECKING:
    from budgetlab.cli.open_study import OpenStudy

StudyArg = Annotated[str, typer.Argument(help="Study file, or presets/NAME.toml.", metavar="STUDY")]


@dataclass(frozen=True)
class Options:
    """What a person may say to every verb."""

    results: Annotated[Path, typer.Option("--results", help="Folder for results.", metavar="DIR")] = Path("results")
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Where corpus and task paths are looked for first.", metavar="DIR"),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else on stderr.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False

    def open(self, study: str, *, ranks: Any = None) -> "OpenStudy":
        """Open a study, or the one beside a plan.json, in whose folder its results go.

        `ranks`: the processes that do this verb together.
        """
        from budgetlab.cli.open_study import OpenStudy

        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and ranks is None:
            raise CallerError("budgetlab under torchrun", "only run takes several processes", "start without torchrun")
        # Waiting OpenMP threads that spin make a shared machine several times slower; read when torch loads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        results = self.results
        if study.endswith(".json"):
            study, results = str(Path(study).with_name("study.toml")), Path(study).absolute().parent.parent
        return OpenStudy(study, results, self.data_root, quiet=ranks is not None and not ranks.first)

    def print(self, plain: Callable[[], Any], sheets: Callable[[], Sequence[Any]], *lines: str) -> None:
        """Print `plain` as one JSON object where that is asked for; else tables, and lines under them."""
        if self.as_json:
            print_json(plain())
            return
        if shown := [sheet for sheet in sheets() if sheet.rows]:
            from budgetlab.reporting.tables import print_sheets

            print_sheets(shown)
        for line in lines:
            print(line)


def print_json(found: Any) -> None:
    """Print one JSON object; nothing in it is NaN or infinite."""
    print(json.dumps(found, allow_nan=False))


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb, whose last parameter is `options`, as a command that has them as options of its own."""
    shared = inspect.signature(Options).parameters
    own = [p for name, p in inspect.signature(verb, eval_str=True).parameters.items() if name != "options"]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared.values())]

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        verb(**{p.name: given[p.name] for p in own}, options=Options(**{name: given[name] for name in shared}))

    del command.__wrapped__  # what is read of it is its own signature
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
