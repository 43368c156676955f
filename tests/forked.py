"""Commands in forks of one process that has loaded torch and transformers, which takes longer than most commands do."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

SERVER = """
import json, os, signal, sys

import budgetlab.cli.open_study, budgetlab.decisions, budgetlab.evaluation, budgetlab.planner, budgetlab.runner
from budgetlab.__main__ import main


def tell_of_ended(*_):
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        os.write(1, f"{pid} {os.waitstatus_to_exitcode(status)}\\n".encode())


signal.signal(signal.SIGCHLD, tell_of_ended)
for line in sys.stdin:
    asked = json.loads(line)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.setsid()
        for number in (0, 1, 2):
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(os.devnull if number == 0 else asked["files"][number - 1], mode, 0o600), number)
        os.environ.update(asked["environment"])
        sys.argv[1:] = asked["arguments"]
        sys.exit(main())
    os.write(1, f"{pid} begun\\n".encode())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
"""


class Command:
    """One command, in a process group of its own."""

    def __init__(self, forks: Forks, pid: int, files: tuple[Path, Path]) -> None:
        self.forks, self.pid, self._files = forks, pid, files

    @property
    def out(self) -> str:
        """What it printed so far."""
        return self._files[0].read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        """What it said so far."""
        return self._files[1].read_text(encoding="utf-8")

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        self.forks.read(0.0)
        return self.forks.statuses.get(self.pid)

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit status, once it has ended."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            assert time.monotonic() < deadline, f"{self.errors[-2000:]}"
            self.forks.read(0.1)
        return status

    def send_signal(self, number: int) -> None:
        """Signal its first process alone."""
        os.kill(self.pid, number)


class Forks:
    """The process that loads everything once and forks for each command; begun when the first is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.statuses, self._begun, self._rest = folder, dict[int, int](), list[int](), b""
        self._server: subprocess.Popen[bytes] | None = None
        self._count = 0

    def begin(self, *arguments: str, **environment: str) -> Command:
        """Begin `budgetlab ARGUMENTS` with these further variables of the environment."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        self._count += 1
        files = self.folder / f"{self._count}.out", self.folder / f"{self._count}.err"
        for path in files:
            path.touch()
        asked = {"arguments": arguments, "environment": environment, "files": [str(path) for path in files]}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(asked).encode() + b"\n")
        deadline = time.monotonic() + 120
        while not self._begun:
            assert time.monotonic() < deadline and self._server.poll() is None
            self.read(0.1)
        return Command(self, self._begun.pop(), files)

    def read(self, seconds: float) -> None:
        """Take in what the server tells within so many seconds."""
        assert self._server is not None and self._server.stdout is not None
        while select.select([self._server.stdout], [], [], seconds)[0]:
            found = os.read(self._server.stdout.fileno(), 4096)
            assert found, "the process that forks is gone"
            *lines, self._rest = (self._rest + found).split(b"\n")
            for line in lines:
                pid, said = line.decode().split()
                if said == "begun":
                    self._begun.append(int(pid))
                else:
                    self.statuses[int(pid)] = int(said)
            seconds = 0.0

    def end(self) -> None:
        """End it."""
        if self._server is not None:
            with self._server as server:  # which ends where its input does
                assert server.stdin is not None
                server.stdin.close()
