"""`imtalker` in a process of its own that says when its first frame is written, and how much memory it took.

python -m imtalker.bench.child COMMAND ...: one line, "frame", after the first frame; at the end one with bytes.
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
        print("frame", flush=True)
        VideoWriter.write = write

    VideoWriter.write = first_write
    status = imtalker(arguments)
    print(peak_memory() or 0, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
