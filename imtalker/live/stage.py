"""All faces that talk, as one work of the scheduler: those that need frames soonest are drawn together."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from .pace import Pace
from .pump import Pump

if TYPE_CHECKING:
    from ..pipeline import IMTalker

log = logging.getLogger("imtalker.live")

# Faces drawn at once. A CPU gains nothing by it, and the first would wait for the others.
TOGETHER = {"cpu": 1}
MOST = 8


class Stage:
    """`wants`, `step` and `fail` are the scheduler's (see `Work`); `add` and `remove` may be called from any thread."""

    def __init__(self, talker: IMTalker, pace: Pace):
        self._talker, self._pace = talker, pace
        self._together = TOGETHER.get(str(talker.device).split(":")[0], MOST)
        self._pumps: tuple[Pump, ...] = ()

    def add(self, pump: Pump) -> None:
        self._pumps += (pump,)

    def remove(self, pump: Pump) -> None:
        self._pumps = tuple(other for other in self._pumps if other is not pump)

    def __len__(self) -> int:
        return len(self._pumps)

    def wants(self, now: float) -> tuple[float, float] | None:
        wanted = [pump.wants(now) for pump in self._pumps]
        ready = [needed for since, needed in wanted if since <= now]
        return (now, min(ready)) if ready else min(wanted, default=None)

    def step(self, now: float) -> bool:
        wanted = [(pump.wants(now), pump) for pump in self._pumps]
        ready = sorted(((needed, n) for n, ((since, needed), _) in enumerate(wanted) if since <= now))
        drawn = []
        for pump in (wanted[n][1] for _, n in ready[: self._together]):
            try:
                rows = pump.prepare(now)
            except Exception as error:
                self._give_up(pump, error)
                continue
            if rows is not None:
                drawn.append((pump, rows))
        if not drawn:
            return True
        begun = time.perf_counter()
        try:
            pictures = self._talker.render_together([(pump.source, rows) for pump, rows in drawn])
        except Exception as error:
            for pump, _ in drawn:
                self._give_up(pump, error)
            return True
        self._pace.drew(sum(map(len, pictures)), time.perf_counter() - begun)
        for (pump, _), shown in zip(drawn, pictures):
            pump.show(shown)
        return True

    def fail(self, error: Exception) -> None:
        for pump in self._pumps:
            self._give_up(pump, error)

    def _give_up(self, pump: Pump, error: Exception) -> None:
        log.error("a face failed", exc_info=error)
        self.remove(pump)
        pump.fail(error)
