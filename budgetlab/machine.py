"""What can be said and held of this machine without torch: processor, memory, NVIDIA driver; files of one process."""

from __future__ import annotations

import errno
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None


def processor_name() -> str:
    """Name the processor as the system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_bytes() -> int | None:
    """Return the machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def has_nvidia_driver() -> bool | None:
    """Say whether an NVIDIA driver is loaded; None where that cannot be told."""
    return Path("/proc/driver/nvidia").exists() if platform.system() == "Linux" else None


def visible_gpus(device: str) -> tuple[str, ...]:
    """Name the NVIDIA GPUs that processes for a device, "auto" or "cuda", may use; none of other devices."""
    if device not in ("auto", "cuda"):
        return ()
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(filter(None, named.split(",")))
    return tuple(str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*")))


def another_lives(pid: str) -> bool:
    """Say whether a process of this number, other than this one, is known to run on this machine."""
    return pid.isdecimal() and int(pid) != os.getpid() and Path("/proc", pid).exists()


def process_name(pid: int) -> str | None:
    """Return what no later process is called; None where this one is none, or the system does not say."""
    try:
        state, *further = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{pid} begun at {further[18]}"


def this_machine() -> str | None:
    """Name where process numbers count, a machine since it was started or a container; None where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


ASKING_TO_END = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""What systems and queues send to a process that is to save and end."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def file_lock(path: Path, wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a file against other processes; the system lets go of it when this one ends, however it ends.

    Yields whether it is held: neither every system nor every file system has locks.
    """
    if fcntl is None:  # a system without such locks
        yield False
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait is None:
                file.seek(0)
                raise BlockingIOError(file.read().strip() or "another process") from None
            wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield False
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield True
