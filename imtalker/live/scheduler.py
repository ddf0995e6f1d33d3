"""One thread works on the model, for everybody in fair turn: whoever needs a result soonest comes first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

log = logging.getLogger("imtalker.live")

SOON = 0.2  # seconds that a single function may wait for faces that are watched live


class Work(Protocol):
    """Something that is done in small steps: a face that talks, a clip that is written."""

    def wants(self, now: float) -> tuple[float, float] | None:
        """(from when a step makes sense, when its result is needed), seconds of `time.monotonic`; None: nothing to do
        until `Scheduler.wake` is called. Quick; never waits."""

    def step(self, now: float) -> bool:
        """Do one portion, well below a second; whether there can be more. Called in the scheduler's thread alone."""

    def fail(self, error: Exception) -> None:
        """A step raised `error`: the work has been removed from the scheduler."""


class Scheduler:
    """Earliest deadline first, one step at a time, so that nobody waits for more than one step of each other.

    A work that is late gets later deadlines by what it skips; so under too much load all are served alike.
    """

    def __init__(self):
        self._works: list[Work] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the running step and end the thread. Works that are left are told nothing."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def add(self, work: Work) -> None:
        with self._changed:
            self._works.append(work)
            self._changed.notify()

    def remove(self, work: Work) -> None:
        """No step of `work` begins after this; one may still be running."""
        with self._changed:
            if work in self._works:
                self._works.remove(work)

    def wake(self) -> None:
        """Something changed what a work wants."""
        with self._changed:
            self._changed.notify()

    def __len__(self) -> int:
        return len(self._works)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                if not work.step(time.monotonic()):
                    self.remove(work)
            except Exception as error:
                self.remove(work)
                log.debug("a step failed", exc_info=True)
                work.fail(error)

    def _next(self) -> Work | None:
        """The work that is ready and needed soonest, as soon as there is one; None: stop."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                wanted = [(times, work) for work in self._works if (times := work.wants(now)) is not None]
                ready = [(times[1], n) for n, (times, _) in enumerate(wanted) if times[0] <= now]
                if ready:
                    return wanted[min(ready)[1]][1]
                first = min((times[0] for times, _ in wanted), default=None)
                self._changed.wait(None if first is None else first - now)
            return None


class Once:
    """One function to be run in the model's thread. `done` is called there with its result, or `failed`."""

    def __init__(self, function: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]):
        self._function, self._done, self.fail = function, done, failed
        self._since = time.monotonic()

    def wants(self, now: float) -> tuple[float, float]:
        return self._since, self._since + SOON

    def step(self, now: float) -> bool:
        self._done(self._function())
        return False
