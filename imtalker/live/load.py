"""How a server holds under load: `python -m imtalker.live.load`.

Opens 1, 2, 4, 8 live sessions at once on a server that it starts on loopback, speaks to each in real time as a
microphone would, and prints what each got: frames a second, how alike, how soon, who was refused. `--soak MINUTES`
keeps one session for that long instead and compares its beginning with its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from .. import options
from ..bundled import ASSETS
from ..media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, load_audio
from .protocol import HEADER, Kind, pcm

SPEECH = ASSETS / "sample.wav"
PAUSE = 2.0  # seconds of silence between two sentences, long enough for the face to idle
LOUD = 0.02  # level above which sound is speech


@dataclass
class Viewer:
    """What one client saw; times in seconds of its own clock."""

    refused: str = ""
    begun: float = 0.0
    pictures: dict[int, float] = field(default_factory=dict)  # frame -> when it came
    sounds: dict[int, float] = field(default_factory=dict)
    answers: list[float] = field(default_factory=list)  # from a sentence's first sound to its first picture
    asked: float | None = None  # when the sentence that has no picture yet began to be sent
    speaking: bool = False
    answering: int | None = None  # the frame that it was first heard in
    quiet: int = 100  # frames without speech so far

    def rate(self, seconds: float) -> float:
        return len(self.pictures) / seconds

    def offsets(self, begin: float, end: float) -> list[float]:
        """Milliseconds from a frame's sound to its picture, for the frames that came between two times."""
        return [
            1000 * (self.pictures[k] - t) for k, t in self.sounds.items() if begin <= t < end and k in self.pictures
        ]

    def take(self, message: bytes, now: float) -> None:
        kind, _, _, frame, _ = HEADER.unpack_from(message)
        if kind == Kind.SOUND:
            self.sounds[frame] = now
            loud = np.abs(np.frombuffer(message, "<i2", offset=HEADER.size)).max() > LOUD * 2**15
            if loud and self.quiet > FPS and self.asked is not None:
                self.answering = frame
            self.quiet = 0 if loud else self.quiet + 1
            return
        self.pictures[frame] = now
        if self.answering is not None and frame >= self.answering and self.asked is not None:
            self.answers.append(now - self.asked)
            self.asked = self.answering = None


async def watch(address: str, seconds: float, speech: np.ndarray) -> Viewer:
    """One client for so long, speaking sentence after sentence."""
    viewer = Viewer()
    async with connect(f"ws{address[4:]}/v1/live", max_size=2**22, compression=None) as socket:
        await socket.send(json.dumps({"type": "hello", "input": "microphone"}))
        first = json.loads(await socket.recv())
        if first["type"] != "ready":
            viewer.refused = first["error"]
            return viewer
        viewer.begun = time.monotonic()
        end = viewer.begun + seconds
        speaking = asyncio.ensure_future(_speak(socket, viewer, speech, end))
        try:
            while time.monotonic() < end:
                message = await asyncio.wait_for(socket.recv(), 20)
                if isinstance(message, bytes):
                    viewer.take(message, time.monotonic())
        finally:
            speaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await speaking
    return viewer


async def _speak(socket, viewer: Viewer, speech: np.ndarray, end: float) -> None:
    block = SAMPLES_PER_FRAME // 2
    await asyncio.sleep(1)  # it idles first
    while time.monotonic() < end:
        viewer.asked = at = time.monotonic()
        for start in range(0, len(speech), block):
            await socket.send(pcm(speech[start : start + block]))
            at += block / SAMPLE_RATE
            await asyncio.sleep(at - time.monotonic())
        await asyncio.sleep(PAUSE)


async def together(address: str, count: int, seconds: float, speech: np.ndarray) -> list[Viewer]:
    return await asyncio.gather(*(watch(address, seconds, speech) for _ in range(count)))


def told(viewers: list[Viewer], seconds: float) -> str:
    served = [viewer for viewer in viewers if not viewer.refused]
    rates = [viewer.rate(seconds) for viewer in served]
    sounds = [len(viewer.sounds) / seconds for viewer in served]
    answers = sorted(1000 * answer for viewer in served for answer in viewer.answers)
    offsets = sorted(offset for viewer in served for offset in viewer.offsets(0, np.inf))
    return (
        f"{len(viewers):8} {len(viewers) - len(served):8} {sum(rates):8.1f} {min(rates):6.1f} {max(rates):6.1f} "
        f"{min(sounds):6.1f} {_at(answers, 0.5):8.0f} {_at(answers, 0.95):6.0f} {_at(offsets, 0.5):7.0f} "
        f"{_at(offsets, 0.95):6.0f}"
    )


HEAD = """                  frames a second          sound    answer, ms       picture after sound, ms
sessions  refused      all  least   most  least      p50    p95     p50    p95"""


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


async def soak(address: str, minutes: float, speech: np.ndarray, process: int | None) -> str:
    """One session for so long; its first and last half minutes side by side."""
    watching = asyncio.ensure_future(watch(address, 60 * minutes, speech))
    memory = []
    while not watching.done():
        await asyncio.wait([watching], timeout=10)
        memory.append(resident(process))
    viewer = watching.result()
    if viewer.refused:
        return viewer.refused
    lines = []
    span = min(30.0, 60 * minutes / 3)
    for name, begin in ((f"first {span:g} seconds", 0.1 * span), (f"last {span:g} seconds", 60 * minutes - span - 0.5)):
        begin += viewer.begun
        offsets = viewer.offsets(begin, begin + span)
        shown = sum(begin <= t < begin + span for t in viewer.pictures.values()) / span
        heard = sum(begin <= t < begin + span for t in viewer.sounds.values()) / span
        lines.append(
            f"{name}: {shown:.1f} frames and {heard:.1f} moments of sound a second, picture after sound "
            f"{statistics.median(offsets):.0f} ms (p95 {_at(sorted(offsets), 0.95):.0f})"
        )
    answers = sorted(1000 * answer for answer in viewer.answers)
    lines.append(f"whole: {viewer.rate(60 * minutes):.2f} frames a second")
    lines.append(
        f"first frame after {_at(answers, 0.5):.0f} ms (p50), {_at(answers, 0.95):.0f} ms (p95), {len(answers)} answers"
    )
    early, late = memory[min(5, len(memory) - 1)], memory[max(len(memory) - 2, 0)]
    lines.append(f"memory of the server: {early:.0f} MB after a minute, {late:.0f} MB at the end")
    return "\n".join(lines)


def resident(process: int | None) -> float:
    """MB that a process holds in memory; NaN where that is not known."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return float("nan")
    return pages * 4096 / 1e6


@contextlib.contextmanager
def server(*arguments: str):
    """(address, process id) of a server that runs meanwhile."""
    command = [sys.executable, "-m", "imtalker", "serve", "--port", "0", "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(process.stdout.readline())["address"], process.pid
    finally:
        process.terminate()
        process.wait()


def main(argv: list[str] | None = None) -> None:
    parser = options.OptionParser(prog="python -m imtalker.live.load", description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="sessions that the server allows")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="of each measurement (default: 20)")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="one session for so long")
    parser.add_argument("serve", nargs="*", metavar="-- OPTIONS", help="further options of imtalker serve")
    args = parser.parse_args(argv)
    speech = load_audio(SPEECH)
    with server("--sessions", str(args.limit), *args.serve) as (address, process):
        if args.soak:
            print(asyncio.run(soak(address, args.soak, speech, process)))
            return
        print(HEAD)
        for count in args.sessions:
            print(told(asyncio.run(together(address, count, args.seconds, speech)), args.seconds), flush=True)


if __name__ == "__main__":
    main()
