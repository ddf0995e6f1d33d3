"""A live face over WebRTC: a microphone in, picture and sound out, in sync; commands and events over a data channel.

The moments of the pump are let go when they are due, and what is sent of each carries that time as its timestamp, sound
and picture alike; so the browser can keep both together, whatever either needed to be compressed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from fractions import Fraction

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcicetransport import parse_stun_turn_uri

from ..clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from ..errors import InputError
from . import protocol
from .conversation import Conversation
from .outbox import Closed, Event, Moment
from .service import Service

log = logging.getLogger("imtalker.live")

CONNECT_SECONDS = 20.0  # from the answer to the connection
CHANNEL = "commands"  # label of the data channel that the client opens
CHUNK = SAMPLES_PER_FRAME // 2  # samples of a packet of sound, 20 ms
VIDEO_CLOCK = 90_000  # of RTP
LATE = 2.0  # seconds of sound or pictures that wait for a sender; older ones are dropped


def ice_server(url: str) -> RTCIceServer:
    """A server as `stun:HOST[:PORT]` or `turn:USER:PASSWORD@HOST[:PORT]`. Raises InputError for anything else."""
    kind, _, address = url.partition(":")
    account, _, host = address.rpartition("@")
    user, _, password = account.partition(":")
    try:
        parse_stun_turn_uri(f"{kind}:{host}")
    except ValueError:
        raise InputError(f"--ice {url!r}: stun:HOST[:PORT] or turn:USER:PASSWORD@HOST[:PORT] expected") from None
    return RTCIceServer(f"{kind}:{host}", user or None, password or None)


class _Track(MediaStreamTrack):
    """Frames that are handed in with the time at which they shall leave."""

    def __init__(self, kind: str):
        self.kind = kind  # before super().__init__, as aiortc wants it
        super().__init__()
        each = SAMPLES_PER_FRAME // CHUNK if kind == "audio" else 1  # of a 25th of a second
        self._frames: deque[tuple[float, av.frame.Frame]] = deque(maxlen=int(LATE * FPS) * each)
        self._filled = asyncio.Event()

    def put(self, at: float, frame: av.frame.Frame) -> None:
        self._frames.append((at, frame))
        self._filled.set()

    async def recv(self) -> av.frame.Frame:
        while not self._frames:
            if self.readyState != "live":
                raise MediaStreamError
            self._filled.clear()
            await self._filled.wait()
        at, frame = self._frames.popleft()
        await asyncio.sleep(at - time.monotonic())
        return frame

    def stop(self) -> None:
        super().stop()
        self._filled.set()


class Connection:
    """One client: made by `answer`; ends with the conversation, or when the client is gone."""

    def __init__(self, service: Service, conversation: Conversation):
        self._service, self._conversation = service, conversation
        # without the list, empty or not, aiortc would ask a server far away
        self._peer = RTCPeerConnection(RTCConfiguration(list(service.ice)))
        self._picture, self._sound = _Track("video"), _Track("audio")
        self._channel: RTCDataChannel | None = None
        self._listening: asyncio.Task | None = None
        self._connected = asyncio.Event()
        self._origin: float | None = None  # time of the first moment: zero of all timestamps
        self._last = -np.inf  # when the last moment was due
        self._peer.on("track", self._hear)
        self._peer.on("datachannel", self._open)
        self._peer.on("connectionstatechange", self._changed)

    async def answer(self, offer: RTCSessionDescription) -> RTCSessionDescription:
        """Raises InputError for an offer that cannot be answered."""
        try:
            await self._peer.setRemoteDescription(offer)
            wanted = {transceiver.kind for transceiver in self._peer.getTransceivers()}
            if "video" not in wanted:
                raise ValueError("no video in it")
            for track in (self._picture, self._sound):
                if track.kind in wanted:
                    self._peer.addTrack(track)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except Exception as error:  # aiortc raises whatever its parser stumbles over
            await self._peer.close()
            raise InputError(f"the offer cannot be answered ({type(error).__name__}: {error}): "
                             "one of WebRTC that wants video is expected") from None  # fmt: skip
        return self._peer.localDescription

    async def run(self) -> None:
        """Until either side ends it."""
        reason = "closed"
        try:
            await asyncio.wait_for(self._connected.wait(), CONNECT_SECONDS)
            while True:
                await self._send(await self._conversation.next())
        except asyncio.TimeoutError:
            log.debug("a client asked for WebRTC and did not connect")
        except Closed as closed:
            reason = str(closed)
            self._tell({"type": "closing", "error": reason})
            await asyncio.sleep(0.2)  # for the channel to send it
        finally:
            if self._listening is not None:
                self._listening.cancel()
            await self._service.close(self._conversation, reason)
            await self._peer.close()

    # ------------------------------------------------------------------------------------------------------------ out

    async def _send(self, item: Moment | Event) -> None:
        if isinstance(item, Event):
            self._tell({"type": item.kind, **item.details})
            return
        due = max(item.due, self._last + 1 / FPS)  # after an interruption frames are counted anew, time is not
        await asyncio.sleep(due - time.monotonic())
        self._origin = due if self._origin is None else self._origin
        self._last = due
        elapsed = due - self._origin
        for part, samples in enumerate(np.split(item.sound, SAMPLES_PER_FRAME // CHUNK)):
            sound = av.AudioFrame.from_ndarray(np.frombuffer(protocol.pcm(samples), "<i2")[None], "s16", "mono")
            sound.sample_rate = SAMPLE_RATE
            self._stamp(sound, elapsed + part * CHUNK / SAMPLE_RATE, SAMPLE_RATE)
            self._sound.put(due + part * CHUNK / SAMPLE_RATE, sound)
        if item.picture is not None:
            picture = av.VideoFrame.from_ndarray(item.picture, "rgb24")
            self._stamp(picture, elapsed, VIDEO_CLOCK)
            self._picture.put(due, picture)

    @staticmethod
    def _stamp(frame: av.frame.Frame, seconds: float, clock: int) -> None:
        frame.pts, frame.time_base = round(seconds * clock), Fraction(1, clock)

    def _tell(self, event: dict) -> None:
        if self._channel is not None and self._channel.readyState == "open":
            self._channel.send(json.dumps(event))

    # ------------------------------------------------------------------------------------------------------------- in

    def _changed(self) -> None:
        state = self._peer.connectionState
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self._conversation.outbox.close("the connection is lost")
            self._connected.set()

    def _open(self, channel: RTCDataChannel) -> None:
        if channel.label == CHANNEL and self._channel is None:
            self._channel = channel
            channel.on("message", self._command)
            self._tell(self._conversation.ready())

    async def _command(self, message: str | bytes) -> None:
        try:
            await self._conversation.command(protocol.read_json(message))
        except InputError as error:
            self._conversation.mistake(error)

    def _hear(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._listening is None:
            self._listening = asyncio.ensure_future(self._listen(track))

    async def _listen(self, track: MediaStreamTrack) -> None:
        """The client's microphone. It always sends; only while it is listened to, it is heard."""
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        try:
            while True:
                frames = resampler.resample(await track.recv())
                if self._conversation.listening:
                    for frame in frames:
                        await self._conversation.sound(frame.to_ndarray()[0])
        except MediaStreamError:
            pass


async def answer(service: Service, hello: protocol.Hello, sdp: str) -> dict:
    """What to send back to a client that offers `sdp`. Raises InputError, Refusal."""
    if hello.input == "camera":
        raise InputError("a camera drives a face over a WebSocket, not over WebRTC: connect to /v1/live")
    conversation = await service.open(hello)
    try:
        connection = Connection(service, conversation)
        answered = await connection.answer(RTCSessionDescription(sdp, "offer"))
    except BaseException:
        await service.close(conversation)
        raise
    task = asyncio.ensure_future(connection.run())
    service.connections.add(task)
    task.add_done_callback(service.connections.discard)
    return {"sdp": answered.sdp, "type": answered.type, "session": conversation.id}
