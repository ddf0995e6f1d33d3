"""From the model's thread to the viewer's: what was made, in order, never more than the viewer can still use."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moment:
    """A 25th of a second of a face: what is seen and what is heard."""

    frame: int  # number on the session's clock: of samples 640 frame to 640 (frame + 1)
    picture: np.ndarray | None  # uint8 (H, W, 3) RGB; None where there was no time to draw it
    sound: np.ndarray  # float32 (640,), 16 kHz
    due: float  # when it shall be seen and heard, seconds of time.monotonic


@dataclass(frozen=True)
class Event:
    """Something to tell the client, JSON: {"type": kind, **details}."""

    kind: str
    details: dict


class Closed(Exception):
    """Nothing more will come; the message says why, in words for the client."""


Item = Moment | Event


class Outbox:
    """A queue with one reader in an event loop. Filling it never waits: where the reader is too slow, the oldest
    moments are dropped and counted; a reader that has begun and then takes nothing for long is taken for gone, and the
    box closes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int = 25, stuck_seconds: float = 10.0):
        """most: moments that wait at most."""
        self.dropped = 0
        self.reason: str | None = None  # why it is closed
        self._loop, self._most, self._stuck_seconds = loop, most, stuck_seconds
        self._items: deque[Item] = deque()
        self._moments = 0
        self._lock = threading.Lock()
        self._filled = asyncio.Event()
        self._closed = asyncio.Event()
        self._taken = math.inf  # when something was asked for last; before the first time nobody is late

    def put(self, item: Item) -> None:
        """From any thread."""
        with self._lock:
            if self.reason is not None:
                return
            self._items.append(item)
            if isinstance(item, Moment):
                self._moments += 1
                if self._moments > self._most:
                    self._items.remove(next(old for old in self._items if isinstance(old, Moment)))
                    self._moments -= 1
                    self.dropped += 1
                    if time.monotonic() - self._taken > self._stuck_seconds:
                        self.reason = f"nothing was taken for {self._stuck_seconds:g} seconds"
            closed = self.reason is not None
        self._notify(closed)

    def take_back(self, frame: int) -> None:
        """Drop the moments from number `frame` on."""
        with self._lock:
            kept = [item for item in self._items if isinstance(item, Event) or item.frame < frame]
            self._moments -= len(self._items) - len(kept)
            self._items = deque(kept)

    def close(self, reason: str) -> None:
        """The reader is told `reason` once it has taken what is there."""
        with self._lock:
            self.reason = self.reason or reason
        self._notify(closed=True)

    async def closed(self) -> None:
        """Wait until it is closed, whether or not everything was taken."""
        await self._closed.wait()

    async def take(self) -> Item:
        """The oldest item, waiting for one. Raises Closed."""
        while True:
            with self._lock:
                self._taken = time.monotonic()
                if self._items:
                    item = self._items.popleft()
                    self._moments -= isinstance(item, Moment)
                    return item
                if self.reason is not None:
                    raise Closed(self.reason)
                self._filled.clear()
            await self._filled.wait()

    def _notify(self, closed: bool = False) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._filled.set)
            if closed:
                self._loop.call_soon_threadsafe(self._closed.set)
