import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from imtalker.memory import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
first, again = faults(), faults()
print(first, again)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's settings are glibc's")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, again = map(int, done.stdout.split())
    assert again < first / 10 or first < 100  # few to begin with where pages are huge
