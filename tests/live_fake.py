"""A talker that needs no weights and no time: its frames tell their number and how loud their sound is."""

import json
import threading
import time
from collections import deque
from http.client import HTTPConnection
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from websockets.sync.client import connect

from imtalker import InputError
from imtalker.live import protocol
from imtalker.live.limits import Limits
from imtalker.live.server import listen, make_app, make_server
from imtalker.live.service import Service
from imtalker.media import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, frame_count, load_audio
from imtalker.media.video import VideoReader
from imtalker.workers import Workers

SIZE = 32
WAIT = 4  # frames of sound after a window that the fake hears first


class FakeSession:
    """`imtalker.session.Session` for those who take motion: rows (number, loudness, 0, ...)."""

    sample_rate = SAMPLE_RATE

    def __init__(self, windows=(5, 5, 10, 15, 20, 25), **options):
        self.windows, self.options = tuple(windows), options
        self.delay, self.steady_delay = ((n + WAIT) / FPS for n in (self.windows[0], max(self.windows)))
        self.frames = 0  # made
        self.steered = []
        self.paced = []
        self.rewound = []
        self._sound = np.zeros(0, np.float32)  # not made into frames yet
        self._plan = list(self.windows)
        self._ready = deque()

    def push(self, samples):
        self._sound = np.concatenate([self._sound, samples])
        return iter(())

    def pace(self, windows):
        self.paced.append(windows)
        self._plan = list(windows)

    def flush(self):
        while (motion := self._due()) is not None:
            self._ready.append(motion)
        if len(self._sound):
            self._ready.append(self._make(frame_count(len(self._sound))))
        self._plan = list(self.windows)
        return iter(())

    def idle(self, frames=5):
        self.flush()
        self.push(np.zeros(frames * SAMPLES_PER_FRAME, np.float32))
        self._ready.append(self._make(frames))
        return iter(())

    def interrupt(self, shown=None):
        self.rewound.append(shown)
        self._sound, self._plan, self.frames = self._sound[:0], list(self.windows), shown
        self._ready.clear()

    def steer(self, **controls):
        if controls.get("strength", 1) > 2:
            raise InputError("strength: a number from 0 to 2 expected")
        self.steered.append(controls)

    def next_motion(self):
        motion = self._ready.popleft() if self._ready else self._due()
        return None if motion is None else torch.from_numpy(motion)

    def _due(self):
        size = self._plan[0]
        if len(self._sound) < (size + WAIT) * SAMPLES_PER_FRAME:
            return None
        self._plan = self._plan[1:] or self._plan
        return self._make(size)

    def _make(self, frames):
        sound, self._sound = np.split(self._sound, [frames * SAMPLES_PER_FRAME])
        sound = np.pad(sound, (0, frames * SAMPLES_PER_FRAME - len(sound))).reshape(frames, -1)
        motion = np.zeros((frames, 32), np.float32)
        motion[:, 0] = np.arange(self.frames, self.frames + frames)
        motion[:, 1] = np.abs(sound).max(1)
        self.frames += frames
        return motion


class FakeTalker:
    """seconds: that drawing one frame takes."""

    name, device, config = "fake", "cpu", SimpleNamespace(size=SIZE, steadying=0.0)

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.workers = Workers(1)
        self.sessions = []
        self.together = []  # faces that were drawn at once
        self.threads = set()  # that the model was used in

    def encode_source(self, picture, face=0, crop=True):
        self.threads.add(threading.current_thread().name)
        motion = torch.zeros(1, 32)
        return SimpleNamespace(picture=picture, size=picture.shape[1::-1], features=SimpleNamespace(motion=motion))

    def session(self, source, **options):
        self.sessions.append(FakeSession(**options))
        return self.sessions[-1]

    def render(self, source, portions):
        for portion in portions:
            for row in portion.numpy():
                self.threads.add(threading.current_thread().name)
                time.sleep(self.seconds)
                yield picture_of(int(row[0]), float(row[1]))

    def render_together(self, faces):
        self.together.append(len(faces))
        return [list(self.render(source, [motion])) for source, motion in faces]

    def driving_motion(self, pictures, crop):
        for picture in pictures:
            motion = torch.zeros(1, 32)
            motion[0, 1] = float(picture.mean()) / 255
            yield motion

    def animate(self, source, audio, *, seed, nfe, guidance_scale, fps):
        return self._clip(source, frame_count(len(load_audio(audio))), fps, audio)

    def reenact(self, source, driving, *, crop, relative, fps):
        return self._clip(source, sum(1 for _ in VideoReader(driving)), fps, None)

    def _clip(self, source, frames, fps, audio):
        motion = torch.zeros(frames, 32)
        motion[:, 0] = torch.arange(frames)
        return FakeClip(lambda: self.render(source, [motion]), frames, fps, audio)


