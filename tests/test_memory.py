import ctypes
import subprocess
import sys

import pytest

# Bytes that glibc takes from the system for one large block alone: given back as soon as it is freed.
PROGRAM = """
import ctypes, sys, torch
from imtalker.memory import keep_freed_memory, memory_by_default

class Info(ctypes.Structure):  # mallinfo2 of malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

info = ctypes.CDLL(None).mallinfo2
info.restype = Info
if sys.argv[1] == "keep":
    keep_freed_memory()
before = info().hblkhd
if sys.argv[1] == "by default":
    keep_freed_memory()
    with memory_by_default():
        block = torch.ones(1 << 24)
else:
    block = torch.ones(1 << 24)
print(info().hblkhd - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc's"
)
def test_large_blocks_come_from_memory_that_is_kept():
    def mapped(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, check=True).stdout)

    assert mapped("give back") >= 1 << 26
    assert mapped("by default") >= 1 << 26
    assert mapped("keep") == 0
