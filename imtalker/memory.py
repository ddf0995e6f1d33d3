"""The memory of this process: how freed memory is kept, and how much was taken at most."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next frame, which needs as much again.

    By default glibc gives large blocks back to the system at once, and the system clears every page before it lends it
    again: a tenth of a frame's time and more. Threads that begin from here on share what is kept. With another C
    library nothing changes. It concerns all that the process does, so it is for whoever owns the process to call.
    """
    _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1})


def give_back_freed_memory() -> None:
    """Give back now what was freed so far: after work that needs more than what follows."""
    if trim := _c_library("malloc_trim"):
        trim(0)


@contextlib.contextmanager
def memory_by_default() -> Iterator[None]:
    """Meanwhile memory is freed as it would be without `keep_freed_memory`, then kept again."""
    # where glibc's own adaptation ends for a program that frees blocks of more than 32 MB
    _mallopt({M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26})
    give_back_freed_memory()
    try:
        yield
    finally:
        keep_freed_memory()


def _mallopt(options: dict[int, int]) -> None:
    if mallopt := _c_library("mallopt"):
        for option, value in options.items():
            mallopt(option, value)


def _c_library(function: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def peak_memory() -> int | None:
    """The most bytes that this process itself has held in memory so far; None where the system does not tell."""
    try:  # the kernel's own mark: getrusage would also count the memory of who started us
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
