"""A speech synthesizer in, a talking face out: its sound is piped into a live session as it is made.

imtalker serve &
espeak-ng --stdout "Good morning." | python examples/live_text_to_speech.py [OUT.mp4] [SERVER]

Any program will do that writes such a WAV to its standard output: 16-bit, mono, its sound after 44 bytes.
"""

import asyncio
import json
import struct
import sys

import cv2
import numpy as np
from websockets.asyncio.client import connect

from imtalker.media import write_video

out, server = (sys.argv[1:] + ["live.mp4", "ws://127.0.0.1:8000"][len(sys.argv) - 1 :])[:2]
HEADER = 44  # bytes of a WAV's head


async def talk(sound):
    """Pipe `sound`, a WAV that is still being written, into a face; return its frames and what they say."""
    rate = struct.unpack_from("<I", sound.read(HEADER), 24)[0]
    pictures, sounds, end = {}, {}, None
    async with connect(f"{server}/v1/live") as socket:
        await socket.send(json.dumps({"type": "hello", "input": "speech", "rate": rate}))
        print(told := await socket.recv())  # ready, or why not
        if json.loads(told)["type"] != "ready":
            sys.exit(1)

        async def pipe():
            while block := await asyncio.to_thread(sound.read, 4096):
                await socket.send(block[: len(block) // 2 * 2])
            await socket.send(json.dumps({"type": "flush"}))

        piping = asyncio.ensure_future(pipe())
        while end is None or max(sounds, default=-1) < end - 1:
            message = await socket.recv()
            if isinstance(message, str):
                event = json.loads(message)
                end = event["frame"] if event["type"] == "said" else end
                continue
            kind, _, _, frame, _ = struct.unpack_from("<BBHIQ", message)
            (pictures if kind == 1 else sounds)[frame] = message[16:]
        await piping
    return pictures, sounds


pictures, sounds = asyncio.run(talk(sys.stdin.buffer))
shown, frames, heard = None, [], []
for frame in sorted(sounds):
    shown = pictures.get(frame, shown)
    if shown is not None:
        frames.append(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])
        heard.append(np.frombuffer(sounds[frame], "<i2"))
write_video(out, frames, 25, (np.concatenate(heard), 16_000))
print(out)
