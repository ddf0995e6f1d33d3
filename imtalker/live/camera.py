"""A face that does what the one before a camera does, while it does it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..clock import FPS, SAMPLES_PER_FRAME
from ..errors import InputError
from ..face import Crop, driving_crop, no_crop
from ..timing import followed
from .outbox import Event, Moment, Outbox
from .pace import Pace
from .refusal import in_words

if TYPE_CHECKING:
    from ..pipeline import IMTalker, Source

log = logging.getLogger("imtalker.live")

NOBODY = "no face was found in the camera's picture: look straight at it, near enough and with light on your face"
LOOK = 1.0  # seconds of pictures in which the face is looked for; where it was then is held


class Mirror:
    """Camera pictures in, each as soon as it comes, frames out. Where the machine is too slow, pictures are left out,
    never queued. `wants`, `step` and `fail` are the scheduler's (see `Work`).

    drawn, skipped: pictures that became frames, or came too fast. Frame numbers count the camera's pictures.
    """

    def __init__(
        self,
        talker: IMTalker,
        source: Source,
        outbox: Outbox,
        pace: Pace,
        wake: Callable[[], None],
        *,
        relative: bool = False,
        crop: bool = True,
    ):
        """relative: add the change since the first picture to the source's own motion. crop: find the face in the
        first second; otherwise the centred square is taken as it is."""
        self.outbox = outbox
        self.drawn = self.skipped = 0
        self.asked = time.monotonic()
        self._talker, self._source, self._pace, self._wake = talker, source, pace, wake
        self._relative, self._find = relative, crop
        self._lock = threading.Lock()
        self._seen = 0  # camera pictures so far
        self._newest: tuple[int, float, np.ndarray] | None = None  # number, when it came, picture
        self._looks: list[np.ndarray] = []
        self._looks_since = 0.0
        self._missed = False  # the client has been told that there is no face
        self._crop: Crop | None = None
        self._first = self._last = None  # motion of the first picture, and of the last

    def see(self, picture: np.ndarray) -> None:
        """One picture, uint8 (H, W, 3) RGB; all of one size. May take long while it looks for the face: not for an
        event loop's thread. Where a second's pictures show no face, the client is told, and the next are looked at; it
        is told of the face that is found at last."""
        now = self.asked = time.monotonic()
        if self._crop is None or picture.shape[:2] != (self._crop.height, self._crop.width):
            self._crop = self._frame(picture, now)
        if self._crop is None:
            return
        with self._lock:
            self.skipped += self._newest is not None
            self._newest = self._seen, now, picture
            self._seen += 1
        self._wake()

    def _frame(self, picture: np.ndarray, now: float) -> Crop | None:
        """Where the face is, once it has been looked at for long enough."""
        if not self._find:
            return no_crop(*picture.shape[:2])
        if not self._looks or self._looks[0].shape != picture.shape:
            self._looks, self._looks_since = [], now
        self._looks.append(picture)
        if now - self._looks_since < LOOK and len(self._looks) < FPS:
            return None
        looks, self._looks = self._looks, []
        self._first = self._last = None
        try:
            crop = driving_crop(looks)
        except InputError:  # nothing that the client got wrong
            self._missed = True
            self.outbox.put(Event("error", {"error": NOBODY}))
            return None
        if self._missed:
            self._missed = False
            self.outbox.put(Event("face", {}))
        return crop

    def wants(self, now: float) -> tuple[float, float] | None:
        with self._lock:
            return None if self._newest is None else (now, self._newest[1] + 1 / FPS)

    def step(self, now: float) -> bool:
        with self._lock:
            (frame, _, picture), self._newest = self._newest, None
        crop = self._crop
        if crop is None or picture.shape[:2] != (crop.height, crop.width):  # they have another size now
            return True
        begun = time.perf_counter()
        read = next(self._talker.driving_motion([picture], crop))
        motion = self._last = followed(read, self._last, self._talker.config.steadying)
        if self._relative:
            self._first = motion if self._first is None else self._first
            motion = self._source.features.motion.float() + motion - self._first
        drawn = next(self._talker.render(self._source, [motion]))
        self._pace.drew(1, time.perf_counter() - begun)
        self.drawn += 1
        self.outbox.put(Moment(frame, drawn, np.zeros(SAMPLES_PER_FRAME, np.float32), time.monotonic()))
        return True

    def fail(self, error: Exception) -> None:
        log.error("a face failed", exc_info=error)
        self.outbox.close(in_words(error))
