"""The command line: one verb each, the same functions as the Python API; rooms load when their verb is called."""

from __future__ import annotations

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
from budgetlab.cli.options import with_options
from budgetlab.cli.pricing import plan, profile
from budgetlab.cli.verbs import doctor, evaluate, report, run, status, study
from budgetlab.errors import BudgetlabError, LostRank, Terminated, place_in_own_code

__all__ = ["app", "run_command"]

INTERRUPTED = 130
STOPPED = "stopped; what was finished is kept, and the same command goes on from there"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Is it better to distil, or to pretrain on more tokens? Profile, plan, run, evaluate, fit, report.",
)
for verb in (profile, plan, run, evaluate, fit, report, study, status, demo, cache, doctor):
    app.command()(with_options(verb))


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit status.

    0; 2 for a caller's mistake; 1 for a failure; 75 where SIGTERM ended a run that goes on when started again; 130 for
    Ctrl-C.
    """
    try:
        with _leave_on_sigterm():
            status = app(args=arguments or ["--help"], prog_name="budgetlab", standalone_mode=False) or 0
        return _fail(arguments, STOPPED, status) if status == INTERRUPTED else status
    except TyperException as error:
        return _fail(arguments, f"{error}; see budgetlab --help, or budgetlab COMMAND --help", 2)
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
def _leave_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end any verb as it ends a run: with the status that asks to be started again."""

    def leave(number: int, frame: object) -> None:
        raise Terminated("stopped", "give the same command again; what was finished is kept")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(arguments: list[str], message: str, status: int) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    print(f"budgetlab: {message}", file=sys.stderr)
    return status
