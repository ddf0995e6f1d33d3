"""The shortest live client: send a sound file to a server's face, keep what comes back as a video.

imtalker serve &
python examples/live_client.py [SPEECH] [OUT.mp4] [SERVER]
"""

import json
import struct
import sys
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
from websockets.sync.client import connect

import imtalker
from imtalker.media import load_audio, write_video

sample = Path(imtalker.__file__).parent / "assets" / "sample.wav"
speech, out, server = (sys.argv[1:] + [sample, "live.mp4", "ws://127.0.0.1:8000"][len(sys.argv) - 1 :])[:3]


def say(socket):
    samples = (load_audio(speech).clip(-1, 1) * 32767).astype("<i2")
    for start in range(0, len(samples), 16_000):
        socket.send(samples[start : start + 16_000].tobytes())
    socket.send(json.dumps({"type": "flush"}))  # that was all: speak it to its end


pictures, sounds, end = {}, {}, None
with connect(f"{server}/v1/live") as socket:
    socket.send(json.dumps({"type": "hello", "source": "sample", "input": "speech"}))
    print(told := socket.recv())  # ready, or why not
    if json.loads(told)["type"] != "ready":
        sys.exit(1)
    Thread(target=say, args=(socket,), daemon=True).start()  # sound that is far ahead has to wait: meanwhile receive
    while end is None or max(sounds, default=-1) < end - 1:
        message = socket.recv()
        if isinstance(message, str):
            event = json.loads(message)
            end = event["frame"] if event["type"] == "said" else end
            continue
        kind, _, _, frame, _ = struct.unpack_from("<BBHIQ", message)
        {1: pictures, 3: sounds}[kind][frame] = message[16:]

shown, frames = None, []
for frame in sorted(sounds):  # a frame without a picture: the server had no time to draw it
    shown = pictures.get(frame, shown)
    if shown is not None:
        frames.append(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])
heard = np.concatenate([np.frombuffer(sounds[frame], "<i2") for frame in sorted(sounds)[-len(frames) :]])
write_video(out, frames, 25, (heard, 16_000))
print(out)
