"""Jobs on worker processes side by side, each begun once what it needs is done; or one after the other, in this one."""

from __future__ import annotations

import heapq
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loky import ProcessPoolExecutor
from loky.backend import get_context

from budgetlab.engines.leases import Leases
from budgetlab.errors import BudgetlabError
from budgetlab.machine import ASKING_TO_END

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 5.0
"""Between two looks at what others are at: longer each time that nothing has changed."""
OVER, STOP = -1, -2
"""In the place of a job's number."""

Tell = Callable[[Any], None]
StopAsked = Callable[[], bool]
Worker = Callable[[Any, Tell, StopAsked], Any]


@dataclass(frozen=True)
class Shared:
    """What it takes to share jobs with workers elsewhere."""

    leases: Leases
    name: Callable[[Any], str]
    """Of a job's lease."""
    has_ended: Callable[[Any], bool]
    """Whether a job needs no work any more."""
    tell_ended: Callable[[Any], None]
    """Told of each job that ended elsewhere."""
    left: list[str] | None = None
    """Gets the names of what others are at in the end; None where that is waited for."""


def work(
    build: Callable[..., Worker],
    arguments: tuple[Any, ...],
    jobs: Sequence[Any],
    *,
    needs: Sequence[Collection[int]] | None = None,
    workers: int = 1,
    tell: Tell = lambda event: None,
    stop_asked: StopAsked = lambda: False,
    shared: Shared | None = None,
    agree: Callable[[Callable[[], int]], int] = lambda choose: choose(),
    gpus: Sequence[str] = (),
) -> Iterator[tuple[int, Any]]:
    """Do every job once that nobody else does and yield (its number, its result) as each ends.

    With several processes that do each job together, `agree` returns in all of them what one of them chooses. Each
    worker process sees one of several `gpus`.
    """
    board = _Board(jobs, needs, shared)
    if workers == 1 or len(jobs) < 2:
        worker = build(*arguments)
        while (number := agree(lambda: board.wait_for_next(stop_asked))) != OVER:
            if number == STOP:
                raise KeyboardInterrupt
            try:
                result = worker(jobs[number], tell, lambda: stop_asked() or board.is_lost(number))
            except KeyboardInterrupt:
                if stop_asked() or not board.is_lost(number):
                    raise
                board.end(number, elsewhere=True)
                continue
            board.end(number)
            yield number, result
        board.close()
        return
    # Fresh processes, not forks: a forked child of a process that has used OpenMP or CUDA may hang. loky's, not the
    # standard library's: those import the main script again, which would have to be guarded.
    context = get_context("loky")
    told, stop, turns = context.SimpleQueue(), context.Event(), None
    if len(gpus) > 1:
        turns = context.SimpleQueue()
        for number in range(workers):
            turns.put(gpus[number % len(gpus)])
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        initializer=_begin,
        initargs=(build, arguments, told, stop, turns, os.getpid()),
        # loky takes 300 MB more than at the start for a leak and restarts the worker; a network takes more.
        env={"LOKY_MAX_MEMORY_LEAK_SIZE": "1e15"},
    )
    running = dict[Future[Any], int]()
    failure: BaseException | None = None
    try:
        while True:
            if stop_asked() or failure is not None:
                failure = failure or KeyboardInterrupt()
                stop.set()
            while failure is None and len(running) < workers and (number := board.next()) != OVER:
                with _signals_blocked():
                    running[pool.submit(_do, jobs[number])] = number
            waiting = failure is None and board.look_again()
            if not running and not waiting:
                break
            if not running:
                time.sleep(POLL_SECONDS)
            done = wait(running, POLL_SECONDS, FIRST_COMPLETED).done
            while not told.empty():
                tell(told.get())
            for future in done:
                number, error = running.pop(future), future.exception()
                board.end(number)
                if error is None:
                    yield number, future.result()
                elif failure is None or isinstance(failure, KeyboardInterrupt):
                    failure = error  # what a job ran into while it was stopping is worth more than that it was asked to
        if failure is not None:
            raise failure
        board.close()
    except BrokenExecutor:
        remedy = "free some memory, or set execution.workers = 1, and give the same command again; nothing is lost"
        raise BudgetlabError(f"{workers} workers", "one was killed, perhaps for its memory", remedy) from None
    finally:
        # Whether done or interrupted: what they write is whole or absent, so that they can go at any moment.
        pool.shutdown(kill_workers=True)


