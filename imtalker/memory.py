"""How much memory a process has taken."""

from __future__ import annotations

import sys


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
