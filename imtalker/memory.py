"""The memory of this process: how freed memory is kept, and how much was taken at most."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next frame, which needs as much again.

    By default glibc gives large blocks back to the system at once, and the system clears every page before it lends it
    again: a tenth of a frame's time and more. With another C library nothing changes.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
