"""Jobs on worker processes side by side, each begun once what it needs is done; or one after the other, in this one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from typing import Any

from loky import ProcessPoolExecutor
from loky.backend import get_context

from budgetlab.errors import BudgetlabError

POLL_SECONDS = 0.2

Tell = Callable[[Any], None]
StopAsked = Callable[[], bool]
Worker = Callable[[Any, Tell, StopAsked], Any]


def work(
    build: Callable[..., Worker],
    arguments: tuple[Any, ...],
    jobs: Sequence[Any],
    *,
    needs: Sequence[Collection[int]] | None = None,
    workers: int = 1,
    tell: Tell = lambda event: None,
    stop_asked: StopAsked = lambda: False,
) -> Iterator[tuple[int, Any]]:
    """Do every job once and yield (its number, its result) as each ends."""
    if workers == 1 or len(jobs) < 2:
        worker = build(*arguments)
        for number, job in enumerate(jobs):
            if stop_asked():
                raise KeyboardInterrupt
            yield number, worker(job, tell, stop_asked)
        return
    # Fresh processes, not forks: a forked child of a process that has used OpenMP or CUDA may hang. loky's, not the
    # standard library's: those import the main script again, which would have to be guarded.
    context = get_context("loky")
    told, stop = context.SimpleQueue(), context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        initializer=_begin,
        initargs=(build, arguments, told, stop, os.getpid()),
        # loky takes 300 MB more than at the start for a leak and restarts the worker; a network takes more.
        env={"LOKY_MAX_MEMORY_LEAK_SIZE": "1e15"},
    )
    waiting, running, ended = dict(enumerate(jobs)), dict[Future[Any], int](), set[int]()
    failure: BaseException | None = None
    try:
        while running or (waiting and failure is None):
            if stop_asked() or failure is not None:
                failure = failure or KeyboardInterrupt()
                stop.set()
            ready = [n for n in waiting if needs is None or ended.issuperset(needs[n])] if failure is None else []
            for number in ready[: workers - len(running)]:
                with _signals_blocked():
                    running[pool.submit(_do, waiting.pop(number))] = number
            done = wait(running, POLL_SECONDS, FIRST_COMPLETED).done
            while not told.empty():
                tell(told.get())
            for future in done:
                number, error = running.pop(future), future.exception()
                if error is None:
                    ended.add(number)
                    yield number, future.result()
                elif failure is None or isinstance(failure, KeyboardInterrupt):
                    failure = error  # what a job ran into while it was stopping is worth more than that it was asked to
        if failure is not None:
            raise failure
    except BrokenExecutor:
        remedy = "free some memory, or set execution.workers = 1, and give the same command again; nothing is lost"
        raise BudgetlabError(f"{workers} workers", "one was killed, perhaps for its memory", remedy) from None
    finally:
        # Whether done or interrupted: what they write is whole or absent, so that they can go at any moment.
        pool.shutdown(kill_workers=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold back signals; processes that start meanwhile never get them.

    Ctrl-C reaches the whole group of processes, and the first one decides what becomes of it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_HERE: dict[str, Any] = {}
"""What a worker process keeps from job to job."""


def _begin(build: Callable[..., Worker], arguments: tuple[Any, ...], told: Any, stop: Any, first: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
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
