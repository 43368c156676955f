"""Files that are whole or absent: written beside, synced, then renamed."""

from __future__ import annotations

import os
from pathlib import Path

from budgetlab.errors import BudgetlabError

__all__ = ["write_whole"]


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file so that no reader and no crash ever sees half of it.

    Raises
    ------
    BudgetlabError
        When the disk is full or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except OSError as error:
        if path.parent.is_dir():
            beside.unlink(missing_ok=True)
        raise BudgetlabError(f"writing {path}", str(error), "free some room and run the same command again") from error
    return path
