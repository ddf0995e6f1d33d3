"""One live client and its face: what the client may ask, whatever way it is connected."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import soxr

from ..errors import InputError
from ..media import SAMPLE_RATE, load_picture, stream_audio
from . import protocol
from .camera import Mirror
from .outbox import Event, Item, Moment, Outbox
from .pump import Pump
from .refusal import missing
from .speech import Utterance

if TYPE_CHECKING:
    from pathlib import Path

    from ..pipeline import Source
    from .service import Service

MISTAKES = 20  # messages that a client may get wrong before it is sent away
BLOCK = SAMPLE_RATE  # samples of a file that are handed on at once
UTTERANCES = 8  # texts and sounds that may wait to be spoken
COMMANDS = ("steer", "interrupt", "flush", "text", "listen")


class Conversation:
    """Made by `Service.open`, ended by `Service.close`; in between `next` gives what to send to the client."""

    def __init__(self, service: Service, hello: protocol.Hello, source: Source):
        self.id = secrets.token_urlsafe(12)
        self.hello = hello
        self.size = source.size
        self.outbox = Outbox(asyncio.get_running_loop(), stuck_seconds=service.limits.stuck_seconds)
        self.listening = hello.input == "microphone"
        self._service, self._limits, self._metrics = service, service.limits, service.metrics
        self._mistakes = self._dropped = 0
        self._utterances: list[Utterance] = []  # that are not handed over completely, in order
        self._seeing: asyncio.Task | None = None
        common = (self.outbox, service.pace, service.scheduler.wake)
        if hello.input == "camera":
            self.face = Mirror(service.talker, source, *common, relative=hello.relative, crop=service.crop)
            self.delay = 0.0
        else:
            window = service.pace.window(service.pace.faces + 1)
            low = hello.latency == "low" or (hello.latency is None and hello.input == "microphone")
            session = service.talker.session(
                source,
                seed=hello.seed,
                nfe=service.nfe if hello.nfe is None else hello.nfe,
                guidance_scale=service.guidance if hello.guidance is None else hello.guidance,
                **({"windows": (window,)} if low else {}),  # otherwise the session's own, growing ones
            )
            self.delay = session.delay
            self.face = Pump(
                source,
                session,
                *common,
                window=window if low else None,
                speech_seconds=self._limits.speech_seconds,
                answered=self._metrics.answer.observe,
            )
        self._resampler = self._new_resampler()

    def ready(self) -> dict:
        """The first message to the client."""
        width, height = self.size
        told = {"type": "ready", "session": self.id, "fps": 25, "sample_rate": SAMPLE_RATE, "size": [width, height]}
        return {**told, "delay": round(self.delay, 3)}

    async def next(self) -> Item:
        """What to send next. Raises outbox.Closed."""
        item = await self.outbox.take()
        if isinstance(item, Moment):
            self._metrics.frames.labels("skipped" if item.picture is None else "sent").inc()
            self._metrics.frames.labels("dropped").inc(self.outbox.dropped - self._dropped)
            self._dropped = self.outbox.dropped
        return item

    # ----------------------------------------------------------------------------------------------- from the client

    async def binary(self, data: bytes) -> None:
        """Sound, int16 mono at the hello's rate, or a camera's JPEG. Raises InputError."""
        if isinstance(self.face, Mirror):
            self._look(data)
            return
        if len(data) % 2:
            raise InputError(f"sound of {len(data)} bytes: int16 samples expected, two bytes each")
        samples = np.frombuffer(data, "<i2").astype(np.float32) / 2**15
        await self.sound(self._resampler.resample_chunk(samples))

    async def sound(self, samples: np.ndarray) -> None:
        """float32 (n,) at 16 kHz. Waits while too much waits to be spoken already; a microphone never waits."""
        if not len(samples):
            return
        if self.listening:
            self.face.hear(samples)
            return
        while self.face.full:
            await asyncio.sleep(0.1)
        self.face.say(samples)

    async def command(self, given: dict) -> None:
        """A JSON message with a "type". Raises InputError for one that is unknown or wrong."""
        kind = given["type"]
        if kind not in COMMANDS:
            raise InputError(f"a message of type {kind[:40]!r}: {', '.join(COMMANDS)} expected")
        if isinstance(self.face, Mirror):
            raise InputError(f"{kind!r} means nothing while a camera drives the face: open another session for speech")
        await getattr(self, f"_{kind}")(given)

    def mistake(self, error: InputError) -> None:
        """Tell the client what it got wrong; close when it got too much wrong."""
        self._mistakes += 1
        self.outbox.put(Event("error", {"error": str(error)}))
        if self._mistakes >= MISTAKES:
            self.outbox.close(f"{MISTAKES} messages could not be understood")

    def speak(self, sound: Iterator[np.ndarray], done: Callable[[], None] = lambda: None) -> None:
        """Speak sound that comes in portions, float32 (n,) at 16 kHz, from an iterator that may take its time, after
        all that was to be spoken before. done: called when the iterator is not needed any more. Raises InputError."""
        if isinstance(self.face, Mirror):
            raise InputError("a camera drives this face: open another session for speech")
        self._utterances = [utterance for utterance in self._utterances if not utterance.over]
        if len(self._utterances) >= UTTERANCES:
            raise InputError(f"{UTTERANCES} texts or sounds wait to be spoken already: send more when some have been")
        self._utterances.append(Utterance(self.face, sound, next(reversed(self._utterances), None), done))

    def speak_file(self, path: Path, done: Callable[[], None]) -> None:
        """done: called when the file is not needed any more. Raises Refusal where the session ended meanwhile."""
        if self.outbox.reason is not None:
            raise missing("the session")
        self.speak(stream_audio(path, BLOCK), done)

    async def close(self, reason: str) -> None:
        """Let go of everything; what is being sent ends with `reason`."""
        self.outbox.close(reason)
        self._hush()
        if self._seeing is not None:
            await asyncio.wait([self._seeing])

    # ------------------------------------------------------------------------------------------------------- commands

    async def _steer(self, given: dict) -> None:
        controls = {name: protocol.numbers(given, name, n) for name, n in (("pose", 3), ("gaze", 2), ("cam", 3))
                    if name in given}  # fmt: skip
        if "strength" in given:
            controls["strength"] = protocol.number(given, "strength")
        self.face.steer(**controls)

    async def _interrupt(self, given: dict) -> None:
        shown = given.get("shown")
        if shown is not None and (isinstance(shown, bool) or not isinstance(shown, int) or shown < 0):
            raise InputError(f"shown={shown!r}: the number of frames that were shown expected")
        self._hush()
        self.face.interrupt(shown)

    async def _flush(self, given: dict) -> None:
        await self._finish()

    async def _text(self, given: dict) -> None:
        text = given.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError("a text message without text: {'type': 'text', 'text': 'Hello.'} expected")
        if len(text) > self._limits.text_characters:
            most = self._limits.text_characters
            raise InputError(f"a text of {len(text)} characters: {most} are the limit, split it")

        def sound() -> Iterator[np.ndarray]:  # so that whatever the speaker does, it does not in the event loop
            yield from self._service.speaker(text)

        self.speak(sound())

    async def _listen(self, given: dict) -> None:
        on = given.get("on")
        if not isinstance(on, bool):
            raise InputError("a listen message without on: {'type': 'listen', 'on': true} expected")
        if self.listening and not on:
            await self._finish()
        self.listening = on

    # --------------------------------------------------------------------------------------------------------- inside

    async def _finish(self) -> None:
        """The sound that the client sent is complete."""
        await self.sound(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._resampler = self._new_resampler()
        self.face.end()

    def _new_resampler(self) -> soxr.ResampleStream:
        return soxr.ResampleStream(self.hello.rate, SAMPLE_RATE, 1, dtype="float32")

    def _hush(self) -> None:
        for utterance in self._utterances:
            utterance.stop()
        self._utterances.clear()

    def _look(self, data: bytes) -> None:
        """One picture at a time: those that come meanwhile are left out."""
        if self._seeing is None or self._seeing.done():
            self._seeing = asyncio.ensure_future(self._see(data))
        else:
            self.face.skipped += 1

    async def _see(self, data: bytes) -> None:
        try:
            await asyncio.to_thread(lambda: self.face.see(load_picture(data, self._limits.camera_pixels, ("JPEG",))))
        except InputError as error:
            self.mistake(error)
