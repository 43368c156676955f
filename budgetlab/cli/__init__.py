"""The command line: one verb each, the same functions as the Python API; rooms load when their verb is called."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from typer.exceptions import TyperException

from budgetlab.cli.caches import cache
from budgetlab.cli.demo import demo
from budgetlab.cli.fit_table import fit
from budgetlab.cli.init import init
from budgetlab.cli.options import with_options
from budgetlab.cli.pricing import plan, profile
from budgetlab.cli.verbs import doctor, evaluate, report, retry, run, status, study, work
from budgetlab.errors import BudgetlabError, LostRank, Terminated, place_in_own_code
from budgetlab.machine import ASKING_TO_END

__all__ = ["app", "run_command"]

INTERRUPTED = 130
STOPPED = "stopped; what was finished is kept, and the same command goes on from there"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Is it better to distil, or to pretrain on more tokens? Profile, plan, run, evaluate, fit, report.",
)
for verb in (init, profile, plan, run, evaluate, fit, report, study, work, status, retry, demo, cache, doctor):
    app.command()(with_options(verb))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"budgetlab {importlib.metadata.version('budgetlab')}")
        raise typer.Exit


@app.callback()
def _begin(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit status.

    0; 2 for a caller's mistake; 1 for a failure; 42 where a unit of a worker failed for good; 75 where it goes on when
    started again, after SIGTERM or SIGUSR1; 130 for Ctrl-C.
    """
    try:
        with _leave_when_asked():
            status = app(args=arguments or ["--help"], prog_name="budgetlab", standalone_mode=False) or 0
        return _fail(arguments, STOPPED, status) if status == INTERRUPTED else status
    except TyperException as error:
        return _fail(arguments, f"{error}{_near(error)}; see budgetlab --help, or budgetlab COMMAND --help", 2)
    except LostRank as error:
        # Of many processes that all lost the same one, the first says so.
        return _fail(arguments, str(error), error.exit_status) if os.environ.get("RANK", "0") == "0" else 1
    except (BudgetlabError, Terminated) as error:
        return _fail(arguments, str(error), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(arguments, STOPPED, INTERRUPTED)
    except OSError as error:
        return _fail(arguments, f"{error}; nothing that was finished is lost", 1)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        if (place := place_in_own_code(error)) is not None:
            return _fail(arguments, f"{place}: {line}; correct your file", 2)
        return _fail(arguments, f"unexpected failure: {line}; run again with --debug and report it", 1)


@contextmanager
def _leave_when_asked() -> Iterator[None]:
    """Have SIGTERM or SIGUSR1 end any verb as it ends a run: with the status that asks to be started again."""

    def leave(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        raise Terminated("stopped", "give the same command again; what was finished is kept", name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in ASKING_TO_END}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _near(error: TyperException) -> str:
    """Name the options that are spelt nearly like one that does not exist."""
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if name is None or context is None:
        return ""
    known = [option for parameter in context.command.params for option in parameter.opts if option.startswith("--")]
    near = difflib.get_close_matches(name, known, n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _fail(arguments: list[str], message: str, status: int) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    print(f"budgetlab: {message}", file=sys.stderr)
    return status
