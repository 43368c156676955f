"""The one error family: what was asked, what is wrong, what to do."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable

_LONGEST = 600
"""Characters of each part of a message."""


class BudgetlabError(Exception):
    """A failure that budgetlab can name.

    Parameters
    ----------
    asked
        What the caller asked for, with its numbers and units.
    wrong
        What is wrong with it.
    remedy
        What to do about it.
    """

    exit_status = 1

    def __init__(self, asked: str, wrong: str, remedy: str) -> None:
        self.asked, self.wrong, self.remedy = asked, wrong, remedy
        line = ": ".join(_shortened(part) for part in (asked, wrong)) + f"; {remedy}"
        # What a terminal would not print, it would obey.
        shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
        super().__init__("".join(shown))

    def __reduce__(self) -> tuple[type[BudgetlabError], tuple[str, str, str]]:
        return type(self), (self.asked, self.wrong, self.remedy)


def _shortened(text: str) -> str:
    """One line, of a value of any length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 20]} ... {line[-15:]}"


FAILED_FOR_GOOD = 42
"""Exit status where a unit of a study failed of itself: starting again does not help, `budgetlab retry` does."""


class CallerError(BudgetlabError, ValueError):
    """A mistake of the caller: a wrong key, type, unit, name, path or an impossible request."""

    exit_status = 2


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> CallerError:
    """Build the error for a name that does not exist, with near matches and what exists."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    listing = ", ".join(names) if names else "none"
    return CallerError(f"{where or kind} {name!r}", f"no {kind} of that name", f"{hint}known: {listing}")


def place_in_own_code(error: BaseException) -> str | None:
    """Return the file and line of a user's own strategy, law or tracker at which an error arose; None elsewhere."""
    frames = [(frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line)
              for frame, line in traceback.walk_tb(error.__traceback__)]  # fmt: skip
    own = [f"{file}, line {line}" for module, file, line in frames if str(module).startswith("user_")]
    if isinstance(error, SyntaxError):
        own.append(f"{error.filename}, line {error.lineno}")
    return own[-1] if own else None


class LostRank(BudgetlabError):
    """Another of the processes that train together is gone; it has said why, or was killed."""


class Terminated(BaseException):
    """The system asked the process to end, by SIGTERM or SIGUSR1: what it was at is saved; it is to be started again.

    It comes at any moment, like `KeyboardInterrupt`, and like that it is no failure of what it interrupts.

    Its exit status, 75, is the one that mail programs call a temporary failure; a queue can be told to requeue on it.
    """

    exit_status = 75

    def __init__(self, wrong: str, remedy: str, name: str = "SIGTERM") -> None:
        super().__init__(f"{name}: {wrong}; {remedy}")
