"""All that one server holds: a model, those who are connected to it, and what was uploaded."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clock import FPS, SAMPLE_RATE
from . import protocol
from .camera import Mirror
from .conversation import Conversation
from .jobs import Jobs
from .limits import LIVE_NFE, Limits
from .metrics import Metrics
from .pace import Pace
from .pump import Pump
from .refusal import Refusal, busy, missing
from .scheduler import Once, Scheduler
from .sources import Sources
from .speech import Speaker, load_speaker
from .stage import Stage

if TYPE_CHECKING:
    from aiortc import RTCIceServer

    from ..pipeline import IMTalker

log = logging.getLogger("imtalker.live")

LEAST_RATE = 5.0  # frames a second that every face has to get; where they could not, a further one is refused
THREADS = 32  # for what is neither the model nor the event loop: decoding, finding faces
FAREWELL = 2.0  # seconds in which clients are told that the server stops
HOUSEKEEPING = 5.0  # seconds between two looks at what has expired


class Service:
    """state: "starting", "ready" or "stopping". All methods belong to the event loop that called `start`."""

    def __init__(
        self,
        load: Callable[[], IMTalker],
        limits: Limits = Limits(),
        *,
        speaker: Speaker | None = None,
        nfe: int | None = None,
        guidance: float | None = None,
        ice: tuple[RTCIceServer, ...] = (),
        crop: bool = True,
    ):
        """load: gives the model; called in a thread. speaker: text to sound, espeak-ng by default. nfe, guidance: of
        live sessions whose client names none. ice: STUN and TURN servers for WebRTC. crop: find the face in the bundled
        picture and in a camera's."""
        self.limits, self.guidance, self.ice, self.crop = limits, guidance, ice, crop
        self.nfe = LIVE_NFE if nfe is None else nfe
        self.state = "starting"
        self.failure: BaseException | None = None  # why starting failed
        self.metrics, self.pace, self.scheduler = Metrics(), Pace(), Scheduler()
        self.speaker = speaker or load_speaker("espeak")
        self.conversations: dict[str, Conversation] = {}
        self.connections: set[asyncio.Task] = set()  # of live clients; each tells its client when it is closed
        self.encoders = ThreadPoolExecutor(limits.sessions, "encoder")  # of live pictures, which wait for nothing else
        self._load = load
        self._uploads = 0  # under way
        self._tasks: list[asyncio.Task] = []

    # ------------------------------------------------------------------------------------------------ start and stop

    async def start(self) -> None:
        """Returns at once; `state` becomes "ready" when the model is loaded and warm."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "helper"))
        self.folder = Path(tempfile.mkdtemp(prefix="imtalker-"))
        self._tasks.append(asyncio.ensure_future(self._begin()))

    async def stop(self, reason: str = "the server stops") -> None:
        """Tell everybody, cancel what runs, remove what was uploaded. May be called again."""
        if self.state == "stopping":
            return
        self.state = "stopping"
        for conversation in list(self.conversations.values()):
            await self.close(conversation, reason)
        if self.connections:
            await asyncio.wait(self.connections, timeout=FAREWELL)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.scheduler.stop)
        self.encoders.shutdown(wait=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _begin(self) -> None:
        try:
            self.talker = await asyncio.to_thread(self._load)
            self.stage = Stage(self.talker, self.pace)
            self.scheduler.add(self.stage)
            self.scheduler.start()
            self.sources = Sources(self.talker, self.limits, self.on_model, self.crop)
            self.jobs = Jobs(self.scheduler, self.limits, self.metrics)
            sample = await self.sources.get("sample")
            await self.on_model(lambda: self._warm_up(sample))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
            log.debug("starting failed", exc_info=True)
            return
        self._tasks += [asyncio.ensure_future(self.jobs.run()), asyncio.ensure_future(self._keep_house())]
        if self.state == "starting":
            self.state = "ready"

    def _warm_up(self, sample) -> None:
        """Talk for a second, twice: the first time is slow, the second says how fast this machine is."""
        for _ in range(2):
            session = self.talker.session(sample, nfe=self.nfe, guidance_scale=self.guidance, windows=(5,))
            session.push(np.zeros(SAMPLE_RATE, np.float32))
            session.flush()
            motion = []
            begun = time.perf_counter()
            while (portion := session.next_motion()) is not None:
                motion.append(portion)
            moved = time.perf_counter()
            drawn = sum(1 for _ in self.talker.render(sample, [portion[:2] for portion in motion]))
            self.pace.window_seconds = (moved - begun) / len(motion)
            self.pace.motion_seconds = (moved - begun) / FPS
            self.pace.drawing_seconds = (time.perf_counter() - moved) / drawn * self.pace.workers

    async def _keep_house(self) -> None:
        """Let go of what nobody wants any more."""
        while True:
            limits = self.limits
            await asyncio.sleep(min(HOUSEKEEPING, limits.keep_seconds, limits.silent_seconds, limits.blind_seconds))
            self.sources.expire(conversation.hello.source for conversation in self.conversations.values())
            self.jobs.expire()
            now = time.monotonic()
            for conversation in list(self.conversations.values()):
                blind = isinstance(conversation.face, Mirror)
                most = self.limits.blind_seconds if blind else self.limits.silent_seconds
                if now - conversation.face.asked > most:
                    lacking = "the camera showed nothing for" if blind else "nothing was asked for in"
                    await self.close(conversation, f"{lacking} {most / 60:.3g} minutes")

    async def on_model(self, function: Callable[[], Any]) -> Any:
        """Run it in the model's thread, in its turn."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future = loop.create_future()

        def settle(set_it: Callable, value) -> None:
            loop.call_soon_threadsafe(lambda: future.cancelled() or set_it(value))

        self.scheduler.add(
            Once(
                function,
                lambda result: settle(future.set_result, result),
                lambda error: settle(future.set_exception, error),
            )
        )
        return await future

    # ------------------------------------------------------------------------------------------------------ for clients

    def check_ready(self) -> None:
        """Raises Refusal while starting or stopping."""
        if self.state != "ready":
            raise busy(f"the server is {self.state}")

    async def open(self, hello: protocol.Hello) -> Conversation:
        """A face for a client. Raises Refusal when there is no room, or no such source; InputError."""
        self.check_ready()
        self._check_room()
        source = await self.sources.get(hello.source)
        self._check_room()  # others came while the picture was being encoded
        conversation = Conversation(self, hello, source)
        self.conversations[conversation.id] = conversation
        self._count()
        if isinstance(conversation.face, Pump):
            self.stage.add(conversation.face)
            self.scheduler.wake()
        else:
            self.scheduler.add(conversation.face)
        return conversation

    async def close(self, conversation: Conversation, reason: str = "closed") -> None:
        """May be called again."""
        if self.conversations.pop(conversation.id, None) is not None:
            if isinstance(conversation.face, Pump):
                self.stage.remove(conversation.face)
            else:
                self.scheduler.remove(conversation.face)
            self._count()
        await conversation.close(reason)

    def conversation(self, name: str) -> Conversation:
        if name not in self.conversations:
            raise missing("the session")
        return self.conversations[name]

    @contextmanager
    def folder_for_request(self) -> Iterator[Path]:
        """A folder for one request's files while they are received; removed when the block raises. Raises Refusal."""
        if self._uploads >= self.limits.uploads:
            raise busy(f"{self._uploads} uploads are under way")
        self._uploads += 1
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._uploads -= 1

    def remove(self, folder: Path) -> None:
        """The files of a request, when they are not needed any more. From any thread."""
        shutil.rmtree(folder, ignore_errors=True)

    def refused(self, refusal: Refusal) -> None:
        self.metrics.refused.labels(refusal.reason).inc()

    def _check_room(self) -> None:
        faces = len(self.conversations)
        if faces >= self.limits.sessions:
            raise busy(f"all {self.limits.sessions} sessions are taken")
        if faces and not self.pace.fits(faces + 1, LEAST_RATE):
            raise busy(f"{faces} sessions are open, and of one more too few frames a second could be drawn")

    def _count(self) -> None:
        self.pace.faces = len(self.conversations)
        self.metrics.sessions.set(len(self.conversations))
