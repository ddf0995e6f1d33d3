"""All faces that talk, as one work of the scheduler: those that need frames soonest are drawn together."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from .pace import Pace
from .pump import Pump

if TYPE_CHECKING:
    from ..pipeline import IMTalker, Source

log = logging.getLogger("imtalker.live")

# Faces drawn at once. A CPU gains nothing by it, and the first would wait for the others.
TOGETHER = {"cpu": 1}
MOST = 8

Given, Made = TypeVar("Given"), TypeVar("Made")


class _Drawing(NamedTuple):
    needed: float  # when
    pumps: list[Pump]  # whose frames they are
    result: Future[tuple[list[list[np.ndarray]], float]]  # the pictures of each, and the seconds that it took


class Stage:
    """`wants`, `step` and `fail` are the scheduler's (see `Work`); `add` and `remove` may be called from any thread.

    Where several workers draw, motion is made meanwhile, and what they begin is shown in the order of beginning.
    """

    def __init__(self, talker: IMTalker, pace: Pace):
        self._talker, self._pace = talker, pace
        self._together = TOGETHER.get(str(talker.device).split(":")[0], MOST)
        pace.workers = workers = talker.workers.count
        self._most = workers + (workers > 1)  # drawings under way: nobody is without work while motion is made
        self._pumps: tuple[Pump, ...] = ()  # replaced under the lock, never changed
        self._lock = Lock()
        self._under_way: deque[_Drawing] = deque()

    def add(self, pump: Pump) -> None:
        with self._lock:
            self._pumps += (pump,)

    def remove(self, pump: Pump) -> None:
        with self._lock:
            self._pumps = tuple(other for other in self._pumps if other is not pump)

    def __len__(self) -> int:
        return len(self._pumps)

    def wants(self, now: float) -> tuple[float, float] | None:
        wanted = [pump.wants(now) for pump in self._pumps]
        ready = [needed for since, needed in wanted if since <= now]
        if self._under_way:
            ready.append(self._under_way[0].needed)
        return (now, min(ready)) if ready else min(wanted, default=None)

    def step(self, now: float) -> bool:
        wanted = [(*pump.wants(now), pump) for pump in self._pumps]
        ready = sorted(((needed, pump) for since, needed, pump in wanted if since <= now), key=itemgetter(0))
        begun = len(self._under_way) < self._most and self._begin(ready[: self._together], now)
        # Before waiting for a drawing: is there anybody who lacks motion?
        moved = not begun and any(self._try(pump, pump.look_ahead, now) for _, pump in ready)
        if not begun and not moved and self._under_way:
            self._finish(self._under_way.popleft())
        while self._under_way and self._under_way[0].result.done():
            self._finish(self._under_way.popleft())
        return True

    def _begin(self, ready: list[tuple[float, Pump]], now: float) -> bool:
        """Have the next frames of these faces drawn; whether there are any. ready: with when each is needed."""
        faces = [(pump, rows) for _, pump in ready if (rows := self._try(pump, pump.prepare, now)) is not None]
        if not faces:
            return False
        result = self._talker.workers.begin(lambda: self._draw([(pump.source, rows) for pump, rows in faces]))
        self._under_way.append(_Drawing(ready[0][0], [pump for pump, _ in faces], result))
        return True

    def _try(self, pump: Pump, step: Callable[[Given], Made], given: Given) -> Made | None:
        try:
            return step(given)
        except Exception as error:
            self._give_up(pump, error)
            return None

    def _draw(self, faces: list[tuple[Source, Tensor]]) -> tuple[list[list[np.ndarray]], float]:
        begun = time.perf_counter()
        return self._talker.render_together(faces), time.perf_counter() - begun

    def _finish(self, drawing: _Drawing) -> None:
        pumps = [pump if pump in self._pumps else None for pump in drawing.pumps]  # others have gone meanwhile
        try:
            pictures, seconds = drawing.result.result()
        except Exception as error:
            for pump in filter(None, pumps):
                self._give_up(pump, error)
            return
        self._pace.drew(sum(map(len, pictures)), seconds)
        for pump, shown in zip(pumps, pictures):
            if pump is not None:
                self._try(pump, pump.show, shown)

    def fail(self, error: Exception) -> None:
        for pump in self._pumps:
            self._give_up(pump, error)

    def _give_up(self, pump: Pump, error: Exception) -> None:
        log.error("a face failed", exc_info=error)
        self.remove(pump)
        pump.fail(error)
