"""`imtalker` in a process of its own that says when its first frame is written, and how much memory it took.

python -m imtalker.bench.child COMMAND ...: a line after the first frame; at the end one with the most bytes that it
took of memory, and of a GPU's.
"""

from __future__ import annotations

import sys

from ..memory import peak_memory


def main(arguments: list[str]) -> int:
    from ..cli import main as imtalker
    from ..media import VideoWriter

    write = VideoWriter.write

    def first_write(writer, frame):
        write(writer, frame)
        print("frame", flush=True)  # the parent looks at its clock
        VideoWriter.write = write

    VideoWriter.write = first_write
    status = imtalker(arguments)
    import torch

    print(peak_memory() or 0, torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
