"""A face for a voice agent: it speaks the agent's answers, and falls silent when the user begins to speak.

imtalker serve &
python examples/live_agent.py [OUT.mp4] [SERVER]

Here a script plays both: the agent's answer is the bundled sentence, twice, and the user interrupts it after two
seconds. In an agent's own loop, `say` gets what its synthesizer makes, `interrupt` is called when its voice activity
detector hears the user, and `show` hands frames and sound to whatever plays them.
"""

import asyncio
import json
import struct
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from websockets.asyncio.client import connect

import imtalker
from imtalker.media import load_audio, write_video

FPS, CUSHION = 25, 0.15  # frames a second; seconds that a frame waits before it is shown


class Face:
    """A live session as an agent sees it: say, interrupt; `played` is what the viewer has seen and heard."""

    def __init__(self, socket):
        self.socket, self.played, self._waiting = socket, [], {}
        self._zero = None  # when frame 0 was, or would have been, shown
        self._picture = None

    async def say(self, samples):
        """float32 (n,) at 16 kHz, as it comes from a synthesizer."""
        await self.socket.send((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())

    async def end(self):
        """The answer is complete."""
        await self.socket.send(json.dumps({"type": "flush"}))

    async def interrupt(self):
        """The user speaks: forget what was not shown yet. The face closes its mouth and listens."""
        await self.socket.send(json.dumps({"type": "interrupt", "shown": self.shown}))

    @property
    def shown(self):
        """Number of frames that the viewer has seen."""
        return 0 if self._zero is None else max(0, int((time.monotonic() - self._zero) * FPS))

    async def watch(self):
        """Take what the server sends, and show every frame at its time."""
        async for message in self.socket:
            if isinstance(message, str):
                event = json.loads(message)
                print(event)
                if event["type"] == "interrupted":  # later frames are counted from here again
                    self._waiting.clear()
                    self._zero = None
                continue
            kind, _, _, frame, _ = struct.unpack_from("<BBHIQ", message)
            self._waiting.setdefault(frame, {})[kind] = message[16:]
            if self._zero is None:
                self._zero = time.monotonic() + CUSHION - frame / FPS
            while self._waiting and min(self._waiting) < self.shown:
                self._show(self._waiting.pop(min(self._waiting)))

    def _show(self, moment):
        self._picture = moment.get(1, self._picture)
        if self._picture is not None and 3 in moment:
            self.played.append((self._picture, moment[3]))


async def agent(server):
    sentence = load_audio(Path(imtalker.__file__).parent / "assets" / "sample.wav")
    async with connect(f"{server}/v1/live") as socket:
        await socket.send(json.dumps({"type": "hello", "input": "speech", "latency": "low"}))
        print(await socket.recv())
        face = Face(socket)
        watching = asyncio.ensure_future(face.watch())
        await face.say(sentence)
        await face.say(sentence)
        await face.end()
        await asyncio.sleep(2)
        await face.interrupt()  # the user has begun to speak
        await asyncio.sleep(1)
        await face.say(sentence[:16_000])  # the next answer
        await face.end()
        await asyncio.sleep(2)
        watching.cancel()
    return face.played


out, server = (sys.argv[1:] + ["live.mp4", "ws://127.0.0.1:8000"][len(sys.argv) - 1 :])[:2]
played = asyncio.run(agent(server))
pictures = (cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1] for jpeg, _ in played)
write_video(out, pictures, FPS, (np.concatenate([np.frombuffer(pcm, "<i2") for _, pcm in played]), 16_000))
print(out)