class FakeClip:
    def __init__(self, frames, count, fps, audio):
        self.frames, self.count, self.fps, self.audio = frames, count, fps, audio

    def __iter__(self):
        return self.frames()

    def __len__(self):
        return self.count

    expected = property(__len__)


def picture_of(number, loudness):
    """The number in base 4 as shades of twelve patches, and the loudness as brightness below them."""
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    for place in range(8):
        picture[:16, 4 * place : 4 * place + 4] = 85 * (number // 4**place % 4)
    picture[16:] = np.uint8(255 * min(loudness, 1))
    return picture


def number_of(picture):
    shades = picture[4:12].mean((0, 2)).reshape(8, 4)[:, 1:3].mean(1)
    return sum(int(round(shade / 85)) * 4**place for place, shade in enumerate(shades))


def loudness_of(picture):
    return float(picture[20:28].mean() / 255)


class Running:
    """A server with a fake talker on a free loopback port, in a thread of its own. A context manager."""

    def __init__(self, talker=None, key=None, origins=(), **limits):
        self.talker = talker or FakeTalker()
        self.service = Service(lambda: self.talker, Limits(**limits), crop=False)
        self._listening = listen("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        self._server = make_server(make_app(self.service, key, origins))
        self._thread = threading.Thread(target=lambda: self._server.run(sockets=[self._listening]))

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self.service.state == "ready" or self.service.failure)
        assert self.service.failure is None, self.service.failure
        self.loop = self.service._tasks[0].get_loop()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        self._server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()
        self._listening.close()

    def ask(self, method, path, body=None, headers=()):
        """(status, headers, body: JSON where it is)."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        is_json = "json" in answer.headers.get("content-type", "")
        return answer.status, answer.headers, json.loads(data) if is_json and data else data

    def post(self, path, files=None, values=None, headers=()):
        body, kind = form(files or {}, values or {})
        return self.ask("POST", path, body, {"content-type": kind, **dict(headers)})

    def live(self, **hello):
        """A WebSocket whose hello was answered, as `Viewer`; its first event is in `Viewer.ready`."""
        return Viewer(self.port, hello)


class Viewer:
    """A live client: what came, sorted. A context manager."""

    def __init__(self, port, hello, **options):
        self._connection = connect(f"ws://127.0.0.1:{port}/v1/live", max_size=2**22, close_timeout=1, **options)
        self.socket = self._connection.__enter__()
        self.events, self.pictures, self.sounds, self.times = [], {}, {}, {}
        self.socket.send(json.dumps({"type": "hello", **hello}))
        self.ready = json.loads(self.socket.recv(timeout=10))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._connection.__exit__(None, None, None)

    def send(self, **command):
        self.socket.send(json.dumps(command))

    def say(self, samples):
        self.socket.send(protocol.pcm(samples))

    def take(self, timeout=5):
        message = self.socket.recv(timeout=timeout)
        if isinstance(message, str):
            self.events.append(json.loads(message))
            return self.events[-1]
        kind, flags, _, frame, sample = protocol.HEADER.unpack_from(message)
        assert sample == frame * SAMPLES_PER_FRAME
        payload = message[protocol.HEADER.size :]
        if kind == protocol.Kind.SOUND:
            self.sounds[frame] = np.frombuffer(payload, "<i2") / 32767
        elif kind == protocol.Kind.JPEG:
            self.pictures[frame] = cv2.imdecode(np.frombuffer(payload, np.uint8), 1)[:, :, ::-1]
        else:
            self.pictures[frame] = payload
        self.times[frame] = time.monotonic()
        return kind, frame

    def take_until(self, enough, timeout=10):
        end = time.monotonic() + timeout
        while not enough():
            assert time.monotonic() < end, "it did not come"
            self.take(timeout=end - time.monotonic())

    def event(self, kind, timeout=10):
        found = lambda: [event for event in self.events if event["type"] == kind]
        self.take_until(found, timeout)
        return found()[-1]


def form(files, values):
    """Body and content type of a multipart form. files: name -> (filename, bytes)."""
    boundary = "b" * 32
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in values.items()
    ]
    for name, (filename, data) in files.items():
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        parts.append(head.encode() + b"content-type: application/octet-stream\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def wait_until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
