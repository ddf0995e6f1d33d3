import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from imtalker.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(12):
    torch.ones(1 << 24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's settings are glibc's")
def test_freed_memory_is_used_again():
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, check=True).stdout)

    assert faults("keep") < faults("give back") / 2
