"""Clips that are made on request: uploaded, queued, written, fetched, forgotten."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ..errors import InputError
from ..media.video import VideoWriter
from .forms import in_clients_words
from .limits import Limits
from .metrics import Metrics
from .refusal import busy, in_words, missing
from .scheduler import Scheduler

log = logging.getLogger("imtalker.live")

ALIVE = 15.0  # seconds after which a report is repeated, so that no proxy takes the connection for dead
YIELDS = 1.0  # seconds that a job's next frames may wait for faces that are watched live
ENDED = ("done", "failed", "cancelled")


class Cancelled(Exception):
    """The job was cancelled while it was being made."""


class Writing:
    """A clip being written, a frame at a step (see `scheduler.Work`)."""

    def __init__(self, clip, path: Path, most_frames: float, tell: Callable[[int], None]):
        """most_frames: a longer clip is an error. tell: told, in the model's thread, the frames written so far."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._clip, self._most, self._tell = clip, most_frames, tell
        self._writer = VideoWriter(path, clip.fps, clip.audio)
        self._frames: Iterator = iter(clip)
        self._cancelled = False
        self._since = time.monotonic()

    def cancel(self) -> None:
        self._cancelled = True

    def wants(self, now: float) -> tuple[float, float]:
        return now, self._since + YIELDS

    def step(self, now: float) -> bool:
        self._since = now
        if self._cancelled:
            raise Cancelled
        frame = next(self._frames, None)
        if frame is None:
            self._writer.__exit__(None, None, None)
            self._end(None)
            return False
        if self._writer.count >= self._most:
            raise InputError(f"the clip is longer than {self._most / self._clip.fps:g} seconds, the limit here: cut it")
        self._writer.write(frame)
        self._tell(self._writer.count)
        return True

    def fail(self, error: Exception) -> None:
        self._writer.__exit__(type(error), error, None)
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        settle = partial(self.done.set_exception, error) if error else partial(self.done.set_result, None)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)


class Job:
    """One clip to be made. state: waiting, running, done, failed or cancelled."""

    def __init__(self, kind: str, folder: Path, prepare: Callable[[], Awaitable], most_seconds: float):
        """kind: animate or reenact. folder: its own. prepare: makes the clip, which makes no frame yet."""
        self.id, self.kind, self.folder = secrets.token_urlsafe(12), kind, folder
        self.state, self.error = "waiting", ""
        self.frames, self.of = 0, 0  # written so far, and in all as far as is known
        self.ended: float | None = None
        self.fetched = False  # its video, once at least
        self.video = folder / "video.mp4"
        self._prepare, self._most_seconds = prepare, most_seconds
        self._changed = asyncio.Event()
        self._task: asyncio.Task | None = None

    @property
    def spent(self) -> bool:
        """Whether it has nothing to give that was not fetched."""
        return self.fetched or self.state in ("failed", "cancelled")

    def report(self) -> dict:
        told = {"id": self.id, "kind": self.kind, "state": self.state, "frames": self.frames, "of": self.of}
        if self.error:
            told["error"] = self.error
        if self.state == "done":
            told["video"] = f"/v1/jobs/{self.id}/video"
        return told

    async def run(self, scheduler: Scheduler) -> None:
        """Make it, from beginning to end. Ends without an exception, unless whoever waits for it is cancelled."""
        self._task = asyncio.ensure_future(self._make(scheduler))
        try:
            await asyncio.wait([self._task])
        finally:  # the server stops, and not the job alone
            self._task.cancel()
            await asyncio.wait([self._task])
            if self.state not in ENDED:  # cancelled before it began
                self._end("cancelled")

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif self.state == "waiting":
            self._end("cancelled")

    async def events(self) -> AsyncIterator[dict]:
        """Reports, one at once, one whenever something changed and one after ALIVE seconds without, up to its end."""
        while True:
            told = self.report()
            yield told
            if told["state"] in ENDED:
                return
            if told == self.report():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), ALIVE)
            self._changed = asyncio.Event() if self._changed.is_set() else self._changed

    async def _make(self, scheduler: Scheduler) -> None:
        self.state = "running"
        self._notify()
        loop = asyncio.get_running_loop()
        writing = None
        try:
            clip = await self._prepare()
            self.of = clip.expected or 0  # grows as it is made
            writing = Writing(
                clip,
                self.video,
                self._most_seconds * float(clip.fps),
                lambda frames: loop.call_soon_threadsafe(self._progress, frames),
            )
            scheduler.add(writing)
            await asyncio.shield(writing.done)
            self.of = self.frames
            self._end("done")
        except asyncio.CancelledError:
            if writing is not None and not writing.done.done():
                writing.cancel()
                scheduler.wake()
                await asyncio.wait([writing.done])
            if writing is not None:
                writing.done.exception()  # taken notice of
            self._end("cancelled")
            raise
        except InputError as error:
            self.error = str(in_clients_words(error, self.folder))
            self._end("failed")
        except Exception as error:
            log.exception("job %s failed", self.id)
            self.error = in_words(error)
            self._end("failed")

    def _progress(self, frames: int) -> None:
        self.frames, self.of = frames, max(self.of, frames)
        self._notify()

    def _end(self, state: str) -> None:
        self.state, self.ended = state, time.monotonic()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()


class Jobs:
    """All jobs: one is made at a time, in the order in which they came; ended ones are kept for a while."""

    def __init__(self, scheduler: Scheduler, limits: Limits, metrics: Metrics):
        self._scheduler, self._limits, self._metrics = scheduler, limits, metrics
        self._jobs: dict[str, Job] = {}
        self._coming = 0  # being uploaded
        self._added = asyncio.Event()
        metrics.queue.set_function(lambda: sum(job.state == "waiting" for job in list(self._jobs.values())))

    @contextmanager
    def room(self) -> Iterator[None]:
        """Room for one more while it is uploaded. Where there is none, the oldest that has nothing to give any more
        is forgotten. Raises Refusal when there is no such job."""
        self.expire()
        if self._coming + len(self._jobs) >= self._limits.jobs:
            spent = next((job for job in self._jobs.values() if job.spent), None)
            if spent is None:
                raise busy(f"{self._coming + len(self._jobs)} clips are uploaded, wait or were not fetched yet")
            self.drop(spent.id)
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def add(self, job: Job) -> Job:
        self._jobs[job.id] = job
        self._added.set()
        return job

    def get(self, name: str) -> Job:
        if name not in self._jobs:
            raise missing("the job")
        return self._jobs[name]

    def drop(self, name: str) -> None:
        """Cancel it if it is not ended, and forget it with its files."""
        job = self.get(name)
        del self._jobs[name]
        if job.state == "waiting":
            self._metrics.jobs.labels("cancelled").inc()
        job.cancel()
        if job.ended is not None:
            shutil.rmtree(job.folder, ignore_errors=True)

    def expire(self) -> None:
        now = time.monotonic()
        for job in list(self._jobs.values()):
            if job.ended is not None and now - job.ended > self._limits.keep_seconds:
                self.drop(job.id)

    async def run(self) -> None:
        """Make jobs for ever."""
        while True:
            job = next((job for job in self._jobs.values() if job.state == "waiting"), None)
            if job is None:
                self._added.clear()
                await self._added.wait()
                continue
            await job.run(self._scheduler)
            self._metrics.jobs.labels(job.state).inc()
            if job.id not in self._jobs:  # dropped meanwhile
                shutil.rmtree(job.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._jobs)