class _Board:
    """Which job is next: linear in the jobs once, then constant, and of what others have, all that they are at."""

    def __init__(self, jobs: Sequence[Any], needs: Sequence[Collection[int]] | None, shared: Shared | None) -> None:
        self.jobs, self.shared = jobs, shared
        self.missing = [len(set(some)) for some in needs or [()] * len(jobs)]
        self.dependents: dict[int, list[int]] = {}
        for number, some in enumerate(needs or ()):
            for need in set(some):
                self.dependents.setdefault(need, []).append(number)
        self.ready = [number for number, missing in enumerate(self.missing) if not missing]
        self.elsewhere: list[int] = []
        self.look_at, self.pause = 0.0, POLL_SECONDS

    def next(self) -> int:
        """Return the first job that can begin here now, and take its lease; OVER where there is none."""
        while self.ready:
            number = heapq.heappop(self.ready)
            if self.shared is None:
                return number
            job, name = self.jobs[number], self.shared.name(self.jobs[number])
            if not self.shared.has_ended(job):
                if not self.shared.leases.take(name):
                    self.elsewhere.append(number)
                    continue
                if not self.shared.has_ended(job):
                    return number
                self.shared.leases.give_back(name)  # it ended between the two looks
            self.shared.tell_ended(job)
            self.pause = POLL_SECONDS
            self._release(number)
        return OVER

    def look_again(self) -> bool:
        """Have `next` look again at what others have, now and then; False where that is nothing, or not waited for."""
        if not self.elsewhere or self.shared is None or self.shared.left is not None:
            return False
        if (now := time.monotonic()) >= self.look_at:
            self.ready, self.elsewhere = sorted([*self.ready, *self.elsewhere]), []
            self.look_at, self.pause = now + self.pause, min(2 * self.pause, LONGEST_POLL_SECONDS)
        return True

    def wait_for_next(self, stop_asked: StopAsked) -> int:
        """Return the next job, once there is one; OVER after the last, STOP when asked to."""
        while not stop_asked():
            if (number := self.next()) != OVER or not self.look_again():
                return number
            time.sleep(POLL_SECONDS)
        return STOP

    def end(self, number: int, *, elsewhere: bool = False) -> None:
        """Take in that a job has ended here, however; or that another worker has taken it over."""
        if self.shared is not None:
            self.shared.leases.give_back(self.shared.name(self.jobs[number]))
        if elsewhere:
            self.elsewhere.append(number)
        else:
            self._release(number)

    def close(self) -> None:
        """Say what others are at."""
        if self.shared is not None and self.shared.left is not None:
            self.shared.left.extend(self.shared.name(self.jobs[number]) for number in self.elsewhere)

    def is_lost(self, number: int) -> bool:
        """Whether another worker has taken over a job that was begun here."""
        return self.shared is not None and self.shared.name(self.jobs[number]) in self.shared.leases.lost

    def _release(self, number: int) -> None:
        for other in self.dependents.pop(number, ()):
            self.missing[other] -= 1
            if not self.missing[other]:
                heapq.heappush(self.ready, other)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold back signals; processes that start meanwhile never get them.

    Ctrl-C reaches the whole group of processes, and the first one decides what becomes of it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ASKING_TO_END})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_HERE: dict[str, Any] = {}
"""What a worker process keeps from job to job."""


def _begin(
    build: Callable[..., Worker], arguments: tuple[Any, ...], told: Any, stop: Any, turns: Any, first: int
) -> None:  # fmt: skip
    if turns is not None:  # before CUDA looks
        os.environ["CUDA_VISIBLE_DEVICES"] = turns.get()
    for number in (signal.SIGINT, *ASKING_TO_END):
        signal.signal(number, signal.SIG_IGN)

    def end_with_the_first() -> None:  # its successor may begin the same job again
        while os.getppid() == first:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=end_with_the_first, daemon=True).start()
    _HERE.update(build=build, arguments=arguments, tell=told.put, stop_asked=stop.is_set)


def _do(job: Any) -> Any:
    if "worker" not in _HERE:  # not in `_begin`, where an error could not be told
        _HERE["worker"] = _HERE["build"](*_HERE["arguments"])
    return _HERE["worker"](job, _HERE["tell"], _HERE["stop_asked"])
