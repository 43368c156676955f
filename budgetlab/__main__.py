"""Run `python -m budgetlab` or `budgetlab`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a mistake is one line on stderr, never a traceback without --debug."""
    from budgetlab.cli import run_command

    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
