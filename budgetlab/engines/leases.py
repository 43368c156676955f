"""Leases: which worker is at which job of one study, on any number of hosts, from files alone.

A lease is a file made with O_EXCL, renewed by its owner now and then, and deleted when its job ends. It expires once a
reader has seen it unchanged for long by its own clock, so that clocks that differ do not matter; at once where its
process was on this machine and is gone. It is taken over by rename. Should two workers ever do the same job, nothing is
lost: what jobs write is whole or absent, and the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgetlab.errors import BudgetlabError, CallerError
from budgetlab.machine import process_name, this_machine

BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 90.0
"""Longer than a beat and the minute for which a client of NFS may believe what it knew."""

_seen: dict[Path, tuple[tuple[str, int], float]] = {}
"""How each lease of others looked, and since when by this process's clock."""


class Leases:
    """The leases that this process holds in one folder, renewed in the background; for a `with` block.

    Parameters
    ----------
    folder
        Where they are; made with the first one, deleted with the last.
    about
        What workers of one study must have in common, by a name for a person. Leases without one of these are not
        compared in it.

    Raises
    ------
    CallerError
        On entering, where others are at work there with something else.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)
        self.held: dict[str, str] = {}
        self.lost: set[str] = set()
        """Of those held, what another worker has taken over meanwhile."""
        self.taken_over = 0
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Leases:
        for lease in read_leases(self.folder):
            self._compare(lease)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for job in list(self.held):
            self.give_back(job)
        with contextlib.suppress(OSError):  # others are at work, or there never was one
            self.folder.rmdir()

    def take(self, job: str) -> bool:
        """Take the lease of a job, if no other worker has it.

        Raises
        ------
        CallerError
            When another worker has it who is about something else.
        BudgetlabError
            When the folder cannot be written.
        """
        if not self._renewing.ident:
            self._renewing.start()
        path = self.folder / job
        try:
            if (own := self._write(path, 1)) is None:
                theirs = _read(path)
                if theirs is None or not _expired(path, *theirs):
                    if theirs is not None:
                        self._compare(_parsed(path, theirs[0]))
                    return False
                own = self._take_over(path, theirs[0])
        except OSError as error:
            remedy = "see that the folder can be written, and give the same command again"
            raise BudgetlabError(f"leases in {self.folder}", str(error), remedy) from error
        if own is None:
            return False
        self.held[job] = own
        self.lost.discard(job)
        return True

    def give_back(self, job: str) -> None:
        """Let go of a lease, unless another worker has taken it over."""
        path, own = self.folder / job, self.held.pop(job)
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == own:
                path.unlink()

    def _write(self, path: Path, attempt: int) -> str | None:
        """Make a lease; None where there is one."""
        pid = os.getpid()
        about = {"host": platform.node(), "machine": this_machine(), "pid": pid, "process": process_name(pid)}
        text = json.dumps({**about, "attempt": attempt, "since": time.time(), "about": self.about})
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return text

    def _take_over(self, path: Path, expired: str) -> str | None:
        """Put an own lease in the place of one that has expired, unless another worker does.

        Of several who want to, one makes the successor, whose name follows from the lease that it succeeds.
        """
        successor = path.with_name(f".{path.name}.{hashlib.sha256(expired.encode()).hexdigest()[:16]}")
        own = self._write(successor, _parsed(path, expired).get("attempt", 0) + 1)
        if own is None:
            theirs = _read(successor)
            if theirs is not None and _expired(successor, *theirs):  # it died between making and renaming it
                successor.unlink(missing_ok=True)
            return None
        now = _read(path)
        if now is None or now[0] != expired:
            successor.unlink(missing_ok=True)
            return None
        successor.replace(path)
        self.taken_over += 1
        return own

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            for job, own in list(self.held.items()):
                path = self.folder / job
                with contextlib.suppress(OSError):  # a server that does not answer now may do so later
                    if path.read_text(encoding="utf-8") == own:
                        os.utime(path)
                    elif job in self.held:
                        self.lost.add(job)

    def _compare(self, lease: Mapping[str, Any]) -> None:
        """Refuse to work beside one that is about something else."""
        if not lease or _is_gone(lease):
            return
        for name, own in self.about.items():
            theirs = lease["about"].get(name, own)
            if theirs != own:
                who = f"process {lease['pid']} on {lease['host']}"
                wrong = f"{name} is {own} here, and {theirs} of {who}, which is at work on {lease['job']}"
                remedy = f"wait until that has ended, or delete {self.folder} if nothing runs"
                raise CallerError(f"work in {self.folder.parent}", wrong, remedy)


def read_leases(folder: Path) -> list[dict[str, Any]]:
    """Return the leases of a folder.

    Returns
    -------
    leases
        Each with `job`, `host`, `pid`, `attempt`, `since` (by its owner's clock, seconds), `about`, and `gone`: whether
        its process was on this machine and is no more.
    """
    found = []
    for path in sorted(folder.glob("[!.]*")):
        theirs = _read(path)
        if theirs is not None and (lease := _parsed(path, theirs[0])):
            found.append({**lease, "gone": _is_gone(lease)})
    return found


def _read(path: Path) -> tuple[str, int] | None:
    """Return what a lease says and its time; opening it asks the server, where its folder's listing may be old."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    """Return what a lease says; nothing of one whose owner is just writing it, or was killed at that."""
    try:
        return {"about": {}, **json.loads(text), "job": path.name}
    except (ValueError, TypeError):
        return {}


def _is_gone(lease: Mapping[str, Any]) -> bool:
    """Whether the process of a lease was on this machine, and is no more."""
    if lease.get("process") is None or lease["machine"] != this_machine():
        return False
    return process_name(lease["pid"]) != lease["process"]


def _expired(path: Path, text: str, time_ns: int) -> bool:
    """Whether the owner of a lease is gone, or has not renewed it for long while this process looked."""
    now = time.monotonic()
    if (lease := _parsed(path, text)) and _is_gone(lease):
        return True
    before = _seen.get(path)
    if before is None or before[0] != (text, time_ns):
        _seen[path] = ((text, time_ns), now)
        return False
    return now - before[1] >= EXPIRE_SECONDS
